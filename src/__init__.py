"""Faster R-CNN for MindSpore: data, training and evaluation around the detector in ``src.FasterRcnn``."""

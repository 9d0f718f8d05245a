"""Faster R-CNN for MindSpore: data, training and evaluation around the detector in ``src.FasterRcnn``."""

__version__ = "0.2.0"  # noted in checkpoints; pyproject.toml states it too

"""Faster R-CNN for MindSpore: data, training and evaluation around the detector in ``src.FasterRcnn``."""

__version__ = "0.3.0"  # the one place; pyproject.toml, --version, checkpoints and exported files take it from here

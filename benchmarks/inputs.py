"""Inputs that this project and its peer are both measured with; numpy alone."""

import json
from pathlib import Path

import numpy as np

LEVEL_STRIDES = (4, 8, 16, 32)
NUM_BOXES = 10


def training_batch(height: int, width: int, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of noise (B, 3, H, W), boxes (B, 10, 4) xyxy in pixels, and labels (B, 10) from 1 to 3."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(batch_size, 3, height, width)).astype(np.float32)
    low = rng.uniform(0, 0.7, (batch_size, NUM_BOXES, 2)) * (width, height)
    size = rng.uniform(0.05, 0.3, (batch_size, NUM_BOXES, 2)) * (width, height)
    boxes = np.concatenate((low, low + size), axis=2).astype(np.float32)
    return image, boxes, rng.integers(1, 4, (batch_size, NUM_BOXES))


def pyramid(height: int, width: int, num_rois: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of four levels with 256 channels, and RoIs (N, 4) xyxy with sides from 16 to 600 pixels."""
    rng = np.random.default_rng(0)
    levels = [
        rng.normal(size=(1, 256, height // stride, width // stride)).astype(np.float32) for stride in LEVEL_STRIDES
    ]
    side = np.exp(rng.uniform(np.log(16), np.log(600), (num_rois, 2)))
    low = rng.uniform(0, 1, (num_rois, 2)) * (width, height)
    rois = np.concatenate((low, np.minimum(low + side, (width - 1, height - 1))), axis=1)
    return levels, rois.astype(np.float32)


def pooled_gradient(num_rois: int) -> np.ndarray:
    """A gradient for RoIs pooled to 7x7, (N, 256, 7, 7), as the layers behind would hand it back."""
    return np.random.default_rng(1).normal(size=(num_rois, 256, 7, 7)).astype(np.float32)


def some_images(coco_root: str, num_images: int, folder: Path) -> tuple[list[str], Path]:
    """Names of the classes, and in ``folder`` a data set in COCO layout of the first images of another's training."""
    root, annotations = folder / "coco", Path("annotations", "instances_train2017.json")
    content = json.loads(Path(coco_root, annotations).read_text(encoding="utf-8"))
    content["images"] = content["images"][:num_images]
    numbers = {image["id"] for image in content["images"]}
    content["annotations"] = [box for box in content["annotations"] if box["image_id"] in numbers]
    (root / annotations.parent).mkdir(parents=True)
    (root / annotations).write_text(json.dumps(content), encoding="utf-8")
    (root / "train2017").symlink_to(Path(coco_root, "train2017").resolve())
    return [category["name"] for category in content["categories"]], root

"""Small data sets in COCO layout for the tests of record files and pipelines."""

import json
from pathlib import Path

import cv2
import numpy as np

from src.model_utils.config import Config, load_config

CLASSES = ("cat", "dog")


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random image (height, width, 3) uint8 without hard edges; it depends on its arguments alone."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def make_coco(
    root: Path,
    subset: str,
    num_images: int,
    *,
    boxes_of=lambda index: index % 3,
    first_id: int = 100,
    crowd=lambda index: False,
) -> dict:
    """Write images and annotations of one subset; image i has the id first_id - i and boxes_of(i) boxes."""
    (root / subset).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, rows = [], []
    for index in range(num_images):
        name = f"{index:03d}.png"
        cv2.imwrite(str(root / subset / name), smooth_image(30, 40, index))
        images.append({"id": first_id - index, "file_name": name, "width": 40, "height": 30})
        for number in range(boxes_of(index)):
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": first_id - index,
                    "category_id": 10 + number % 2,
                    "bbox": [1 + number % 20, 2.5, 8, 9],
                    "area": 72,
                    "iscrowd": int(crowd(number)),
                }
            )
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 10, "name": "cat"}, {"id": 11, "name": "dog"}],
    }
    write_annotations(root, subset, content)
    return content


def write_annotations(root: Path, subset: str, content: dict) -> None:
    """Write a subset's annotation file."""
    (root / "annotations" / f"instances_{subset}.json").write_text(json.dumps(content))


def config_for(root: Path, *flags: str, mindrecord_dir: Path | None = None, classes=CLASSES) -> Config:
    """The configuration of such a set: a canvas of 128 x 64, batches of 2, one worker; flags come last."""
    values = {
        "coco_root": root,
        "mindrecord_dir": mindrecord_dir or root / "records",
        "device_target": "CPU",
        "coco_classes": ["background", *classes],
        "img_width": 128,
        "img_height": 64,
        "num_parallel_workers": 1,
    }
    values |= dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    return load_config([f"--{key}={value}" for key, value in values.items()])

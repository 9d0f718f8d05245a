"""Small data sets in COCO layout for the tests of annotations, record files and pipelines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from src.model_utils.config import Config, load_config
from src.tools.sample_data import CLASS_NAMES, SampleSpec, make_sample_data
from tests.helpers import BCCD, COCO_SUBSET

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


# ---- sets with labels of people, or generated ones in their place


@dataclass(frozen=True)
class LabelledSet:
    """A data set in COCO layout with category ids 1, 2, ... in the order of its classes, and what it holds."""

    root: Path
    classes: tuple[str, ...]
    num_train: int
    num_train_boxes: int
    num_val: int
    num_val_boxes: int
    flat_boxes: tuple[str, ...]  # of the training set, those without area, as messages name them


def labelled_set(folder: Path) -> LabelledSet:
    """BCCD where it lies beside the repository, else a generated set of its kind in the folder."""
    if BCCD.is_dir():
        flat = ("BloodImage_00338.jpg, annotation 3153", "BloodImage_00343.jpg, annotation 3197")
        return LabelledSet(BCCD, ("RBC", "WBC", "Platelets"), 292, 3943, 72, 945, flat)
    make_sample_data(folder, SampleSpec(num_train=13, num_val=12, width=320, height=240))
    train, val = (
        json.loads((folder / "annotations" / f"instances_{subset}.json").read_text())
        for subset in ("train2017", "val2017")
    )
    names = {image["id"]: image["file_name"] for image in train["images"]}
    rows = train["annotations"][-2:]
    for row, side in zip(rows, (2, 3), strict=True):
        row["bbox"][side] = 0
    write_annotations(folder, "train2017", train)
    flat = tuple(f"{names[row['image_id']]}, annotation {row['id']}" for row in rows)
    return LabelledSet(folder, CLASS_NAMES, 13, len(train["annotations"]), 12, len(val["annotations"]), flat)


def coco_80_root(folder: Path) -> Path:
    """Images of COCO where they lie beside the repository, else painted ones with COCO's 80 categories."""
    if COCO_SUBSET.is_dir():
        return COCO_SUBSET
    content = make_coco(folder, "val2017", 6, boxes_of=lambda index: 20)
    gaps = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    ids = [number for number in range(1, 91) if number not in gaps]
    names = load_config([]).class_names
    content["categories"] = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    for index, row in enumerate(content["annotations"]):
        row["category_id"] = ids[7 * index % 80]
    write_annotations(folder, "val2017", content)
    return folder


# ---- records


def rows_of(paths: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of record files."""
    import mindspore.dataset as ds  # takes a second

    dataset = ds.MindDataset(list(paths), shuffle=False, num_parallel_workers=1)
    return list(dataset.create_dict_iterator(num_epochs=1, output_numpy=True))


def image_ids(paths: Sequence[str]) -> list[int]:
    """The image ids in record files, sorted."""
    return sorted(int(row["image_id"]) for row in rows_of(paths))


def names_in(folder: Path) -> list[str]:
    """What lies in a folder of record sets, but for locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def set_of(paths: Sequence[str]) -> Path:
    """The folder of a set of records."""
    (folder,) = {Path(path).parent for path in paths}
    return folder

"""The images and boxes of a run, from its COCO or TXT file: for training, and as the ground truth of an evaluation."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.common.wording import count_of, listed
from src.data.coco_file import bbox_numbers, is_side, load_coco_file
from src.data.data_paths import annotation_file, find_below, image_folder
from src.data.image_annotation import ImageAnnotation, as_float32, box_faults
from src.data.txt_file import read_txt
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

# ---- public readers --------------------------------------------------------------------------------------


def load_annotations(config: Config, *, training: bool, remarks: list[str] | None = None) -> list[ImageAnnotation]:
    """Read and check the annotation file that the configuration names.

    Args:
        config (Config): gives the files, `coco_classes` and `ignore_unknown`.
        training (bool): the training or the evaluation file.
        remarks (list[str] | None): takes what there is to say about the file; None: it goes to the log.

    Returns:
        list[ImageAnnotation]: one per image in the file's order, also those without boxes.

    Raises:
        UserError: a file is missing or says something that cannot be; names file, place and what is expected.
    """
    path = annotation_file(config, training=training)
    root = image_folder(config, training=training)
    found: list[str] = []
    if config.dataset == "other":
        annotations = read_txt(path, root, num_fg_classes=len(config.class_names))
    else:
        annotations = read_coco(
            path, root, config.class_names, training=training, ignore_unknown=config.ignore_unknown, remarks=found
        )
    if training:
        learnt = {int(label) for annotation in annotations for label in annotation.labels[~annotation.is_crowd]}
        unseen = [name for label, name in enumerate(config.class_names, start=1) if label not in learnt]
        if unseen and learnt:
            found.append(f"no box of {listed(unseen)}: nothing to learn these classes from")
    if remarks is None:
        _log_remarks(found, path)
    else:
        remarks += found
    return annotations


def _log_remarks(remarks: Sequence[str], path: Path) -> None:
    for remark in remarks:
        LOGGER.warning("%s: %s", path, remark)


# ---- COCO ------------------------------------------------------------------------------------------------


def read_coco(
    path: str | Path,
    image_root: str | Path,
    class_names: Sequence[str],
    *,
    training: bool = True,
    ignore_unknown: bool = False,
    remarks: list[str] | None = None,
) -> list[ImageAnnotation]:
    """Read a COCO annotation file; see `load_annotations`.

    Args:
        path (str | Path): the JSON file.
        image_root (str | Path): the folder its file names start from.
        class_names (Sequence[str]): the K foreground classes; the file's categories are matched by name.
        training (bool): a file to learn from must have a category for every class.
        ignore_unknown (bool): leave out boxes of other classes, with a count, instead of refusing them.
        remarks (list[str] | None): takes what there is to say about the file; None: it goes to the log.

    Returns:
        list[ImageAnnotation]: one per entry of `images`, in their order.

    Raises:
        UserError: names the file and the entry.
    """
    path, image_root = Path(path), Path(image_root).resolve()
    content = load_coco_file(path, class_names, training=training, ignore_unknown=ignore_unknown)
    rows_of: dict[int, list[dict]] = {image["id"]: [] for image in content.images}
    unknown: Counter[int] = Counter()
    for row in content.annotations:
        if row["category_id"] in content.label_of:
            rows_of[row["image_id"]].append(row)
        else:
            unknown[row["category_id"]] += 1
    if unknown:
        name_of = {category["id"]: category["name"] for category in content.categories}
        content.remarks.append(
            f"{count_of(unknown.total(), 'box', 'boxes')} of classes not in coco_classes left out: "
            + listed([f"{name_of[key]} ({number})" for key, number in unknown.most_common()])
        )
    if remarks is None:
        _log_remarks(content.remarks, path)
    else:
        remarks += content.remarks
    annotations = [
        _image_from_coco(image, rows_of[image["id"]], content.label_of, path, image_root) for image in content.images
    ]
    name_of_path: dict[Path, str] = {}
    for annotation in annotations:
        other = name_of_path.setdefault(annotation.path, annotation.file_name)
        if other != annotation.file_name:
            raise UserError(
                f"{path}: {other!r} and {annotation.file_name!r} (id {annotation.image_id}) are the same "
                f"file {annotation.path}; every image may occur once"
            )
    return annotations


def _image_from_coco(
    image: dict, rows: list[dict], label_of: dict[int, int], path: Path, image_root: Path
) -> ImageAnnotation:
    boxes = np.array([bbox_numbers(row, path) for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # x2 = x + width
    width, height = image.get("width"), image.get("height")
    if is_side(width) and is_side(height):
        size = width, height
    elif width is None and height is None:
        size = None
    else:
        raise UserError(
            f"{path}: image {image['id']} ({image['file_name']}) has width {width!r} and height {height!r}; "
            "expected two positive integers"
        )
    return ImageAnnotation(
        image_id=image["id"],
        file_name=image["file_name"],
        path=find_below(image_root, image["file_name"]),
        size=size,
        boxes_xyxy=as_float32(boxes),
        labels=np.array([label_of[row["category_id"]] for row in rows], np.int32),
        is_crowd=np.array([row.get("iscrowd", 0) for row in rows], bool),
        box_ids=np.array([row["id"] for row in rows], np.int64),
        box_word="annotation",
    )


# ---- ground truth ----------------------------------------------------------------------------------------


def coco_ground_truth(config: Config, *, silent: bool = False) -> dict[str, list[dict]]:
    """The evaluation ground truth in COCO's format.

    A COCO file is returned as it counts (`src.data.coco_file`), own category ids and boxes without area included, so
    that scores compare with those of any other COCO evaluation; only boxes with NaN or infinity, which nothing can be
    measured against, are left out. Classes of `coco_classes` that the file lacks are added as categories without
    boxes. From a TXT list image ids are 1, 2, ..., category ids the class numbers 1..K, and boxes without area, which
    no detection can match, are left out.

    Args:
        config (Config): gives the files, `coco_classes` and `ignore_unknown`.
        silent (bool): the remarks about the file have been logged, with its records.

    Returns:
        dict[str, list[dict]]: `images`, `annotations` (bbox as x, y, width, height) and `categories`.

    Raises:
        UserError: as `load_annotations`.
    """
    path = annotation_file(config, training=False)
    if config.dataset == "other":
        root = image_folder(config, training=False)
        ground_truth = _txt_ground_truth(
            read_txt(path, root, num_fg_classes=len(config.class_names)), config.class_names
        )
    else:
        ground_truth = _coco_ground_truth(config, path, silent=silent)
    known = set(category_ids(config, ground_truth))
    if not any(row["category_id"] in known and not row.get("iscrowd") for row in ground_truth["annotations"]):
        LOGGER.warning(
            "%s has no box of %s that is not a crowd: nothing can be scored, and every metric will be -1",
            path,
            listed(config.class_names),
        )
    return ground_truth


def _coco_ground_truth(config: Config, path: Path, *, silent: bool) -> dict[str, list[dict]]:
    content = load_coco_file(path, config.class_names, training=False, ignore_unknown=config.ignore_unknown)
    if not silent:
        _log_remarks(content.remarks, path)
    finite = [all(map(math.isfinite, bbox_numbers(row, path))) for row in content.annotations]
    dropped = [f"annotation {row['id']}" for row, good in zip(content.annotations, finite, strict=True) if not good]
    if dropped:
        LOGGER.warning(
            "%s: %s with NaN or infinity left out: %s", path, count_of(len(dropped), "box", "boxes"), listed(dropped)
        )
    known = {category["name"] for category in content.categories}
    first_free = max((category["id"] for category in content.categories), default=0) + 1
    added = [
        {"id": first_free + index, "name": name}
        for index, name in enumerate(name for name in config.class_names if name not in known)
    ]
    return {
        "images": content.images,
        "categories": content.categories + added,
        "annotations": [row for row, good in zip(content.annotations, finite, strict=True) if good],
    }


def category_ids(config: Config, ground_truth: dict[str, list[dict]]) -> tuple[int, ...]:
    """The ground truth's category id of every foreground class.

    Args:
        config (Config): gives `coco_classes`.
        ground_truth (dict): from `coco_ground_truth`.

    Returns:
        tuple[int, ...]: K ids; entry 0 belongs to the first class after background, detector label 0.

    Raises:
        UserError: the ground truth lacks a class.
    """
    id_of = {category["name"]: category["id"] for category in ground_truth["categories"]}
    missing = [name for name in config.class_names if name not in id_of]
    if missing:
        raise UserError(f"the ground truth has no categories named {missing}; coco_classes does not fit it")
    return tuple(id_of[name] for name in config.class_names)


def _txt_ground_truth(annotations: list[ImageAnnotation], class_names: Sequence[str]) -> dict[str, list[dict]]:
    rows: list[dict] = []
    dropped: list[str] = []
    for annotation in annotations:
        faults, _ = box_faults(annotation.boxes_xyxy)
        for index, ((x1, y1, x2, y2), fault) in enumerate(zip(annotation.boxes_xyxy.tolist(), faults, strict=True)):
            if fault:
                dropped.append(f"{annotation.box_name(index)} ({fault})")
                continue
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": annotation.image_id,
                    "category_id": int(annotation.labels[index]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(annotation.is_crowd[index]),
                }
            )
    if dropped:
        LOGGER.warning("%s left out of the ground truth: %s", count_of(len(dropped), "box", "boxes"), listed(dropped))
    return {
        "images": [{"id": annotation.image_id, "file_name": annotation.file_name} for annotation in annotations],
        "annotations": rows,
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)],
    }

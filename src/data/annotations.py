"""Annotation files: COCO JSON and TXT lists, read into one list of `ImageAnnotation`, and checked.

TXT lists hold one image a line, separated by blanks or tabs: its path below the image folder, in double
quotes if it has blanks in it, then any number of boxes `xmin,ymin,xmax,ymax,class[,iscrowd]` in pixels, the
class counted from 1 in the order of `coco_classes` (background is 0 and has no boxes):

    first.jpg 10,20,110.5,220,1 5,5,50,50,2,1
    "my second image.jpg"

A line without boxes is an image to learn background from. Empty lines are left out.
"""

import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.common.wording import count_of, listed, listed_below, short
from src.data.coco_file import bbox_numbers, is_side, load_coco_file, read_limited
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

_TXT_LINE = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<plain>[^\s"]+))(?:\s+(?P<boxes>.*))?')


@dataclass(frozen=True)
class ImageAnnotation:
    """What the annotation file says of one image.

    Attributes:
        image_id (int): the file's own id; for TXT lists 1, 2, ... in their order.
        file_name (str): as the file writes it.
        path (Path): where the image lies.
        size (tuple[int, int] | None): (width, height) if the file gives them.
        boxes_xyxy (np.ndarray): (N, 4) float32, as written: neither clipped nor checked for area.
        labels (np.ndarray): (N,) int32, 1..K in the order of the foreground classes.
        is_crowd (np.ndarray): (N,) bool.
        box_ids (np.ndarray): (N,) int64, the number by which messages name a box.
        box_word (str): what stands before that number, "annotation" or "line 3, box".
    """

    image_id: int
    file_name: str
    path: Path
    size: tuple[int, int] | None
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    box_ids: np.ndarray
    box_word: str

    def box_name(self, row: int) -> str:
        """The name of one box in messages: image and annotation."""
        return f"{self.file_name}, {self.box_word} {self.box_ids[row]}"


# ---- where things are ------------------------------------------------------------------------------------


def annotation_file(config: Config, *, training: bool) -> Path:
    """The annotation file of training or evaluation.

    COCO: `instance_set` with `train_data_type` or `val_data_type` below `coco_root`, or with `instance_` for
    `instances_` where only that exists; `val_anno_path` or `anno_path`, if given, takes the place of the evaluation
    file. TXT: `anno_path`, and `val_anno_path` for evaluation if it is given.

    Raises:
        UserError: there is no such file; names the path.
    """
    if config.dataset == "coco" and config.anno_path and config.val_anno_path:
        raise UserError("anno_path and val_anno_path both name the evaluation file of a COCO data set; give one")
    if config.dataset == "other" and not (config.anno_path or (config.val_anno_path and not training)):
        raise UserError("dataset 'other' needs anno_path: the TXT file that lists images and boxes")
    if config.val_anno_path and not training:
        keys, path = "val_anno_path", Path(config.val_anno_path)
    elif config.anno_path and (config.dataset == "other" or not training):
        keys, path = "anno_path", Path(config.anno_path)
    else:
        subset_key = "train_data_type" if training else "val_data_type"
        keys = f"coco_root, instance_set and {subset_key}"
        path = Path(config.coco_root) / config.instance_set.replace("{}", getattr(config, subset_key))
        other = path.with_name(path.name.replace("instances_", "instance_", 1))
        if not path.exists() and other.is_file():
            path = other
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"the annotation file {path} {problem}; check {keys}")
    return path


def check_training_lists(config: Config) -> None:
    """Refuse to evaluate a training on the images that it learns from, unless these are named for it.

    Args:
        config (Config): of a training.

    Raises:
        UserError: `run_eval` for a TXT data set without `val_anno_path`; a flag that only evaluation reads, without
            `run_eval`.
    """
    if not config.run_eval:
        unread = {"val_anno_path", *(["anno_path"] if config.dataset == "coco" else [])} & config.command_line
        if unread:
            raise UserError(
                f"--{min(unread)} names what is evaluated, and run_eval is False: training reads "
                f"{annotation_file(config, training=True)}. Leave it out, or add --run_eval=True"
            )
        return
    if config.dataset == "other" and not config.val_anno_path:
        raise UserError(
            "run_eval needs a list of its own for dataset 'other', because anno_path is what is trained "
            "on. Give the TXT file of the evaluation images, --val_anno_path=val.txt, or leave run_eval "
            "out"
        )
    training, evaluation = (annotation_file(config, training=training) for training in (True, False))
    if training.resolve() == evaluation.resolve():
        LOGGER.warning(
            "the evaluation during training scores the images that are trained on, those of %s: the best "
            "checkpoint is then the one that knows them best",
            training,
        )


def image_folder(config: Config, *, training: bool) -> Path:
    """The folder that file names of the annotations start from; UserError when it does not exist."""
    if config.dataset == "other":
        key, folder = "image_dir", Path(config.image_dir)
        if not config.image_dir:
            raise UserError("dataset 'other' needs image_dir: the folder of the images")
    else:
        key = "train_data_type" if training else "val_data_type"
        folder = Path(config.coco_root) / getattr(config, key)
        key = f"coco_root and {key}"
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist; check {key}")
    return folder


def image_path(config: Config, file_name: str) -> Path:
    """Where an evaluation image lies; UserError when its name leads out of the image folder."""
    return find_below(image_folder(config, training=False).resolve(), file_name)


def find_below(root: Path, file_name: str) -> Path:
    """`path_below` for an image: where there is none of this very name, the one whose name looks the same is taken.

    Windows writes folders with backslashes, and macOS splits accents from their letters (Unicode's form NFD).

    Args:
        root (Path): the folder, resolved.
        file_name (str): relative path.

    Returns:
        Path: of an existing file, or of what `file_name` says.

    Raises:
        UserError: see `path_below`.
    """
    for name in _spellings(file_name):
        path = path_below(root, name)
        if os.path.isfile(path):  # noqa: PTH113 - unlike Path's, False for a name that is too long
            return path
    return path_below(root, file_name)


def _spellings(file_name: str) -> Iterator[str]:
    yield file_name
    for name in dict.fromkeys((file_name, file_name.replace("\\", "/"))):
        for form in ("NFC", "NFD"):
            spelling = unicodedata.normalize(form, name)
            if spelling != file_name:
                yield spelling


def path_below(root: Path, file_name: str) -> Path:
    """Join a name from an annotation file to its folder, and hold it there.

    Args:
        root (Path): the folder, resolved.
        file_name (str): relative path; anything that ends elsewhere, also by a link, is refused.

    Returns:
        Path: the resolved path; whether it exists is not looked at.

    Raises:
        UserError: names the file and the folder.
    """
    try:
        path = (root / file_name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, or a null byte in the name
        raise UserError(f"{file_name!r} is no usable file name ({error})") from error
    if root not in path.parents:
        raise UserError(
            f"{file_name!r} leads to {path}, outside the image folder {root}; images must lie below that folder"
        )
    return path


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
            "%s has no box of %s that is not a crowd: nothing can be scored, and every figure will be -1",
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


def _log_remarks(remarks: Sequence[str], path: Path) -> None:
    for remark in remarks:
        LOGGER.warning("%s: %s", path, remark)


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
    size = image.get("width"), image.get("height")
    if size != (None, None) and not all(map(is_side, size)):
        raise UserError(
            f"{path}: image {image['id']} ({image['file_name']}) has width {size[0]!r} and height "
            f"{size[1]!r}; expected two positive whole numbers"
        )
    return ImageAnnotation(
        image_id=image["id"],
        file_name=image["file_name"],
        path=find_below(image_root, image["file_name"]),
        size=None if size == (None, None) else size,
        boxes_xyxy=_as_float32(boxes),
        labels=np.array([label_of[row["category_id"]] for row in rows], np.int32),
        is_crowd=np.array([row.get("iscrowd", 0) for row in rows], bool),
        box_ids=np.array([row["id"] for row in rows], np.int64),
        box_word="annotation",
    )


# ---- TXT -------------------------------------------------------------------------------------------------


def read_txt(path: str | Path, image_root: str | Path, num_fg_classes: int) -> list[ImageAnnotation]:
    """Read a TXT annotation list; the module's docstring describes the format.

    Args:
        path (str | Path): the list, UTF-8, with or without byte order mark, Unix or Windows line ends.
        image_root (str | Path): the folder its paths start from.
        num_fg_classes (int): K; classes are 1..K.

    Returns:
        list[ImageAnnotation]: one per line that is not empty; image ids are 1, 2, ...

    Raises:
        UserError: lists line numbers, texts and reasons.
    """
    path, image_root = Path(path), Path(image_root).resolve()
    annotations, faults = [], []
    line_of: dict[Path, int] = {}
    for number, line in enumerate(read_limited(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            annotation = _image_from_line(line, number, len(annotations) + 1, image_root, num_fg_classes)
            if annotation.path in line_of:
                raise ValueError(f"{annotation.file_name!r} is already on line {line_of[annotation.path]}")
        except (ValueError, UserError) as error:
            text = line.decode(errors="backslashreplace").strip()
            faults.append(f"line {number}, {short(repr(text))}: {error}")
            continue
        line_of[annotation.path] = number
        annotations.append(annotation)
    if faults:
        raise UserError(
            f"{path}: {count_of(len(faults), 'line')} cannot be read; expected 'path "
            "xmin,ymin,xmax,ymax,class[,iscrowd] ...', names with spaces in double quotes:"
            f"{listed_below(faults)}"
        )
    return annotations


def _image_from_line(line: bytes, number: int, image_id: int, image_root: Path, num_fg_classes: int) -> ImageAnnotation:
    """Parse one line; ValueError says what is wrong with it."""
    try:
        match = _TXT_LINE.fullmatch(line.decode().strip())
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    if match is None:
        raise ValueError("a double quote is missing")
    words = (match["boxes"] or "").split()
    rows = np.array([_box_numbers(word, num_fg_classes) for word in words], np.float64).reshape(-1, 6)
    file_name = match["quoted"] or match["plain"]
    return ImageAnnotation(
        image_id=image_id,
        file_name=file_name,
        path=find_below(image_root, file_name),
        size=None,
        boxes_xyxy=_as_float32(rows[:, :4]),
        labels=rows[:, 4].astype(np.int32),
        is_crowd=rows[:, 5].astype(bool),
        box_ids=np.arange(1, len(rows) + 1),
        box_word=f"line {number}, box",
    )


def _box_numbers(word: str, num_fg_classes: int) -> list[float]:
    """`xmin,ymin,xmax,ymax,class[,iscrowd]` as six numbers; ValueError says what is wrong."""
    parts = word.split(",")
    if len(parts) not in (5, 6):
        raise ValueError(f"{short(repr(word))} is no box: it has {count_of(len(parts), 'part')}, not 5 or 6")
    try:
        corners = [float(part) for part in parts[:4]]
        label, crowd = (int(part) for part in (*parts[4:], "0")[:2])
    except ValueError as error:
        raise ValueError(
            f"{short(repr(word))} is no box: four numbers, a class number and perhaps 0 or 1 belong there"
        ) from error
    if not 1 <= label <= num_fg_classes:
        raise ValueError(
            f"class {label} of {short(repr(word))} is not one of 1..{num_fg_classes}, the numbers "
            "of coco_classes without background"
        )
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {crowd} of {short(repr(word))} is neither 0 nor 1")
    return [*corners, label, crowd]


def _txt_ground_truth(annotations: list[ImageAnnotation], class_names: Sequence[str]) -> dict[str, list[dict]]:
    rows, dropped = [], []
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


# ---- boxes -----------------------------------------------------------------------------------------------


def box_faults(boxes_xyxy: np.ndarray, size: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Say which boxes cannot be trained on, and clip the others to the image.

    Args:
        boxes_xyxy (np.ndarray): (N, 4) float32.
        size (tuple[int, int] | None): (width, height) of the image; None leaves boxes unclipped.

    Returns:
        tuple[np.ndarray, np.ndarray]: (N,) str, "" for a good box and otherwise what is wrong with it; and the
        boxes (N, 4) float32, clipped to [0, width] x [0, height].
    """
    finite = np.isfinite(boxes_xyxy).all(axis=1)
    limits = np.array([np.inf] * 4 if size is None else size * 2, np.float32)
    clipped = boxes_xyxy if size is None else np.clip(boxes_xyxy, 0, limits)
    faults = np.select(
        [~finite, ~_has_area(boxes_xyxy), ~_has_area(clipped)], ["not finite", "no area", "outside the image"], ""
    )
    return faults, clipped


def _has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _as_float32(boxes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large a number becomes infinity: not finite
        return boxes.astype(np.float32)

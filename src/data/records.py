"""MindRecord files: images and boxes, checked once and packed for fast reading.

Each set of records lies in a folder of its own in `mindrecord_dir`, named after what it holds: `train-` or `eval-` and
a digest of annotations, image folder, classes, and size and time of every image. So two programs may work in the
same place, and a set never stands for other images. Beside the records lies `manifest.json`: what they were made
from, their sizes, and what was left out. A set is written in a hidden folder and renamed when it is whole;
killed at any moment, the next run finds a whole set or makes one.

When a set is made, those of its kind that it replaces are removed: of the same annotation file and image folder,
those whose annotation file is gone, and that of the first release; not while a program uses them.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.mindrecord import FileWriter
from tqdm import tqdm

from src.common.files import open_to_others, write_json
from src.common.wording import MAX_LISTED, count_of, listed, listed_below
from src.data.annotations import (
    ImageAnnotation,
    annotation_file,
    box_faults,
    find_below,
    image_folder,
    load_annotations,
)
from src.data.image_files import MAX_IMAGE_BYTES, ImageError, checked_rgb_of, read_bytes, stored_bytes
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

TRAIN_NAME, NUM_TRAIN_FILES = "FasterRcnn.mindrecord", 8
EVAL_NAME, NUM_EVAL_FILES = "FasterRcnn_eval.mindrecord", 1
MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # of rows and manifest; another number makes old records stale
# An image without boxes has one row of zeros and num_boxes 0: MindRecord gives back garbage for empty arrays.
SCHEMA = {
    "image": {"type": "bytes"},
    "image_id": {"type": "int64"},
    "num_boxes": {"type": "int32"},
    "box": {"type": "float32", "shape": [-1, 4]},
    "label": {"type": "int32", "shape": [-1]},
    "crowd": {"type": "int32", "shape": [-1]},
}
ROWS_PER_WRITE = 64
STALL_SECONDS = 600.0  # who waits gives up when nothing has changed for so long
# From this share of boxes on it looks as if they were meant otherwise.
SUSPICIOUS_SHARE = 0.3
_PAGE_SIZES = [1 << power for power in range(25, 29)]  # MindRecord's default, 32 MB, to its limit
_PAGE_SLACK = 1 << 20  # of a page, for what is not the image
_HASH_BLOCK = 1 << 20

# Manifests of the sets that this process reads, kept open: their locks say that the sets are in use, until it ends.
_in_use = []


class SizeMismatch(UserError):
    """An image whose width and height are not those of its annotation."""


@dataclass
class ConversionReport:
    """What a set of records holds and what was left out of it; kept in the manifest.

    Attributes:
        num_images (int): images in the records.
        num_boxes (int): boxes that can be trained on.
        num_crowd (int): crowd boxes, kept as invalid rows.
        num_clipped (int): boxes of both kinds that reached over the image's edge.
        num_like_corners (int): of these, those whose width and height would be a corner inside the image.
        longest_side (float): of all boxes, pixels.
        num_without_boxes (int): images with neither.
        remarks (list[str]): about the annotation file, see `src.data.coco_file`.
        dropped (list[str]): boxes left out, each by image, annotation and reason.
        crowded (dict[str, int]): images with more than `num_gts` boxes, and how many they have.
        skipped (list[str]): images left out because they could not be read, each with the reason.
    """

    num_images: int = 0
    num_boxes: int = 0
    num_crowd: int = 0
    num_clipped: int = 0
    num_like_corners: int = 0
    longest_side: float = 0.0
    num_without_boxes: int = 0
    remarks: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    crowded: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RecordSets:
    """The sets of one kind in a folder, and the one that a run needs of them.

    Attributes:
        folder (Path): `mindrecord_dir`.
        kind (str): "train" or "eval".
        source (dict): all that the content of the set depends on, but for the images themselves.
        tolerant (bool): a set without the images that cannot be read will do.
    """

    folder: Path
    kind: str
    source: dict[str, Any]
    tolerant: bool

    @property
    def name(self) -> str:
        """What the record files are called, before a number where there are several."""
        return TRAIN_NAME if self.kind == "train" else EVAL_NAME

    @property
    def data_names(self) -> list[str]:
        """The files that a reader is given."""
        return [f"{TRAIN_NAME}{index}" for index in range(NUM_TRAIN_FILES)] if self.kind == "train" else [EVAL_NAME]

    @property
    def file_names(self) -> list[str]:
        """All files: MindRecord keeps an index beside each data file."""
        return [name + suffix for name in self.data_names for suffix in ("", ".db")]

    @property
    def prefix(self) -> str:
        """What the folders of all sets with this source begin with."""
        return f"{self.kind}-{_digest(self.source)}-"

    @property
    def unfinished(self) -> Path:
        """The folder where the records are written first."""
        return self.folder / f".{self.kind}-{os.getuid()}.unfinished"

    def find(self) -> Path | None:
        """The folder of a whole set that holds the images as they are now."""
        for place in sorted(self.folder.glob(f"{self.prefix}*")):
            manifest = _read_manifest(place)
            if not manifest or (manifest["report"]["skipped"] and not self.tolerant):
                continue
            root = Path(self.source["image_folder"])
            sizes = {name: _file_size(place / name) for name in self.file_names}
            if sizes == manifest["files"] and manifest["pictures"] == _states(root, manifest["pictures"]):
                return place
        return None


def ensure_mindrecord(
    config: Config, *, training: bool, local_rank: int = 0, stall_seconds: float = STALL_SECONDS
) -> list[str]:
    """Give the record files of training or evaluation; they are made when there is no set of these images.

    A set is of these images when annotation file, image folder, `coco_classes`, `num_gts`, `ignore_unknown`, and
    size and time of every image are those it was made from, and nothing was skipped unless `skip_bad_images` says
    so. In a distributed run the first rank of each host makes it; where hosts share the folder, the one that comes
    first. The set stays in use until the process ends.

    Args:
        config (Config): gives data, classes and `mindrecord_dir`.
        training (bool): 8 files `FasterRcnn.mindrecord0..7`, or one file `FasterRcnn_eval.mindrecord`.
        local_rank (int): of this process on its host; all but rank 0 wait until the records are there.
        stall_seconds (float): who waits for another process gives up when nothing has changed for so long.

    Returns:
        list[str]: paths of the record files, for `create_train_dataset` or `create_eval_dataset`.

    Raises:
        UserError: annotations or images are missing or faulty (each is named), the disk is too small, or the process
            waited for has stopped.
    """
    sets = RecordSets(
        Path(config.mindrecord_dir),
        "train" if training else "eval",
        _source(config, training=training),
        training and config.skip_bad_images,
    )
    place = sets.find()
    while place is None or not _take_into_use(place):
        place = _make_or_wait(config, sets, makes=local_rank == 0, stall_seconds=stall_seconds)
    if local_rank == 0:
        report = ConversionReport(**_read_manifest(place)["report"])
        _log_report(sets, place, report, config.num_gts)
    return [str(place / name) for name in sets.data_names]


# ---- what a set is made from -----------------------------------------------------------------------------


def _source(config: Config, *, training: bool) -> dict[str, Any]:
    """All that the content of the records depends on, but for the images themselves."""
    path = annotation_file(config, training=training)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return {
        "format_version": FORMAT_VERSION,
        "dataset": config.dataset,
        "annotation_file": str(path.resolve()),
        "annotations_sha256": digest.hexdigest(),
        "image_folder": str(image_folder(config, training=training).resolve()),
        "coco_classes": list(config.coco_classes),
        "num_gts": config.num_gts,
        "ignore_unknown": config.ignore_unknown,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _states(root: Path, file_names: Iterable[str]) -> dict[str, list[int] | None]:
    """Size in bytes and time of change in ns of images, by the names that the annotation file gives them.

    Of a link those of the image that it leads to; None where there is none.
    """
    states: dict[str, list[int] | None] = {}
    for name in file_names:
        path = root / name  # resolving a hundred thousand paths takes seconds
        try:
            state = os.stat(path if os.path.isfile(path) else find_below(root, name))  # noqa: PTH113, PTH116
            states[name] = [state.st_size, state.st_mtime_ns]
        except OSError:
            states[name] = None
    return states


def _read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a set, or an empty one where it is missing, damaged or of another version."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["source"]["format_version"] == FORMAT_VERSION and ConversionReport(**manifest["report"])
        return manifest if known and {"pictures", "files"} <= set(manifest) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _file_size(path: Path) -> int | None:
    return path.stat().st_size if os.path.isfile(path) else None  # noqa: PTH113 - False for a name too long


# ---- several processes -----------------------------------------------------------------------------------


def _take_into_use(place: Path) -> bool:
    """Keep others from removing a set; False when it has just gone."""
    try:
        stream = (place / MANIFEST).open("rb")
    except FileNotFoundError:
        return False
    fcntl.flock(stream, fcntl.LOCK_SH)
    if not (place / MANIFEST).exists():
        stream.close()
        return False
    _in_use.append(stream)
    return True


@contextlib.contextmanager
def _lock(path: Path, mode: int) -> Iterator[bool]:
    """Try to lock a file; gives whether that went well. A lock ends with its process."""
    with path.open("rb") as stream:  # reading is enough for a lock, and files of other users can be read
        try:
            fcntl.flock(stream, mode | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        yield is_ours


def _make_or_wait(config: Config, sets: RecordSets, *, makes: bool, stall_seconds: float) -> Path:
    """Make the set, or wait while another process makes sets of this kind, as long as something keeps changing."""
    last_state, last_change = None, time.monotonic()
    while True:
        if makes:
            with _conversion_lock(sets) as is_ours:
                if is_ours:
                    # Another process may have made it meanwhile.
                    return sets.find() or _convert(config, sets)
        elif place := sets.find():
            return place
        state = {str(path): _file_size(path) for path in (*sets.folder.glob("*"), *sets.unfinished.glob("*"))}
        if last_state is None and makes:
            LOGGER.info("another process is making records in %s; waiting for it", sets.folder)
        if state != last_state:
            last_state, last_change = state, time.monotonic()
        elif time.monotonic() - last_change > stall_seconds:
            who = "another process" if makes else "the first rank of this host"
            raise UserError(
                f"{who} has not finished the records in {sets.folder}: nothing has changed there for "
                f"{stall_seconds:g} s. See its log; all ranks need the same annotations, classes and "
                "mindrecord_dir, and a program of its own may take another mindrecord_dir"
            )
        time.sleep(min(1.0, stall_seconds / 10))


def _conversion_lock(sets: RecordSets) -> contextlib.AbstractContextManager[bool]:
    try:
        sets.folder.mkdir(parents=True, exist_ok=True)
        (sets.folder / f".{sets.kind}.lock").touch()
    except PermissionError as error:
        if not (sets.folder / f".{sets.kind}.lock").is_file():
            raise _not_writable(sets.folder, error) from error
    except OSError as error:
        raise _not_writable(sets.folder, error) from error
    return _lock(sets.folder / f".{sets.kind}.lock", fcntl.LOCK_EX)


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"mindrecord_dir {folder} cannot be written ({error.strerror}); give another folder with --mindrecord_dir"
    )


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; one in a folder that may not be looked into is not gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _remove_replaced(sets: RecordSets, made: Path) -> None:
    """Remove the sets that nothing needs any more; see the module's docstring for the rule."""
    removed = []
    for place in sorted(sets.folder.glob(f"{sets.kind}-*")):
        source = _read_manifest(place).get("source")
        if place == made or source is None:
            continue
        same = all(source[key] == sets.source[key] for key in ("annotation_file", "image_folder"))
        if not same and not _is_gone(Path(source["annotation_file"])):
            continue
        with contextlib.suppress(OSError), _lock(place / MANIFEST, fcntl.LOCK_EX) as is_free:
            if is_free:
                shutil.rmtree(place, ignore_errors=True)  # another user's may stay
                removed += [] if place.exists() else [place.name]
    first_release = sets.folder / f"{sets.name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for name in json.loads(first_release.read_text(encoding="utf-8"))["files"]:
            (sets.folder / Path(name).name).unlink(missing_ok=True)
        first_release.unlink()
        removed.append(sets.name)
    if removed:
        LOGGER.info(
            "removed %s that nothing uses any more from %s: %s",
            count_of(len(removed), "record set"),
            sets.folder,
            listed(removed),
        )


# ---- conversion ------------------------------------------------------------------------------------------


def _convert(config: Config, sets: RecordSets) -> Path:
    """Check every image and write the records; what is unfinished goes when something fails."""
    report = ConversionReport()
    annotations = load_annotations(config, training=sets.kind == "train", remarks=report.remarks)
    root = Path(sets.source["image_folder"])
    images = _states(root, [annotation.file_name for annotation in annotations])
    annotations, sizes = _existing_images(annotations, report, sets.tolerant)
    _check_free_space(sets.folder, sum(sizes))
    shutil.rmtree(sets.unfinished, ignore_errors=True)  # a killed run left it
    try:
        sets.unfinished.mkdir()
        writer = FileWriter(str(sets.unfinished / sets.name), len(sets.data_names))
        writer.set_page_size(_page_size(max(sizes, default=0)))
        writer.add_schema(SCHEMA, "images, boxes, classes")
        _write_rows(writer, annotations, report, config, sets.tolerant)
        writer.commit()
        for name in sets.file_names:
            open_to_others(sets.unfinished / name)
        write_json(
            sets.unfinished / MANIFEST,
            {
                "source": sets.source,
                "pictures": images,
                "report": dataclasses.asdict(report),
                "files": {name: _file_size(sets.unfinished / name) for name in sets.file_names},
            },
            indent=1,
        )
        made = sets.folder / f"{sets.prefix}{_digest(images)}"
        shutil.rmtree(made, ignore_errors=True)  # a damaged or a tolerant one
        sets.unfinished.rename(made)
    except OSError as error:
        raise _not_writable(sets.folder, error) from error
    finally:
        shutil.rmtree(sets.unfinished, ignore_errors=True)
    _remove_replaced(sets, made)
    return made


def _existing_images(
    annotations: Sequence[ImageAnnotation], report: ConversionReport, tolerant: bool
) -> tuple[list[ImageAnnotation], list[int]]:
    """The images that are there, with their sizes in bytes; the others are refused or skipped."""
    found, sizes, missing = [], [], []
    for annotation in annotations:
        size = _file_size(annotation.path)
        if size is None:
            missing.append(f"{annotation.path}: there is no such file")
        else:
            found.append(annotation)
            sizes.append(min(size, MAX_IMAGE_BYTES))  # larger ones are refused when they are read
    if missing and not tolerant:
        _refuse_images(missing)
    report.skipped += missing
    return found, sizes


def _refuse_images(faults: Sequence[str]) -> None:
    raise UserError(
        f"{count_of(len(faults), 'image')} cannot be used:{listed_below(faults)}\n"
        "repair or remove them and their annotations; for training, skip_bad_images leaves out what cannot be read"
    )


def _check_free_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{folder}: the records need about {num_bytes:,} bytes, {free:,} are free; give another mindrecord_dir"
        )


def _page_size(largest_image: int) -> int:
    """The smallest page of MindRecord that a row with this image fits in."""
    return next(size for size in _PAGE_SIZES if size >= largest_image + _PAGE_SLACK)


def _write_rows(
    writer: FileWriter, annotations: Sequence[ImageAnnotation], report: ConversionReport, config: Config, tolerant: bool
) -> None:
    faults: list[str] = []  # of images that must not be skipped
    progress = tqdm(total=len(annotations), desc="checking images", unit="image", disable=None)
    with progress, ThreadPoolExecutor(num_workers(config)) as pool:
        for first in range(0, len(annotations), ROWS_PER_WRITE):
            chunk = annotations[first : first + ROWS_PER_WRITE]
            rows = []
            for annotation, (image, error) in zip(chunk, pool.map(_read_image, chunk), strict=True):
                if error is None:
                    rows.append(_row(annotation, *image, report, config.num_gts))
                elif tolerant and isinstance(error, ImageError):
                    report.skipped.append(str(error))
                else:
                    faults.append(str(error))
            if len(faults) >= MAX_LISTED:
                break
            if rows and not faults:
                writer.write_raw_data(rows)
            progress.update(len(chunk))
    if faults:
        _refuse_images(faults)
    if not report.num_images:
        raise UserError(f"no image can be used: {listed(report.skipped)}")


def num_workers(config: Config) -> int:
    """`num_parallel_workers`, held to the cores this process may use: MindSpore refuses more."""
    return max(1, min(config.num_parallel_workers, len(os.sched_getaffinity(0))))


def _read_image(annotation: ImageAnnotation) -> tuple[tuple[bytes, tuple[int, int]] | None, UserError | None]:
    """Content and (width, height) of an image that could be decoded, or else what is wrong with it."""
    try:
        data = read_bytes(annotation.path)
        image = checked_rgb_of(annotation.path, data)
        height, width = image.shape[:2]
    except ImageError as error:
        return None, error
    if annotation.size not in (None, (width, height)):
        turned = "; EXIF orientation is not applied" if annotation.size == (height, width) else ""
        return None, SizeMismatch(
            f"{annotation.path}: is {width} x {height} pixels, its annotation says "
            f"{annotation.size[0]} x {annotation.size[1]}{turned}"
        )
    return (stored_bytes(data, image), (width, height)), None


def _row(
    annotation: ImageAnnotation, data: bytes, size: tuple[int, int], report: ConversionReport, num_gts: int
) -> dict[str, Any]:
    """One row of the records, counted in the report."""
    faults, clipped = box_faults(annotation.boxes_xyxy, size)
    good = faults == ""
    report.dropped += [f"{annotation.box_name(row)} ({faults[row]})" for row in np.flatnonzero(~good)]
    boxes, labels, is_crowd = clipped[good], annotation.labels[good], annotation.is_crowd[good]
    num_boxes = len(boxes)
    _look_for_other_formats(annotation.boxes_xyxy, size, report)
    report.num_images += 1
    report.num_crowd += int(is_crowd.sum())
    report.num_boxes += int((~is_crowd).sum())
    report.num_clipped += int((boxes != annotation.boxes_xyxy[good]).any(axis=1).sum())
    report.num_without_boxes += num_boxes == 0
    if num_boxes > num_gts:
        report.crowded[annotation.file_name] = num_boxes
    if num_boxes == 0:
        boxes, labels, is_crowd = np.zeros((1, 4), np.float32), np.zeros(1, np.int32), np.zeros(1, bool)
    return {
        "image": data,
        "image_id": annotation.image_id,
        "num_boxes": num_boxes,
        "box": boxes,
        "label": labels,
        "crowd": is_crowd.astype(np.int32),
    }


def _look_for_other_formats(boxes: np.ndarray, size: tuple[int, int], report: ConversionReport) -> None:
    """Count what tells that boxes were meant as corners or as fractions of the image."""
    sides = boxes[:, 2:] - boxes[:, :2]
    report.longest_side = max(report.longest_side, float(np.nan_to_num(sides).max(initial=0.0)))
    # The width and height of the file, taken for the lower right corner.
    inside = (sides > boxes[:, :2]).all(axis=1) & (sides <= np.array(size) + 1).all(axis=1)
    over = (boxes[:, 2:] > np.array(size)).any(axis=1)
    report.num_like_corners += int((inside & over).sum())


def _log_report(sets: RecordSets, place: Path, report: ConversionReport, num_gts: int) -> None:
    """Say what the records hold, and by name what is not as the annotation file has it."""
    training, manifest = sets.kind == "train", place / MANIFEST
    LOGGER.info(
        "%s in %s: %s, %s, %d crowd boxes, %d boxes clipped to their image, %s without boxes",
        sets.name,
        place,
        count_of(report.num_images, "image"),
        count_of(report.num_boxes, "box", "boxes"),
        report.num_crowd,
        report.num_clipped,
        count_of(report.num_without_boxes, "image"),
    )
    for remark in (*report.remarks, *_doubts(report)):
        LOGGER.warning("%s: %s", sets.source["annotation_file"], remark)
    if report.dropped:
        is_coco_truth = not training and sets.source["dataset"] == "coco"
        kept = "; the ground truth of a COCO file still has them" if is_coco_truth else ""
        LOGGER.warning(
            "%s that cannot be used (all are listed in %s)%s: %s",
            count_of(len(report.dropped), "box", "boxes"),
            manifest,
            kept,
            listed(report.dropped),
        )
    if report.skipped:
        LOGGER.warning(
            "%s skipped (all are listed in %s): %s",
            count_of(len(report.skipped), "image"),
            manifest,
            listed(report.skipped),
        )
    if training and report.crowded:
        LOGGER.warning(
            "%s with more than num_gts = %d boxes, of which each epoch takes another random choice: %s",
            count_of(len(report.crowded), "image"),
            num_gts,
            listed([f"{name} ({number})" for name, number in report.crowded.items()]),
        )
    if training and not report.num_boxes:
        LOGGER.warning("no image has a box to learn from: only background can be learnt")


def _doubts(report: ConversionReport) -> Iterator[str]:
    """Sentences about boxes that look as if they were meant otherwise."""
    total = report.num_boxes + report.num_crowd + len(report.dropped)
    num_flat = sum(text.endswith("(no area)") for text in report.dropped)
    if total and 0 < report.longest_side <= 1:
        yield (
            f"no box is wider or higher than 1 pixel (the longest side is {report.longest_side:g}): are they "
            "fractions of the image's width and height? Expected are pixels"
        )
    elif report.num_clipped > SUSPICIOUS_SHARE * total:
        guess = ""
        if report.num_like_corners > report.num_clipped / 2:
            guess = ": are they corners, x1, y1, x2, y2? Expected are x, y, width, height"
        yield f"{report.num_clipped} of {count_of(total, 'box', 'boxes')} reach over the edge of their image{guess}"
    elif num_flat > SUSPICIOUS_SHARE * total:
        yield (
            f"{num_flat} of {count_of(total, 'box', 'boxes')} have no area: are they x, y, width, height in a list "
            "of corners, x1, y1, x2, y2?"
        )

"""MindRecord files: pictures and boxes, checked once and packed for fast reading.

Beside the records of a set lies a manifest, `NAME.json`: what they were made from, their sizes, and what was
left out. It is written last, so records without a matching manifest are never used:

1. the records are written in `.NAME.unfinished`, a folder of ours that a killed run may leave behind,
2. the manifest is replaced by one that says `complete: false` and names all files about to be changed,
3. old records are removed, new ones moved into place,
4. the manifest says `complete: true`.

Killed at any moment, the next run finds the old set, the new set, or starts again.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.mindrecord import FileWriter
from tqdm import tqdm

from src.annotations import (
    MAX_LISTED,
    ImageAnnotation,
    annotation_file,
    box_faults,
    count_of,
    listed,
    load_annotations,
)
from src.files import write_json
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.transforms import MAX_PICTURE_BYTES, PictureError, checked_rgb_of, read_bytes

LOGGER = logging.getLogger(__name__)

TRAIN_NAME, NUM_TRAIN_FILES = "FasterRcnn.mindrecord", 8
EVAL_NAME, NUM_EVAL_FILES = "FasterRcnn_eval.mindrecord", 1
FORMAT_VERSION = 1            # of rows and manifest; another number makes old records stale
# A picture without boxes has one row of zeros and num_boxes 0: MindRecord gives back garbage for empty arrays.
SCHEMA = {"image": {"type": "bytes"}, "image_id": {"type": "int64"}, "num_boxes": {"type": "int32"},
          "box": {"type": "float32", "shape": [-1, 4]}, "label": {"type": "int32", "shape": [-1]},
          "crowd": {"type": "int32", "shape": [-1]}}
ROWS_PER_WRITE = 64
STALL_SECONDS = 600.0         # other ranks give up when nothing has changed for so long
_PAGE_SIZES = [1 << power for power in range(25, 29)]      # MindRecord's default, 32 MB, to its limit
_PAGE_SLACK = 1 << 20         # of a page, for what is not the picture
_HASH_BLOCK = 1 << 20


class SizeMismatch(UserError):
    """A picture whose width and height are not those of its annotation."""


@dataclass
class ConversionReport:
    """What a set of records holds and what was left out of it; kept in the manifest.

    Attributes:
        num_images (int): pictures in the records.
        num_boxes (int): boxes that can be trained on.
        num_crowd (int): crowd boxes, kept as invalid rows.
        num_clipped (int): boxes of both kinds that reached over the picture's edge.
        num_without_boxes (int): pictures with neither.
        dropped (list[str]): boxes left out, each by picture, annotation and reason.
        crowded (dict[str, int]): pictures with more than `num_gts` boxes, and how many they have.
        skipped (list[str]): pictures left out because they could not be read, each with the reason.
    """

    num_images: int = 0
    num_boxes: int = 0
    num_crowd: int = 0
    num_clipped: int = 0
    num_without_boxes: int = 0
    dropped: list[str] = field(default_factory=list)
    crowded: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RecordSet:
    """Names of the files of one set: `NAME`, or `NAME0` ... when there are several."""

    folder: Path
    name: str
    num_files: int

    @property
    def data_names(self) -> list[str]:
        """The files that a reader is given."""
        return [self.name] if self.num_files == 1 else [f"{self.name}{index}" for index in range(self.num_files)]

    @property
    def file_names(self) -> list[str]:
        """All files: MindRecord keeps an index beside each data file."""
        return [name + suffix for name in self.data_names for suffix in ("", ".db")]

    @property
    def manifest(self) -> Path:
        """The file that says what the records were made from."""
        return self.folder / f"{self.name}.json"

    @property
    def unfinished(self) -> Path:
        """The folder where the records are written first."""
        return self.folder / f".{self.name}.unfinished"

    @property
    def paths(self) -> list[str]:
        """Full paths of `data_names`."""
        return [str(self.folder / name) for name in self.data_names]


def ensure_mindrecord(config: Config, *, training: bool, local_rank: int = 0, distributed: bool = False,
                      stall_seconds: float = STALL_SECONDS) -> list[str]:
    """Give the record files of training or evaluation; they are made when they are absent or out of date.

    In a distributed run the first rank of each host makes them; where hosts share the folder, the one that comes first.

    Records are out of date when the annotation file, `coco_classes`, `num_gts` or `ignore_unknown` have changed
    since, or `skip_bad_images` was turned off after pictures were skipped. Pictures changed under their old
    name are not noticed: delete the manifest then. Files of these names that this program did not make are
    never touched.

    Args:
        config (Config): gives data, classes and `mindrecord_dir`.
        training (bool): 8 files `FasterRcnn.mindrecord0..7`, or one file `FasterRcnn_eval.mindrecord`.
        local_rank (int): of this process on its host; all but rank 0 wait until the records are there.
        distributed (bool): other processes of this run may make the same records, so wait for them.
        stall_seconds (float): a waiting rank gives up when the folder has not changed for so long.

    Returns:
        list[str]: paths of the record files, for `create_train_dataset` or `create_eval_dataset`.

    Raises:
        UserError: annotations or pictures are missing or faulty (each is named), files of others are in the
            way, a process of another run is converting, the disk is too small, or the rank waited for has stopped.
    """
    name, num_files = (TRAIN_NAME, NUM_TRAIN_FILES) if training else (EVAL_NAME, NUM_EVAL_FILES)
    records = RecordSet(Path(config.mindrecord_dir), name, num_files)
    source = _source(config, training=training)
    tolerant = training and config.skip_bad_images
    if local_rank > 0:
        _wait_for_records(records, source, tolerant, stall_seconds)
    elif not _is_current(records, source, tolerant):
        with _lock(records, wait=distributed):
            # Another host may have made them meanwhile.
            if not _is_current(records, source, tolerant):
                _remove_unfinished(records)
                _check_nothing_foreign(records)
                _convert(config, records, source, training=training, tolerant=tolerant)
    report = ConversionReport(**_read_manifest(records)["report"])
    if local_rank == 0:
        _log_report(records, report, config.num_gts, training=training)
    return records.paths


# ---- manifest --------------------------------------------------------------------------------------------

def _source(config: Config, *, training: bool) -> dict[str, Any]:
    """Everything that the content of the records depends on."""
    path = annotation_file(config, training=training)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return {"format_version": FORMAT_VERSION, "dataset": config.dataset, "annotations_sha256": digest.hexdigest(),
            "coco_classes": list(config.coco_classes), "num_gts": config.num_gts,
            "ignore_unknown": config.ignore_unknown}


def _read_manifest(records: RecordSet) -> dict[str, Any]:
    """The manifest, or an empty one where it is missing or damaged."""
    try:
        manifest = json.loads(records.manifest.read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _is_current(records: RecordSet, source: dict[str, Any], tolerant: bool) -> bool:
    manifest = _read_manifest(records)
    if not manifest.get("complete") or manifest.get("source") != source:
        return False
    if manifest["report"]["skipped"] and not tolerant:
        return False
    sizes = {name: _file_size(records.folder / name) for name in records.file_names}
    return sizes == manifest["files"]


def _file_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check_nothing_foreign(records: RecordSet) -> None:
    """Files of our names that no manifest of ours lists belong to someone else."""
    own = _read_manifest(records).get("files", {})
    foreign = [name for name in records.file_names if (records.folder / name).exists() and name not in own]
    if foreign:
        raise UserError(f"{records.folder} holds {listed(foreign)}, which this program did not make (no entry in "
                        f"{records.manifest.name}); remove them or give another mindrecord_dir")


def _publish(records: RecordSet, source: dict[str, Any], report: ConversionReport) -> None:
    """Move finished records into place; see the module's docstring for the order."""
    write_json(records.manifest, {"complete": False, "files": dict.fromkeys(records.file_names)})
    for name in records.file_names:
        (records.folder / name).unlink(missing_ok=True)
    for name in records.file_names:
        (records.unfinished / name).rename(records.folder / name)
    records.unfinished.rmdir()
    sizes = {name: _file_size(records.folder / name) for name in records.file_names}
    write_json(records.manifest, {"complete": True, "source": source, "files": sizes,
                                  "report": dataclasses.asdict(report)}, indent=1)


# ---- several processes -----------------------------------------------------------------------------------

@contextlib.contextmanager
def _lock(records: RecordSet, *, wait: bool) -> Iterator[None]:
    """Hold a set against other processes; it is released when its process ends, however that happens."""
    path = records.folder / f".{records.name}.lock"
    try:
        records.folder.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    except OSError as error:
        raise UserError(f"mindrecord_dir {records.folder} cannot be written ({error.strerror}); give another "
                        "folder with --mindrecord_dir") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(f"another process is making {records.name} in {records.folder}; wait until it has "
                                "finished or give another mindrecord_dir") from error
            LOGGER.info("another process is making %s in %s; waiting for it", records.name, records.folder)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _wait_for_records(records: RecordSet, source: dict[str, Any], tolerant: bool, stall_seconds: float) -> None:
    """Wait while this host's first rank converts, as long as something in the folder keeps changing."""
    last_state, last_change = None, time.monotonic()
    while not _is_current(records, source, tolerant):
        state = _folder_state(records)
        if state != last_state:
            last_state, last_change = state, time.monotonic()
        elif time.monotonic() - last_change > stall_seconds:
            raise UserError(f"the first rank of this host has not finished {records.name} in {records.folder}: nothing "
                            f"has changed there for {stall_seconds:g} s. See its log; all ranks need the same "
                            "annotations, classes and mindrecord_dir")
        time.sleep(min(1.0, stall_seconds / 10))


def _folder_state(records: RecordSet) -> dict[str, int | None]:
    paths = [*records.folder.glob(f"{records.name}*"), *records.unfinished.glob("*")]
    return {str(path): _file_size(path) for path in paths}


def _remove_unfinished(records: RecordSet) -> None:
    """Remove what a killed run left; only called under the lock."""
    if records.unfinished.is_dir():
        shutil.rmtree(records.unfinished)


# ---- conversion ------------------------------------------------------------------------------------------

def _convert(config: Config, records: RecordSet, source: dict[str, Any], *, training: bool,
             tolerant: bool) -> None:
    """Check every picture and write the records; what is unfinished goes when something fails."""
    annotations = load_annotations(config, training=training)
    report = ConversionReport()
    annotations, sizes = _existing_pictures(annotations, report, tolerant)
    _check_free_space(records.folder, sum(sizes))
    records.unfinished.mkdir()
    try:
        writer = FileWriter(str(records.unfinished / records.name), records.num_files)
        writer.set_page_size(_page_size(max(sizes, default=0)))
        writer.add_schema(SCHEMA, "pictures, boxes, classes")
        _write_rows(writer, annotations, report, config, tolerant)
        writer.commit()
        _publish(records, source, report)
    finally:
        _remove_unfinished(records)


def _existing_pictures(annotations: Sequence[ImageAnnotation], report: ConversionReport,
                       tolerant: bool) -> tuple[list[ImageAnnotation], list[int]]:
    """The pictures that are there, with their sizes in bytes; the others are refused or skipped."""
    found, sizes, missing = [], [], []
    for annotation in annotations:
        size = _file_size(annotation.path)
        if size is None:
            missing.append(f"{annotation.path}: there is no such file")
        else:
            found.append(annotation)
            sizes.append(min(size, MAX_PICTURE_BYTES))       # larger ones are refused when they are read
    if missing and not tolerant:
        _refuse_pictures(missing)
    report.skipped += missing
    return found, sizes


def _refuse_pictures(faults: Sequence[str]) -> None:
    raise UserError(f"{count_of(len(faults), 'picture')} cannot be used:\n  " + "\n  ".join(faults[:MAX_LISTED])
                    + (f"\n  and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else "")
                    + "\nrepair or remove them and their annotations; for training, skip_bad_images leaves out "
                    "pictures that cannot be read")


def _check_free_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(f"{folder}: the records need about {num_bytes:,} bytes, {free:,} are free; give another "
                        "mindrecord_dir")


def _page_size(largest_picture: int) -> int:
    """The smallest page of MindRecord that a row with this picture fits in."""
    return next(size for size in _PAGE_SIZES if size >= largest_picture + _PAGE_SLACK)


def _write_rows(writer: FileWriter, annotations: Sequence[ImageAnnotation], report: ConversionReport,
                config: Config, tolerant: bool) -> None:
    faults: list[str] = []                # of pictures that must not be skipped
    progress = tqdm(total=len(annotations), desc="checking pictures", unit="picture", disable=None)
    with progress, ThreadPoolExecutor(num_workers(config)) as pool:
        for first in range(0, len(annotations), ROWS_PER_WRITE):
            chunk = annotations[first:first + ROWS_PER_WRITE]
            rows = []
            for annotation, (picture, error) in zip(chunk, pool.map(_read_picture, chunk), strict=True):
                if error is None:
                    rows.append(_row(annotation, *picture, report, config.num_gts))
                elif tolerant and isinstance(error, PictureError):
                    report.skipped.append(str(error))
                else:
                    faults.append(str(error))
            if len(faults) >= MAX_LISTED:
                break
            if rows and not faults:
                writer.write_raw_data(rows)
            progress.update(len(chunk))
    if faults:
        _refuse_pictures(faults)
    if not report.num_images:
        raise UserError(f"no picture can be used: {listed(report.skipped)}")


def num_workers(config: Config) -> int:
    """`num_parallel_workers`, held to the cores this process may use: MindSpore refuses more."""
    return max(1, min(config.num_parallel_workers, len(os.sched_getaffinity(0))))


def _read_picture(annotation: ImageAnnotation) -> tuple[tuple[bytes, tuple[int, int]] | None, UserError | None]:
    """Content and (width, height) of a picture that could be decoded, or else what is wrong with it."""
    try:
        data = read_bytes(annotation.path)
        height, width = checked_rgb_of(annotation.path, data).shape[:2]
    except PictureError as error:
        return None, error
    if annotation.size not in (None, (width, height)):
        turned = "; EXIF orientation is not applied" if annotation.size == (height, width) else ""
        return None, SizeMismatch(f"{annotation.path}: is {width} x {height} pixels, its annotation says "
                                  f"{annotation.size[0]} x {annotation.size[1]}{turned}")
    return (data, (width, height)), None


def _row(annotation: ImageAnnotation, data: bytes, size: tuple[int, int], report: ConversionReport,
         num_gts: int) -> dict[str, Any]:
    """One row of the records, counted in the report."""
    faults, clipped = box_faults(annotation.boxes_xyxy, size)
    good = faults == ""
    report.dropped += [f"{annotation.box_name(row)} ({faults[row]})" for row in np.flatnonzero(~good)]
    boxes, labels, is_crowd = clipped[good], annotation.labels[good], annotation.is_crowd[good]
    num_boxes = len(boxes)
    report.num_images += 1
    report.num_crowd += int(is_crowd.sum())
    report.num_boxes += int((~is_crowd).sum())
    report.num_clipped += int((boxes != annotation.boxes_xyxy[good]).any(axis=1).sum())
    report.num_without_boxes += num_boxes == 0
    if num_boxes > num_gts:
        report.crowded[annotation.file_name] = num_boxes
    if num_boxes == 0:
        boxes, labels, is_crowd = np.zeros((1, 4), np.float32), np.zeros(1, np.int32), np.zeros(1, bool)
    return {"image": data, "image_id": annotation.image_id, "num_boxes": num_boxes, "box": boxes, "label": labels,
            "crowd": is_crowd.astype(np.int32)}


def _log_report(records: RecordSet, report: ConversionReport, num_gts: int, *, training: bool) -> None:
    """Say what the records hold, and by name what is not as the annotation file has it."""
    LOGGER.info("%s in %s: %s, %s, %d crowd boxes, %d boxes clipped to their picture, %s without boxes",
                records.name, records.folder, count_of(report.num_images, "picture"),
                count_of(report.num_boxes, "box", "boxes"), report.num_crowd, report.num_clipped,
                count_of(report.num_without_boxes, "picture"))
    if report.dropped:
        kept = "" if training else "; the ground truth of a COCO file still has them"
        LOGGER.warning("%s that cannot be used (all are listed in %s)%s: %s",
                       count_of(len(report.dropped), "box", "boxes"), records.manifest, kept, listed(report.dropped))
    if report.skipped:
        LOGGER.warning("%s skipped (all are listed in %s): %s", count_of(len(report.skipped), "picture"),
                       records.manifest, listed(report.skipped))
    if training and report.crowded:
        LOGGER.warning("%s with more than num_gts = %d boxes, of which each epoch takes another random choice: %s",
                       count_of(len(report.crowded), "picture"), num_gts,
                       listed([f"{name} ({number})" for name, number in report.crowded.items()]))
    if training and not report.num_boxes:
        LOGGER.warning("no picture has a box to learn from: only background can be learnt")

"""Images and boxes into record files: every image decoded once, every box checked, and a report of what was found."""

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.mindrecord import FileWriter

from src.common.files import file_size
from src.common.progress import with_progress
from src.common.wording import MAX_LISTED, count_of, listed, listed_below
from src.data.image_annotation import ImageAnnotation, box_faults
from src.data.image_files import MAX_IMAGE_BYTES, ImageError, checked_rgb_of, read_bytes, stored_bytes
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

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
# From this share of boxes on it looks as if they were meant otherwise.
SUSPICIOUS_SHARE = 0.3
_PAGE_SIZES = [1 << power for power in range(25, 29)]  # MindRecord's default, 32 MB, to its limit
_PAGE_SLACK = 1 << 20  # of a page, for what is not the image


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

    def doubts(self) -> Iterator[str]:
        """Sentences about boxes that look as if they were meant otherwise."""
        total = self.num_boxes + self.num_crowd + len(self.dropped)
        num_flat = sum(text.endswith("(no area)") for text in self.dropped)
        if total and 0 < self.longest_side <= 1:
            yield (
                f"no box is wider or higher than 1 pixel (the longest side is {self.longest_side:g}): are they "
                "fractions of the image's width and height? Expected are pixels"
            )
        elif self.num_clipped > SUSPICIOUS_SHARE * total:
            guess = ""
            if self.num_like_corners > self.num_clipped / 2:
                guess = ": are they corners, x1, y1, x2, y2? Expected are x, y, width, height"
            yield f"{self.num_clipped} of {count_of(total, 'box', 'boxes')} reach over the edge of their image{guess}"
        elif num_flat > SUSPICIOUS_SHARE * total:
            yield (
                f"{num_flat} of {count_of(total, 'box', 'boxes')} have no area: are they x, y, width, height in a list "
                "of corners, x1, y1, x2, y2?"
            )


def existing_images(
    annotations: Sequence[ImageAnnotation], report: ConversionReport, *, tolerant: bool
) -> tuple[list[ImageAnnotation], list[int]]:
    """The images that are there, with their sizes in bytes; the others are refused or skipped.

    Args:
        annotations (Sequence[ImageAnnotation]): of all images.
        report (ConversionReport): takes what is skipped.
        tolerant (bool): skip what is missing.

    Raises:
        UserError: names the missing images.
    """
    found, sizes, missing = [], [], []
    for annotation in annotations:
        size = file_size(annotation.path)
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
        "fix or remove them and their annotations; for training, skip_bad_images leaves out what cannot be read"
    )


def write_records(
    path: Path,
    num_files: int,
    annotations: Sequence[ImageAnnotation],
    sizes: Sequence[int],
    report: ConversionReport,
    config: Config,
    *,
    tolerant: bool,
) -> None:
    """Check every image and write its row.

    Args:
        path (Path): the record file; of several files what stands before their numbers.
        num_files (int): record files.
        annotations (Sequence[ImageAnnotation]): of images that are there.
        sizes (Sequence[int]): bytes of each image.
        report (ConversionReport): takes what is written and what is left out.
        config (Config): gives `num_gts` and `num_parallel_workers`.
        tolerant (bool): skip images that cannot be read.

    Raises:
        UserError: names the images that cannot be used.
    """
    writer = FileWriter(str(path), num_files)
    writer.set_page_size(_page_size(max(sizes, default=0)))
    writer.add_schema(SCHEMA, "images, boxes, classes")
    faults: list[str] = []  # of images that must not be skipped
    with ThreadPoolExecutor(num_workers(config)) as pool:
        images = with_progress(_read_images(pool, annotations), len(annotations), "checking images", "images")
        while len(faults) < MAX_LISTED and (chunk := list(islice(images, ROWS_PER_WRITE))):
            rows = []
            for annotation, image in chunk:
                if not isinstance(image, UserError):
                    rows.append(_row(annotation, *image, report, config.num_gts))
                elif tolerant and isinstance(image, ImageError):
                    report.skipped.append(str(image))
                else:
                    faults.append(str(image))
            if rows and not faults:
                writer.write_raw_data(rows)
    if faults:
        _refuse_images(faults)
    if not report.num_images:
        raise UserError(f"no image can be used: {listed(report.skipped)}")
    writer.commit()


def num_workers(config: Config) -> int:
    """`num_parallel_workers`, held to the cores this process may use: MindSpore refuses more."""
    return max(1, min(config.num_parallel_workers, len(os.sched_getaffinity(0))))


def _page_size(largest_image: int) -> int:
    """The smallest page of MindRecord that a row with this image fits in."""
    return next(size for size in _PAGE_SIZES if size >= largest_image + _PAGE_SLACK)


# The content of an image and its (width, height), or what is wrong with it.
_Image = tuple[bytes, tuple[int, int]] | UserError


def _read_images(
    pool: ThreadPoolExecutor, annotations: Sequence[ImageAnnotation]
) -> Iterator[tuple[ImageAnnotation, _Image]]:
    """Every image in turn; only a few lie in memory at a time."""
    for first in range(0, len(annotations), ROWS_PER_WRITE):
        chunk = annotations[first : first + ROWS_PER_WRITE]
        yield from zip(chunk, pool.map(_read_image, chunk), strict=True)


def _read_image(annotation: ImageAnnotation) -> _Image:
    try:
        data = read_bytes(annotation.path)
        image = checked_rgb_of(annotation.path, data)
    except ImageError as error:
        return error
    height, width = image.shape[:2]
    if annotation.size not in (None, (width, height)):
        turned = "; EXIF orientation is not applied" if annotation.size == (height, width) else ""
        return SizeMismatch(
            f"{annotation.path}: is {width} x {height} pixels, its annotation says "
            f"{annotation.size[0]} x {annotation.size[1]}{turned}"
        )
    return stored_bytes(data, image), (width, height)


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

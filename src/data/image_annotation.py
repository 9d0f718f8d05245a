"""One image with its boxes, as its annotation file has them, and which boxes are of use."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


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


def as_float32(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) float64 as float32; what is too large becomes infinity, which is not finite."""
    with np.errstate(over="ignore"):
        return boxes.astype(np.float32)

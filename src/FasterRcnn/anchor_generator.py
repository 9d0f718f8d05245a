"""Anchors of the feature pyramid, in numpy: they depend on nothing but the canvas and are graph constants."""

from collections.abc import Sequence

import numpy as np


class AnchorGenerator:
    """Anchors of one pyramid level: every ratio and scale at every cell of its grid.

    Follows mmdetection v1, whose coordinates the published weights expect: a box of width w spans the
    pixels ``x1 .. x1 + w - 1``, so corners lie ``0.5 * (size - 1)`` from the centre and are rounded half to even.

    Args:
        base_size (int): side of the base anchor in pixels; the level's stride.
        scales (Sequence[float]): factors on the side, > 0.
        ratios (Sequence[float]): height / width, > 0.

    Example:
        >>> AnchorGenerator(4, [8], [1.0]).base_anchors.tolist()
        [[-14.0, -14.0, 17.0, 17.0]]
    """

    def __init__(self, base_size: int, scales: Sequence[float], ratios: Sequence[float]):
        self.base_anchors = self._base_anchors(
            base_size, np.asarray(scales, np.float64), np.asarray(ratios, np.float64)
        )

    @staticmethod
    def _base_anchors(base_size: int, scales: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        """(len(ratios) * len(scales), 4) xyxy around the first cell, ratio slowest."""
        center = 0.5 * (base_size - 1)
        height_factor = np.sqrt(ratios)
        widths = (base_size / height_factor[:, None] * scales[None, :]).reshape(-1)
        heights = (base_size * height_factor[:, None] * scales[None, :]).reshape(-1)
        half_w, half_h = 0.5 * (widths - 1), 0.5 * (heights - 1)
        corners = np.stack([center - half_w, center - half_h, center + half_w, center + half_h], axis=1)
        return np.round(corners).astype(np.float32)

    def grid_anchors(self, feature_size: tuple[int, int], stride: int) -> np.ndarray:
        """Shift the base anchors over a grid.

        Args:
            feature_size (tuple[int, int]): rows and columns of the level.
            stride (int): pixels between neighbouring cells.

        Returns:
            np.ndarray (rows * columns * A, 4) float32 xyxy in pixels, ordered row, column, anchor.
        """
        rows, columns = feature_size
        shift_x, shift_y = np.meshgrid(np.arange(columns) * stride, np.arange(rows) * stride)
        shifts = np.stack([shift_x, shift_y, shift_x, shift_y], axis=-1).reshape(-1, 1, 4)
        return (self.base_anchors[None] + shifts).reshape(-1, 4).astype(np.float32)


def pyramid_anchors(
    canvas_size: tuple[int, int], strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]
) -> list[np.ndarray]:
    """Anchors of all levels.

    Args:
        canvas_size (tuple[int, int]): height and width of the network input in pixels, multiples of every stride.
        strides (Sequence[int]): pixels per cell, finest level first.
        scales, ratios (Sequence[float]): as in :class:`AnchorGenerator`.

    Returns:
        list of np.ndarray (H_l * W_l * A, 4) float32 xyxy, one per level; 245,520 rows in all for 768 x 1280.
    """
    height, width = canvas_size
    return [
        AnchorGenerator(stride, scales, ratios).grid_anchors((height // stride, width // stride), stride)
        for stride in strides
    ]


def inside_canvas(anchors: np.ndarray, canvas_size: tuple[int, int]) -> np.ndarray:
    """Which anchors lie wholly on the canvas, padding included; only these are matched in training.

    Args:
        anchors (np.ndarray): (N, 4) xyxy in pixels.
        canvas_size (tuple[int, int]): height and width in pixels.

    Returns:
        np.ndarray (N,) bool: x1, y1 >= 0 and x2 <= width - 1 and y2 <= height - 1.
    """
    height, width = canvas_size
    return (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] <= width - 1) & (anchors[:, 3] <= height - 1)

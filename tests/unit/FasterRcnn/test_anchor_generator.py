"""Anchors against values worked out by hand from the definition (spec: base*8*{1/sqrt r, sqrt r}, half to even)."""

import numpy as np
import pytest

from src.FasterRcnn.anchor_generator import AnchorGenerator, inside_canvas, pyramid_anchors
from tests.unit.FasterRcnn.reference import RATIOS, STRIDES, canvas_anchors, inside, level_anchors

# Stride 4: side 32, centre 1.5. Ratio 0.5 is 45.25 x 22.63: x from 1.5 - 22.13 = -20.63, y from 1.5 - 10.81 = -9.31.
STRIDE_4 = [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]
# Stride 64: side 512, centre 31.5. Ratio 0.5 is 724.08 x 362.04: x from 31.5 - 361.54 = -330.04, y from -149.02.
STRIDE_64 = [[-330, -149, 393, 212], [-224, -224, 287, 287], [-149, -330, 212, 393]]


@pytest.mark.parametrize("stride, expected", [(4, STRIDE_4), (64, STRIDE_64)])
def test_base_anchors_of_a_stride(stride, expected):
    anchors = AnchorGenerator(stride, [8], RATIOS).base_anchors
    assert anchors.dtype == np.float32
    assert anchors.tolist() == expected


@pytest.mark.parametrize(
    "scale, expected",
    [
        (8.25, [-14, -14, 18, 18]),  # side 33: corners -14.5 and 17.5
        (7.75, [-14, -14, 16, 16]),  # side 31: corners -13.5 and 16.5
    ],
)
def test_corners_half_way_are_rounded_to_even(scale, expected):
    assert AnchorGenerator(4, [scale], [1.0]).base_anchors.tolist() == [expected]


def test_order_is_row_then_column_then_ratio():
    anchors = AnchorGenerator(4, [8], RATIOS).grid_anchors((2, 3), 4)
    assert anchors.dtype == np.float32
    assert anchors.shape == (18, 4)
    assert anchors[:3].tolist() == STRIDE_4
    assert anchors[3].tolist() == [-17, -9, 28, 12]  # first ratio, column 1: x moves first
    assert anchors[9].tolist() == [-21, -5, 24, 16]  # first ratio, row 1
    assert anchors[17].tolist() == [-1, -17, 20, 28]  # last ratio, row 1, column 2


@pytest.mark.parametrize("stride, grid", [(4, (3, 5)), (8, (4, 2)), (16, (1, 3)), (32, (2, 2)), (64, (2, 1))])
def test_grid_equals_the_definition(stride, grid):
    anchors = AnchorGenerator(stride, [8], RATIOS).grid_anchors(grid, stride)
    np.testing.assert_array_equal(anchors, level_anchors(stride, *grid))


def test_published_canvas_has_245520_anchors():
    levels = pyramid_anchors((768, 1280), STRIDES, [8], RATIOS)
    # 3 anchors on each cell of 192 x 320, 96 x 160, 48 x 80, 24 x 40 and 12 x 20
    assert [len(level) for level in levels] == [184320, 46080, 11520, 2880, 720]
    assert sum(len(level) for level in levels) == 245520
    # last cell of the coarsest level: rows 11, columns 19, ratio 2
    assert levels[-1][-1].tolist() == [-149 + 19 * 64, -330 + 11 * 64, 212 + 19 * 64, 393 + 11 * 64]


def test_height_comes_before_width():
    levels = pyramid_anchors((64, 128), STRIDES, [8], RATIOS)
    for level, expected in zip(levels, canvas_anchors(64, 128), strict=True):
        np.testing.assert_array_equal(level, expected)


@pytest.mark.parametrize(
    "box, expected",
    [
        ([0, 0, 127, 63], True),  # the whole canvas of 64 x 128: the last pixel is W - 1, H - 1
        ([-1, 0, 50, 50], False),
        ([0, -1, 50, 50], False),
        ([0, 0, 128, 50], False),
        ([0, 0, 50, 64], False),
        ([64, 0, 127, 63], True),  # beyond the height in x only: axes are not confused
        ([0, 64, 10, 100], False),
    ],
)
def test_inside_canvas(box, expected):
    assert inside_canvas(np.array([box], np.float32), (64, 128)).tolist() == [expected]


def test_inside_canvas_of_all_anchors():
    anchors = np.concatenate(canvas_anchors(192, 128))
    result = inside_canvas(anchors.astype(np.float32), (192, 128))
    assert result.dtype == bool
    np.testing.assert_array_equal(result, inside(anchors, 192, 128))

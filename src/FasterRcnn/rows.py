"""Feature maps as matrices with a row per pixel, and transposition by rows.

``ops.transpose`` keeps 8 bytes for every value that it moves. What stands here keeps a number per row, or nothing.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype


def pixel_rows(features):
    """Feature maps as one matrix with a row per pixel, for operators that pick pixels.

    Args:
        features (tuple of Tensor): (B, C, H_l, W_l) of each level.

    Returns:
        Tensor (P, C): level after level, in each image after image, in each row after row.
    """
    return ops.Concat()(ops.Map()(_PIXELS_FIRST, features))


def map_sizes(features):
    """Height and width of each of the feature maps (B, C, H_l, W_l), a tuple of pairs."""
    return _last_axes(ops.Map()(ops.shape, features))


@ops.constexpr
def _last_axes(shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(shape[2:] for shape in shapes)


def reorder_rows(x, shape: tuple[int, ...], axes: tuple[int, ...]):
    """Transpose all axes but the last.

    Args:
        x (Tensor): any shape of the same number of values.
        shape (tuple[int]): axes before the last, which takes what is left (T).
        axes (tuple[int]): their order in the result.

    Returns:
        Tensor (R, T), the rows in their new order.
    """
    numbers = _row_numbers(shape, axes)  # (R,)
    return ops.gather(ops.reshape(x, (numbers.shape[0], -1)), numbers, 0)


@ops.constexpr
def _row_numbers(shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """Where each row of :func:`reorder_rows` comes from, int32."""
    return Tensor(np.arange(np.prod(shape)).reshape(shape).transpose(axes).ravel(), mstype.int32)


class _SwapLastAxes(nn.Cell):
    """Swap the last two axes, the first of which is short, by a matrix product with the identity.

    It is faster than ``ops.transpose``. A value that is not finite spreads over the short axis.

    Inputs: x, Tensor (N, short, long).
    Outputs: Tensor (N, long, short).
    """

    def __init__(self):
        super().__init__()
        self.swap = ops.BatchMatMul(transpose_a=True)
        self.swap_back = ops.BatchMatMul(transpose_b=True)

    def construct(self, x):
        return self.swap(x, _identities(x.shape[0], x.shape[1]))

    def bprop(self, x, out, dout):
        return (self.back(dout),)

    def back(self, swapped):
        """(N, long, short) to (N, short, long)."""
        return self.swap_back(_identities(swapped.shape[0], swapped.shape[2]), swapped)


class _PixelsFirst(nn.Cell):
    """A row per pixel instead of a map per channel: axes of groups of channels are swapped, then rows interleaved.

    Inputs: feature, Tensor (B, C, H, W).
    Outputs: Tensor (B * H * W, C).
    """

    GROUP = 32

    def construct(self, feature):
        batch, channels, height, width = feature.shape
        group = self.GROUP if channels % self.GROUP == 0 else channels
        rows = swap_last_axes(ops.reshape(feature, (-1, group, height * width)))  # (B * groups, H * W, group)
        rows = reorder_rows(rows, (batch, channels // group, height * width), (0, 2, 1))
        return ops.reshape(rows, (-1, channels))  # (B * H * W, C)

    def bprop(self, feature, out, dout):
        """The way back; the gradient of a gather would not know that its rows are all different."""
        batch, channels, height, width = feature.shape
        group = self.GROUP if channels % self.GROUP == 0 else channels
        rows = reorder_rows(dout, (batch, height * width, channels // group), (0, 2, 1))
        maps = swap_last_axes.back(ops.reshape(rows, (-1, height * width, group)))  # (B * groups, group, H * W)
        return (ops.reshape(maps, feature.shape),)


@ops.constexpr
def _identities(count: int, size: int) -> Tensor:
    """So many identity matrices, (count, size, size): the operator does not repeat one."""
    return Tensor(np.tile(np.eye(size, dtype=np.float32), (count, 1, 1)))


# One for all: they have no state, and MindSpore reads the Python of each cell anew.
swap_last_axes = _SwapLastAxes()
_PIXELS_FIRST = _PixelsFirst()

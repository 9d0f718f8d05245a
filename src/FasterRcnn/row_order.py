"""Transposing large maps on CPU without lists of indices.

``ops.transpose`` keeps 8 bytes for every value it moves for as long as the graph lives, twice what the float32 values
take themselves: half a gigabyte for two maps of the finest level. Moving whole rows needs one number per row.
"""
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

# Pixels that are turned into rows of channels together.
_BLOCK = 32


def permute_rows(x, shape: Sequence[int], order: Sequence[int]):
    """Transpose leading axes and keep the rows behind them together.

    Args:
        x (Tensor): float32, read as (*shape, T).
        shape (Sequence[int]): lengths of the axes to permute.
        order (Sequence[int]): which of them comes first, second, ... in the result.

    Returns:
        Tensor (product of shape, T), the rows in their new order.
    """
    return _PERMUTE(x, shape, order)


def channels_last(maps):
    """(B, C, P) to (B, P, C)."""
    batch, channels, num_pixels = maps.shape
    if num_pixels % _BLOCK:
        return ops.transpose(maps, (0, 2, 1))
    blocks = permute_rows(maps, (batch, channels, num_pixels // _BLOCK), (0, 2, 1))
    # One block as a picture with a row per channel. Output k of a kernel as wide as the picture is its pixel k.
    rows = _PICK_PIXELS(ops.reshape(blocks, (-1, 1, channels, _BLOCK)), _one_pixel_each())
    return ops.reshape(rows, (batch, num_pixels, channels))


class _PermuteRows(nn.Cell):
    """:func:`permute_rows` with a gradient that moves rows too; that of ``ops.gather`` adds them up one by one."""

    def construct(self, x, shape, order):
        return ops.gather(ops.reshape(x, (np.prod(shape), -1)), _row_numbers(shape, order), 0)

    def bprop(self, x, shape, order, out, dout):
        permuted = [shape[axis] for axis in order]
        back = [order.index(axis) for axis in range(len(order))]
        return ops.reshape(ops.gather(dout, _row_numbers(permuted, back), 0), x.shape), shape, order


@ops.constexpr
def _row_numbers(shape: Sequence[int], order: Sequence[int]) -> Tensor:
    """Where each row of the result comes from."""
    return Tensor(np.arange(np.prod(shape)).reshape(shape).transpose(order).ravel(), mstype.int32)


@ops.constexpr
def _one_pixel_each() -> Tensor:
    """Weights whose output k is pixel k."""
    return Tensor(np.eye(_BLOCK).reshape(_BLOCK, 1, 1, _BLOCK), mstype.float32)


_PERMUTE = _PermuteRows()
_PICK_PIXELS = ops.Conv2D(out_channel=_BLOCK, kernel_size=(1, _BLOCK), pad_mode="valid")

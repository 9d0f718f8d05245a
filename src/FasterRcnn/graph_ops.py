"""Small operations on tensors and constants that the parts share, in the form that compiles quickly."""

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype
from mindspore.ops.functional import tuple_getitem

# after(x, y) is x, but not before y is computed: bounds memory, because what x leads to would be computed beside y.
after = ops.depend


@ops.constexpr
def count_up(count: int) -> Tensor:
    """The numbers 0 .. count - 1, (count,) int32.

    ``ops.arange`` gives the same, but it is written in Python and takes half a second to compile.
    """
    return Tensor(np.arange(count), mstype.int32)


@ops.constexpr
def smaller(first: int, second: int) -> int:
    """``min``, which is written in Python and takes long to compile."""
    return min(first, second)


def unzip(pairs):
    """Pairs (a, b), one per level, as a tuple of all a and one of all b."""
    # Not a loop that adds to tuples: every sum is a small graph to compile.
    return ops.Map()(_first, pairs), ops.Map()(_second, pairs)


def _first(pair):
    return tuple_getitem(pair, 0)


def _second(pair):
    return tuple_getitem(pair, 1)


def take_columns(x, first: int, count: int):
    """Columns of a tensor: (..., N) to (..., count). ``x[..., first:first + count]`` would compile far longer."""
    return _SLICE(x, (0,) * (len(x.shape) - 1) + (first,), x.shape[:-1] + (count,))


def take_rows(rows, index):
    """Pick rows per image.

    Args:
        rows (Tensor): (B, N, D).
        index (Tensor): (B, S) int32 row numbers.

    Returns:
        Tensor (B, S, D).
    """
    batch, num_rows, width = rows.shape
    first = ops.reshape(count_up(batch) * num_rows, (batch, 1))  # (B, 1)
    flat = ops.reshape(index + first, (-1,))  # (B * S,)
    return ops.reshape(ops.gather(ops.reshape(rows, (-1, width)), flat, 0), (batch, index.shape[1], width))


def smooth_l1(difference, beta: float):
    """Smooth L1 (Girshick 2015), elementwise: 0.5 * d**2 / beta below beta, |d| - beta / 2 above."""
    distance = ops.abs(difference)
    return ops.where(distance < beta, 0.5 / beta * distance * distance, distance - 0.5 * beta)


_SLICE = ops.Slice()

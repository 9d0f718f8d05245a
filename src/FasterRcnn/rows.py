"""Transposition by rows."""

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype


def reorder_rows(x, shape: tuple[int, ...], axes: tuple[int, ...]):
    """Transpose all axes but the last.

    ``ops.transpose`` would keep 8 bytes for every value that it moves; this keeps a number per row.

    Args:
        x (Tensor): any shape of the same number of values.
        shape (tuple[int]): axes before the last, which takes what is left (T).
        axes (tuple[int]): their order in the result.

    Returns:
        Tensor (R, T), the rows in their new order.
    """
    numbers = _row_numbers(shape, axes)
    return ops.gather(ops.reshape(x, (numbers.shape[0], -1)), numbers, 0)


@ops.constexpr
def _row_numbers(shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """Where each row of :func:`reorder_rows` comes from, int32."""
    return Tensor(np.arange(np.prod(shape)).reshape(shape).transpose(axes).ravel(), mstype.int32)

"""Whole numbers as a constant of the graph."""

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype


@ops.constexpr
def count_up(count: int) -> Tensor:
    """The numbers 0 .. count - 1, (count,) int32.

    ``ops.arange`` gives the same, but it is written in Python and takes half a second to compile.
    """
    return Tensor(np.arange(count), mstype.int32)

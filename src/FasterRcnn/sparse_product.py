"""Sparse matrix times dense matrix."""

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.graph_ops import count_up


class SparseProduct(nn.Cell):
    """Sparse matrix times dense matrix, with a gradient to the dense one only.

    The operator's own derivative would also gather a row of the dense matrix for every entry.

    Inputs:
        - **entries** (Tensor) - (E, 2) int32 row and column of each entry, see :func:`entries_of`.
        - **values** (Tensor) - (E,) float32.
        - **dense** (Tensor) - (P, C).
        - **num_rows** (int) - rows of the sparse matrix.

    Outputs:
        Tensor (num_rows, C).
    """

    def __init__(self):
        super().__init__()
        self.multiply = ops.SparseTensorDenseMatmul()
        self.multiply_transposed = ops.SparseTensorDenseMatmul(adjoint_st=True)

    def construct(self, entries, values, dense, num_rows):
        return self.multiply(entries, values, _matrix_shape(num_rows, dense.shape[0]), dense)

    def bprop(self, entries, values, dense, num_rows, out, dout):
        """Gradients of the inputs: that of the dense matrix is the product with the transposed sparse one."""
        gradient = self.multiply_transposed(entries, values, _matrix_shape(num_rows, dense.shape[0]), dout)  # (P, C)
        return ops.zeros_like(entries), ops.zeros_like(values), gradient, 0


@ops.constexpr
def _matrix_shape(num_rows: int, num_columns: int) -> Tensor:
    """Shape of a sparse matrix; the operator takes a tuple only where the number of entries is known beforehand."""
    return Tensor((num_rows, num_columns), mstype.int64)


def entries_of(columns, weights):
    """Entries of a sparse matrix that are not 0, row after row: the operator's time is their number.

    Args:
        columns (Tensor): (R, T) int32 columns in each row.
        weights (Tensor): (R, T) float32, many of them 0.

    Returns:
        two Tensors: row and column (E, 2) int32, and value (E,), 0 <= E <= R * T.
    """
    num_rows, _ = columns.shape
    rows = ops.broadcast_to(ops.reshape(count_up(num_rows), (num_rows, 1)), columns.shape)  # (R, T)
    keep = weights != 0
    places = ops.stack((ops.masked_select(rows, keep), ops.masked_select(columns, keep)), axis=1)  # (E, 2)
    return places, ops.masked_select(weights, keep)

"""Small operations by hand and against numpy."""

import mindspore as ms
import numpy as np

from src.FasterRcnn.graph_ops import count_up, smooth_l1, take_columns, take_rows, unzip
from tests.unit.FasterRcnn.reference import Graph, tensor


def test_smooth_l1_by_hand():
    """Beta 1/9: 0.5 * 0.01 * 9 at 0.1; |d| - 1/18 beyond. Beta 1: 0.5 * d**2 up to 1, |d| - 0.5 beyond."""
    values = tensor([0, 0.1, -0.1, 1 / 9, 2, -2])
    np.testing.assert_allclose(
        smooth_l1(values, 1 / 9).asnumpy(), [0, 0.045, 0.045, 1 / 18, 2 - 1 / 18, 2 - 1 / 18], rtol=1e-5
    )
    np.testing.assert_allclose(smooth_l1(tensor([0.5, 1, 1.5, -3]), 1.0).asnumpy(), [0.125, 0.5, 1, 2.5], rtol=1e-6)


def test_take_rows():
    rng = np.random.default_rng(13)
    rows, index = rng.normal(size=(3, 7, 4)).astype(np.float32), rng.integers(0, 7, (3, 5))
    result = Graph(take_rows)(tensor(rows), tensor(index, ms.int32)).asnumpy()
    for image in range(3):
        np.testing.assert_array_equal(result[image], rows[image][index[image]])


def test_take_columns():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    def columns(values):
        return take_columns(values, 1, 2)

    np.testing.assert_array_equal(Graph(columns)(tensor(x)).asnumpy(), x[..., 1:3])


def test_count_up():
    assert count_up(4).asnumpy().tolist() == [0, 1, 2, 3]


def test_unzip():
    def separated(a, b, c, d):
        return unzip(((a, b), (c, d)))

    firsts, seconds = Graph(separated)(*map(tensor, (1, 2, 3, 4)))
    assert [int(value) for value in firsts] == [1, 3] and [int(value) for value in seconds] == [2, 4]

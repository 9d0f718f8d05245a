"""Transposing by rows against numpy, forwards and backwards: every value arrives exactly."""
import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from src.FasterRcnn.row_order import channels_last, permute_rows
from tests.unit.FasterRcnn.reference import Graph, tensor


class Permute(nn.Cell):
    def __init__(self, shape, order):
        super().__init__()
        self.shape, self.order = shape, order

    def construct(self, x):
        return permute_rows(x, self.shape, self.order)


class Gradient(nn.Cell):
    """Gradient of the sum of ``cell(x) * factors``."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell
        self.grad = ops.GradOperation(sens_param=True)

    def construct(self, x, factors):
        return self.grad(self.cell)(x, factors)


@pytest.fixture(params=[ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def mode(request):
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.mark.parametrize("shape, order", [
    ((3, 4), (1, 0)), ((2, 3, 4), (0, 2, 1)), ((2, 3, 4), (2, 1, 0)), ((2, 3, 4), (1, 2, 0)), ((2, 3, 4), (2, 0, 1)),
    ((1, 1, 1), (2, 1, 0))])
def test_rows_are_permuted(mode, shape, order):
    x = np.random.default_rng(1).normal(0, 1, (*shape, 5)).astype(np.float32)
    moved = x.transpose(*order, len(order))
    np.testing.assert_array_equal(Permute(shape, order)(tensor(x)).asnumpy(), moved.reshape(-1, 5))
    # Each value's factor comes back to its place.
    gradient = Gradient(Permute(shape, order))(tensor(x), tensor(moved.reshape(-1, 5)))
    np.testing.assert_array_equal(gradient.asnumpy(), x)


@pytest.mark.parametrize("batch, channels, num_pixels", [
    (1, 1, 32), (2, 3, 64), (2, 40, 96), (3, 256, 32), (2, 5, 30), (1, 4, 1)])
def test_channels_come_last(mode, batch, channels, num_pixels):
    """Pixel numbers that 32 divides take the blocks, others the plain operator."""
    x = np.random.default_rng(2).normal(0, 1, (batch, channels, num_pixels)).astype(np.float32)
    turned = x.transpose(0, 2, 1)
    np.testing.assert_array_equal(Graph(channels_last)(tensor(x)).asnumpy(), turned)
    np.testing.assert_array_equal(Gradient(Graph(channels_last))(tensor(x), tensor(turned)).asnumpy(), x)

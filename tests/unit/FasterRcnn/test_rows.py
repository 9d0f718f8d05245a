"""Feature maps as rows of pixels: numbers are moved and not changed."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.rows import map_sizes, pixel_rows, reorder_rows
from tests.unit.FasterRcnn.reference import Graph, tensor


@pytest.mark.parametrize("channels", [3, 32, 64], ids=["no group", "one group", "two groups"])
def test_pixel_rows_and_their_gradient(channels):
    """Level after level, image after image; both ways the numbers are moved and not changed."""
    rng = np.random.default_rng(30)
    maps = [rng.normal(size=(2, channels, *size)).astype(np.float32) for size in ((6, 10), (3, 5))]
    rows = np.concatenate([level.transpose(0, 2, 3, 1).reshape(-1, channels) for level in maps])
    weights = rng.normal(size=rows.shape).astype(np.float32)

    def both(fine, coarse):
        return pixel_rows((fine, coarse))

    def weighted_sum(fine, coarse, factors):
        return (pixel_rows((fine, coarse)) * factors).sum()

    np.testing.assert_array_equal(Graph(both)(*map(tensor, maps)).asnumpy(), rows)
    gradients = ms.grad(Graph(weighted_sum), grad_position=(0, 1))(*map(tensor, maps), tensor(weights))
    start = 0
    for gradient, level in zip(gradients, maps, strict=True):
        batch, _, height, width = level.shape
        own = weights[start : start + batch * height * width].reshape(batch, height, width, channels)
        np.testing.assert_array_equal(gradient.asnumpy(), own.transpose(0, 3, 1, 2))
        start += batch * height * width


def test_sizes_of_maps_are_height_and_width():
    def sizes(fine, coarse):
        return map_sizes((fine, coarse))

    assert Graph(sizes)(tensor(np.zeros((2, 3, 6, 10))), tensor(np.zeros((2, 3, 3, 5)))) == ((6, 10), (3, 5))


def test_rows_in_another_order():
    values = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)

    def reordered(x):
        return reorder_rows(x, (2, 3, 4), (2, 0, 1))

    result = Graph(reordered)(tensor(values)).asnumpy()
    np.testing.assert_array_equal(result, values.transpose(2, 0, 1, 3).reshape(24, 5))

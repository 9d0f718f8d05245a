"""The fast 3x3 convolution against the definition in float64, forwards and backwards."""

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops

from src.FasterRcnn import winograd
from src.FasterRcnn.winograd import Conv3x3, toom_cook, transforms
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import tensor

# Both transforms sum values with weights around 10, which costs a digit of float32's seven.
TOLERANCE = 3e-5


class Gradients(nn.Cell):
    """Gradients of the sum of ``out * factors``: of the input, then of weight and bias."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell
        self.grad = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.params = ParameterTuple(cell.trainable_params())

    def construct(self, x, factors):
        return self.grad(self.cell, self.params)(x, factors)


def gradients(x, weight, factors, stride) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the sum of out * factors: every pixel and weight collects what it was multiplied with."""
    height, width = x.shape[2:]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    dx_padded, dweight = np.zeros_like(padded), np.zeros(weight.shape)
    for dy in range(3):
        for dx in range(3):
            here = np.s_[:, :, dy : dy + height : stride, dx : dx + width : stride]
            dx_padded[here] += np.einsum("bohw,oc->bchw", factors.astype(np.float64), weight[:, :, dy, dx])
            dweight[:, :, dy, dx] = np.einsum("bohw,bchw->oc", factors, padded[here])
    return dx_padded[:, :, 1:-1, 1:-1], dweight, factors.astype(np.float64).sum((0, 2, 3))


@ops.constexpr
def not_in_thirds(shape, stride):
    return stride


@pytest.fixture(params=["together", "one by one", "in thirds"])
def small_maps_too(request, monkeypatch):
    """Small maps are computed by the algorithm too: all images at once, each alone, or each in three parts."""
    monkeypatch.setattr(winograd, "_MIN_OUTPUTS", 0)
    if request.param != "together":
        monkeypatch.setattr(winograd, "_MAX_VALUES", 0)
    if request.param == "one by one":
        monkeypatch.setattr(winograd, "_kind", not_in_thirds)


def random_case(seed, batch, channels, out_channels, height, width, stride=1):
    """A convolution, an input, and factors of its outputs."""
    rng = np.random.default_rng(seed)
    cell = Conv3x3(channels, out_channels, stride, winograd=True, has_bias=True)
    cell.weight.set_data(tensor(rng.normal(0, 1, cell.weight.shape)))
    cell.bias.set_data(tensor(rng.normal(0, 1, cell.bias.shape)))
    x = rng.normal(0, 1, (batch, channels, height, width)).astype(np.float32)
    factors = rng.normal(0, 1, (batch, out_channels, height // stride, width // stride)).astype(np.float32)
    return cell, x, factors


def assert_close(actual: Tensor, expected) -> None:
    """Equal to TOLERANCE of the spread of the expected values."""
    np.testing.assert_allclose(actual.asnumpy(), expected, rtol=0, atol=TOLERANCE * np.std(expected))


@pytest.mark.parametrize("taps", [2, 3])
def test_toom_cook_is_a_correlation(taps):
    data_transform, weight_transform, output_transform = toom_cook(taps)
    rng = np.random.default_rng(1)
    data, weights = rng.normal(0, 1, taps + 3), rng.normal(0, 1, taps)
    result = output_transform @ ((weight_transform @ weights) * (data_transform @ data))
    np.testing.assert_allclose(result, [data[i : i + taps] @ weights for i in range(4)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride, pixels", [(1, 6), (2, 9)])
def test_one_dimension_is_a_correlation_with_a_stride(stride, pixels):
    data_transform, weight_transform, output_transform = transforms(stride)
    rng = np.random.default_rng(1)
    data, weights = rng.normal(0, 1, pixels), rng.normal(0, 1, 3)
    result = output_transform @ ((weight_transform @ weights) * (data_transform @ data))
    expected = [data[stride * i : stride * i + 3] @ weights for i in range(4)]
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_transforms_of_data_and_outputs_are_exact_in_float32(stride):
    data_transform, _, output_transform = transforms(stride)
    for matrix in (data_transform, output_transform):
        np.testing.assert_array_equal(matrix.astype(np.float32), matrix)


@pytest.mark.parametrize(
    "batch, channels, out_channels, height, width, stride",
    [
        (1, 3, 5, 32, 40, 1),
        (2, 16, 7, 40, 64, 1),
        (3, 1, 1, 36, 36, 1),
        (2, 64, 32, 32, 44, 1),
        (1, 3, 5, 32, 40, 2),
        (2, 16, 7, 8, 64, 2),
        (3, 1, 1, 40, 40, 2),
        (2, 64, 32, 32, 48, 2),
    ],
)
def test_equals_the_definition(small_maps_too, mode, batch, channels, out_channels, height, width, stride):
    cell, x, _ = random_case(2, batch, channels, out_channels, height, width, stride)
    out = cell(tensor(x))
    assert out.shape == (batch, out_channels, height // stride, width // stride)
    assert_close(out, reference.conv2d(x, cell.weight.asnumpy(), cell.bias.asnumpy(), stride))


@pytest.mark.parametrize(
    "batch, channels, out_channels, width, stride",
    [(1, 4, 4, 44, 1), (2, 24, 8, 44, 1), (1, 4, 4, 48, 2), (2, 24, 8, 48, 2)],
)
def test_gradients_equal_the_definition(small_maps_too, mode, batch, channels, out_channels, width, stride):
    cell, x, factors = random_case(3, batch, channels, out_channels, 32, width, stride)
    (dx,), (dweight, dbias) = Gradients(cell)(tensor(x), tensor(factors))
    expected = gradients(x, cell.weight.asnumpy(), factors, stride)
    for actual, value in zip((dx, dweight, dbias), expected, strict=True):
        assert_close(actual, value)


def test_pixels_at_every_border_and_corner(small_maps_too):
    """A map of ones counts the pixels of the window that lie inside, 9, 6 or 4: exactly where the zeros begin."""
    cell = Conv3x3(1, 1, winograd=True, has_bias=True, weight_init="ones", bias_init="zeros")
    out = cell(Tensor(np.ones((1, 1, 36, 40), np.float32))).asnumpy()[0, 0]
    rows, columns = np.full(36, 3), np.full(40, 3)
    rows[[0, -1]], columns[[0, -1]] = 2, 2
    np.testing.assert_allclose(out, np.outer(rows, columns), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "allowed, height, width, fast",
    [
        (True, 200, 256, True),
        (True, 196, 256, True),
        (True, 192, 256, False),
        (True, 202, 256, False),
        (True, 200, 254, False),
        (False, 200, 256, False),
    ],
)
def test_small_and_odd_maps_are_convolved_plainly(allowed, height, width, fast, stride):
    """A plain convolution is ``nn.Conv2d`` to the last bit; a fast one rounds differently. Sizes are of the result."""
    rng = np.random.default_rng(5)
    cell = Conv3x3(2, 8, stride, winograd=allowed, has_bias=True)
    plain = nn.Conv2d(2, 8, 3, stride, pad_mode="pad", padding=1, has_bias=True)
    plain.weight.set_data(cell.weight)
    plain.bias.set_data(cell.bias)
    x = tensor(rng.normal(0, 1, (1, 2, height * stride, width * stride)))
    assert np.array_equal(cell(x).asnumpy(), plain(x).asnumpy()) != fast


def test_an_odd_map_is_convolved_plainly():
    """399 rows give 200, which 4 divides, but the map itself has no whole tiles."""
    x = tensor(np.random.default_rng(7).normal(0, 1, (1, 2, 399, 512)))
    cell = Conv3x3(2, 8, 2, winograd=True)
    np.testing.assert_allclose(
        cell(x).asnumpy(), reference.conv2d(x.asnumpy(), cell.weight.asnumpy(), stride=2), atol=1e-5
    )


@pytest.mark.parametrize(
    "shape, stride, parts, groups",
    [
        # Values of an image, of which 16.8 million may be in memory at once:
        ((2, 256, 192, 320), 1, ((0, 1), (1, 2)), 3),  # 35.4 million
        ((2, 256, 96, 160), 1, ((0, 1), (1, 2)), 1),  # 8.8
        ((3, 256, 48, 80), 1, ((0, 3),), 1),  # 2.2
        ((3, 128, 192, 320), 1, ((0, 1), (1, 2), (2, 3)), 3),  # 17.7
        ((1, 128, 192, 320), 2, ((0, 1),), 1),  # 10.0
        ((2, 128, 192, 320), 2, ((0, 1), (1, 2)), 1),
        ((2, 256, 192, 320), 2, ((0, 1), (1, 2)), 3),
    ],
)  # 19.9
def test_few_values_are_in_memory_at_once(shape, stride, parts, groups):
    assert winograd._parts(shape, stride) == parts
    kind = winograd._BY_VALUES[winograd._kind(shape, stride)]
    assert (kind.stride, len(kind.groups)) == (stride, groups)


@pytest.mark.parametrize("has_bias", [True, False])
def test_parameters_are_those_of_a_convolution(has_bias):
    plain = nn.Conv2d(6, 8, 3, pad_mode="pad", padding=1, has_bias=has_bias)
    fast = Conv3x3(6, 8, winograd=True, has_bias=has_bias)
    assert [(p.name, p.shape, p.requires_grad) for p in fast.get_parameters()] == [
        (p.name, p.shape, p.requires_grad) for p in plain.get_parameters()
    ]


def test_without_bias(small_maps_too):
    cell, x, _ = random_case(6, 1, 4, 4, 32, 40)
    without = Conv3x3(4, 4, winograd=True, has_bias=False)
    without.weight.set_data(cell.weight)
    assert_close(without(tensor(x)), reference.conv2d(x, cell.weight.asnumpy()))

"""Feature pyramid against numpy: lateral 1x1, nearest upsampling sum, 3x3 outputs, P6 from the even pixels of P5."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.fpn_neck import FeatPyramidNeck
from tests.unit.FasterRcnn.reference import Graph, NumpyNet, tensor

IN_CHANNELS = (4, 6, 8, 10)
SHAPES = ((24, 32), (12, 16), (6, 8), (3, 4))


def in_graph(cell):
    """The neck on separate maps: MindSpore compiles a tuple given from outside as a constant."""

    def pyramid(*maps):
        return cell(maps)

    return Graph(pyramid)


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(21)
    return [
        rng.normal(0, 1, (2, channels, *shape)).astype(np.float32)
        for channels, shape in zip(IN_CHANNELS, SHAPES, strict=True)
    ]


@pytest.fixture(scope="module")
def neck():
    rng = np.random.default_rng(22)
    cell = FeatPyramidNeck(IN_CHANNELS, 5, 5)
    for param in cell.get_parameters():
        param.set_data(tensor(rng.normal(0, 0.3, param.shape)))
    return cell


def test_pyramid_equals_the_definition(neck, features):
    outs = in_graph(neck)(*map(tensor, features))
    expected = NumpyNet(neck).pyramid(features)
    assert [out.shape for out in outs] == [(2, 5, *shape) for shape in (*SHAPES, (2, 2))]
    for out, values in zip(outs, expected, strict=True):
        assert out.dtype == ms.float32
        np.testing.assert_allclose(out.asnumpy(), values, rtol=1e-4, atol=1e-4)
    # no ReLU anywhere
    assert all(out.asnumpy().min() < 0 for out in outs)


def test_last_level_is_the_even_pixels_of_the_one_before(neck, features):
    outs = in_graph(neck)(*map(tensor, features))
    np.testing.assert_array_equal(outs[4].asnumpy(), outs[3].asnumpy()[:, :, ::2, ::2])


def test_four_outputs_and_a_sixth(features):
    maps = tuple(map(tensor, features))
    assert len(in_graph(FeatPyramidNeck(IN_CHANNELS, 3, 4))(*maps)) == 4
    outs = in_graph(FeatPyramidNeck(IN_CHANNELS, 3, 6))(*maps)
    np.testing.assert_array_equal(outs[5].asnumpy(), outs[3].asnumpy()[:, :, ::4, ::4])


def test_fewer_outputs_than_inputs_are_refused():
    with pytest.raises(ValueError, match="num_outs"):
        FeatPyramidNeck(IN_CHANNELS, 5, 3)


def test_parameter_names_and_initial_values():
    """Xavier uniform: bound sqrt(6 / (fan_in + fan_out)), fans with the kernel's area; biases 0."""
    cell = FeatPyramidNeck((64, 96), 32, 2)
    params = {param.name: param.asnumpy() for param in cell.get_parameters()}
    assert list(params) == [
        f"{kind}.{level}.{part}"
        for kind in ("lateral_convs_list", "fpn_convs_list")
        for level in (0, 1)
        for part in ("weight", "bias")
    ]
    for name, (out_channels, in_channels, area) in {
        "lateral_convs_list.1": (32, 96, 1),
        "fpn_convs_list.0": (32, 32, 9),
    }.items():
        weight, bound = params[f"{name}.weight"], np.sqrt(6 / (area * (in_channels + out_channels)))
        assert np.abs(weight).max() <= bound
        np.testing.assert_allclose(weight.std(), bound / np.sqrt(3), rtol=0.05)
        assert not params[f"{name}.bias"].any()


def upsampling_only():
    """A neck of two levels whose convolutions hand one channel on unchanged."""
    cell = FeatPyramidNeck((1, 1), 1, 2)
    for param in cell.get_parameters():
        values = np.zeros(param.shape, np.float32)
        if param.name.endswith("weight"):
            values[0, 0, param.shape[2] // 2, param.shape[3] // 2] = 1
        param.set_data(tensor(values))
    return cell


def test_upsampling_by_hand():
    fine = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    coarse = np.float32([[[[100, 200], [300, 400]]]])
    result = in_graph(upsampling_only())(tensor(fine), tensor(coarse))[0].asnumpy()
    assert result[0, 0].tolist() == [
        [100, 101, 202, 203],
        [104, 105, 206, 207],
        [308, 309, 410, 411],
        [312, 313, 414, 415],
    ]


def test_gradient_of_the_upsampling_by_hand():
    """Each coarse pixel gets the sum over its four fine ones."""
    cell = upsampling_only()

    def weighted(fine, coarse, weights):
        return (cell((fine, coarse))[0] * weights).sum()

    weights = np.float32([[[[1, 2, 10, 20], [3, 4, 30, 40], [5, 5, 0, 1], [5, 6, 2, 3]]]])
    to_fine, to_coarse = ms.grad(Graph(weighted), grad_position=(0, 1))(
        tensor(np.zeros((1, 1, 4, 4))), tensor(np.zeros((1, 1, 2, 2))), tensor(weights)
    )
    np.testing.assert_allclose(to_fine.asnumpy(), weights, rtol=1e-6)
    np.testing.assert_allclose(to_coarse.asnumpy()[0, 0], [[10, 100], [21, 6]], rtol=1e-6)


def test_gradient_reaches_all_maps(neck, features):
    """The pyramid is affine in the maps, so a step's change of a weighted sum is the gradient times the step."""
    rng = np.random.default_rng(23)
    reference = NumpyNet(neck)
    weights = [rng.normal(0, 1, out.shape).astype(np.float32) for out in reference.pyramid(features)]

    def weighted(c2, c3, c4, c5, *out_weights):
        outs = neck((c2, c3, c4, c5))
        total = 0.0
        for i in range(5):
            total = total + (outs[i] * out_weights[i]).sum()
        return total

    gradients = ms.grad(Graph(weighted), grad_position=(0, 1, 2, 3))(*map(tensor, features), *map(tensor, weights))
    for level in range(4):
        step = rng.normal(0, 1, features[level].shape)
        moved = [*features]
        moved[level] = features[level] + step
        before, after = (
            sum((out * weight).sum() for out, weight in zip(reference.pyramid(maps), weights, strict=True))
            for maps in (features, moved)
        )
        np.testing.assert_allclose((gradients[level].asnumpy() * step).sum(), after - before, rtol=1e-3)

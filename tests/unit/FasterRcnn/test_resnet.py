"""Backbone against numpy: where the stride sits, how the stem pools, what is fixed in training."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn import build_detector
from src.FasterRcnn.resnet import ResidualBlock, ResNetFea
from src.FasterRcnn.resnet50v1 import ResidualBlockV1
from tests.unit.FasterRcnn.reference import NumpyNet, conv2d, tensor
from tests.unit.FasterRcnn.small_detector import config_of

IN_CHANNELS, OUT_CHANNELS = (64, 16, 24, 32), (16, 24, 32, 40)
BLOCKS = {"v1.5": ResidualBlock, "v1": ResidualBlockV1}
STEM = ("conv1.", "bn1.")


def randomise(cell, seed):
    """Weights that keep the size of the values, batch norms that do something."""
    rng = np.random.default_rng(seed)
    for param in cell.get_parameters():
        if param.ndim == 4:
            values = rng.normal(0, np.sqrt(1.5 / np.prod(param.shape[1:])), param.shape)
        elif param.name.endswith(("gamma", "moving_variance")):
            values = rng.uniform(0.6, 1.4, param.shape)
        else:
            values = rng.normal(0, 0.2, param.shape)
        param.set_data(tensor(values))
    return cell


def build(block=ResidualBlock, layer_nums=(1, 1, 1, 1), **options):
    return randomise(ResNetFea(block, layer_nums, IN_CHANNELS, OUT_CHANNELS, **options), 45)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(46).normal(0, 1, (2, 3, 64, 96)).astype(np.float32)


@pytest.mark.parametrize("stride, down_sample", [(2, True), (1, True), (1, False)])
@pytest.mark.parametrize("kind", BLOCKS)
def test_block_equals_the_definition(kind, stride, down_sample):
    """v1.5 strides in its 3x3 convolution, v1 in its first 1x1: shapes agree, values do not."""
    out_channels = 12 if down_sample else 8
    block = randomise(BLOCKS[kind](8, out_channels, stride, down_sample, True), 47)
    x = np.random.default_rng(48).normal(0, 1, (2, 8, 10, 12)).astype(np.float32)
    result = block.set_train(False)(tensor(x)).asnumpy()
    net = NumpyNet(block)
    np.testing.assert_allclose(result, net.block(x, "", stride, kind == "v1"), rtol=1e-4, atol=1e-4)
    if stride == 2:
        assert np.abs(result - net.block(x, "", stride, kind != "v1")).max() > 0.1


def test_both_blocks_have_equal_parameters():
    shapes = [
        [(param.name, param.shape) for param in block(8, 12, 2, True, True).get_parameters()]
        for block in BLOCKS.values()
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "kind, layer_nums, pool",
    [("v1.5", (1, 1, 1, 1), "same"), ("v1.5", (1, 3, 1, 1), "symmetric"), ("v1", (2, 1, 1, 2), "same")],
)
def test_maps_equal_the_definition(kind, layer_nums, pool, image):
    """C2..C5 at strides 4 to 32. "same" pads the stem's pool right and bottom only, "symmetric" on all sides."""
    net = build(BLOCKS[kind], layer_nums, stem_pool_pad=pool).set_train(False)
    maps = net(tensor(image))
    assert [c.shape for c in maps] == [(2, 16, 16, 24), (2, 24, 8, 12), (2, 32, 4, 6), (2, 40, 2, 3)]
    reference = NumpyNet(net)
    expected = reference.backbone(image, "", pool == "symmetric", layer_nums, kind == "v1")
    for result, values in zip(maps, expected, strict=True):
        np.testing.assert_allclose(result.asnumpy(), values, rtol=1e-3, atol=1e-3)
    other_pool = reference.backbone(image, "", pool != "symmetric", layer_nums, kind == "v1")
    assert np.abs(maps[0].asnumpy() - other_pool[0]).max() > 0.1


def test_published_pooling_is_the_default(image):
    net = build().set_train(False)
    expected = NumpyNet(net).backbone(image)
    np.testing.assert_allclose(net(tensor(image))[0].asnumpy(), expected[0], rtol=1e-3, atol=1e-3)


def is_fixed(name, frozen_stages):
    """0 fixes the stem, k the stem and the first k stages, -1 nothing."""
    if name.startswith(STEM):
        return frozen_stages >= 0
    return int(name.removeprefix("layer")[0]) <= frozen_stages


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("norm_eval", [True, False])
def test_fixed_parameters(frozen_stages, norm_eval):
    net = build(frozen_stages=frozen_stages, norm_eval=norm_eval)
    for param in net.get_parameters():
        is_statistic = param.name.endswith(("moving_mean", "moving_variance"))
        expected = not is_statistic and not is_fixed(param.name, frozen_stages)
        assert param.requires_grad == expected, param.name


def test_thawed_stages_learn_and_their_statistics_stay(image):
    """Before, their gradient stops at their output; after, the stem has one and the output is the same."""
    net = build(frozen_stages=2, norm_eval=False)
    before = statistics(net)
    features = [feature.asnumpy() for feature in net.set_train()(tensor(image))]
    moved = {name for name, values in statistics(net).items() if not np.array_equal(values, before[name])}
    net.thaw()
    assert {param.name for param in net.get_parameters() if not param.requires_grad} == set(before)
    for result, expected in zip(net(tensor(image)), features, strict=True):
        np.testing.assert_array_equal(result.asnumpy(), expected)
    again = {name for name, values in statistics(net).items() if not np.array_equal(values, before[name])}
    assert moved == again and not any(is_fixed(name, 2) for name in moved)

    def last_map(x):
        return net(x)[3].sum()

    gradient = ms.grad(last_map, None, net.conv1.weight)(tensor(image))
    assert np.abs(gradient.asnumpy()).max() > 0


def test_default_fixes_stem_and_first_stage():
    trainable = {param.name.split(".")[0] for param in build().trainable_params()}
    assert trainable == {"layer2", "layer3", "layer4"}


def statistics(net):
    return {
        param.name: param.asnumpy().copy()
        for param in net.get_parameters()
        if param.name.endswith(("moving_mean", "moving_variance"))
    }


@pytest.mark.parametrize("frozen_stages", [-1, 1, 2, 4])
def test_statistics_of_fixed_stages_never_move(frozen_stages, image):
    """In training the others follow the data when norm_eval is False, and none does in evaluation."""
    net = build(frozen_stages=frozen_stages, norm_eval=False)
    before = statistics(net)
    net.set_train(False)(tensor(image))
    assert all(np.array_equal(before[name], values) for name, values in statistics(net).items())
    net.set_train()
    for _ in range(2):
        net(tensor(image))
    for name, values in statistics(net).items():
        assert np.array_equal(before[name], values) == is_fixed(name, frozen_stages), name


def test_norm_eval_fixes_all_statistics(image):
    """Training and evaluation then see the same maps, from the running statistics."""
    net = build(frozen_stages=-1, norm_eval=True)
    before = statistics(net)
    maps = net.set_train()(tensor(image))
    assert all(np.array_equal(before[name], values) for name, values in statistics(net).items())
    for result, expected in zip(maps, NumpyNet(net).backbone(image), strict=True):
        np.testing.assert_allclose(result.asnumpy(), expected, rtol=1e-3, atol=1e-3)


def test_running_mean_moves_by_a_tenth(image):
    """A tenth of the batch's mean, nine tenths of the old value: MindSpore's momentum 0.9."""
    net = build(frozen_stages=-1, norm_eval=False).set_train()
    before = net.bn1.moving_mean.asnumpy().copy()
    net(tensor(image))
    reference = NumpyNet(net)
    batch_mean = conv2d(image, reference.values["conv1.weight"], stride=2).mean((0, 2, 3))
    np.testing.assert_allclose(net.bn1.moving_mean.asnumpy(), 0.9 * before + 0.1 * batch_mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen_stages", [-1, 2])
def test_gradient_reaches_what_is_not_fixed(frozen_stages, image):
    net = build(frozen_stages=frozen_stages, norm_eval=True).set_train()
    params = net.trainable_params()

    def total(pixels):
        c2, c3, c4, c5 = net(pixels)
        return (c2 * c2).sum() + (c3 * c3).sum() + (c4 * c4).sum() + (c5 * c5).sum()

    gradients = ms.grad(total, grad_position=None, weights=params)(tensor(image))
    assert len(gradients) == len(params) > 0
    for param, gradient in zip(params, gradients, strict=True):
        values = gradient.asnumpy()
        assert np.isfinite(values).all() and np.abs(values).max() > 0, param.name


def test_equal_blocks_have_gradients_of_their_own(image):
    """Blocks 1 and 2 of a stage are compiled once; each gradient is a slope of the definition nevertheless."""
    layer_nums = (1, 1, 1, 3)
    net = build(layer_nums=layer_nums).set_train()
    names = [f"layer4.{number}.{part}" for number in (1, 2) for part in ("conv2.weight", "bn1.gamma")]
    params = [net.parameters_dict()[name] for name in names]

    def total(pixels):
        c5 = net(pixels)[3]
        return (c5 * c5).sum()

    gradients = ms.grad(total, grad_position=None, weights=params)(tensor(image))
    reference, rng = NumpyNet(net), np.random.default_rng(49)

    def total_with(name, values):
        moved = NumpyNet(net)
        moved.values[name] = values
        return (moved.backbone(image, blocks=layer_nums)[3] ** 2).sum()

    for name, gradient in zip(names, gradients, strict=True):
        direction = rng.normal(0, 1, gradient.shape)
        ends = [total_with(name, reference.values[name] + step * direction) for step in (1e-6, -1e-6)]
        np.testing.assert_allclose((gradient.asnumpy() * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-3)


def test_initial_weights_are_he_normal():
    """Standard deviation sqrt(2 / fan in); batch norm 1, 0 (gamma of a block's last one 0) and statistics 0, 1."""
    net = ResNetFea(ResidualBlock, (1, 1, 1, 1), (64, 256, 128, 128), (256, 128, 128, 128))
    params = {param.name: param.asnumpy() for param in net.get_parameters()}
    for name, fan_in in {
        "conv1": 3 * 49,
        "layer1.0.conv3": 64,
        "layer2.0.conv_down_sample": 256,
        "layer1.0.conv2": 64 * 9,
    }.items():
        np.testing.assert_allclose(params[f"{name}.weight"].std(), np.sqrt(2 / fan_in), rtol=0.05)
    for name, values in params.items():
        if "bn" in name:
            one = name.endswith(("gamma", "moving_variance")) and not name.endswith("bn3.gamma")
            assert np.all(values == one), name


class _WeightedSum(ms.nn.Cell):
    def __init__(self, block):
        super().__init__(auto_prefix=False)  # the block's parameters keep their names
        self.block = block

    def construct(self, x, weights):
        return (self.block(x) * weights).sum()


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("stride, down_sample", [(2, True), (1, False)])
def test_folded_norms_change_neither_values_nor_gradients(kind, stride, down_sample):
    """A gamma of 0, which blocks begin with, has its gradient too. In evaluation nothing is folded."""
    rng = np.random.default_rng(49)
    x, weights = tensor(rng.normal(size=(2, 12, 10, 12))), tensor(rng.normal(size=(2, 12, 10 // stride, 12 // stride)))
    results, evaluated = [], []
    for fold in (False, True):
        block = randomise(BLOCKS[kind](12, 12, stride, down_sample, True, fold_norms=fold), 47).set_train()
        block.bn3.gamma.set_data(tensor([0.0, *block.bn3.gamma.asnumpy()[1:]]))
        value, (to_x, to_params) = ms.value_and_grad(_WeightedSum(block).set_train(), 0, block.trainable_params())(
            x, weights
        )
        results.append([value, to_x, *to_params])
        evaluated.append(block.set_train(False)(x).asnumpy())
    np.testing.assert_array_equal(*evaluated)
    net = NumpyNet(block)
    expected = (net.block(x.asnumpy(), "", stride, kind == "v1") * weights.asnumpy()).sum()
    np.testing.assert_allclose(float(results[1][0]), expected, rtol=1e-3)
    for plain, folded in zip(*results, strict=True):
        largest = np.abs(plain.asnumpy()).max()
        assert largest > 0
        np.testing.assert_allclose(folded.asnumpy(), plain.asnumpy(), atol=1e-5 * largest)


# A batch of the small detector has 8192 pixels per image; half a million count as many.
@pytest.mark.parametrize(
    "changes, folded",
    [
        ({"batch_size": 62}, [False, True, True, True]),
        ({"batch_size": 61}, [False] * 4),
        ({"batch_size": 62, "frozen_stages": -1}, [True] * 4),
        ({"batch_size": 62, "frozen_stages": 2}, [False, False, True, True]),
        ({"batch_size": 62, "norm_eval": False}, [False] * 4),
        ({"batch_size": 62, "device_target": "GPU"}, [False] * 4),
    ],
)
def test_norms_are_folded_for_large_batches_where_they_are_fixed_and_learn(changes, folded):
    backbone = build_detector(config_of(**changes)).backbone
    stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
    assert [stage[0].fold_norms for stage in stages] == folded

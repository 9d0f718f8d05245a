"""The whole detector: its parameters against the published lists, losses and detections against one in numpy."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from src.FasterRcnn import Faster_Rcnn_Resnet, build_detector, faster_rcnn_resnet50v1
from src.FasterRcnn.target_assign import RandomSample
from src.model_utils.config import load_config
from tests.helpers import SHARED
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import tensor
from tests.unit.FasterRcnn.small_detector import (
    CANVAS,
    SETTINGS,
    NumpyDetector,
    as_on_large_canvases,
    config_of,
    random_images,
    randomise,
    with_plain_convolutions,
)

BACKBONES = ("resnet_v1.5_50", "resnet_v1_50", "resnet_v1_101", "resnet_v1_152")
NUM_GTS = 128
LOSSES = ("rpn_loss", "rcnn_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss")


@pytest.fixture(scope="module", autouse=True)
def _as_on_large_canvases():
    with as_on_large_canvases():
        yield


# --- parameters -------------------------------------------------------------------------------------------------------


def published_detector(backbone, *flags):
    with no_init_parameters():
        return build_detector(load_config([f"--backbone={backbone}", "--device_target=CPU", *flags]))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameters_are_those_of_the_published_checkpoints(backbone):
    """Names, shapes, types, what trains, and the order."""
    listing = SHARED / "params" / f"{backbone}.json"
    if not listing.is_file():
        pytest.skip(f"the list of parameters is not at {listing}")
    net = published_detector(backbone)
    rows = [[param.name, list(param.shape), str(param.dtype), param.requires_grad] for param in net.get_parameters()]
    expected = json.loads(listing.read_text(encoding="utf-8"))
    assert sorted(row[0] for row in rows) == sorted(row[0] for row in expected)
    assert rows == expected


def test_some_parameters_by_hand():
    """The same without the lists: one of each kind, for 80 classes and background."""
    net = published_detector("resnet_v1.5_50")
    params = {param.name: (param.shape, param.requires_grad) for param in net.get_parameters()}
    assert len(params) == 5 * 53 + 2 * 8 + 6 + 8  # 53 convolutions with batch norm, FPN, RPN, box head
    expected = {
        "backbone.conv1.weight": ((64, 3, 7, 7), False),
        "backbone.bn1.moving_mean": ((64,), False),
        "backbone.layer1.2.conv3.weight": ((256, 64, 1, 1), False),
        "backbone.layer2.0.conv_down_sample.weight": ((512, 256, 1, 1), True),
        "backbone.layer2.0.bn_down_sample.gamma": ((512,), True),
        "backbone.layer4.2.bn3.beta": ((2048,), True),
        "backbone.layer4.2.bn3.moving_variance": ((2048,), False),
        "fpn_neck.lateral_convs_list.3.weight": ((256, 2048, 1, 1), True),
        "fpn_neck.fpn_convs_list.0.bias": ((256,), True),
        "rpn_with_loss.rpn_convs_list.0.rpn_conv.weight": ((256, 256, 3, 3), True),
        "rpn_with_loss.rpn_convs_list.0.rpn_cls.weight": ((3, 256, 1, 1), True),
        "rpn_with_loss.rpn_convs_list.0.rpn_reg.bias": ((12,), True),
        "rcnn.shared_fc_0.weight": ((12544, 1024), True),
        "rcnn.shared_fc_1.bias": ((1024,), True),
        "rcnn.cls_scores.weight": ((1024, 81), True),
        "rcnn.reg_scores.weight": ((1024, 320), True),
    }
    assert {name: params.get(name) for name in expected} == expected


def test_background_boxes_have_columns_of_their_own():
    """4 * num_classes outputs with without_bg_loss False, 4 * (num_classes - 1) with True."""
    for flag, outputs in (("False", 324), ("True", 320)):
        net = published_detector("resnet_v1_50", f"--without_bg_loss={flag}")
        assert net.rcnn.reg_scores.weight.shape == (1024, outputs)


@pytest.mark.parametrize("backbone", [*BACKBONES, "resnet_caffe_101", "resnet_caffe_152"])
def test_stride_of_the_stages(backbone):
    """Of the published ones only resnet_v1_50 strides in the first 1x1 convolution, whatever the others' names say."""
    on_first = backbone == "resnet_v1_50" or "caffe" in backbone
    net = published_detector(backbone)
    assert isinstance(net, Faster_Rcnn_Resnet)
    assert isinstance(net, faster_rcnn_resnet50v1.Faster_Rcnn_Resnet) == on_first
    first, second = ((2, 2), (1, 1)) if on_first else ((1, 1), (2, 2))
    for stage in (net.backbone.layer2, net.backbone.layer3, net.backbone.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == (first, second)
        assert (stage[1].conv1.stride, stage[1].conv2.stride) == ((1, 1), (1, 1))


@pytest.mark.parametrize("frozen_stages, first_trained", [(-1, "conv1"), (0, "layer1"), (3, "layer4"), (4, None)])
def test_frozen_stages_of_the_configuration(frozen_stages, first_trained):
    with no_init_parameters():
        net = build_detector(config_of(f"--frozen_stages={frozen_stages}"))
    names = [param.name.split(".")[1] for param in net.trainable_params() if param.name.startswith("backbone.")]
    assert (names[0] if names else None) == first_trained
    assert any(param.name.startswith("fpn_neck.") for param in net.trainable_params())


# --- random numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["resnet_v1.5_50", "resnet_v1_50"])
def test_every_rank_and_sampler_draws_its_own_numbers(backbone):
    """Positives and negatives of both stages, on two ranks, in three runs whose seeds are neighbours."""
    draws = []
    for seed in (1, 2, 3):
        for rank in ((), (0,), (1,)):
            with no_init_parameters():
                net = build_detector(config_of(f"--seed={seed}", f"--backbone={backbone}"), *rank)
            samplers = [part for _, part in net.cells_and_names() if isinstance(part, RandomSample)]
            draws.append([tuple(sampler.uniform((8,)).asnumpy().tolist()) for sampler in samplers])
    assert [len(of_net) for of_net in draws] == [4] * 9
    for alone in (0, 3, 6):
        assert draws[alone] == draws[alone + 1]  # without a rank it is rank 0
    assert len({draw for of_net in draws for draw in of_net}) == 3 * 2 * 4


def test_initial_weights_are_the_same_on_every_rank():
    weights = []
    for rank in (0, 3):
        ms.set_seed(5)
        weights.append({param.name: param.asnumpy() for param in build_detector(config_of(), rank).get_parameters()})
    assert any(values.std() > 0 for values in weights[0].values())
    for name, values in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], values, err_msg=name)


# --- losses and detections --------------------------------------------------------------------------------------------


def ground_truth(num_classes):
    """Image 0 has three boxes, a crowd and padding, image 1 none."""
    boxes = np.zeros((2, NUM_GTS, 4), np.float32)
    labels, valid = np.full((2, NUM_GTS), -1), np.zeros((2, NUM_GTS), bool)
    boxes[0, :4] = [
        [10.3, 8.1, 40.7, 35.2],
        [60.5, 5.5, 104.2, 30.9],
        [80.2, 20.4, 120.8, 60.6],
        [5.1, 30.2, 50.3, 60.9],
    ]
    labels[0, :4] = np.arange(4) % (num_classes - 1) + 1
    valid[0, [0, 1, 3]] = True
    return boxes, labels, valid


def training_inputs(images, gt_boxes, gt_labels, gt_valid):
    metas = np.tile(np.float32([*CANVAS, 1, 1]), (len(images), 1))
    return tensor(images), tensor(metas), tensor(gt_boxes), tensor(gt_labels, ms.int32), tensor(gt_valid, ms.bool_)


@pytest.fixture(scope="module")
def detector():
    return randomise(build_detector(config_of(**SETTINGS)), 49)


@pytest.fixture(scope="module")
def images():
    return random_images(50)


@pytest.fixture(scope="module")
def in_numpy(detector, images):
    return NumpyDetector(detector, images)


SCALES = np.float32([[0.5, 0.8], [1.6, 1.25]])  # scale_h, scale_w of each image


def detect(detector, images):
    metas = np.concatenate([np.tile(np.float32(CANVAS), (2, 1)), SCALES], axis=1)
    return detector.set_train(False)(tensor(images), tensor(metas))


def test_detections_equal_the_definition(detector, images, in_numpy):
    boxes, labels, mask = detect(detector, images)
    assert (boxes.shape, labels.shape, mask.shape) == ((2, 100, 5), (2, 100, 1), (2, 100, 1))
    assert (boxes.dtype, labels.dtype, mask.dtype) == (ms.float32, ms.int32, ms.bool_)
    boxes, labels, mask = boxes.asnumpy(), labels.asnumpy()[..., 0], mask.asnumpy()[..., 0]
    for image in range(2):
        expected = in_numpy.detections(image, SCALES[image])
        count = len(expected)
        assert count > 10 and len(set(expected[:, 5])) > 1
        assert mask[image].tolist() == [True] * count + [False] * (100 - count)
        np.testing.assert_allclose(boxes[image, :count, 4], expected[:, 4], rtol=1e-3)
        np.testing.assert_allclose(boxes[image, :count, :4], expected[:, :4], atol=0.05)
        assert labels[image, :count].tolist() == expected[:, 5].tolist()
        assert not boxes[image, count:].any() and not labels[image, count:].any()


@pytest.fixture(scope="module")
def loss_and_gradients(detector, images):
    """Total loss, the six parts, and the gradient of every trainable parameter, for given ground truths.

    The one graph of training that the tests of this module share.
    """
    params = detector.trainable_params()

    def total(*inputs):
        losses = detector(*inputs)
        return losses[0] + losses[1], losses

    function = ms.value_and_grad(total, grad_position=None, weights=params, has_aux=True)

    def run(truth):
        detector.set_train()
        (loss, parts), gradients = function(*training_inputs(images, *truth))
        gradients = {param.name: gradient.asnumpy() for param, gradient in zip(params, gradients, strict=True)}
        return loss.asnumpy(), {name: part.asnumpy() for name, part in zip(LOSSES, parts, strict=True)}, gradients

    return run


def test_losses_equal_the_definition_on_every_call(in_numpy, loss_and_gradients):
    """Three calls on one batch: nothing carries over to the next one (a loss added up in place would grow)."""
    truth = ground_truth(4)
    targets = in_numpy.targets(*truth)
    assert (targets[0][1] >= 0).sum() > 5 and (targets[0][3] > 0).sum() > 5  # positive anchors and RoIs
    expected = in_numpy.losses(targets)
    for _ in range(3):
        _, losses, _ = loss_and_gradients(truth)
        assert len(losses) == 6
        assert all(loss.shape == () and loss.dtype == np.float32 for loss in losses.values())
        np.testing.assert_allclose(list(losses.values()), expected, rtol=1e-3)


def test_weighted_sums_and_switching(detector, images, loss_and_gradients):
    """rpn_loss and rcnn_loss are the weighted sums of their parts; losses and detections by turns."""
    truth = ground_truth(4)
    detections = [part.asnumpy() for part in detect(detector, images)]
    losses = list(loss_and_gradients(truth)[1].values())
    np.testing.assert_allclose(losses[0], 0.5 * losses[2] + 2.0 * losses[3], rtol=1e-6)
    np.testing.assert_allclose(losses[1], 3.0 * losses[4] + 0.25 * losses[5], rtol=1e-6)
    for before, after in zip(detections, detect(detector, images), strict=True):
        np.testing.assert_allclose(after.asnumpy(), before, atol=1e-5)
    again = list(loss_and_gradients(truth)[1].values())
    np.testing.assert_allclose(again, losses, rtol=1e-5)


GROUPS = (
    "backbone.layer2",
    "backbone.layer3",
    "backbone.layer4",
    "fpn_neck.lateral",
    "fpn_neck.fpn_convs",
    "rpn_with_loss.",
    "rcnn.shared",
    "rcnn.cls",
    "rcnn.reg",
)


def test_gradients_equal_differences_of_the_loss(detector, images, in_numpy, loss_and_gradients):
    """Along a random direction in each group of parameters; targets and RoIs are held, as they have no gradient."""
    truth = ground_truth(4)
    targets = in_numpy.targets(*truth)
    loss, _, gradients = loss_and_gradients(truth)
    np.testing.assert_allclose(loss, sum(in_numpy.losses(targets)[:2]), rtol=1e-3)
    rng = np.random.default_rng(51)
    moved = NumpyDetector(detector, images)
    for group in GROUPS:
        names = [name for name in gradients if name.startswith(group)]
        steps = {name: rng.normal(0, 1, gradients[name].shape) for name in names}
        # along the gradient more than across it, or the difference would drown in chance
        steps = {name: step + 3 * gradients[name] / (gradients[name].std() + 1e-12) for name, step in steps.items()}
        sides = []
        for sign in (1, -1):
            moved.layers.values = dict(in_numpy.layers.values)
            for name, step in steps.items():
                moved.layers.values[name] = moved.layers.values[name] + sign * 1e-7 * step
            for cached in ("features", "rpn_outputs"):
                vars(moved).pop(cached, None)
            sides.append(sum(moved.losses(targets)[:2]))
        expected = (sides[0] - sides[1]) / 2e-7
        result = sum((gradients[name] * steps[name]).sum() for name in names)
        np.testing.assert_allclose(result, expected, rtol=5e-3, err_msg=group)


def test_batch_without_boxes(loss_and_gradients):
    """Regression losses are exactly 0, gradients finite; those of the regression layers 0."""
    boxes, labels, valid = ground_truth(4)
    valid[:] = False
    loss, parts, gradients = loss_and_gradients((boxes, labels, valid))
    assert parts["rpn_reg_loss"] == 0.0 and parts["rcnn_reg_loss"] == 0.0
    assert np.isfinite(loss) and parts["rpn_cls_loss"] > 0 and parts["rcnn_cls_loss"] > 0
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    for name, gradient in gradients.items():
        if "rpn_reg" in name or "reg_scores" in name:
            assert not gradient.any(), name


def test_every_trainable_parameter_learns(loss_and_gradients):
    _, _, gradients = loss_and_gradients(ground_truth(4))
    assert not any(name.startswith(("backbone.conv1", "backbone.bn1", "backbone.layer1")) for name in gradients)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all() and gradient.any(), name


# --- published numbers of samples and proposals -----------------------------------------------------------------------


@pytest.fixture
def _with_plain_convolutions():
    with with_plain_convolutions():
        yield


@pytest.mark.usefixtures("_with_plain_convolutions")
@pytest.mark.parametrize("num_classes, without_bg_loss", [(2, False), (81, True)])
def test_few_and_many_classes(num_classes, without_bg_loss):
    """On a canvas with fewer anchors than proposals asked for; initial weights."""
    classes = ["background", *(f"class {number}" for number in range(1, num_classes))]
    net = build_detector(config_of(classes=classes, without_bg_loss=without_bg_loss, test_nms_candidates=500))
    images = random_images(52)
    truth = ground_truth(num_classes)
    for _ in range(2):
        losses = dict(zip(LOSSES, net.set_train()(*training_inputs(images, *truth)), strict=True))
        values = {name: float(loss.asnumpy()) for name, loss in losses.items()}
        assert all(np.isfinite(value) and value > 0 for value in values.values())
        assert values["rpn_loss"] == pytest.approx(values["rpn_cls_loss"] + values["rpn_reg_loss"], rel=1e-5)
        assert values["rcnn_loss"] == pytest.approx(values["rcnn_cls_loss"] + values["rcnn_reg_loss"], rel=1e-5)
    metas = np.tile(np.float32([*CANVAS, 1, 1]), (2, 1))
    outputs = reference.Graph(net.set_train(False).detect)(tensor(images), tensor(metas))
    boxes, labels, mask, truncated = (part.asnumpy() for part in outputs)
    assert (boxes.shape, labels.shape, mask.shape) == ((2, 100, 5), (2, 100, 1), (2, 100, 1))
    assert truncated.shape == (2,) and truncated.dtype == bool
    assert ((labels >= 0) & (labels < num_classes - 1)).all()
    scores = boxes[..., 4]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert ((scores > 0.05) == mask[..., 0]).all()
    height, width = CANVAS
    assert ((boxes[..., :4] >= 0) & (boxes[..., :4] <= [width, height, width, height])).all()

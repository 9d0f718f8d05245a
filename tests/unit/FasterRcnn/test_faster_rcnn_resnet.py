"""The whole detector: its parameters against the published lists, losses and detections against one in numpy."""
import dataclasses
import json
from functools import cached_property

import mindspore as ms
import numpy as np
import pytest
from mindspore.nn.utils import no_init_parameters

from src.FasterRcnn import Faster_Rcnn_Resnet, build_detector, faster_rcnn_resnet50v1
from src.model_utils.config import load_config
from tests.helpers import SHARED
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import NumpyNet, tensor

BACKBONES = ("resnet_v1.5_50", "resnet_v1_50", "resnet_v1_101", "resnet_v1_152")
CANVAS = (64, 128)
CLASSES = ("background", "cell", "leaf", "nut")
WIDTHS = (32, 48, 64, 80)                                    # channels of C2..C5
NUM_GTS = 128
LOSSES = ("rpn_loss", "rcnn_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss")


def config_of(*flags, classes=CLASSES, **changes):
    """A small canvas and a small network; the published values elsewhere."""
    config = load_config(["--device_target=CPU", f"--img_height={CANVAS[0]}", f"--img_width={CANVAS[1]}",
                          f"--coco_classes={list(classes)}", *flags])
    small = {"resnet_block": (1, 1, 1, 1), "resnet_in_channels": (64, 32, 48, 64), "resnet_out_channels": WIDTHS,
             "fpn_in_channels": WIDTHS, "fpn_out_channels": 16, "rpn_in_channels": 16,
             "rpn_feat_channels": 16, "roi_align_out_channels": 16, "rcnn_in_channels": 16, "rcnn_fc_out_channels": 32}
    return dataclasses.replace(config, **{**small, **changes})


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
    assert len(params) == 5 * 53 + 2 * 8 + 6 + 8             # 53 convolutions with batch norm, FPN, RPN, box head
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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stride_of_the_stages(backbone):
    """Only resnet_v1_50 strides in the first 1x1 convolution, whatever the others' names say."""
    net = published_detector(backbone)
    assert isinstance(net, Faster_Rcnn_Resnet)
    assert isinstance(net, faster_rcnn_resnet50v1.Faster_Rcnn_Resnet) == (backbone == "resnet_v1_50")
    first, second = ((2, 2), (1, 1)) if backbone == "resnet_v1_50" else ((1, 1), (2, 2))
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


# --- a detector in numpy ----------------------------------------------------------------------------------------------

# All anchors and RoIs fit into the samples, so that nothing in the losses is left to chance.
SETTINGS = {"num_expected_pos": 500, "num_expected_neg": 2000, "num_expected_pos_stage2": 200,
            "num_expected_neg_stage2": 300, "roi_sample_num": 500, "rpn_proposal_nms_pre": 120,
            "rpn_proposal_max_num": 150, "num_bboxes_stage2": 150, "rpn_nms_pre": 60, "rpn_max_num": 50,
            "rpn_proposal_nms_thr": 0.7, "rpn_nms_thr": 0.6, "rpn_loss_cls_weight": 0.5, "rpn_loss_reg_weight": 2.0,
            "rcnn_loss_cls_weight": 3.0, "rcnn_loss_reg_weight": 0.25, "test_score_thr": 0.1, "test_iou_thr": 0.4,
            "roi_align_finest_scale": 6}                     # RoIs of 12, 24 and 48 pixels begin the next level
# A decision closer than this could fall the other way in float32, the network's rounding included.
MARGIN = 1e-4


def randomise(net, seed):
    """Weights that keep values near 1 and give scores and deltas of all sizes."""
    rng = np.random.default_rng(seed)
    gains = {"rpn_cls.weight": 2.0, "rpn_reg.weight": 0.3, "cls_scores.weight": 1.5, "reg_scores.weight": 1.0}
    for param in net.get_parameters():
        if param.name.endswith(("gamma", "moving_variance")):
            values = rng.uniform(0.6, 1.4, param.shape)
        elif param.ndim == 1:
            values = rng.normal(0, 0.1, param.shape)
        else:
            fan_in = param.shape[0] if param.ndim == 2 else np.prod(param.shape[1:])
            gain = next((gain for name, gain in gains.items() if param.name.endswith(name)), 1.0)
            values = gain * rng.normal(0, np.sqrt(1 / fan_in), param.shape)
        param.set_data(tensor(values))
    return net


class NumpyDetector:
    """The detector of the specification on the parameters of a network, in float64."""

    def __init__(self, net, images):
        self.layers = NumpyNet(net)
        self.images = np.asarray(images, np.float64)
        self.anchors = reference.canvas_anchors(*CANVAS)

    @cached_property
    def features(self):
        maps = self.layers.backbone(self.images, "backbone.")
        return self.layers.pyramid(maps, "fpn_neck.")

    @cached_property
    def rpn_outputs(self):
        """Logits and deltas of each level."""
        return list(zip(*[self.layers.rpn_head(feature, "rpn_with_loss.rpn_convs_list.0.")
                          for feature in self.features], strict=True))

    def proposals(self, image, nms_pre, max_num, threshold):
        logits, deltas = self.rpn_outputs
        return reference.proposals(self.anchors, [level[image] for level in logits],
                                   [level[image] for level in deltas], nms_pre, max_num, threshold, CANVAS, MARGIN)[0]

    def box_outputs(self, image, rois):
        features = [feature[image:image + 1] for feature in self.features]
        pooled = reference.roi_align(rois[None], features, SETTINGS["roi_align_finest_scale"])
        return self.layers.box_head(pooled, "rcnn.")

    def detections(self, image, scale):
        rois = self.proposals(image, SETTINGS["rpn_nms_pre"], SETTINGS["rpn_max_num"], SETTINGS["rpn_nms_thr"])
        logits, deltas = self.box_outputs(image, rois)
        return reference.detections(logits, deltas, rois, np.ones(len(rois), bool), scale, CANVAS, margin=MARGIN,
                                    score_thr=SETTINGS["test_score_thr"], iou_thr=SETTINGS["test_iou_thr"])

    def targets(self, gt_boxes, gt_labels, gt_valid):
        """Matched anchors, and RoIs with labels and target deltas, of each image."""
        anchors = np.concatenate(self.anchors)
        is_inside = reference.inside(anchors, *CANVAS)
        result = []
        for image, valid in enumerate(gt_valid):
            boxes, labels = gt_boxes[image][valid], gt_labels[image][valid]
            valid = np.ones(len(boxes), bool)
            rois = self.proposals(image, SETTINGS["rpn_proposal_nms_pre"], SETTINGS["rpn_proposal_max_num"],
                                  SETTINGS["rpn_proposal_nms_thr"])
            anchor_match = np.full(len(anchors), reference.IGNORED)
            anchor_match[is_inside] = self._match(boxes, anchors[is_inside], 0.7, 0.3, 0.3)
            roi_match = np.concatenate([np.arange(len(boxes)), self._match(boxes, rois, 0.5, 0.5, 0.5)])
            rois = np.concatenate([boxes, rois])
            roi_labels, roi_deltas = np.zeros(len(rois), int), np.zeros((len(rois), 4))
            for row in np.flatnonzero(roi_match >= 0):
                roi_labels[row] = labels[roi_match[row]]
                roi_deltas[row] = reference.encode(rois[row], boxes[roi_match[row]], (0.1, 0.1, 0.2, 0.2))
            result.append((boxes, anchor_match, rois, roi_labels, roi_deltas))
        return result

    @staticmethod
    def _match(boxes, candidates, *thresholds):
        if not len(boxes):
            return np.full(len(candidates), reference.NEGATIVE)
        overlaps = reference.iou_matrix(boxes, candidates, extra_pixel=1)
        for threshold in thresholds:
            assert reference.is_clear(overlaps.max(0), threshold, MARGIN / 10)
        return reference.match(overlaps, np.ones(len(boxes), bool), *thresholds)

    def losses(self, targets):
        """The six losses for given targets."""
        logits, deltas = (np.concatenate(levels, axis=1) for levels in self.rpn_outputs)
        anchors = np.concatenate(self.anchors)
        rpn_cls = rpn_reg = rcnn_cls = rcnn_reg = num_rois = 0.0
        for image, (boxes, anchor_match, rois, labels, roi_deltas) in enumerate(targets):
            used, positive = anchor_match != reference.IGNORED, anchor_match >= 0
            rpn_cls += reference.sigmoid_cross_entropy(logits[image, used], positive[used]).sum()
            for anchor in np.flatnonzero(positive):
                target = reference.encode(anchors[anchor], boxes[anchor_match[anchor]])
                rpn_reg += reference.smooth_l1(deltas[image, anchor] - target, 1 / 9).sum()
            roi_logits, outputs = self.box_outputs(image, rois)
            rcnn_cls -= np.log(reference.softmax(roi_logits)[np.arange(len(rois)), labels]).sum()
            for row in np.flatnonzero(labels):
                rcnn_reg += reference.smooth_l1(outputs[row, labels[row] - 1] - roi_deltas[row], 1).sum()
            num_rois += len(rois)
        divisor = SETTINGS["num_expected_neg"] * len(targets)
        parts = rpn_cls / divisor, rpn_reg / divisor, rcnn_cls / num_rois, rcnn_reg / (num_rois + 1e-4)
        rpn_loss = SETTINGS["rpn_loss_cls_weight"] * parts[0] + SETTINGS["rpn_loss_reg_weight"] * parts[1]
        rcnn_loss = SETTINGS["rcnn_loss_cls_weight"] * parts[2] + SETTINGS["rcnn_loss_reg_weight"] * parts[3]
        return rpn_loss, rcnn_loss, *parts


def random_images(seed):
    return np.random.default_rng(seed).normal(0, 1, (2, 3, *CANVAS)).astype(np.float32)


def ground_truth(num_classes):
    """Image 0 has three boxes, a crowd and padding, image 1 none."""
    boxes = np.zeros((2, NUM_GTS, 4), np.float32)
    labels, valid = np.full((2, NUM_GTS), -1), np.zeros((2, NUM_GTS), bool)
    boxes[0, :4] = [[10.3, 8.1, 40.7, 35.2], [60.5, 5.5, 104.2, 30.9], [80.2, 20.4, 120.8, 60.6],
                    [5.1, 30.2, 50.3, 60.9]]
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


SCALES = np.float32([[0.5, 0.8], [1.6, 1.25]])               # scale_h, scale_w of each image


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


def test_losses_equal_the_definition_on_every_call(detector, images, in_numpy):
    """Three calls on one batch: nothing carries over to the next one (a loss added up in place would grow)."""
    truth = ground_truth(4)
    targets = in_numpy.targets(*truth)
    assert (targets[0][1] >= 0).sum() > 5 and (targets[0][3] > 0).sum() > 5      # positive anchors and RoIs
    expected = in_numpy.losses(targets)
    detector.set_train()
    for _ in range(3):
        losses = detector(*training_inputs(images, *truth))
        assert len(losses) == 6
        assert all(loss.shape == () and loss.dtype == ms.float32 for loss in losses)
        np.testing.assert_allclose([loss.asnumpy() for loss in losses], expected, rtol=1e-3)


def test_weighted_sums_and_switching(detector, images):
    """rpn_loss and rcnn_loss are the weighted sums of their parts; losses and detections by turns."""
    inputs = training_inputs(images, *ground_truth(4))
    detections = [part.asnumpy() for part in detect(detector, images)]
    losses = [loss.asnumpy() for loss in detector.set_train()(*inputs)]
    np.testing.assert_allclose(losses[0], 0.5 * losses[2] + 2.0 * losses[3], rtol=1e-6)
    np.testing.assert_allclose(losses[1], 3.0 * losses[4] + 0.25 * losses[5], rtol=1e-6)
    for before, after in zip(detections, detect(detector, images), strict=True):
        np.testing.assert_allclose(after.asnumpy(), before, atol=1e-5)
    again = [loss.asnumpy() for loss in detector.set_train()(*inputs)]
    np.testing.assert_allclose(again, losses, rtol=1e-5)


@pytest.fixture(scope="module")
def loss_and_gradients(detector, images):
    """Total loss, the six parts, and the gradient of every trainable parameter, for given ground truths."""
    params = detector.trainable_params()

    def total(*inputs):
        losses = detector(*inputs)
        return losses[0] + losses[1], losses

    function = ms.value_and_grad(total, grad_position=None, weights=params, has_aux=True)

    def run(truth):
        detector.set_train()
        (loss, parts), gradients = function(*training_inputs(images, *truth))
        gradients = {param.name: gradient.asnumpy() for param, gradient in zip(params, gradients, strict=True)}
        return loss.asnumpy(), dict(zip(LOSSES, (part.asnumpy() for part in parts), strict=True)), gradients

    return run


GROUPS = ("backbone.layer2", "backbone.layer3", "backbone.layer4", "fpn_neck.lateral", "fpn_neck.fpn_convs",
          "rpn_with_loss.", "rcnn.shared", "rcnn.cls", "rcnn.reg")


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

@pytest.mark.parametrize("num_classes, without_bg_loss", [(2, False), (81, True)])
def test_few_and_many_classes(num_classes, without_bg_loss):
    """On a canvas with fewer anchors than proposals asked for; initial weights."""
    classes = ["background", *(f"class {number}" for number in range(1, num_classes))]
    net = build_detector(config_of(classes=classes, without_bg_loss=without_bg_loss,
                                   test_nms_candidates=500))
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

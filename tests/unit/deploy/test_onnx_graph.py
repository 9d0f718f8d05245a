"""The ONNX graph, run by ONNX Runtime, against the detector in numpy, against cases by hand, and its form."""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from src.deploy.onnx_graph import build_onnx, store_weights_as_float16
from src.FasterRcnn import build_detector
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.small_detector import (
    CANVAS,
    CLASSES,
    MARGIN,
    SETTINGS,
    NumpyDetector,
    config_of,
    random_images,
    randomise,
)

SCALES = ((0.5, 0.8), (1.6, 1.25), (1.0, 2.0))  # scale_h, scale_w of each image
METAS = np.float32([(*CANVAS, *scales) for scales in SCALES])
# RoIs of 20, 40 and 80 pixels begin the next level: all four have some. One block of layer2 does not change shapes.
VALUES = SETTINGS | {"roi_align_finest_scale": 10, "resnet_block": (1, 2, 1, 1)}
CASES = {  # seed of the weights, configuration
    "published": (49, {}),
    "stride on the first convolution": (52, {"backbone": "resnet_caffe_101"}),
    "symmetric pool": (52, {"stem_pool_pad": "symmetric"}),
    "boxes of the background": (49, {"without_bg_loss": False}),
}


def parameters_of(net):
    """Arrays by name."""
    return {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}


class Definition(NumpyDetector):
    """The detector in numpy with the values of a configuration."""

    def __init__(self, net, config, images):
        super().__init__(
            net,
            images,
            blocks=config.resnet_block,
            symmetric_pool=config.stem_pool_pad == "symmetric",
            stride_on_first=config.backbone == "resnet_caffe_101",
        )
        self.config = config

    def rois(self, image):
        """Proposals (R, 4) of one image; none may lie between two levels."""
        config = self.config
        rois = self.proposals(image, config.rpn_nms_pre, config.rpn_max_num, config.rpn_nms_thr)
        sides = np.sqrt((rois[:, 2] - rois[:, 0] + 1) * (rois[:, 3] - rois[:, 1] + 1)) / config.roi_align_finest_scale
        assert all(reference.is_clear(sides, boundary, MARGIN) for boundary in (2, 4, 8)), "an RoI between two levels"
        return rois

    def levels(self):
        """Pyramid levels that the RoIs of all images lie on."""
        return {
            reference.roi_level(roi, self.config.roi_align_finest_scale)
            for image in range(len(self.images))
            for roi in self.rois(image)
        }

    def detections(self, image, scale):
        """Rows (x1, y1, x2, y2, score, label), best first."""
        config, rois = self.config, self.rois(image)
        features = [feature[image : image + 1] for feature in self.features]
        pooled = reference.roi_align(rois[None], features, config.roi_align_finest_scale)
        return reference.detections(
            *self.layers.box_head(pooled, "rcnn."),
            rois,
            np.ones(len(rois), bool),
            scale,
            CANVAS,
            score_thr=config.test_score_thr,
            iou_thr=config.test_iou_thr,
            max_num=config.test_max_per_img,
            margin=MARGIN,
        )


def run(model, images, metas):
    """boxes, labels, mask of a graph."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images, "image_shape": metas})


def assert_equal_rows(outputs, image, expected):
    """The rows of one image are the expected (n, 6), and behind them 0, 0, False."""
    boxes, labels, mask = outputs[0][image], outputs[1][image, :, 0], outputs[2][image, :, 0]
    count = len(expected)
    assert mask.tolist() == [True] * count + [False] * (len(mask) - count)
    np.testing.assert_allclose(boxes[:count, 4], expected[:, 4], rtol=1e-3)
    np.testing.assert_allclose(boxes[:count, :4], expected[:, :4], atol=0.05)
    assert labels[:count].tolist() == expected[:, 5].tolist()
    assert not boxes[count:].any() and not labels[count:].any()


class Case:
    """A detector, three images, and what the definition finds in them."""

    def __init__(self, seed, changes):
        self.config = config_of(**VALUES | changes)
        self.net = randomise(build_detector(self.config), seed)
        self.parameters = parameters_of(self.net)
        self.images = np.concatenate([random_images(50), random_images(51)])[:3]
        self.in_numpy = Definition(self.net, self.config, self.images)
        self.expected = [self.in_numpy.detections(image, scale) for image, scale in enumerate(SCALES)]

    def run(self, config=None):
        """The outputs for all images, perhaps with another configuration."""
        return run(build_onnx(self.parameters, config or self.config), self.images, METAS)

    def changed(self, **changes):
        """Another configuration and its definition with the same weights."""
        config = dataclasses.replace(self.config, **changes)
        in_numpy = Definition(self.net, config, self.images)
        in_numpy.features, in_numpy.rpn_outputs = self.in_numpy.features, self.in_numpy.rpn_outputs
        return config, in_numpy


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    return Case(*request.param)


@pytest.fixture(scope="module")
def published():
    return Case(*CASES["published"])


# ---- what it computes


def test_detections_equal_the_definition(case):
    outputs = case.run()
    for image, expected in enumerate(case.expected):
        assert len(expected) > 10 and len(set(expected[:, 5])) > 1
        assert_equal_rows(outputs, image, expected)


def test_pyramid_equals_the_definition(case):
    """The five maps that the RPN reads; few detections depend on P6."""
    model = build_onnx(case.parameters, case.config)
    names = [node.input[0] for node in model.graph.node if node.op_type == "Conv" and node.name.startswith("rpn/")]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    maps = run(model, case.images, METAS)
    assert len(maps) == 5
    for found, expected in zip(maps, case.in_numpy.features, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_an_image_alone_is_detected_as_in_a_batch(case):
    model = build_onnx(case.parameters, case.config)
    together = run(model, case.images, METAS)
    for image in range(3):
        alone = run(model, case.images[image : image + 1], METAS[image : image + 1])
        assert [len(output) for output in alone] == [1, 1, 1]
        assert_equal_rows(alone, 0, case.expected[image])
        np.testing.assert_allclose(alone[0][0], together[0][image], atol=1e-4)
        assert (alone[1][0] == together[1][image]).all() and (alone[2][0] == together[2][image]).all()


@pytest.mark.parametrize(("finest_scale", "level"), [(1000, 0), (1, 3)])
def test_levels_without_rois(published, finest_scale, level):
    """RoIs of all sizes on one level: the others pool nothing."""
    config, in_numpy = published.changed(roi_align_finest_scale=finest_scale)
    assert in_numpy.levels() == {level}
    outputs = published.run(config)
    for image, scale in enumerate(SCALES):
        assert_equal_rows(outputs, image, in_numpy.detections(image, scale))


def test_rois_are_on_all_levels_elsewhere(published):
    """So the other tests try each level."""
    assert published.in_numpy.levels() == {0, 1, 2, 3}


def test_fewer_anchors_than_proposals(published):
    """Levels give 60 + 60 + 60 + 24 + 6 = 210 boxes where 250 proposals are asked for."""
    config, in_numpy = published.changed(rpn_max_num=250)
    assert 20 < len(in_numpy.rois(0)) < 210
    outputs = published.run(config)
    for image, scale in enumerate(SCALES):
        assert_equal_rows(outputs, image, in_numpy.detections(image, scale))


def test_fewer_boxes_than_rows(published):
    """One class and 50 proposals where 100 rows are asked for."""
    config = config_of(classes=CLASSES[:2], **VALUES)
    net = randomise(build_detector(config), 49)
    expected = Definition(net, config, published.images).detections(0, SCALES[0])
    outputs = run(build_onnx(parameters_of(net), config), published.images, METAS)
    assert outputs[0].shape == (3, 100, 5) and 5 < len(expected) < 50
    assert_equal_rows(outputs, 0, expected)


def test_only_the_best_rows(published):
    config, _ = published.changed(test_max_per_img=7)
    outputs = published.run(config)
    assert [(output.shape, output.dtype) for output in outputs] == [
        ((3, 7, 5), np.float32),
        ((3, 7, 1), np.int32),
        ((3, 7, 1), bool),
    ]
    for image, expected in enumerate(published.expected):
        assert_equal_rows(outputs, image, expected[:7])


def test_images_without_detections(published):
    """Two images of the batch have no score above the threshold: weaker boxes never remove stronger ones."""
    best = sorted(expected[0, 4] for expected in published.expected)
    threshold = float(best[1] + best[2]) / 2
    assert best[2] - best[1] > 1e-3
    config, _ = published.changed(test_score_thr=threshold)
    outputs = published.run(config)
    counts = outputs[2][..., 0].sum(axis=1).tolist()
    assert counts.count(0) == 2
    for image, expected in enumerate(published.expected):
        assert_equal_rows(outputs, image, expected[expected[:, 4] > threshold])
    empty = published.run(dataclasses.replace(config, test_score_thr=1.0))
    assert not any(output.any() for output in empty)


# ---- cases by hand: without weights, every cell has the scores of the biases and every box is its anchor


def hand_made(class_bias, weights=None, **changes):
    """Detections (n, 6) of a black image by a network that prefers square anchors; all else is 0 but the weights.

    Ties go to the first cell, so the proposals are the square anchors of the first two cells of level 0, clipped:
    (0, 0, 17, 17) and (0, 0, 21, 17), whose IoU is 17 / 21.
    """
    classes = ("background", *(f"class {number}" for number in range(1, len(class_bias))))
    values = {"rpn_nms_pre": 2, "rpn_max_num": 2, "rpn_nms_thr": 1.0, "test_iou_thr": 1.0, **changes}
    config = config_of(classes=classes, **SETTINGS | values)
    parameters = {name: np.zeros_like(value) for name, value in parameters_of(build_detector(config)).items()}
    parameters["rpn_with_loss.rpn_convs_list.0.rpn_cls.bias"][:] = [0, 1, 0]
    parameters["rcnn.cls_scores.bias"][:] = class_bias
    for name, value in (weights or {}).items():
        parameters[name][:] = value
    boxes, labels, mask = run(
        build_onnx(parameters, config), np.zeros((1, 3, *CANVAS), np.float32), np.float32([(*CANVAS, 1, 1)])
    )
    return np.concatenate([boxes[0], labels[0]], axis=1)[mask[0, :, 0]]


FIRST, SECOND = [0, 0, 17, 17], [0, 0, 21, 17]


def test_boxes_and_scores_by_hand():
    rows = hand_made([0, 2])
    assert rows[:, :4].tolist() == [FIRST, SECOND]
    np.testing.assert_allclose(rows[:, 4], np.exp(2) / (1 + np.exp(2)), rtol=1e-6)


@pytest.mark.parametrize(("threshold", "boxes"), [(17 / 21, [FIRST, SECOND]), (17 / 21 - 1e-6, [FIRST])])
def test_a_detection_goes_when_its_iou_is_above_the_threshold(threshold, boxes):
    """At the threshold it stays. Widths are x2 - x1; with a pixel more the IoU would be 18 / 22."""
    assert hand_made([0, 2], test_iou_thr=threshold)[:, :4].tolist() == boxes


@pytest.mark.parametrize(
    ("threshold", "boxes"),
    [
        (17 / 21, [FIRST, SECOND]),
        (17 / 21 - 1e-6, [FIRST, [0, 0, 35, 35]]),  # the first square anchor of level 1
    ],
)
def test_a_proposal_goes_when_its_iou_is_above_the_threshold(threshold, boxes):
    assert hand_made([0, 2], rpn_nms_thr=threshold)[:, :4].tolist() == boxes


@pytest.mark.parametrize(("threshold", "count"), [(0.25, 0), (0.25 - 1e-6, 6)])
def test_a_detection_needs_a_score_above_the_threshold(threshold, count):
    """Four equal logits are scores of exactly 1/4, for two boxes of three classes."""
    assert len(hand_made([0, 0, 0, 0], test_score_thr=threshold)) == count


def test_classes_do_not_suppress_each_other():
    rows = hand_made([0, 1, 2], test_iou_thr=0.5)
    assert rows[:, :4].tolist() == [FIRST, FIRST]
    assert rows[:, 5].tolist() == [1, 0]


def test_levels_do_not_suppress_each_other():
    """The best square anchor of each level; those of the last two both cover the whole canvas."""
    rows = hand_made([0, 2], rpn_nms_pre=1, rpn_max_num=5, rpn_nms_thr=0.5)
    assert rows[:, :4].tolist() == [FIRST, [0, 0, 35, 35], [0, 0, 71, 64], [0, 0, 128, 64], [0, 0, 128, 64]]


def test_a_box_that_ends_before_it_begins_suppresses_nothing():
    """Heights of 18 pixels shrink to 0.016 * 18 = 0.288, which end 0.712 before they begin: no area, no overlap."""
    rows = hand_made([0, 2], {"rcnn.reg_scores.bias": [0, 0, 0, -30]}, test_iou_thr=0.5)
    np.testing.assert_allclose(rows[:, :4], [[0, 8.856, 17, 8.144], [0, 8.856, 21, 8.144]], atol=1e-4)


@pytest.mark.parametrize(("finest_scale", "level"), [(10, 0), (9, 1), (5, 1), (4, 2), (2, 3), (1, 3)])
def test_level_of_an_roi(finest_scale, level):
    """An RoI of 18 x 18 pixels: a level begins where 18 / finest_scale reaches 2, 4, 8.

    The pixels of level l are l, and the layers of the box head take averages, so that l is the logit of the class.
    """
    weights = {f"fpn_neck.fpn_convs_list.{number}.bias": number for number in range(4)}
    weights |= {
        "rcnn.shared_fc_0.weight": 1 / (16 * 7 * 7),
        "rcnn.shared_fc_1.weight": 1 / 32,
        "rcnn.cls_scores.weight": [0, 1 / 32],
    }
    rows = hand_made([0, 0], weights, rpn_max_num=1, roi_align_finest_scale=finest_scale)
    assert rows[:, :4].tolist() == [FIRST]
    np.testing.assert_allclose(rows[0, 4], np.exp(level) / (1 + np.exp(level)), rtol=1e-5)


# ---- its form


@pytest.fixture(scope="module")
def model(published):
    return build_onnx(published.parameters, published.config)


def shape_of(value):
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def test_the_checker_finds_nothing(case):
    onnx.checker.check_model(build_onnx(case.parameters, case.config), full_check=True)


def test_inputs_and_outputs(model):
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert [(value.name, value.type.tensor_type.elem_type, shape_of(value)) for value in model.graph.input] == [
        ("image", TensorProto.FLOAT, ["B", 3, *CANVAS]),
        ("image_shape", TensorProto.FLOAT, ["B", 4]),
    ]
    assert [(value.name, value.type.tensor_type.elem_type, shape_of(value)) for value in model.graph.output] == [
        ("boxes", TensorProto.FLOAT, ["B", 100, 5]),
        ("labels", TensorProto.INT32, ["B", 100, 1]),
        ("mask", TensorProto.BOOL, ["B", 100, 1]),
    ]


def test_one_pooling_per_level_and_two_suppressions(model):
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["RoiAlign"], counts["NonMaxSuppression"], counts["BatchNormalization"]) == (4, 2, 0)
    assert not {"Loop", "If", "Scan"} & set(counts)


def test_size_does_not_grow_with_the_classes(model):
    config = config_of(classes=("background", *map(str, range(80))), **VALUES)
    many = build_onnx(parameters_of(build_detector(config)), config)
    assert len(many.graph.node) == len(model.graph.node)


def test_weights_are_stored_once(model, published):
    weights = sum(
        value.nbytes for name, value in published.parameters.items() if name.endswith((".weight", ".bias", ".beta"))
    )  # a norm becomes a bias
    anchors = sum(level.size for level in reference.canvas_anchors(*CANVAS)) * 4
    stored = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
    assert weights + anchors <= stored < weights + anchors + 5000


# ---- float16


@pytest.fixture(scope="module")
def narrow(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    store_weights_as_float16(copy)
    return copy


def test_float16_detects_as_the_rounded_weights_do(model, narrow, published):
    """Only the weights are rounded: the same graph with rounded float32 weights gives the same to the last digits."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for number, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 1024 and not tensor.name.startswith("proposals/"):
            values = values.astype(np.float16).astype(np.float32)
            rounded.graph.initializer[number].CopyFrom(numpy_helper.from_array(values, tensor.name))
    for found, expected in zip(
        run(narrow, published.images, METAS), run(rounded, published.images, METAS), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_float16_is_close_to_float32(narrow, published):
    """Weights are rounded by 2**-11 at most, so most detections stay within half a pixel and 0.01."""
    boxes, labels, mask = run(narrow, published.images, METAS)
    for image, expected in enumerate(published.expected):
        rows = np.concatenate([boxes[image], labels[image]], axis=1)[mask[image, :, 0]]
        same = [
            np.any(
                (np.abs(rows[:, :4] - row[:4]).max(axis=1) < 0.5)
                & (np.abs(rows[:, 4] - row[4]) < 0.01)
                & (rows[:, 5] == row[5])
            )
            for row in expected
        ]
        assert np.mean(same) > 0.9 and abs(len(rows) - len(expected)) <= 2


def test_float16_halves_the_weights_and_leaves_the_anchors(model, narrow):
    onnx.checker.check_model(narrow, full_check=True)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in narrow.graph.initializer}
    anchors = [name for name in before if name.startswith("proposals/")]
    assert sum(before[name].size for name in anchors if before[name].dtype == np.float32) > 4 * 2046
    assert all(
        before[name].dtype == after[name].dtype and np.array_equal(before[name], after[name]) for name in anchors
    )
    sizes = [sum(value.nbytes for name, value in arrays.items() if name not in anchors) for arrays in (before, after)]
    assert 0.5 <= sizes[1] / sizes[0] < 0.6
    assert len(narrow.SerializeToString()) < 0.65 * len(model.SerializeToString())

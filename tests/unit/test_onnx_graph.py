"""The detector's ONNX graph, run by ONNX Runtime, against the detector in numpy."""
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from src.FasterRcnn import build_detector
from src.onnx_graph import build_onnx, store_weights_as_float16
from tests.unit.FasterRcnn.small_detector import (
    CANVAS,
    SETTINGS,
    NumpyDetector,
    config_of,
    random_images,
    randomise,
)

SCALES = np.float32([[0.5, 0.8], [1.6, 1.25], [1, 1]])       # scale_h, scale_w of each image
METAS = np.concatenate([np.tile(np.float32(CANVAS), (3, 1)), SCALES], axis=1)


def parameters_of(net):
    return {parameter.name: parameter.asnumpy() for parameter in net.get_parameters()}


def run(model, images, metas):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images, "image_shape": metas})


def assert_rows_equal(outputs, image, expected, atol=0.05):
    """The detections of one image are the expected rows (x1, y1, x2, y2, score, label), padded with zeros."""
    boxes, labels, mask = (output[image] for output in outputs)
    count = len(expected)
    assert mask[:, 0].tolist() == [True] * count + [False] * (100 - count)
    np.testing.assert_allclose(boxes[:count, 4], expected[:, 4], rtol=1e-3)
    np.testing.assert_allclose(boxes[:count, :4], expected[:, :4], atol=atol)
    assert labels[:count, 0].tolist() == expected[:, 5].tolist()
    assert not boxes[count:].any() and not labels[count:].any()


# --- numbers ----------------------------------------------------------------------------------------------------------

CASES = {
    "published": (49, {}, {}),
    "stride on the first convolution": (57, {"backbone": "resnet_v1_50"}, {"stride_on_first": True}),
    "symmetric pool": (71, {"stem_pool_pad": "symmetric"}, {"symmetric_pool": True}),
    "boxes of the background": (53, {"without_bg_loss": False}, {}),
}


@pytest.mark.parametrize("seed, changes, backbone_options", CASES.values(), ids=CASES)
def test_detections_equal_the_definition(seed, changes, backbone_options):
    config = config_of(**SETTINGS, **changes)
    net = randomise(build_detector(config), seed)
    images = np.concatenate([random_images(50), random_images(51)[:1]])
    in_numpy = NumpyDetector(net, images, **backbone_options)
    model = build_onnx(parameters_of(net), config)
    outputs = run(model, images, METAS)
    assert [(output.shape, output.dtype) for output in outputs] == [
        ((3, 100, 5), np.float32), ((3, 100, 1), np.int32), ((3, 100, 1), bool)]
    for image in range(3):
        expected = in_numpy.detections(image, SCALES[image])
        assert len(expected) > 10 and len(set(expected[:, 5])) > 1
        assert_rows_equal(outputs, image, expected)
    for image in range(3):
        alone = run(model, images[image:image + 1], METAS[image:image + 1])
        assert_rows_equal(alone, 0, in_numpy.detections(image, SCALES[image]))


@pytest.fixture(scope="module")
def published():
    """Parameters of the small detector and its configuration."""
    config = config_of(**SETTINGS)
    return parameters_of(randomise(build_detector(config), 49)), config


def test_no_detections(published):
    parameters, config = published
    sure = parameters | {"rcnn.cls_scores.bias": np.float32([50, 0, 0, 0])}     # everything is background
    boxes, labels, mask = run(build_onnx(sure, config), random_images(50), METAS[:2])
    assert not boxes.any() and not labels.any() and not mask.any()


def test_one_picture_with_and_one_without_detections(published):
    parameters, config = published
    images = random_images(50)
    images[1] = 0
    parameters = parameters | {name: np.zeros_like(value) for name, value in parameters.items()
                               if name.endswith(("beta", "moving_mean", "bias"))}
    parameters["rcnn.cls_scores.bias"] = np.float32([2.1, 0, 0, 0])             # black is background
    _, _, mask = run(build_onnx(parameters, config), images, METAS[:2])
    assert mask[0].any() and not mask[1].any()


def test_canvas_with_fewer_anchors_than_proposals():
    """64 x 128 has 3 * (512 + 128 + 32 + 8 + 2) anchors; 3000 proposals are asked for and every RoI may stay."""
    config = config_of(**SETTINGS | {"rpn_nms_pre": 3000, "rpn_max_num": 3000, "rpn_nms_thr": 1.0})
    net = randomise(build_detector(config), 49)
    boxes, _, mask = run(build_onnx(parameters_of(net), config), random_images(50), METAS[:2])
    assert mask.any() and np.isfinite(boxes).all()
    scores = boxes[..., 4]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert ((scores > SETTINGS["test_score_thr"]) == mask[..., 0]).all()


def test_fewer_pairs_than_rows():
    """Ten proposals of one class cannot fill the hundred rows."""
    config = config_of(classes=("background", "cell"), **SETTINGS | {"rpn_max_num": 10, "test_score_thr": 0.0,
                                                                     "test_iou_thr": 1.0})
    net = randomise(build_detector(config), 49)
    _, labels, mask = run(build_onnx(parameters_of(net), config), random_images(50), METAS[:2])
    assert mask[..., 0].sum(axis=1).tolist() == [10, 10]
    assert not labels.any()


def test_classes_do_not_suppress_each_other(published):
    """With equal scores and boxes in all classes every surviving place stands there once for each class."""
    config = config_of(**SETTINGS | {"rpn_max_num": 20})
    parameters = published[0]
    same = parameters | {
        "rcnn.cls_scores.weight": np.zeros_like(parameters["rcnn.cls_scores.weight"]),
        "rcnn.cls_scores.bias": np.zeros_like(parameters["rcnn.cls_scores.bias"]),
        "rcnn.reg_scores.weight": np.zeros_like(parameters["rcnn.reg_scores.weight"]),
        "rcnn.reg_scores.bias": np.zeros_like(parameters["rcnn.reg_scores.bias"])}
    boxes, labels, mask = (output[0] for output in run(build_onnx(same, config), random_images(50), METAS[:2]))
    count = int(mask.sum())
    assert 0 < count < 100
    places = {label: sorted(map(tuple, boxes[:count, :4][labels[:count, 0] == label])) for label in range(3)}
    assert places[0] == places[1] == places[2] and len(places[0]) == count // 3
    np.testing.assert_allclose(boxes[:count, 4], 0.25, rtol=1e-6)


def test_float16_weights_round_and_nothing_else(published):
    """The narrowed file gives what a float32 file with rounded weights gives."""
    parameters, config = published
    narrow = build_onnx(parameters, config)
    wide_size = narrow.ByteSize()
    store_weights_as_float16(narrow)
    onnx.checker.check_model(narrow, full_check=True)
    rounded = build_onnx(parameters, config)
    for tensor in rounded.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 1024 and not tensor.name.startswith("proposals/"):
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    images = random_images(50)
    for found, expected in zip(run(narrow, images, METAS[:2]), run(rounded, images, METAS[:2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert narrow.ByteSize() < 0.65 * wide_size
    anchors = [tensor for tensor in narrow.graph.initializer if tensor.name.startswith("proposals/")]
    assert anchors and all(tensor.data_type != onnx.TensorProto.FLOAT16 for tensor in anchors)


# --- form -------------------------------------------------------------------------------------------------------------

def operators(model):
    return [node.op_type for node in model.graph.node]


def test_the_graph_is_valid_and_its_batch_is_open(published):
    model = build_onnx(*published)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    image, image_shape = model.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim]
    assert (image.name, sizes) == ("image", ["B", 3, *CANVAS])
    assert image_shape.name == "image_shape"
    assert [output.name for output in model.graph.output] == ["boxes", "labels", "mask"]


def test_every_roi_is_pooled_once_and_suppression_is_not_unrolled(published):
    found = operators(build_onnx(*published))
    assert found.count("RoiAlign") == 4                       # one per level, of this level's RoIs
    assert found.count("NonMaxSuppression") == 2
    assert not {"Loop", "Scan", "If", "BatchNormalization"} & set(found)


def test_the_graph_does_not_grow_with_the_classes():
    graphs = []
    for num_classes in (4, 81):
        config = config_of(classes=["background", *(f"class {number}" for number in range(1, num_classes))])
        graphs.append(operators(build_onnx(parameters_of(build_detector(config)), config)))
    assert graphs[0] == graphs[1]


def test_weights_stand_in_the_file_once(published):
    parameters, config = published
    model = build_onnx(parameters, config)
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer if not tensor.name.startswith("proposals/"))
    weights = sum(value.nbytes for name, value in parameters.items() if name.endswith("weight"))
    assert weights < stored < 1.05 * weights

"""int8 files: what is quantised, what stays in float, and that they still detect."""

import dataclasses
from collections import Counter

import numpy as np
import onnx
import pytest

from src.convert_checkpoint import write_checkpoint
from src.data.image_files import read_rgb
from src.data.transforms import Canvas, evaluation_input
from src.deploy.exporter import export_detector
from src.deploy.model_file import load_model
from src.deploy.onnx_graph import build_onnx
from src.deploy.onnx_quantize import CalibrationImages, quantize
from src.FasterRcnn import build_detector
from src.model_utils.errors import UserError
from tests.unit.deploy.test_onnx_graph import parameters_of, run
from tests.unit.FasterRcnn.small_detector import SETTINGS, config_of, randomise
from tests.unit.image_sets import make_coco

NUM_IMAGES = 6


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A small detector as float and as int8, and the configuration with its calibration images."""
    root = tmp_path_factory.mktemp("data")
    make_coco(root, "train2017", NUM_IMAGES)
    config = config_of(
        f"--coco_root={root}", classes=("background", "cat", "dog"), **SETTINGS | {"calibration_images": 4}
    )
    model = build_onnx(parameters_of(randomise(build_detector(config), 49)), config)
    return model, quantize(model, config), config


def test_backbone_pyramid_and_shared_layers_have_int8_weights(quantised):
    model, small, _ = quantised
    onnx.checker.check_model(small, full_check=True)
    int8 = {tensor.name for tensor in small.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    quantised_nodes = [
        node
        for node in small.graph.node
        if node.op_type in ("Conv", "Gemm")
        and node.input[1]
        in {node.output[0] for node in small.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in int8}
    ]
    counts = Counter(node.name.split("/")[0] for node in quantised_nodes)
    convolutions = Counter(node.name.split("/")[0] for node in model.graph.node if node.op_type == "Conv")
    assert counts == {"backbone": 1 + 4 * 4, "fpn": 8, "rpn": 5, "box_head": 2}
    assert counts["backbone"] == convolutions["backbone"]


def test_weights_are_symmetric_per_output_channel(quantised):
    _, small, _ = quantised
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    convolutions = [
        node.input
        for node in small.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in values and values[node.input[0]].ndim == 4
    ]
    assert len({weight for weight, _, _ in convolutions}) == 17 + 8 + 1  # the RPN's is shared by five levels
    for weight, scale, zero_point in convolutions:
        assert values[weight].dtype == np.int8 and np.abs(values[weight]).max(axis=(1, 2, 3)).min() == 127
        assert values[scale].shape == (len(values[weight]),) and not values[zero_point].any()


def test_predictors_and_boxes_stay_in_float(quantised):
    _, small, _ = quantised
    quantised_outputs = {node.output[0] for node in small.graph.node if node.op_type == "DequantizeLinear"}
    predictors = [
        node
        for node in small.graph.node
        if node.name.startswith(("box_predictor/", "rpn_predictor/")) and node.op_type in ("Gemm", "Conv")
    ]
    assert len(predictors) == 2 + 2 * 5
    assert not quantised_outputs & {name for node in predictors for name in node.input[1:]}
    boxes = [node for node in small.graph.node if node.name.startswith(("proposals/", "detections/"))]
    assert not quantised_outputs & {name for node in boxes for name in node.input}


def test_calibration_sees_training_images_as_the_network_does(quantised):
    _, _, config = quantised
    reader = CalibrationImages(config)
    assert len(reader.paths) == 4
    for path in reader.paths:
        expected = evaluation_input(read_rgb(path), Canvas(config.img_width, config.img_height, config.keep_ratio))
        found = reader.get_next()
        assert (found["image"][0] == expected[0]).all() and (found["image_shape"][0] == expected[1]).all()
    assert reader.get_next() is None


def test_detections_are_near_those_of_the_float_file(quantised):
    """Scores of random weights move, so sums are compared: as many detections, of like scores."""
    model, small, config = quantised
    paths = CalibrationImages(config).paths
    inputs = [evaluation_input(read_rgb(path), Canvas(config.img_width, config.img_height)) for path in paths]
    images, metas = (np.stack(column) for column in zip(*inputs, strict=True))
    (boxes, _, mask), (small_boxes, _, small_mask) = run(model, images, metas), run(small, images, metas)
    assert mask.sum() > 20
    assert abs(int(small_mask.sum()) - int(mask.sum())) < 0.3 * mask.sum()
    best, small_best = boxes[:, :5, 4].mean(), small_boxes[:, :5, 4].mean()
    assert small_best == pytest.approx(best, rel=0.15)


@pytest.mark.usefixtures("graph_mode")
def test_an_exported_file_says_that_it_is_int8(tmp_path, quantised):
    model, _, config = quantised
    net = randomise(build_detector(config), 49)
    write_checkpoint(net.parameters_dict(), tmp_path / "detector.ckpt")
    path = export_detector(
        dataclasses.replace(
            config,
            ckpt_file=str(tmp_path / "detector.ckpt"),
            file_format="ONNX",
            file_name=str(tmp_path / "small"),
            onnx_precision="int8",
        )
    )
    assert load_model(path, config).info.precision == "int8"
    assert path.stat().st_size < 0.6 * model.ByteSize()


def test_missing_training_images_are_named(tmp_path, quantised):
    model, _, _ = quantised
    config = config_of(f"--coco_root={tmp_path / 'none'}", classes=("background", "cat", "dog"), **SETTINGS)
    with pytest.raises(UserError, match="none"):
        quantize(model, config)

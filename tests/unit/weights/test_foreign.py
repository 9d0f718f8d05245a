"""Weights of other projects: every name, and what has to change beside the names.

Names of torchvision are printed by torchvision (make_fixtures.py); those of mmdetection and detectron2 are made of them
by the differences that their documentation and converters show.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from src.convert_checkpoint import load_pretrained, pretrained_config
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.weights.foreign import _read, read_foreign, to_torchvision
from tests.unit.FasterRcnn import reference
from tests.unit.weights.pth_writer import Named, write_pth

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = json.loads((FIXTURES / "torchvision_names.json").read_text())
DETECTOR = NAMES["fasterrcnn_resnet50_fpn"]
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
RPN_BIAS = "rpn_with_loss.rpn_convs_list.0.rpn_reg.bias"
# Few channels: what counts is names and order.
NARROW = {12544: 49}


def arrays_of(shapes, seed=0):
    """Small numbers for every name; variances are positive."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 1, [NARROW.get(size, size) for size in shape]).astype(np.float32)
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    }


def converted(tmp_path, arrays):
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, tmp_path / "weights.safetensors")
    return read_foreign(tmp_path / "weights.safetensors")


@pytest.fixture(scope="module")
def torchvision():
    """The arrays of a torchvision detector for COCO; a class's rows hold its id."""
    arrays = arrays_of(DETECTOR)
    arrays["roi_heads.box_predictor.cls_score.bias"] = np.arange(91, dtype=np.float32)
    arrays["roi_heads.box_predictor.bbox_pred.bias"] = np.arange(364, dtype=np.float32)
    return arrays


def as_mmdetection(arrays, background_last, prefix):
    """The same network in mmdetection's names."""
    renamed = {}
    for name, value in arrays.items():
        for there, here in (
            (r"backbone\.body\.", "backbone."),
            (r"backbone\.fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv"),
            (r"backbone\.fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv"),
            (r"rpn\.head\.conv\.0\.0", "rpn_head.rpn_conv"),
            (r"rpn\.head\.cls_logits", "rpn_head.rpn_cls"),
            (r"rpn\.head\.bbox_pred", "rpn_head.rpn_reg"),
            (r"roi_heads\.box_head\.fc6", f"{prefix}bbox_head.shared_fcs.0"),
            (r"roi_heads\.box_head\.fc7", f"{prefix}bbox_head.shared_fcs.1"),
            (r"roi_heads\.box_predictor\.cls_score", f"{prefix}bbox_head.fc_cls"),
            (r"roi_heads\.box_predictor\.bbox_pred", f"{prefix}bbox_head.fc_reg"),
        ):
            name = re.sub(there, here, name)
        if background_last and "fc_cls" in name:
            value = np.roll(value, -1, axis=0)
        if background_last and "fc_reg" in name:
            value = value[4:]
        renamed[name] = value
    return renamed


def as_detectron2(arrays):
    """The same network in detectron2's names."""
    renamed = {}
    for name, value in as_mmdetection(arrays, True, "roi_head.").items():
        name = re.sub(r"^backbone\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1.", name)
        name = re.sub(r"layer(\d)", lambda match: f"bottom_up.res{int(match[1]) + 1}", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(
            r"neck\.lateral_convs\.(\d)\.conv", lambda match: f"backbone.fpn_lateral{int(match[1]) + 2}", name
        )
        name = re.sub(r"neck\.fpn_convs\.(\d)\.conv", lambda match: f"backbone.fpn_output{int(match[1]) + 2}", name)
        for there, here in (
            ("rpn_head.rpn_conv", "proposal_generator.rpn_head.conv"),
            ("rpn_head.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
            ("rpn_head.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
            ("roi_head.bbox_head.shared_fcs.0", "roi_heads.box_head.fc1"),
            ("roi_head.bbox_head.shared_fcs.1", "roi_heads.box_head.fc2"),
            ("roi_head.bbox_head.fc_cls", "roi_heads.box_predictor.cls_score"),
            ("roi_head.bbox_head.fc_reg", "roi_heads.box_predictor.bbox_pred"),
        ):
            name = name.replace(there, here)
        renamed[name] = value
    return renamed


def with_classes(arrays, num_classes):
    """The detector with so many classes, background first."""
    names = {"cls_score": num_classes, "bbox_pred": 4 * num_classes}
    return arrays | {
        name: value[: names[name.split(".")[2]]] for name, value in arrays.items() if ".box_predictor." in name
    }


# ---- names ------------------------------------------------------------------------------------------------


def expected_shapes():
    """Name and shape of every parameter of the published detector, from the configuration and the papers."""
    shapes = {}
    for name, shape in DETECTOR.items():
        if name.startswith("backbone.body.") and not name.endswith("num_batches_tracked"):
            name = name.replace("backbone.body.", "backbone.")
            name = name.replace("downsample.0", "conv_down_sample").replace("downsample.1", "bn_down_sample")
            if ".bn" in name:
                for there, here in (
                    ("running_mean", "moving_mean"),
                    ("running_var", "moving_variance"),
                    ("weight", "gamma"),
                    ("bias", "beta"),
                ):
                    name = name.replace(f".{there}", f".{here}")
            shapes[name] = tuple(shape)
    for level, channels in enumerate((256, 512, 1024, 2048)):
        shapes[f"fpn_neck.lateral_convs_list.{level}.weight"] = (256, channels, 1, 1)
        shapes[f"fpn_neck.fpn_convs_list.{level}.weight"] = (256, 256, 3, 3)
        shapes[f"fpn_neck.lateral_convs_list.{level}.bias"] = shapes[f"fpn_neck.fpn_convs_list.{level}.bias"] = (256,)
    for part, outs, size in (("rpn_conv", 256, 3), ("rpn_cls", 3, 1), ("rpn_reg", 12, 1)):
        shapes[f"rpn_with_loss.rpn_convs_list.0.{part}.weight"] = (outs, 256, size, size)
        shapes[f"rpn_with_loss.rpn_convs_list.0.{part}.bias"] = (outs,)
    for part, ins, outs in (
        ("shared_fc_0", 49, 1024),
        ("shared_fc_1", 1024, 1024),
        ("cls_scores", 1024, 81),
        ("reg_scores", 1024, 320),
    ):
        shapes[f"rcnn.{part}.weight"], shapes[f"rcnn.{part}.bias"] = (ins, outs), (outs,)
    return shapes


FORMS = {
    "torchvision Faster R-CNN": lambda arrays: arrays,
    "mmdetection 1 Faster R-CNN": lambda arrays: as_mmdetection(with_classes(arrays, 81), False, ""),
    "mmdetection 2 or 3 Faster R-CNN": lambda arrays: as_mmdetection(with_classes(arrays, 81), True, "roi_head."),
    "detectron2 Faster R-CNN": lambda arrays: as_detectron2(with_classes(arrays, 81)),
}


@pytest.mark.parametrize("project", FORMS)
def test_every_parameter_of_a_detector(tmp_path, torchvision, project):
    result = converted(tmp_path, FORMS[project](torchvision))
    assert result.source["format"] == project
    assert {name: value.shape for name, value in result.arrays.items()} == expected_shapes()
    assert {value.dtype for value in result.arrays.values()} == {np.dtype(np.float32)}
    assert len(result.table) == len(result.arrays)
    same = result.arrays["backbone.layer3.5.bn2.moving_variance"]
    np.testing.assert_array_equal(same, torchvision["backbone.body.layer3.5.bn2.running_var"])
    same = result.arrays["rcnn.shared_fc_0.weight"]
    np.testing.assert_array_equal(same, torchvision["roi_heads.box_head.fc6.weight"].T)


def test_a_resnet_classifier_gives_the_backbone(tmp_path):
    result = converted(tmp_path, arrays_of(NAMES["resnet50"]))
    expected = {name: shape for name, shape in expected_shapes().items() if name.startswith("backbone.")}
    assert {name: value.shape for name, value in result.arrays.items()} == expected
    assert result.settings == {"backbone": "resnet_v1.5_50", "stem_pool_pad": "symmetric"}


def deeper(shapes, second, third):
    """The shapes of a ResNet-50, or of a detector with one, with more blocks in the second and third stage."""
    more = {
        name.replace(f"layer{stage}.1.", f"layer{stage}.{number}."): shape
        for stage, count in ((2, second), (3, third))
        for number in range(2, count)
        for name, shape in shapes.items()
        if f"layer{stage}.1." in name
    }
    return shapes | more


@pytest.mark.parametrize("blocks, backbone", [((4, 23), "resnet_v1_101"), ((8, 36), "resnet_v1_152")])
def test_depth_is_told_from_the_blocks(tmp_path, blocks, backbone):
    assert converted(tmp_path, arrays_of(deeper(NAMES["resnet50"], *blocks))).settings["backbone"] == backbone


@pytest.mark.parametrize("blocks, depth", [((4, 23), 101), ((8, 36), 152)])
def test_depths_of_detectron2(tmp_path, blocks, depth):
    arrays = as_detectron2(with_classes(arrays_of(deeper(DETECTOR, *blocks)), 81))
    result = converted(tmp_path, arrays)
    assert result.settings["backbone"] == f"resnet_caffe_{depth}"
    assert len(result.arrays) == 5 * (depth + 3) + 16 + 6 + 8


# ---- files as training programs leave them ----------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    """A ResNet-50 whose numbers are 1, with three classes."""
    shapes = NAMES["resnet50"] | {"fc.weight": [3, 2048], "fc.bias": [3]}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def prefixed(arrays, prefix, factor=1):
    return {f"{prefix}{name}": value * np.float32(factor) for name, value in arrays.items()}


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model.", "model._orig_mod."])
def test_prefixes_of_wrappers_go(tmp_path, resnet, prefix):
    assert len(converted(tmp_path, prefixed(resnet, prefix)).arrays) == 265


@pytest.mark.parametrize(
    ("content", "value", "taken"),
    [
        (lambda net: {"state_dict": net}, 1, None),
        (
            lambda net: {"model": net, "optimizer": {"state": {0: {"step": 1}}}, "epoch": 3},
            1,
            "model, without optimizer",
        ),
        (lambda net: {"model_state": net, "epoch": 3}, 1, "model_state, without epoch"),
        (lambda net: {"model_state_dict": net, "loss": 0.5}, 1, "model_state_dict, without loss"),
        (
            lambda net: {"state_dict": prefixed(net, "model."), "pytorch-lightning_version": "2.1"},
            1,
            "state_dict, without pytorch-lightning_version",
        ),
        (
            lambda net: {
                "model": net,
                "model_ema": {"n_averaged": np.int64(7), **prefixed(net, "module.", 2)},
                "args": Named("argparse", "Namespace", 1, state={}),
            },
            2,
            "model_ema, without model, args",
        ),
        (
            lambda net: {"state_dict": net, "state_dict_ema": prefixed(net, "", 2)},
            2,
            "state_dict_ema, without state_dict",
        ),
    ],
)
def test_weights_inside_of_training_checkpoints(tmp_path, resnet, content, value, taken):
    """Averaged weights come first; what was taken is noted."""
    result = read_foreign(write_pth(tmp_path / "checkpoint.pth", content(resnet)))
    assert len(result.arrays) == 265
    assert result.arrays["backbone.layer4.2.conv3.weight"].max() == value
    assert (result.source.get("taken") or "").startswith(taken or "")
    assert ("taken" in result.source) == (taken is not None)


@pytest.mark.parametrize("kind", ["<f2", "<f8"])
def test_other_precisions_become_float32(tmp_path, resnet, kind):
    arrays = {name: (value * 0.5).astype(kind) for name, value in resnet.items()}
    result = read_foreign(write_pth(tmp_path / "half.pth", arrays))
    assert {value.dtype for value in result.arrays.values()} == {np.dtype(np.float32)}
    assert result.arrays["backbone.conv1.weight"].max() == 0.5


def test_bfloat16_of_safetensors(tmp_path):
    """Upper halves of float32: 0x3f80 is 1, 0xc000 is -2."""
    write_safetensors(tmp_path / "a.safetensors", "BF16", np.array([0x3F80, 0xC000], "<u2"))
    with pytest.raises(UserError, match="of no project that is known here"):
        read_foreign(tmp_path / "a.safetensors")
    assert _read(tmp_path / "a.safetensors")["a"].tolist() == [1, -2]


def test_other_numbers_of_safetensors_are_refused(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", "F8_E4M3", np.array([1, 2], "<u1"))
    with pytest.raises(UserError, match="numbers of the type F8_E4M3 are not read"):
        read_foreign(tmp_path / "a.safetensors")


def write_safetensors(path, dtype, numbers):
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, numbers.nbytes]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())


def test_numbers_that_come_beside_weights_are_left_out(tmp_path, resnet):
    """Counters, and mmdetection's copies of what it averages."""
    more = {"bn1.num_batches_tracked": np.array(9), "ema_layer1_0_conv1_weight": np.ones(1, np.float32)}
    result = read_foreign(write_pth(tmp_path / "a.pth", {**resnet, **more}))
    assert len(result.arrays) == 265


def test_weights_of_yolo_are_refused_by_their_names(tmp_path):
    names = ["model.0.conv.weight", "model.0.bn.weight", "model.22.dfl.conv.weight"]
    path = write_pth(tmp_path / "yolo.pt", {"model": {name: np.ones(2, np.float32) for name in names}})
    with pytest.raises(UserError) as refusal:
        read_foreign(path)
    assert "yolo.pt is of no project that is known here (torchvision Faster R-CNN, mmdetection 1" in str(refusal.value)
    assert f"it begins with {', '.join(names)}" in str(refusal.value)


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match="it begins with no tensor at all"):
        read_foreign(write_pth(tmp_path / "a.pth", {"epoch": 3}))


def test_unknown_names_are_refused(tmp_path, torchvision):
    mask = {f"roi_heads.mask_head.{number}.weight": np.zeros(1, np.float32) for number in range(12)}
    with pytest.raises(UserError) as refusal:
        converted(tmp_path, torchvision | mask)
    message = str(refusal.value)
    assert "looks like torchvision Faster R-CNN, but holds 12 parameters that this detector does not have" in message
    assert "\n  roi_heads.mask_head.0.weight" in message
    assert "and 2 more" in message


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"of no project that is known here .*; it begins with a, b"):
        converted(tmp_path, {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    wide = {
        name: [2 * size for size in shape] if "conv2" in name else shape for name, shape in NAMES["resnet50"].items()
    }
    with pytest.raises(UserError, match="expected ResNet-50, 101 or 152"):
        converted(tmp_path, arrays_of(wide))


# ---- what changes beside the names ------------------------------------------------------------------------


@pytest.mark.parametrize("project", [name for name in FORMS if name != "mmdetection 1 Faster R-CNN"])
def test_anchors_on_corners_give_the_same_centres(tmp_path, torchvision, project):
    """A cell's anchor lies half a stride further here, so dx and dy must be smaller by as much, in anchor sizes."""
    found = converted(tmp_path, FORMS[project](torchvision)).arrays[RPN_BIAS].reshape(3, 4)
    given = torchvision["rpn.head.bbox_pred.bias"].reshape(3, 4)
    stride = 16.0
    for (dx, dy, dw, dh), (dx_there, dy_there, dw_there, dh_there), ratio in zip(
        found, given, (0.5, 1, 2), strict=True
    ):
        width, height = 8 * stride / np.sqrt(ratio), 8 * stride * np.sqrt(ratio)
        assert stride / 2 + dx * width == pytest.approx(dx_there * width, abs=1e-4)
        assert stride / 2 + dy * height == pytest.approx(dy_there * height, abs=1e-4)
        assert (dw, dh) == (dw_there, dh_there)


def test_anchors_of_mmdetection_1_are_those_here(tmp_path, torchvision):
    found = converted(tmp_path, FORMS["mmdetection 1 Faster R-CNN"](torchvision)).arrays[RPN_BIAS]
    np.testing.assert_array_equal(found, torchvision["rpn.head.bbox_pred.bias"])


def test_category_ids_without_a_category_go(tmp_path, torchvision):
    """COCO's ids: 1 person, 13 stop sign, 90 toothbrush; 12, 26, ... were never used."""
    result = converted(tmp_path, torchvision)
    ids = result.arrays["rcnn.cls_scores.bias"].astype(int).tolist()
    names = result.settings["coco_classes"]
    assert len(ids) == len(names) == 81
    assert {names[ids.index(number)]: number for number in (0, 1, 13, 18, 90)} == {
        "background": 0,
        "person": 1,
        "stop sign": 13,
        "dog": 18,
        "toothbrush": 90,
    }
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(ids)
    boxes = result.arrays["rcnn.reg_scores.bias"].astype(int).reshape(80, 4)
    assert boxes.tolist() == [[4 * number + part for part in range(4)] for number in ids[1:]]


@pytest.mark.parametrize("project", list(FORMS)[1:])
def test_the_background_comes_first(tmp_path, torchvision, project):
    result = converted(tmp_path, FORMS[project](torchvision))
    assert result.arrays["rcnn.cls_scores.bias"].tolist() == list(range(81))
    assert result.arrays["rcnn.reg_scores.bias"].tolist() == list(range(4, 324))
    assert result.settings["coco_classes"] == load_config([]).coco_classes


def test_classes_of_ones_own_have_no_names(tmp_path, torchvision):
    result = converted(tmp_path, with_classes(torchvision, 4))
    assert "coco_classes" not in result.settings
    assert "coco_classes" not in result.noted_keys
    assert result.arrays["rcnn.cls_scores.bias"].tolist() == [0, 1, 2, 3]


def test_bgr_images_without_deviation(tmp_path, torchvision):
    """The first convolution gives the same for the same pixels, each normalised in its project's way."""
    result = converted(tmp_path, FORMS["detectron2 Faster R-CNN"](torchvision))
    rgb = np.random.default_rng(1).uniform(0, 255, (3, 7, 7))
    there = (rgb - MEAN[:, None, None])[::-1]
    here = (rgb - MEAN[:, None, None]) / STD[:, None, None]
    given, found = torchvision["backbone.body.conv1.weight"], result.arrays["backbone.conv1.weight"]
    np.testing.assert_allclose((found * here).sum((1, 2, 3)), (given * there).sum((1, 2, 3)), rtol=1e-4)
    assert result.settings["backbone"] == "resnet_v1_50"  # the stride on the first convolution of a block


def test_images_of_detectron2_with_a_deviation_are_refused(tmp_path, torchvision):
    arrays = FORMS["detectron2 Faster R-CNN"](torchvision)
    ones, others = np.ones((3, 1, 1), np.float32), np.float32(STD).reshape(3, 1, 1)
    assert converted(tmp_path, arrays | {"pixel_std": ones}).settings["backbone"] == "resnet_v1_50"
    with pytest.raises(UserError, match=r"with pixel_std \[58\.39.*; only those with 1"):
        converted(tmp_path, arrays | {"pixel_std": others})


@pytest.mark.usefixtures("graph_mode")
def test_a_block_of_detectron2_computes_what_it_computed_there(tmp_path):
    """The first block of the second stage of a ResNet-101: stride 2 on its first convolution and its shortcut."""
    arrays = as_detectron2(with_classes(arrays_of(deeper(DETECTOR, 4, 23)), 81))
    rng = np.random.default_rng(3)
    part = "backbone.bottom_up.res3.0."
    for name, value in arrays.items():
        if name.startswith(part) and "running_var" not in name:
            arrays[name] = rng.normal(0, 1 / np.sqrt(value[0].size), value.shape).astype(np.float32)

    def conv_and_norm(x, name, stride=1):
        gamma, beta, mean, variance = (
            arrays[f"{part}{name}.norm.{of}"].reshape(-1, 1, 1)
            for of in ("weight", "bias", "running_mean", "running_var")
        )
        out = reference.conv2d(x, arrays[f"{part}{name}.weight"].astype(np.float64), stride=stride)
        return (out - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    image = rng.normal(size=(1, 256, 9, 12))
    out = np.maximum(conv_and_norm(image, "conv1", stride=2), 0)
    out = np.maximum(conv_and_norm(out, "conv2"), 0)
    expected = np.maximum(conv_and_norm(out, "conv3") + conv_and_norm(image, "shortcut", stride=2), 0)

    path = tmp_path / "R-101-FPN.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
    config = pretrained_config(load_config(["--device_target=CPU", f"--pre_trained={path}"]))
    network = load_pretrained(build_detector(config), path)
    network.set_train(False)
    found = network.backbone.layer2[0](reference.tensor(image)).asnumpy()
    assert (expected > 0).mean() > 0.2
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_one_box_for_all_classes_is_refused(tmp_path, torchvision):
    arrays = dict(torchvision)
    for part in ("weight", "bias"):
        arrays[f"roi_heads.box_predictor.bbox_pred.{part}"] = arrays[f"roi_heads.box_predictor.bbox_pred.{part}"][:4]
    with pytest.raises(UserError, match="has 4 numbers per RoI; expected 4 for each of 91 classes"):
        converted(tmp_path, arrays)


# ---- the way back -----------------------------------------------------------------------------------------


def test_there_and_back(tmp_path, torchvision):
    given = with_classes(torchvision, 4)
    back = to_torchvision(converted(tmp_path, given).arrays)
    assert set(back) == set(given)
    boxes = "roi_heads.box_predictor.bbox_pred."
    for name, value in given.items():
        expected = np.concatenate([np.zeros_like(value[:4]), value[4:]]) if name.startswith(boxes) else value
        if name == "rpn.head.bbox_pred.bias":
            np.testing.assert_allclose(back[name], expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(back[name], expected, err_msg=name)

"""Detectors as files: the notes they carry, and what loading refuses."""

import dataclasses
import json

import numpy as np
import onnx
import pytest

from src import __version__
from src.data.transforms import Canvas
from src.deploy.model_file import Model, ModelInfo, _check_onnx_device, load_model
from src.deploy.onnx_graph import build_onnx
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.network_define import Checkpoints
from src.runtime import Device
from tests.cpp import small_models
from tests.unit.FasterRcnn.small_detector import (
    CANVAS,
    CLASSES,
    SETTINGS,
    config_of,
    random_images,
    save_small_detector,
)

pytestmark = pytest.mark.usefixtures("graph_mode")
INFO = ModelInfo(('Größe, "quoted"', "b"), Canvas(128, 64, False), "resnet_v1_50", 0.05, 0.5, 100, "int8")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one small detector as detector.ckpt and detector.onnx."""
    folder = tmp_path_factory.mktemp("models")
    config = config_of(**SETTINGS)
    net = save_small_detector(folder / "detector.ckpt")
    model = build_onnx({param.name: param.asnumpy() for param in net.get_parameters()}, config)
    for key, value in ModelInfo.from_config(config).notes().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, folder / "detector.onnx")
    return folder


def inputs(num_images):
    images = np.concatenate([random_images(50), random_images(51)])[:num_images]
    return images, np.tile(np.float32([*CANVAS, 1, 1]), (num_images, 1))


# --- notes ------------------------------------------------------------------------------------------------------------


def test_notes_are_read_as_they_were_written(tmp_path):
    assert ModelInfo.from_notes(INFO.notes(), tmp_path) == INFO
    assert INFO.notes()["pixel_mean"] == "[123.675, 116.28, 103.53]"
    assert INFO.notes()["colour_order"] == '"RGB"'
    assert INFO.notes()["class_names"].startswith('["Größe')  # not as escapes
    versions = json.loads(INFO.notes()["versions"])
    assert set(versions) == {"faster-rcnn-mindspore", "mindspore", "onnx"}
    assert versions["faster-rcnn-mindspore"] == __version__


@pytest.mark.parametrize("change", [{"class_names": None}, {"canvas": "[1, 2]"}, {"canvas": "{"}, {"class_names": "3"}])
def test_damaged_notes_are_refused(change):
    notes = {key: value for key, value in (INFO.notes() | change).items() if value is not None}
    with pytest.raises(UserError, match=r"m\.onnx.*notes"):
        ModelInfo.from_notes(notes, "m.onnx")


def test_a_configuration_takes_the_files_classes_and_sizes():
    config = INFO.configuration(dataclasses.replace(config_of(), command_line=frozenset()))
    assert (config.class_names, config.img_width, config.img_height) == (INFO.class_names, 128, 64)
    assert (config.keep_ratio, config.num_classes) == (False, 3)


def test_flags_that_contradict_the_file_are_refused():
    with pytest.raises(UserError, match="--keep_ratio is True, but the model was exported with False"):
        INFO.configuration(config_of("--keep_ratio=True", classes=("background", *INFO.class_names)))


@pytest.mark.parametrize(
    "flag",
    ["img_width=192", "test_max_per_img=50", "backbone=resnet_v1.5_50", "test_score_thr=0.3", "test_iou_thr=0.3"],
)
def test_every_flag_about_what_the_file_holds_may_repeat_but_not_contradict(flag):
    key, _, value = flag.partition("=")
    with pytest.raises(UserError, match=f"--{key} is {value}, but the model was exported with"):
        INFO.configuration(load_config([f"--{flag}"]))
    same = {
        "img_width": 128,
        "test_max_per_img": 100,
        "backbone": "resnet_v1_50",
        "test_score_thr": 0.05,
        "test_iou_thr": 0.5,
    }
    assert INFO.configuration(load_config([f"--{key}={same[key]}"])).class_names == INFO.class_names


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.onnx", "missing.ckpt", "missing.mindir", "folder.onnx", "model.pth"])
def test_what_is_no_model_is_named(tmp_path, name):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match=name):
        load_model(tmp_path / name, config_of())


@pytest.mark.parametrize("suffix", [".onnx", ".mindir", ".ckpt"])
@pytest.mark.parametrize("content", [b"", b"no model at all", None], ids=["empty", "text", "cut"])
def test_a_damaged_file_is_named(tmp_path, files, suffix, content):
    if content is None:
        content = (files / "detector.onnx").read_bytes()[:20000]
    (tmp_path / f"broken{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=f"broken{suffix}"):
        load_model(tmp_path / f"broken{suffix}", config_of())


def test_an_onnx_file_of_another_network_is_refused(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "relu.onnx")
    with pytest.raises(UserError, match=r"relu\.onnx has 1 inputs and 1 outputs"):
        load_model(tmp_path / "relu.onnx", config_of())


def test_an_onnx_file_without_notes_is_refused(tmp_path, files):
    model = onnx.load(files / "detector.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx: its notes"):
        load_model(tmp_path / "bare.onnx", config_of())


def test_a_mindir_file_without_notes_or_end_is_refused(tmp_path):
    whole = small_models.export(tmp_path / "bare.mindir", small_models.SmallDetector(np.zeros((1, 4, 5), np.float32)))
    with pytest.raises(UserError, match=r"bare\.mindir: its notes"):
        load_model(whole, config_of())
    (tmp_path / "cut.mindir").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.mindir is damaged"):
        load_model(tmp_path / "cut.mindir", config_of())


def test_a_device_that_the_runtime_lacks_is_named(files):
    with pytest.raises(UserError, match="device_target is GPU, but this ONNX Runtime"):
        load_model(files / "detector.onnx", dataclasses.replace(config_of(**SETTINGS), device_target="GPU"))


@pytest.mark.parametrize("target", ["CPU", "GPU", "Ascend"])
def test_without_a_flag_an_onnx_file_runs_on_what_is_installed(files, caplog, target):
    """The configuration's device_target is Ascend by default. This ONNX Runtime is built for CPU."""
    caplog.set_level("INFO", "src")
    config = config_of(**SETTINGS)
    config = dataclasses.replace(config, device_target=target, command_line=config.command_line - {"device_target"})
    load_model(files / "detector.onnx", config)
    line = f"this ONNX Runtime has no {target}, the device_target of the configuration: the model runs on CPU"
    assert (line in caplog.text) == (target != "CPU")


def test_a_device_that_the_runtime_cannot_start_is_refused():
    """Its package is installed, its driver is not: ONNX Runtime would go on with the CPU."""
    with pytest.raises(UserError, match="device_target is GPU, but ONNX Runtime cannot start it here"):
        _check_onnx_device("CPUExecutionProvider", load_config(["--device_target=GPU"]))


def test_an_exported_file_refuses_contradicting_flags(files):
    with pytest.raises(UserError, match="--coco_classes"):
        load_model(files / "detector.onnx", config_of(classes=("background", "other")))


def test_classes_noted_in_a_checkpoint_need_no_flag(files):
    config = config_of(**SETTINGS)
    silent = dataclasses.replace(config, coco_classes=("background", "x"), num_classes=2, command_line=frozenset())
    assert load_model(files / "detector.ckpt", silent).info.class_names == CLASSES[1:]


def test_a_class_name_with_a_comma_is_noted_whole(tmp_path):
    """As training writes the checkpoint; exported files keep such names too."""
    classes = ("background", "salt, pepper", "leaf")
    config = dataclasses.replace(config_of(classes=classes, **SETTINGS), save_checkpoint_path=str(tmp_path))
    Checkpoints(config, Device("CPU")).save(build_detector(config), config.epoch_size, 1)
    (path,) = tmp_path.rglob("*.ckpt")
    silent = dataclasses.replace(config_of(**SETTINGS), command_line=frozenset())
    assert load_model(path, silent).info.class_names == classes[1:]


def test_flags_that_contradict_the_classes_noted_in_a_checkpoint_are_refused(files):
    renamed = ("background", "cell", "leaf", "fruit")
    with pytest.raises(UserError, match=r"--coco_classes is \['background', 'cell', 'leaf', 'fruit'\], but checkpoint"):
        load_model(files / "detector.ckpt", config_of(classes=renamed, **SETTINGS))


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_and_its_onnx_file_detect_the_same(files):
    config = config_of(**SETTINGS)
    images, metas = inputs(3)
    checkpoint, exported = (load_model(files / f"detector.{suffix}", config) for suffix in ("ckpt", "onnx"))
    for index in range(3):
        expected = checkpoint(images[index : index + 1], metas[index : index + 1])
        found = exported(images[index : index + 1], metas[index : index + 1])
        assert expected[2].any()
        np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
        assert (found[1] == expected[1]).all() and (found[2] == expected[2]).all()


def echo(images, metas):
    return [images[:, 0, 0, :5], metas, images[:, 0, 0, :1] > 0]


def test_a_fixed_batch_is_filled_up_and_cut():
    shapes = []
    model = Model("m", INFO, 4, lambda images, metas: shapes.append(images.shape) or echo(images, metas), config_of())
    images, metas = inputs(3)
    first, second, third = model(images, metas)
    assert shapes == [(4, 3, *CANVAS)]
    assert (first == images[:, 0, 0, :5]).all() and (second == metas).all() and len(third) == 3


@pytest.mark.parametrize(
    "images, metas, expected",
    [
        (
            np.zeros((1, 64, 128, 3), np.float32),
            np.zeros((1, 4), np.float32),
            r"\(1, 64, 128, 3\); expected float32 \(B,",
        ),
        (np.zeros((1, 3, 64, 128), np.uint8), np.zeros((1, 4), np.float32), "image is uint8"),
        (np.zeros((3, 64, 128), np.float32), np.zeros((1, 4), np.float32), "expected float32"),
        (np.zeros((1, 3, 64, 128), np.float32), np.zeros((1, 3), np.float32), r"metadata is float32 \(1, 3\)"),
        (np.zeros((3, 3, 64, 128), np.float32), np.zeros((3, 4), np.float32), "up to 2"),
        (np.zeros((2, 3, 64, 128), np.float32), np.zeros((1, 4), np.float32), "as many of both"),
    ],
)
def test_wrong_inputs_name_what_was_expected_and_given(images, metas, expected):
    with pytest.raises(UserError, match=expected):
        Model("m", INFO, 2, echo, config_of())(images, metas)

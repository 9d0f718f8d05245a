"""Export: whole, checked and fitting, or not at all."""

import dataclasses
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest

from src.convert_checkpoint import write_checkpoint
from src.deploy import exporter, onnx_graph
from src.deploy.exporter import compare_detections, export_detector, with_export_device
from src.deploy.model_file import load_model
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.util import Detections
from src.weights.detector_notes import notes_of
from tests.helpers import REPO_ROOT
from tests.unit.FasterRcnn.small_detector import (
    CANVAS,
    CLASSES,
    SETTINGS,
    config_of,
    random_images,
    randomise,
    save_small_detector,
)

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small detector that finds things, and notes its classes."""
    path = tmp_path_factory.mktemp("trained") / "detector.ckpt"
    save_small_detector(path)
    return path


def export_config(checkpoint, path, **changes):
    return dataclasses.replace(config_of(**SETTINGS), ckpt_file=str(checkpoint), file_name=str(path), **changes)


# --- comparing --------------------------------------------------------------------------------------------------------


def detections(*rows):
    """From rows (x1, y1, x2, y2, score, label)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


ROW = (10, 20, 30, 40, 0.9, 1)


@pytest.mark.parametrize(
    ("expected", "found", "same", "agreement"),
    [
        ([], [], 0, 1.0),
        ([ROW], [], 0, 0.0),
        ([], [ROW], 0, 0.0),
        ([ROW], [ROW], 1, 1.0),
        ([ROW], [(10.5, 20, 30, 40, 0.89, 1)], 1, 1.0),
        ([ROW], [(11.5, 20, 30, 40, 0.9, 1)], 0, 0.0),  # more than a pixel away
        ([ROW], [(10, 20, 30, 40, 0.8, 1)], 0, 0.0),  # another score
        ([ROW], [(10, 20, 30, 40, 0.9, 2)], 0, 0.0),  # another label
        ([ROW, ROW], [ROW], 1, 0.5),  # one cannot stand for two
        ([ROW], [ROW, ROW], 1, 0.5),
    ],
)
def test_which_detections_two_models_share(expected, found, same, agreement):
    difference = compare_detections(detections(*expected), detections(*found))
    assert (difference.num_same, difference.agreement) == (same, agreement)
    assert (difference.num_expected, difference.num_found) == (len(expected), len(found))


def test_largest_differences_are_those_of_the_nearest_pairs():
    difference = compare_detections(
        detections(ROW, (50, 50, 60, 60, 0.5, 0)), detections((50, 50.25, 60, 60, 0.49, 0), (10.5, 20, 30, 40, 0.9, 1))
    )
    assert difference.num_same == 2
    assert difference.box == pytest.approx(0.5)
    assert difference.score == pytest.approx(0.01)


# --- exporting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "suffix"), [("ONNX", ".onnx"), ("MINDIR", ".mindir")])
def test_the_file_detects_what_the_checkpoint_detects(tmp_path, checkpoint, file_format, suffix):
    target = tmp_path / "it's a model"
    config = export_config(checkpoint, target, file_format=file_format)
    path = export_detector(config)
    assert path == target.with_name(target.name + suffix)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    images, metas = random_images(50), np.tile(np.float32([*CANVAS, 0.5, 0.8]), (2, 1))
    expected, found = (load_model(file, config)(images, metas) for file in (checkpoint, path))
    assert expected[2].any()
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    assert (found[1] == expected[1]).all() and (found[2] == expected[2]).all()
    # With other settings of the run it is the file's that hold, its batch among them.
    model = load_model(path, load_config(["--device_target=CPU"]))
    assert model.info.class_names == CLASSES[1:]
    assert model.config.img_width == CANVAS[1] and model.config.test_batch_size == (model.batch_size or 2)


def test_a_suffix_that_is_there_is_not_repeated_and_an_old_file_is_replaced(tmp_path, checkpoint, caplog):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    caplog.set_level("INFO", "src")
    assert export_detector(export_config(checkpoint, target, file_format="ONNX")) == target
    onnx.checker.check_model(onnx.load(target))
    assert "generated image: network" in caplog.text and "black image: network" in caplog.text


def test_float16_is_smaller_and_says_what_it_is(tmp_path, checkpoint):
    wide = export_detector(export_config(checkpoint, tmp_path / "wide", file_format="ONNX"))
    config = export_config(checkpoint, tmp_path / "narrow", file_format="ONNX", onnx_precision="float16")
    narrow = export_detector(config)
    assert narrow.stat().st_size < 0.65 * wide.stat().st_size
    assert load_model(narrow, config).info.precision == "float16"


@pytest.mark.parametrize("flags", [[], ["--device_target=GPU"]])
def test_an_onnx_file_needs_no_device(tmp_path, flags):
    """By the program itself; Ascend is the default. This MindSpore is built for CPU."""
    config = config_of(**SETTINGS)
    write_checkpoint(randomise(build_detector(config), seed=5).parameters_dict(), tmp_path / "a.ckpt", notes_of(config))
    command = [
        sys.executable,
        REPO_ROOT / "export.py",
        "--ckpt_file=a.ckpt",
        "--file_format=ONNX",
        "--file_name=model",
        "--compile_cache_path=",
        *flags,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
    assert done.stdout.count("this one is written and checked on the CPU") == 1


def test_other_formats_keep_their_device():
    for target in ("CPU", "GPU", "Ascend"):
        for file_format in ("ONNX", "MINDIR", "AIR"):
            config = load_config([f"--file_format={file_format}", f"--device_target={target}"])
            assert with_export_device(config).device_target == ("CPU" if file_format == "ONNX" else target)


# --- refusing ---------------------------------------------------------------------------------------------------------


def refused(config, match):
    """The export raises one message, and an old file of the name stays as it is with nothing beside it."""
    target = exporter.Path(config.file_name).with_suffix(exporter.SUFFIXES[config.file_format])
    target.write_text("old")
    with pytest.raises(UserError, match=match):
        export_detector(config)
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_a_checkpoint_that_does_not_fit_stops_the_export(tmp_path, checkpoint):
    config = dataclasses.replace(
        export_config(checkpoint, tmp_path / "model", file_format="ONNX"), rcnn_fc_out_channels=48
    )
    refused(config, r"rcnn\.shared_fc_0\.weight has shape .*\n")


def test_air_needs_ascend(tmp_path, checkpoint):
    refused(export_config(checkpoint, tmp_path / "model", file_format="AIR"), "MINDIR or ONNX")


def test_precision_is_a_matter_of_onnx(tmp_path, checkpoint):
    config = export_config(checkpoint, tmp_path / "model", file_format="MINDIR", onnx_precision="int8")
    refused(config, "is for file_format ONNX")


def test_a_file_that_detects_something_else_is_not_written(tmp_path, checkpoint, monkeypatch):
    """A graph with other weights, as a bug would make it."""

    def wrong(parameters, config):
        return right(parameters | {"rcnn.cls_scores.weight": -parameters["rcnn.cls_scores.weight"]}, config)

    right = onnx_graph.build_onnx
    monkeypatch.setattr(onnx_graph, "build_onnx", wrong)
    refused(export_config(checkpoint, tmp_path / "model", file_format="ONNX"), "detects something else")


def test_a_folder_that_cannot_be_written_is_named(checkpoint):
    with pytest.raises(UserError, match="/proc/no"):
        export_detector(export_config(checkpoint, "/proc/no/model", file_format="ONNX"))

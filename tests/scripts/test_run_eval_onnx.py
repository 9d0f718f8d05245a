"""scripts/run_eval_onnx.sh, run for real on a few images and the smallest detector."""

import dataclasses
import json
import os
import subprocess

import mindspore as ms
import onnx
import pytest

from src.deploy.model_file import ModelInfo
from src.deploy.onnx_graph import build_onnx
from src.FasterRcnn import build_detector
from tests.helpers import REPO_ROOT
from tests.unit.image_sets import config_for, make_coco

SCRIPT = REPO_ROOT / "scripts" / "run_eval_onnx.sh"
USAGE = (
    "Usage: run_eval_onnx.sh ANNO_PATH ONNX_MODEL BACKBONE COCO_ROOT [MINDRECORD_DIR] [--detach] [--key=value ...]\n"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with spaces: images in COCO layout below "coco", and model.onnx."""
    folder = tmp_path_factory.mktemp("my data")
    make_coco(folder / "coco", "val2017", 3)
    config = dataclasses.replace(config_for(folder / "coco"), resnet_block=(1, 1, 1, 1))
    ms.set_seed(1)
    parameters = {parameter.name: parameter.asnumpy() for parameter in build_detector(config).get_parameters()}
    model = build_onnx(parameters, config)
    for key, value in ModelInfo.from_config(config).notes().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, folder / "model.onnx")
    return folder


def run(script, *arguments, cwd):
    """Run a script as a user does."""
    environment = {**os.environ, "PATH": f"{REPO_ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_scores_every_image_in_its_own_folder(project, data):
    arguments = ["coco/annotations/instances_val2017.json", "model.onnx", "resnet_v1.5_50", "coco", "my records"]
    for expected_kept in (False, True):
        result = run(project / "scripts" / SCRIPT.name, *arguments, "--test_batch_size=2", cwd=data)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Result on" in result.stdout and "test_batch_size" in result.stdout
        assert "the model runs on CPU" in result.stdout  # the one device of the ONNX Runtime in requirements.txt
        assert ("kept the last run" in result.stdout) == expected_kept
    assert json.loads((project / "eval" / "metrics.json").read_text())["num_images"] == 3
    assert (project / "eval" / "log").read_text() == (project / "eval" / "eval_onnx.log").read_text()
    assert (data / "my records").is_dir()
    assert (project / "eval.1" / "metrics.json").is_file()


def test_the_programs_failure_is_the_scripts(project, data):
    (data / "broken.onnx").write_bytes(b"no model")
    result = run(
        project / "scripts" / SCRIPT.name,
        "coco/annotations/instances_val2017.json",
        "broken.onnx",
        "resnet_v1.5_50",
        "coco",
        cwd=data,
    )
    assert result.returncode == 1
    assert "broken.onnx" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_a_device_that_is_asked_for_is_that_or_none(project, data):
    arguments = ["coco/annotations/instances_val2017.json", "model.onnx", "resnet_v1.5_50", "coco"]
    result = run(project / "scripts" / SCRIPT.name, *arguments, "--device_target=GPU", cwd=data)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("ERROR: device_target is GPU, but this ONNX Runtime")
    assert run(project / "scripts" / SCRIPT.name, *arguments, "--device_target=CPU", cwd=data).returncode == 0


def test_too_few_arguments_show_the_usage(tmp_path):
    result = run(SCRIPT, "a.json", "b.onnx", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", USAGE)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["missing.json", "model.onnx", "resnet_v1.5_50", "coco"], "ANNO_PATH"),
        (["coco/annotations/instances_val2017.json", "missing.onnx", "resnet_v1.5_50", "coco"], "ONNX_MODEL"),
        (["coco/annotations/instances_val2017.json", "model.onnx", "resnet_v1.5_50", "missing"], "COCO_ROOT"),
    ],
)
def test_a_missing_argument_is_named_before_anything_is_made(project, data, arguments, name):
    result = run(project / "scripts" / SCRIPT.name, *arguments, cwd=data)
    assert result.returncode == 1
    assert result.stderr.startswith(f"ERROR: {name}: 'missing")
    assert not (project / "eval").exists()

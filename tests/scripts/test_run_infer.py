"""The launchers of the C++ program: arguments, messages and a whole run on CPU with a small model."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cpp.builds import missing_for_program, reason
from tests.helpers import REPO_ROOT

LAUNCHERS = {"run_infer_310.sh": [], "run_infer_cpp.sh": ["CPU"]}  # and what follows the three paths


def launch(script, folder, *arguments, **environment):
    return subprocess.run(
        ["bash", REPO_ROOT / "scripts" / script, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def run_folder(tmp_path):
    """A folder, with a space and a quote in its name, that holds an image folder, annotations and a file "model"."""
    folder = tmp_path / "it's my run"
    (folder / "images").mkdir(parents=True)
    (folder / "model").write_text("no model")
    (folder / "boxes.json").write_text("{}")
    return folder


# ---- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", LAUNCHERS)
def test_too_few_arguments_show_the_usage(tmp_path, script):
    result = launch(script, tmp_path, "model", "images")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"Usage: {script} MINDIR_PATH DATA_PATH ANN")
    assert "[DEVICE_ID]" in result.stderr and "#" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [["1280", "768", "0", "1"], ["0", "rubbish"], ["1280x768"], ["-1"], ["--coco_classes"]]
)
@pytest.mark.parametrize("script", LAUNCHERS)
def test_other_optional_arguments_show_the_usage(run_folder, script, options):
    result = launch(script, run_folder, "model", "images", "boxes.json", *LAUNCHERS[script], *options)
    assert (result.returncode, result.stderr.split()[:2]) == (2, ["Usage:", script])


@pytest.mark.parametrize(
    "given, infer_flags, score_flags",
    [
        ([], [], []),
        (["3"], ["--device_id=3"], []),
        (["1280", "768"], ["--image_width=1280", "--image_height=768"], []),
        (["1280", "768", "3"], ["--image_width=1280", "--image_height=768", "--device_id=3"], []),
        (["false"], ["--keep_ratio=false"], []),
        (["False", "2"], ["--keep_ratio=False", "--device_id=2"], []),
        (["1280", "768", "true"], ["--image_width=1280", "--image_height=768", "--keep_ratio=true"], []),
        # all that the published scripts take, run_infer_310.sh in its form of July to November 2022
        (
            ["1280", "768", "true", "0"],
            ["--image_width=1280", "--image_height=768", "--keep_ratio=true", "--device_id=0"],
            [],
        ),
        (
            ["2", "--coco_classes=['background', 'it''s $(date)']"],
            ["--device_id=2"],
            ["--coco_classes=['background', 'it''s $(date)']"],
        ),
    ],
)
def test_optional_arguments_are_told_apart(given, infer_flags, score_flags):
    program = (
        f'source "{REPO_ROOT}/scripts/infer_common.sh"; read_infer_options "$@"; '
        'printf "%s\\n" "${infer_flags[@]}" -- "${score_flags[@]}"'
    )
    result = subprocess.run(["bash", "-c", program, "test", *given], capture_output=True, text=True, check=True)
    assert [line for line in result.stdout.splitlines() if line] == [*infer_flags, "--", *score_flags]


@pytest.mark.parametrize("script", LAUNCHERS)
def test_all_published_arguments_are_taken(run_folder, script):
    """They end where the build does, for want of MindSpore Lite, and not with the usage."""
    result = launch(
        script,
        run_folder,
        "model",
        "images",
        "boxes.json",
        *LAUNCHERS[script],
        "1280",
        "768",
        "true",
        "0",
        MS_LITE_HOME=str(run_folder / "no lite"),
    )
    assert result.returncode == 1
    assert "all of its output is in build.log" in result.stderr


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize("position, name", [(0, "MINDIR_PATH"), (1, "DATA_PATH"), (2, "ANNO_PATH")])
def test_missing_paths_are_named(run_folder, script, position, name):
    paths = ["model", "images", "boxes.json"]
    paths[position] = "not $(here)"
    result = launch(script, run_folder, *paths, *LAUNCHERS[script])
    assert result.returncode == 1
    assert f"ERROR: {name}: 'not $(here)' is not a f" in result.stderr
    assert not (run_folder / "build.log").exists()


def test_an_unknown_device_is_refused(run_folder):
    result = launch("run_infer_cpp.sh", run_folder, "model", "images", "boxes.json", "TPU")
    assert result.returncode == 2
    assert (
        "ERROR: DEVICE_TYPE: 'TPU' is not one of Ascend310, Ascend, GPU, CPU\nUsage: run_infer_cpp.sh" in result.stderr
    )


# ---- building, running, scoring --------------------------------------------------------------------------


def test_a_failing_build_shows_the_end_of_its_log(run_folder):
    result = launch(
        "run_infer_cpp.sh", run_folder, "model", "images", "boxes.json", "CPU", MS_LITE_HOME=str(run_folder / "no lite")
    )
    assert result.returncode == 1
    assert "all of its output is in build.log" in result.stderr
    assert "install_cpp_tools.sh" in result.stderr
    assert not (run_folder / "result_Files").exists()


BOXES = ((10.0, 5.0, 60.0, 45.0), (20.0, 20.0, 90.0, 40.0))  # of the two cats, x1 y1 x2 y2


def coco_annotations():
    """One image with two cats at `BOXES`."""
    annotations = [
        {
            "id": number,
            "image_id": 7,
            "category_id": 3,
            "iscrowd": 0,
            "area": (x2 - x1) * (y2 - y1),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
        }
        for number, (x1, y1, x2, y2) in enumerate(BOXES, start=1)
    ]
    return {
        "images": [{"id": 7, "file_name": "a cat's.png", "width": 100, "height": 50}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}],
    }


@pytest.fixture
def ready_folder(run_folder):
    """`run_folder` with an image, its annotations and a model that finds its two cats."""
    if missing_for_program():
        pytest.skip(reason(missing_for_program()))
    from tests.cpp.small_models import SmallDetector, export

    assert cv2.imwrite(str(run_folder / "images/a cat's.png"), np.full((50, 100, 3), 90, np.uint8))
    (run_folder / "boxes.json").write_text(json.dumps(coco_annotations()))
    rows = np.zeros((1, 4, 5), np.float32)
    rows[0, :2] = [(*box, 0.9) for box in BOXES]  # the mask is true on the first two rows
    export(run_folder / "my model.mindir", SmallDetector(rows, label_weight=0.0))
    return run_folder


ARGUMENTS = ("my model.mindir", "images", "boxes.json", "CPU", "true", "--coco_classes=['background','cat']")


def test_a_whole_run(ready_folder):
    for run in range(2):
        result = launch("run_infer_cpp.sh", ready_folder, *ARGUMENTS)
        assert result.returncode == 0, result.stderr
        assert "NN inference cost average time: " in result.stdout
        lines = [line for line in result.stdout.splitlines() if "IoU=0.50:0.95 | area=   all | maxDets=100" in line]
        # both cats found, none invented
        assert [line.split("=")[-1].strip() for line in lines] == ["1.000", "1.000"]
        for line in lines:
            assert line in (ready_folder / "acc.log").read_text()
        assert len(list((ready_folder / "result_Files").iterdir())) == 3
        assert (ready_folder / "result_Files.1").exists() == (run == 1)  # the first run's files are kept
    assert (ready_folder / "build.log").stat().st_size > 0
    assert "1 images, input 128 x 64, CPU 0" in (ready_folder / "infer.log").read_text()
    assert (ready_folder / "time_Result/test_perform_static.txt").read_text().endswith("of infer_count 1\n")


@pytest.mark.skipif(Path("/dev/davinci_manager").exists(), reason="this machine has an Ascend device")
def test_the_310_script_asks_for_an_ascend_310(ready_folder):
    result = launch("run_infer_310.sh", ready_folder, *ARGUMENTS[:3], "1")
    assert result.returncode == 1
    assert "cannot build it for Ascend310 1" in result.stderr
    assert "all of its output is in infer.log" in result.stderr


def test_a_failing_score_ends_with_its_message(ready_folder):
    (ready_folder / "boxes.json").write_text("[]")
    result = launch("run_infer_cpp.sh", ready_folder, *ARGUMENTS)
    assert result.returncode == 1
    assert "boxes.json" in (ready_folder / "acc.log").read_text()
    assert "ERROR: postprocess.py failed" in result.stderr

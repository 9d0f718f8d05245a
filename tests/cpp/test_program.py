"""The whole C++ program on CPU, with small models in place of the detector."""

import os
import subprocess
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest

from src.data.image_files import read_rgb
from src.data.transforms import Canvas, evaluation_input
from tests.cpp.builds import LITE_HOME, configure, missing_for_program, reason
from tests.cpp.small_models import HEIGHT, WIDTH, SmallDetector, export

BOXES = np.arange(20, dtype=np.float32).reshape(1, 4, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory, program):
    return export(tmp_path_factory.mktemp("models") / "small.mindir", SmallDetector(BOXES, mean_weight=1.0))


@pytest.fixture
def images(tmp_path):
    """A folder with two images and a file that is none."""
    folder = tmp_path / "my images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("a b.png", (48, 70, 3)), ("tall.c.png", (90, 30, 3))):
        assert cv2.imwrite(str(folder / name), rng.integers(0, 256, shape, np.uint8))
    (folder / "notes.txt").write_text("no image")
    return folder


def run(program, folder, *flags, mindir, dataset, device="CPU"):
    """Run in a folder. The leak check is off: what MindSpore Lite keeps until the end would be reported."""
    flags = [f"--mindir_path={mindir}", f"--dataset_path={dataset}", f"--device_type={device}", *flags]
    return subprocess.run(
        [program, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )


@pytest.mark.parametrize("keep_ratio", [True, False])
def test_outputs_of_every_image(program, model, images, tmp_path, keep_ratio):
    result = run(program, tmp_path, f"--keep_ratio={keep_ratio}", mindir=model, dataset=images)
    assert result.returncode == 0, result.stderr
    names = ["a b", "tall.c"]
    assert sorted(p.name for p in (tmp_path / "result_Files").iterdir()) == [
        f"{name}_{number}.bin" for name in names for number in range(3)
    ]
    for name in names:
        image, metadata = evaluation_input(read_rgb(images / f"{name}.png"), Canvas(WIDTH, HEIGHT, keep_ratio))
        boxes, labels, mask = (
            np.fromfile(tmp_path / "result_Files" / f"{name}_{number}.bin", dtype)
            for number, dtype in enumerate((np.float32, np.int32, np.bool_))
        )
        np.testing.assert_allclose(boxes.reshape(1, 4, 5), BOXES + image.sum(axis=0).mean(), atol=1e-3)
        assert labels.tolist() == metadata.astype(int).tolist()
        assert mask.tolist() == (metadata > 1.5).tolist()


def test_timing_line(program, model, images, tmp_path):
    result = run(program, tmp_path, mindir=model, dataset=images)
    line = (tmp_path / "time_Result/test_perform_static.txt").read_text()
    assert line.startswith("NN inference cost average time: ") and line.endswith(" ms of infer_count 2\n")
    assert float(line.split()[5]) > 0
    assert "1 other file or folder left out: notes.txt\n" in result.stdout
    assert line in result.stdout and f"2 images, input {WIDTH} x {HEIGHT}, CPU 0" in result.stdout


def test_a_size_that_contradicts_the_model(program, model, images, tmp_path):
    assert (
        run(
            program, tmp_path, f"--image_width={WIDTH}", f"--image_height={HEIGHT}", mindir=model, dataset=images
        ).returncode
        == 0
    )
    result = run(program, tmp_path, "--image_width=1280", "--image_height=768", mindir=model, dataset=images)
    assert result.returncode == 1
    assert f"{model}: takes images of width {WIDTH} and height {HEIGHT}" in result.stderr


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ({}, {"batch": 2}, "has inputs (2, 3, 64, 128), (2, 4); expected image (1, 3, H, W)"),
        ({"label_type": ms.float32}, {}, "the labels output has data type number 43; expected 34"),
        ({"with_mask": False}, {}, "has 2 outputs; expected boxes, labels and mask"),
        ({}, {"version": 3}, "does this runtime read the MindIR version"),
    ],
    ids=["batch of two", "labels float32", "no mask", "newer MindIR"],
)
def test_models_that_do_not_fit(program, images, tmp_path, arguments, options, words):
    path = export(tmp_path / "other.mindir", SmallDetector(BOXES, **arguments), **options)
    result = run(program, tmp_path, mindir=path, dataset=images)
    assert result.returncode == 1, result.stderr
    assert f"ERROR: {path}: " in result.stderr and words in result.stderr
    assert list((tmp_path / "result_Files").iterdir()) == []


def test_boxes_and_mask_of_different_length(program, images, tmp_path):
    path = export(tmp_path / "other.mindir", SmallDetector(BOXES[:, :1]))
    result = run(program, tmp_path, mindir=path, dataset=images)
    assert result.returncode == 1
    assert "outputs have 20, 16 and 4 bytes" in result.stderr


def test_files_that_are_not_models(program, images, tmp_path):
    (tmp_path / "empty.mindir").touch()
    (tmp_path / "text.mindir").write_text("not a model")
    for path, words in (
        (tmp_path / "none.mindir", "cannot be read"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.mindir", "is empty"),
        (tmp_path / "text.mindir", "cannot build it"),
    ):
        result = run(program, tmp_path, mindir=path, dataset=images)
        assert (result.returncode, f"ERROR: {path}: " in result.stderr, words in result.stderr) == (1, True, True), (
            result.stderr
        )


def test_a_bad_image_stops_the_run(program, model, images, tmp_path):
    bad = images / "bad.png"
    bad.write_text("no image")
    result = run(program, tmp_path, mindir=model, dataset=images)
    assert result.returncode == 1
    assert f"ERROR: {bad}: is not an image" in result.stderr
    assert not list((tmp_path / "result_Files").glob("bad*"))
    assert not (tmp_path / "time_Result/test_perform_static.txt").exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_runtime_without_a_gpu_says_what_it_needs(program, model, images, tmp_path):
    result = run(program, tmp_path, mindir=model, dataset=images, device="GPU")
    assert result.returncode == 1
    assert "cannot build it for GPU 0" in result.stderr and "TensorRT" in result.stderr


@pytest.mark.skipif(Path("/dev/davinci_manager").exists(), reason="this machine has an Ascend device")
@pytest.mark.parametrize("device", ["Ascend", "Ascend310"])
def test_a_runtime_without_ascend_says_what_it_needs(program, model, images, tmp_path, device):
    result = run(program, tmp_path, "--device_id=3", mindir=model, dataset=images, device=device)
    assert result.returncode == 1
    assert f"cannot build it for {device} 3" in result.stderr and "CANN" in result.stderr


def test_wrong_use_shows_the_usage(program, tmp_path):
    result = run(program, tmp_path, mindir="a", dataset="b", device="TPU")
    assert result.returncode == 2
    assert "expected Ascend310, Ascend, GPU or CPU\nUsage: main --mindir_path=" in result.stderr


@pytest.mark.skipif(bool(missing_for_program()), reason=reason(missing_for_program()))
def test_cmake_finds_lite_in_a_release_and_in_a_wheel(tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    (release / "runtime").symlink_to(next(LITE_HOME.glob("**/include/api/model.h")).parents[2])
    for home in (LITE_HOME, release):
        assert configure(tmp_path / "build", f"-DMS_LITE_HOME={home}").returncode == 0
        # taken anew each time, though the build folder is the same
        assert f"LITE_INCLUDE_DIR:PATH={home}/" in (tmp_path / "build/CMakeCache.txt").read_text()
    result = configure(tmp_path / "build", f"-DMS_LITE_HOME={tmp_path}")
    assert result.returncode != 0 and "MindSpore Lite is not at" in result.stderr

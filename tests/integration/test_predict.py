"""predict.py as a user runs it: a checkpoint of random weights, generated images, a video, and mistakes."""

import csv
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from src.convert_checkpoint import write_checkpoint
from src.FasterRcnn import build_detector
from src.tools.sample_data import SampleSpec, make_sample_data
from src.weights.detector_notes import notes_of
from tests.helpers import REPO_ROOT
from tests.unit.FasterRcnn.small_detector import config_of, randomise

NUM_IMAGES, NUM_FRAMES = 3, 5
CLASSES = ("disc", "square", "star")
# Few proposals. Random weights detect something everywhere, above this threshold. One graph for all calls.
OPTIONS = (
    "--compile_cache_path=graphs",
    "--img_width=128",
    "--img_height=64",
    "--rpn_nms_pre=50",
    "--rpn_max_num=50",
    "--test_score_thr=0.02",
)


def predict(*arguments, cwd):
    """Run predict.py with no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    return subprocess.run(
        [sys.executable, REPO_ROOT / "predict.py", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three suffixes, a film of them, a bad image, other files, and a checkpoint with its classes."""
    folder = tmp_path_factory.mktemp("predict")
    make_sample_data(folder / "data", SampleSpec(num_train=NUM_IMAGES, num_val=1))
    (folder / "data" / "train2017").rename(folder / "photos")
    images = [cv2.imread(str(path)) for path in sorted((folder / "photos").iterdir())]
    writer = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, images[0].shape[1::-1])
    for number in range(NUM_FRAMES):
        writer.write(images[number % NUM_IMAGES])
    writer.release()
    first, second = sorted((folder / "photos").iterdir())[:2]
    first.rename(first.with_suffix(".JFIF"))
    assert cv2.imwrite(str(second.with_suffix(".tif")), images[1])
    second.unlink()
    (folder / "photos" / "bad.jpg").write_text("no image")
    (folder / "photos" / "notes.txt").touch()
    (folder / "photos" / "clip.mp4").write_bytes((folder / "film.mp4").read_bytes())
    config = config_of(classes=("background", *CLASSES))
    network = randomise(build_detector(config), 49)
    write_checkpoint(network.parameters_dict(), folder / "random.ckpt", notes_of(config))
    return folder


def test_a_folder_of_images(folder):
    done = predict("--model=random.ckpt", "--input=photos", "--score_thr=0.02", *OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stdout
    content = json.loads((folder / "predictions" / "predictions.json").read_text())
    assert (content["model"], content["class_names"], content["score_thr"]) == ("random.ckpt", list(CLASSES), 0.02)
    assert len(content["pictures"]) == NUM_IMAGES
    for entry in content["pictures"]:
        height, width = cv2.imread(str(folder / entry["picture"])).shape[:2]
        assert (entry["width"], entry["height"]) == (width, height)
        drawn = cv2.imread(str(folder / entry["drawn"]))
        assert drawn.shape[0] / drawn.shape[1] == pytest.approx(height / width, abs=0.01)
        assert 0 < len(entry["detections"]) <= 100
        assert all(found["name"] == CLASSES[found["label"]] for found in entry["detections"])
        scores = [found["score"] for found in entry["detections"]]
        assert scores == sorted(scores, reverse=True) and min(scores) >= 0.02
    skipped = [line for line in done.stdout.splitlines() if line.startswith("WARNING: skipped: ")]
    assert len(skipped) == 1 and "photos/bad.jpg: is not an image" in skipped[0]
    num_detections = sum(len(entry["detections"]) for entry in content["pictures"])
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{NUM_IMAGES} images, {num_detections} detections (")
    left_out = (
        "1 input skipped; 2 other files or folders left out: clip.mp4; notes.txt (a video is detected in when "
        "it is named by itself)"
    )
    assert last.endswith(f"{left_out}; drawn copies in predictions, results in predictions/predictions.json")
    assert content["summary"].endswith(left_out)
    assert content["left_out"] == ["photos/clip.mp4", "photos/notes.txt"]
    assert len(content["skipped"]) == 1 and content["skipped"][0].startswith("photos/bad.jpg: is not an image")


def test_a_video_into_a_table(folder):
    done = predict(
        "--model=random.ckpt",
        "--input=film.mp4",
        "--score_thr=0.02",
        "--results=csv",
        "--output_dir=drawn",
        *OPTIONS,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout
    with (folder / "drawn" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["frame"] for row in rows} == {str(number) for number in range(NUM_FRAMES)}
    capture = cv2.VideoCapture(str(folder / "drawn" / "film.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (NUM_FRAMES, 5)
    original = cv2.VideoCapture(str(folder / "film.mp4")).read()[1]
    first = cv2.resize(capture.read()[1], original.shape[1::-1])
    assert np.abs(first.astype(int) - original).max() > 60  # something is drawn
    assert np.abs(first.astype(int) - original).mean() < 60  # on that image
    assert sorted(path.name for path in (folder / "drawn").iterdir()) == ["film.mp4", "predictions.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input=missing.jpg"], 1, "--input=missing.jpg: there is no such file or folder"),
        (["--input=photos", "--output_dir=photos"], 1, "photos holds the input"),
        (["--input=photos", "--img_widht=128"], 1, "unknown flag --img_widht. Did you mean img_width"),
        (["--input=photos", "--model=missing.ckpt"], 1, "missing.ckpt does not exist"),
        (["--input=photos", "--model=photos/bad.jpg"], 1, "photos/bad.jpg"),
        (["--input=photos", "--score_thr=1.5"], 2, "1.5 is not between 0 and 1"),
        (["--input=photos/bad.jpg", *OPTIONS], 1, "1 input and none that could be read"),
    ],
)
def test_mistakes_end_with_one_message(folder, tmp_path, arguments, code, message):
    done = predict("--model=random.ckpt", f"--output_dir={tmp_path / 'out'}", *arguments, cwd=folder)
    assert done.returncode == code, done.stdout
    assert message in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--input=b.jpg", "--input is given twice"),  # one of the two would be lost
        ("--checkpoint_path=b.ckpt", "--checkpoint_path names a model for eval.py; here it is given by --model"),
    ],
)
def test_a_flag_given_twice_and_a_model_for_another_program_are_refused(tmp_path, flag, message):
    done = predict("--model=a.ckpt", "--input=a.jpg", flag, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stdout + (done.stderr or "")
    assert "Traceback" not in done.stdout

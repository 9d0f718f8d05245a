"""One detector in all its forms, run as users run it: the same twelve metrics every way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.convert_checkpoint import write_checkpoint
from src.data.image_files import read_rgb
from src.data.transforms import evaluation_input
from src.deploy.model_file import load_model
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.util import METRIC_NAMES, detections_from_outputs
from src.weights.detector_notes import notes_of
from tests.helpers import REPO_ROOT
from tests.unit.FasterRcnn.small_detector import config_of, randomise

NUM_IMAGES = 6
CLASSES = ("background", "cell", "leaf", "nut")
SETTINGS = {"img_width": 192, "img_height": 128, "test_score_thr": 0.2, "rpn_max_num": 100, "rpn_nms_post": 100}
OPTIONS = ("--device_target=CPU", "--compile_cache_path=", *(f"--{key}={value}" for key, value in SETTINGS.items()))


def run(script, *arguments, cwd):
    """Run an entry script as a user does; returns its output."""
    result = subprocess.run(
        [sys.executable, REPO_ROOT / script, *arguments],
        cwd=cwd,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        env=dict(os.environ),
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def forms(tmp_path_factory, labelled_images):
    """A folder with a random detector as checkpoint, ONNX and MINDIR, and a few images below coco/."""
    folder = tmp_path_factory.mktemp("forms")
    config = config_of(classes=CLASSES, **SETTINGS)
    net = randomise(build_detector(config), 7)
    write_checkpoint(net.parameters_dict(), folder / "detector.ckpt", notes_of(config))
    for file_format in ("ONNX", "MINDIR"):
        run(
            "export.py",
            *OPTIONS,
            "--ckpt_file=detector.ckpt",
            f"--file_format={file_format}",
            "--file_name=detector",
            "--test_batch_size=1",
            cwd=folder,
        )
    labelled_images.write_part(folder / "coco", "val2017", NUM_IMAGES)
    truth = truth_of(folder)
    (folder / "coco" / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    return folder


def outputs_of(folder):
    """Name, id and outputs of the ONNX file for each image."""
    model = load_model(folder / "detector.onnx", load_config(["--device_target=CPU"]))
    coco = folder / "coco"
    for image in json.loads((coco / "annotations" / "instances_val2017.json").read_text())["images"]:
        pixels, meta = evaluation_input(read_rgb(coco / "val2017" / image["file_name"]), model.info.canvas)
        yield image, [output[0] for output in model(pixels[None], meta[None])]


def truth_of(folder):
    """Ground truth that random weights can find: every third detection, moved and stretched a little."""
    rng = np.random.default_rng(0)
    images, rows = [], []
    for image, outputs in outputs_of(folder):
        images.append(image)
        found = detections_from_outputs(*outputs)
        for box, label in zip(found.boxes_xyxy[::3], found.labels[::3], strict=True):
            x1, y1, x2, y2 = box
            if min(x2 - x1, y2 - y1) < 8:
                continue
            dx, dy = rng.uniform(-0.15, 0.15, 2) * (x2 - x1, y2 - y1)
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image["id"],
                    "category_id": int(label) + 1,
                    "iscrowd": 0,
                    "bbox": [float(max(x1 + dx, 0)), float(max(y1 + dy, 0)), float(x2 - x1), float(y2 - y1)],
                    "area": float((x2 - x1) * (y2 - y1)),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES[1:], start=1)]
    return {"images": images, "annotations": rows, "categories": categories}


def write_result_files(folder):
    """The three files per image of the C++ program, written from the definition."""
    (folder / "result_Files").mkdir(exist_ok=True)
    for image, outputs in outputs_of(folder):
        for number, (output, kind) in enumerate(zip(outputs, ("<f4", "<i4", "?"), strict=True)):
            output.astype(kind).tofile(folder / "result_Files" / f"{Path(image['file_name']).stem}_{number}.bin")


def test_every_form_gives_the_same_twelve_metrics(forms):
    write_result_files(forms)
    data = ("--coco_root=coco", "--mindrecord_dir=records")
    annotations = "--anno_path=coco/annotations/instances_val2017.json"
    commands = {
        "checkpoint": ("eval.py", *OPTIONS, *data, "--checkpoint_path=detector.ckpt"),
        "onnx": ("eval_onnx.py", "--device_target=CPU", *data, "--file_name=detector.onnx", annotations),
        "mindir": ("eval.py", "--device_target=CPU", *data, "--checkpoint_path=detector.mindir", "--test_batch_size=1"),
        "result files": (
            "postprocess.py",
            annotations,
            "--result_path=result_Files",
            f"--coco_classes={list(CLASSES)}",
        ),
    }
    found = {}
    for name, command in commands.items():
        text = run(*command, f"--eval_output_path={name}", cwd=forms)
        assert text.count(" Average Precision ") == 6 and text.count(" Average Recall ") == 6
        metrics = json.loads((forms / name / "metrics.json").read_text())
        assert metrics["num_images"] == NUM_IMAGES
        found[name] = [metrics[key] for key in METRIC_NAMES]
    assert found["checkpoint"][0] > 0.05 and found["checkpoint"][1] > 0.2
    for name, row in found.items():
        np.testing.assert_allclose(row, found["checkpoint"], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("model", ["detector.onnx", "detector.mindir"])
def test_images_of_ones_own(forms, model):
    names = [image["file_name"] for image, _ in outputs_of(forms)][:2]
    (forms / "mine").mkdir(exist_ok=True)
    for name in names:
        (forms / "mine" / name).unlink(missing_ok=True)
        (forms / "mine" / name).symlink_to(forms / "coco" / "val2017" / name)
    run("predict.py", f"--model={model}", "--input=mine", "--score_thr=0.2", f"--output_dir={model} found", cwd=forms)
    found = json.loads((forms / f"{model} found" / "predictions.json").read_text())
    expected = {image["file_name"]: detections_from_outputs(*outputs) for image, outputs in outputs_of(forms)}
    assert [Path(entry["picture"]).name for entry in found["pictures"]] == sorted(names)
    for entry in found["pictures"]:
        detections = expected[Path(entry["picture"]).name]
        assert [row["label"] for row in entry["detections"]] == detections.labels.tolist()
        np.testing.assert_allclose([row["bbox_xyxy"] for row in entry["detections"]], detections.boxes_xyxy, atol=0.02)
        assert Path(forms / entry["drawn"]).is_file()

"""A detector of mmdetection, caffe style, with ResNet-101: every program takes its file and asks for paths alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import REPO_ROOT
from tests.integration.test_train_and_eval import SMALL, run
from tests.unit.weights.pth_writer import write_pth
from tests.unit.weights.test_foreign import DETECTOR, as_mmdetection, deeper, with_classes

pytestmark = pytest.mark.slow  # minutes: two graphs of a ResNet-101 are compiled for training alone
CLASSES = ("star", "disc", "square")  # in another order than the data set has them
CANVAS = SMALL[:3]
WHAT_IT_IS = (
    "epoch_3.pth holds weights of mmdetection 2 or 3 Faster R-CNN: detector with backbone resnet_caffe_101 for "
    "3 classes, stride of its stages on the first 1x1 convolution; taken from the file: state_dict, without meta, "
    "optimizer"
)


def random_weights():
    """Numbers that keep values near 1, by torchvision's names."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in deeper(DETECTOR, 4, 23).items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1, shape)
        elif ".bn" in name or ".downsample.1." in name:
            value = rng.uniform(0.1, 0.3, shape)
        else:
            value = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape) if len(shape) > 1 else np.zeros(shape)
        weights[name] = value.astype(np.float32)
    return with_classes(weights, len(CLASSES) + 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Generated images below data/, and a training checkpoint of mmdetection beside it."""
    folder = tmp_path_factory.mktemp("foreign")
    sizes = ("--num_train=4", "--num_val=2", "--width=192", "--height=128")
    subprocess.run(
        [sys.executable, "-m", "src.tools.sample_data", f"--output_dir={folder}/data", *sizes],
        cwd=REPO_ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    content = {
        "meta": {"CLASSES": CLASSES, "config": "norm_eval=True, style='caffe'"},
        "state_dict": as_mmdetection(random_weights(), True, "roi_head."),
        "optimizer": {"state": {}},
    }
    write_pth(folder / "epoch_3.pth", content)
    return folder


def output_of(folder, script, *arguments):
    result = run(script, *CANVAS, "--compile_cache_path=", *arguments, cwd=folder)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count(WHAT_IT_IS) == 1
    assert "WARNING" not in result.stdout
    return result.stdout


def test_evaluation_and_prediction(folder):
    output_of(folder, "eval.py", "--coco_root=data", "--mindrecord_dir=records", "--checkpoint_path=epoch_3.pth")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == 2
    assert [row["name"] for row in metrics["per_class"]] == list(CLASSES)
    output_of(folder, "predict.py", "--input=data/val2017", "--model=epoch_3.pth", "--score_thr=0")
    found = json.loads((folder / "predictions" / "predictions.json").read_text())["pictures"]
    assert len(found) == 2


def test_export(folder):
    """The program compares the file with the network before it writes it."""
    output = output_of(folder, "export.py", "--ckpt_file=epoch_3.pth", "--file_format=ONNX", "--file_name=detector")
    assert "generated image: network 100 detections, file 100, 100 in common" in output
    import onnx

    notes = {entry.key: entry.value for entry in onnx.load(folder / "detector.onnx").metadata_props}
    assert json.loads(notes["class_names"]) == list(CLASSES)
    assert json.loads(notes["backbone"]) == "resnet_caffe_101"


def test_fine_tuning_and_a_backbone(folder):
    start = ("--coco_root=data", "--mindrecord_dir=records", "--pre_trained=epoch_3.pth", "--epoch_size=1")
    classes = "--coco_classes=['background','disc','square','star']"
    output = output_of(folder, "train.py", *SMALL[3:], *start, classes, "--finetune=True")
    assert "3 classes and the background keep their weights of epoch_3.pth: disc, square, star; 0 classes" in output
    output = output_of(folder, "train.py", *SMALL[3:], *start, classes, "--keep_old_run=True")
    assert "loaded backbone (520 parameters) from epoch_3.pth" in output

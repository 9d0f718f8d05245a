"""The commands of the README on real pictures: train a few steps, load the checkpoint, score every picture."""
import json
import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from tests.helpers import BCCD, REPO_ROOT, needs_shared

NUM_TRAIN = 40
CLASSES = "['background','RBC','WBC','Platelets']"
# A small canvas and few RoIs: what is tested here is that the parts fit together, not how well it detects.
SMALL = ("--device_target=CPU", "--img_width=192", "--img_height=128", "--expand_ratio=0",
         "--num_expected_pos_stage2=32", "--num_expected_neg_stage2=128", "--num_expected_total_stage2=128",
         "--roi_sample_num=160")
OPTIONS = (*SMALL, f"--coco_classes={CLASSES}", "--compile_cache_path=")


def run(script, *arguments, cwd):
    """Run an entry script as a user does, with no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    return subprocess.run([sys.executable, REPO_ROOT / script, *arguments], cwd=cwd, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900, check=False)


def read_losses(path):
    """The total losses of a log, by a pattern of our own."""
    return [float(re.search(r"total_loss: ([\d.]+)$", line)[1]) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs over the first pictures of the real set; (folder, its standard output)."""
    folder = tmp_path_factory.mktemp("run")
    content = json.loads((BCCD / "annotations" / "instances_train2017.json").read_text())
    content["images"] = content["images"][:NUM_TRAIN]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    root = folder / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (root / "train2017").symlink_to(BCCD / "train2017")
    result = run("train.py", *OPTIONS, f"--coco_root={root}", "--pre_trained=", "--frozen_stages=-1",
                 "--norm_eval=False", "--epoch_size=2", "--warmup_step=10", "--base_lr=0.04", cwd=folder)
    assert result.returncode == 0, result.stdout
    return folder, result.stdout


@needs_shared
def test_losses_of_every_step_are_written_and_fall(trained):
    folder, output = trained
    losses = read_losses(folder / "loss_0.log")
    assert len(losses) == 2 * NUM_TRAIN // 2
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert "learning rate 0.005 = base_lr 0.04 x 1 devices x batch 2 / 16" in output
    assert output.count("oneDNN instruction set") == 1


@needs_shared
def test_checkpoints_have_the_published_names(trained):
    folder, _ = trained
    assert sorted(path.name for path in (folder / "ckpt_0").iterdir()) == ["faster_rcnn-1_20.ckpt",
                                                                           "faster_rcnn-2_20.ckpt"]


@needs_shared
def test_evaluation_scores_all_pictures(trained):
    folder, _ = trained
    # 72 pictures do not fill the last batch of 5.
    result = run("eval.py", *OPTIONS, f"--coco_root={BCCD}", f"--mindrecord_dir={folder / 'records'}",
                 f"--checkpoint_path={folder / 'ckpt_0' / 'faster_rcnn-2_20.ckpt'}", "--test_batch_size=5",
                 "--test_score_thr=0.01", "--draw_images=2", cwd=folder)
    assert result.returncode == 0, result.stdout
    assert "Result on bccd dataset" in result.stdout
    assert result.stdout.count(" Average Precision ") == 6 and result.stdout.count(" Average Recall ") == 6
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == 72
    assert 0 <= metrics["AP"] <= 1
    detections = json.loads((folder / "results.bbox.json").read_text())
    ids = {image["id"] for image in json.loads((BCCD / "annotations/instances_val2017.json").read_text())["images"]}
    assert {row["image_id"] for row in detections} <= ids
    assert {row["category_id"] for row in detections} <= {1, 2, 3}
    assert len(list((folder / "detections").iterdir())) == 2


@needs_shared
def test_wrong_number_of_classes_is_refused_before_anything_is_written(trained):
    folder, _ = trained
    result = run("eval.py", *SMALL, "--coco_classes=['background','RBC']", f"--coco_root={BCCD}",
                 f"--mindrecord_dir={folder / 'other'}", "--ignore_unknown=True",
                 f"--checkpoint_path={folder / 'ckpt_0' / 'faster_rcnn-2_20.ckpt'}", cwd=folder)
    assert result.returncode == 1
    assert "rcnn.cls_scores.weight has shape (1024, 4), expected (1024, 2)" in result.stdout
    assert "Traceback" not in result.stdout
    assert not (folder / "other").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--base_lrr=1"], "base_lr"),
    (["--pre_trained="], "--frozen_stages=-1 --norm_eval=False"),
    (["--pre_trained=missing.ckpt"], "missing.ckpt does not exist"),
    (["--pre_trained=", "--frozen_stages=-1", "--norm_eval=False", "--coco_root=missing"], "missing"),
])
def test_mistakes_end_with_one_message(tmp_path, arguments, message):
    result = run("train.py", "--device_target=CPU", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stdout.splitlines()[-1] or message in result.stdout
    assert "Traceback" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_second_start_takes_the_compiled_graph_and_trains_equally(tmp_path):
    subprocess.run([sys.executable, "-m", "src.sample_data", f"--output_dir={tmp_path}/data", "--num_train=4",
                    "--num_val=1", "--width=192", "--height=128"], cwd=REPO_ROOT, check=True, stdout=subprocess.DEVNULL)
    runs = []
    for number in (1, 2):
        folder = tmp_path / f"run {number}"
        folder.mkdir()
        result = run("train.py", *SMALL, "--coco_classes=['background','disc','square','star']",
                     f"--coco_root={tmp_path}/data", f"--mindrecord_dir={tmp_path}/records", "--pre_trained=",
                     "--frozen_stages=-1", "--norm_eval=False", "--epoch_size=1",
                     f"--compile_cache_path={tmp_path}/graphs", cwd=folder)
        assert result.returncode == 0, result.stdout
        weights = {name: value.asnumpy() for name, value in
                   ms.load_checkpoint(str(folder / "ckpt_0" / "faster_rcnn-1_2.ckpt")).items()
                   if isinstance(value, ms.Parameter)}
        runs.append((result.stdout, (folder / "loss_0.log").read_text(), weights))
    (first, first_log, first_weights), (second, second_log, second_weights) = runs
    assert "kept the compiled graph in" in first
    assert "taking the compiled graph from" in second
    assert first_log == second_log
    assert first_weights.keys() == second_weights.keys()
    for name, value in first_weights.items():
        np.testing.assert_array_equal(second_weights[name], value, err_msg=name)

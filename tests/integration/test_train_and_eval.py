"""The commands of the README: train a few steps, load the checkpoint, score every image; on real images, if any."""

import json
import os
import re
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest

from tests.helpers import REPO_ROOT, write_small_start

NUM_TRAIN, NUM_VAL = 24, 12
# A small canvas and few RoIs: what is tested here is that the parts fit together, not how well it detects.
SMALL = (
    "--device_target=CPU",
    "--img_width=192",
    "--img_height=128",
    "--expand_ratio=0",
    "--num_expected_pos_stage2=32",
    "--num_expected_neg_stage2=128",
    "--num_expected_total_stage2=128",
    "--roi_sample_num=160",
)
OPTIONS = (*SMALL, "--compile_cache_path=")


def run(script, *arguments, cwd):
    """Run an entry script as a user does, with no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    return subprocess.run(
        [sys.executable, REPO_ROOT / script, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
        check=False,
    )


def read_losses(path):
    """The total losses of a log, by a pattern of our own."""
    return [float(re.search(r"total_loss: ([\d.]+), lr: [\d.]+$", line)[1]) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, labelled_images):
    """A run of two epochs of the real network over the first images; (folder, its standard output)."""
    folder = tmp_path_factory.mktemp("run")
    root = folder / "cells"
    labelled_images.write_part(root, "train2017", NUM_TRAIN)
    labelled_images.write_part(root, "val2017", NUM_VAL)
    result = run(
        "train.py",
        *OPTIONS,
        "--coco_classes=auto",
        f"--coco_root={root}",
        "--recipe=scratch",
        "--opt_type=sgd",
        "--epoch_size=2",
        "--warmup_step=10",
        "--base_lr=0.04",
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout
    return folder, result.stdout


def test_losses_of_every_step_are_written_and_fall(trained):
    folder, output = trained
    losses = read_losses(folder / "loss_0.log")
    assert len(losses) == 2 * NUM_TRAIN // 2
    assert np.isfinite(losses).all()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    assert "learning rate 0.005 = base_lr 0.04 x 1 devices x batch 2 / 16" in output
    assert output.count("oneDNN instruction set") == 1


def test_the_log_names_the_classes_and_what_the_recipe_sets(trained, labelled_images):
    folder, output = trained
    path = folder / "cells" / "annotations" / "instances_train2017.json"
    names = ["background", *labelled_images.class_names]
    assert f"3 classes from {path}, in its order: coco_classes = {names}\n" in output
    assert "norm_eval = False (from the recipe scratch; default True)\n" in output
    assert "warmup_step = 10 (from the command line; default 500)\n" in output


def test_checkpoints_have_the_published_names(trained):
    folder, _ = trained
    assert sorted(path.name for path in (folder / "ckpt_0").iterdir()) == [
        "faster_rcnn-1_12.ckpt",
        "faster_rcnn-2_12.ckpt",
    ]


def test_evaluation_scores_all_images(trained, labelled_images):
    folder, _ = trained
    # The images do not fill the last batch of 5.
    result = run(
        "eval.py",
        *OPTIONS,
        f"--coco_root={folder / 'cells'}",
        f"--mindrecord_dir={folder / 'records'}",
        f"--checkpoint_path={folder / 'ckpt_0' / 'faster_rcnn-2_12.ckpt'}",
        "--test_batch_size=5",
        "--test_score_thr=0.01",
        "--draw_images=2",
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout
    assert "Result on cells dataset" in result.stdout
    assert result.stdout.count(" Average Precision ") == 6 and result.stdout.count(" Average Recall ") == 6
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_images"] == NUM_VAL
    assert 0 <= metrics["AP"] <= 1
    detections = json.loads((folder / "results.bbox.json").read_text())
    ids = {image["id"] for image in labelled_images.annotations("val2017")["images"][:NUM_VAL]}
    assert {row["image_id"] for row in detections} <= ids
    assert {row["category_id"] for row in detections} <= {1, 2, 3}
    assert len(list((folder / "detections").iterdir())) == 2


def test_wrong_number_of_classes_is_refused_before_anything_is_written(trained, labelled_images):
    folder, _ = trained
    classes = ["background", *labelled_images.class_names]
    result = run(
        "eval.py",
        *SMALL,
        f"--coco_classes={classes[:2]}",
        f"--coco_root={folder / 'cells'}",
        f"--mindrecord_dir={folder / 'other'}",
        "--ignore_unknown=True",
        f"--checkpoint_path={folder / 'ckpt_0' / 'faster_rcnn-2_12.ckpt'}",
        cwd=folder,
    )
    assert result.returncode == 1
    assert f"coco_classes is {classes[:2]}, but checkpoint " in result.stdout
    assert f"was trained with {classes}" in result.stdout
    assert "Traceback" not in result.stdout
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base_lrr=1"], "base_lr"),
        (["--pre_trained="], "--recipe=scratch"),
        (["--pre_trained=missing.ckpt"], "missing.ckpt does not exist"),
        (["--pre_trained=", "--frozen_stages=-1", "--norm_eval=False", "--coco_root=missing"], "missing"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path, arguments, message):
    result = run("train.py", "--device_target=CPU", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stdout.splitlines()[-1] or message in result.stdout
    assert "Traceback" not in result.stdout
    assert list(tmp_path.iterdir()) == []


def train_on_samples(tmp_path, *flags, classes="['background','disc','square','star']"):
    """Train a small detector for two steps on generated images, in a folder with a space in its name."""
    if not (tmp_path / "data").exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "src.tools.sample_data",
                f"--output_dir={tmp_path}/data",
                "--num_train=4",
                "--num_val=1",
                "--width=192",
                "--height=128",
            ],
            cwd=REPO_ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (tmp_path / "a run").mkdir(exist_ok=True)
    if not (tmp_path / "small.ckpt").exists():
        write_small_start(tmp_path / "small.ckpt")
    return run(
        "train.py",
        *SMALL,
        f"--coco_classes={classes}",
        f"--coco_root={tmp_path}/data",
        f"--mindrecord_dir={tmp_path}/records",
        f"--pre_trained={tmp_path}/small.ckpt",
        "--finetune=True",
        "--frozen_stages=-1",
        "--norm_eval=False",
        "--epoch_size=1",
        f"--compile_cache_path={tmp_path}/graphs",
        *flags,
        cwd=tmp_path / "a run",
    )


def weights_of(path):
    return {
        name: value.asnumpy()
        for name, value in ms.load_checkpoint(str(path)).items()
        if isinstance(value, ms.Parameter)
    }


def contents(folder):
    """Every file below the folder, with what is in it and when it was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_start_takes_the_compiled_graph_and_trains_equally(tmp_path):
    """In the same folder, where it keeps what the first has written, and with the classes found, not named."""
    folder = tmp_path / "a run"
    first = train_on_samples(tmp_path)
    assert first.returncode == 0, first.stdout
    before = contents(folder)
    second = train_on_samples(tmp_path, "--keep_old_run=True", "--enable_profiling=True", classes="auto")
    assert second.returncode == 0, second.stdout
    assert "kept the compiled graph in" in first.stdout
    assert "taking the compiled graph from" in second.stdout
    assert len(list((tmp_path / "records").glob("train-*"))) == 1 and "checking images" not in second.stdout
    kept = "ckpt_0.1, results.csv.1, results.png.1, loss_0.log.1"
    assert f"an earlier run has been here; kept as {kept}\n" in second.stdout
    after = contents(folder)
    assert {
        "ckpt_0.1/faster_rcnn-1_2.ckpt": before["ckpt_0/faster_rcnn-1_2.ckpt"],
        "loss_0.log.1": before["loss_0.log"],
    }.items() <= after.items()
    first_log, second_log = after["loss_0.log.1"][0], after["loss_0.log"][0]
    first_weights, second_weights = (
        weights_of(folder / name / "faster_rcnn-1_2.ckpt") for name in ("ckpt_0.1", "ckpt_0")
    )
    assert first_log == second_log
    assert first_weights.keys() == second_weights.keys()
    for name, value in first_weights.items():
        np.testing.assert_array_equal(second_weights[name], value, err_msg=name)
    # The second step, as the first is not looked at.
    assert "profile of the steps 2 to 2 in profile/rank_0_" in second.stdout
    (table,) = (folder / "profile").rglob("cpu_op_type_info_0.csv")
    assert re.search(r"^Conv2D,\d+,", table.read_text(), re.MULTILINE)


@pytest.mark.parametrize("old", ["ckpt_0/faster_rcnn-1_2.ckpt", "best_ckpt/best.ckpt"])
def test_checkpoints_of_an_earlier_run_are_never_mixed_with_new_ones(tmp_path, old):
    folder = tmp_path / "a run"
    for name in (old, "loss_0.log", "summary/events.out.tfevents.1.host"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    before = contents(folder)
    result = train_on_samples(tmp_path)
    assert result.returncode == 1
    assert contents(folder) == before
    assert not (tmp_path / "records").exists()
    assert not (tmp_path / "graphs").exists()
    place, name = old.split("/")
    assert result.stdout.splitlines()[-1].startswith(
        f"ERROR: an earlier run has left checkpoints where this one would write its own: {place} ({name}). "
    )
    assert f"--keep_old_run=True, which keeps the earlier run as {place}.1 " in result.stdout
    assert "Traceback" not in result.stdout


def test_finetuning_keeps_the_classes_that_the_detector_knows(tmp_path):
    """Disc and star move to other columns. The steps are too small to change them much; new columns are random."""
    start = write_small_start(tmp_path / "small.ckpt", classes=("background", "star", "cell", "disc"))
    result = train_on_samples(tmp_path, "--base_lr=0.00000001")
    assert result.returncode == 0, result.stdout
    assert re.search(
        r"2 classes and the background keep their weights of .*small\.ckpt: disc, star; "
        r"1 class from random weights: square\n",
        result.stdout,
    )
    found = weights_of(tmp_path / "a run" / "ckpt_0" / "faster_rcnn-1_2.ckpt")
    for layer, size in (("cls_scores", 1), ("reg_scores", 4)):
        # background, disc, square, star; boxes without the background
        old, new = (
            weights[f"rcnn.{layer}.weight"].reshape(len(weights["rcnn.cls_scores.weight"]), -1, size)
            for weights in (start, found)
        )
        first = old.shape[1] - 4
        np.testing.assert_allclose(new[:, 1 + first], old[:, 3 + first], atol=1e-6)
        np.testing.assert_allclose(new[:, 3 + first], old[:, 1 + first], atol=1e-6)
        assert np.abs(new[:, 2 + first] - old[:, 2 + first]).max() > 0.01
    np.testing.assert_allclose(found["rcnn.cls_scores.weight"][:, 0], start["rcnn.cls_scores.weight"][:, 0], atol=1e-6)

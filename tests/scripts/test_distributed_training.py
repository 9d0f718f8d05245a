"""Training with two processes on this machine, through the launcher, on real images where there are any."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import REPO_ROOT, write_small_start

SIZES = ["--img_width=128", "--img_height=128"]
# Nothing is left to chance and every image weighs the same: all anchors and all rows of the box head are samples,
# each is positive or negative, and batch norms take no statistics of the batch.
NO_CHANCE = [
    "--pos_iou_thr=0.5",
    "--neg_iou_thr=0.5",
    "--num_expected_pos=1000",
    "--num_expected_neg=5000",
    "--pos_iou_thr_stage2=0.5",
    "--neg_iou_thr_stage2=0.5",
    "--num_expected_pos_stage2=18",
    "--num_expected_neg_stage2=18",
    "--num_expected_total_stage2=18",
    "--roi_sample_num=36",
    "--rpn_proposal_max_num=16",
    "--num_bboxes_stage2=16",
    "--rpn_proposal_nms_post=16",
]
# From the first step on a rate that moves the parameters.
RATE = ["--base_lr=0.004", "--warmup_step=0"]
# A program of the project, as one process or as two.
ALONE = 'source "$0/scripts/common.sh"; detach=false; launch train train.log "$@"'
TOGETHER = 'source "$0/scripts/common.sh"; detach=false; read_hosts 2; launch_ranks train_parallel train.log "$@"'


@pytest.fixture
def cells(labelled_images, tmp_path):
    """The folder of ten images with two boxes each, and the flag that names their classes."""
    labelled_images.write_part(tmp_path / "cells", "train2017", 10, num_boxes=2)
    return tmp_path / "cells", labelled_images.flag


@pytest.fixture
def start(tmp_path):
    """The checkpoint of a small detector, and its parameters: random weights, batch norms as they are made."""
    return tmp_path / "start.ckpt", write_small_start(tmp_path / "start.ckpt")


def run(project, script, *arguments, **environment):
    return subprocess.run(
        ["bash", "-c", script, project, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPO_ROOT)} | environment,
        timeout=400,
    )


def test_two_processes_are_one_with_twice_the_batch(project, cells, start):
    """Five steps: both ranks end with the same parameters, and with those of one process that saw both images."""
    path, before = start
    root, classes = cells
    flags = [
        "tests/scripts/rank_program.py",
        "--device_target=CPU",
        classes,
        *SIZES,
        *NO_CHANCE,
        *RATE,
        f"--coco_root={root}",
        f"--pre_trained={path}",
        "--finetune=True",
        "--epoch_size=1",
    ]
    alone = run(project, ALONE, *flags, "--batch_size=2")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    together = run(project, TOGETHER, *flags, "--batch_size=1", "--run_distribute=True")
    assert together.returncode == 0, together.stdout + together.stderr
    single, first, second = (
        dict(np.load(project / folder / "parameters.npz")) for folder in ("train", "train_parallel0", "train_parallel1")
    )
    assert set(single) == set(first) == set(second) == set(before)
    moved = max(np.abs(single[name] - before[name]).max() for name in before)
    assert moved > 5e-4
    for name in before:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], single[name], rtol=0, atol=1e-5, err_msg=name)
    losses = [(project / f"train_parallel{rank}" / f"loss_{rank}.log").read_text().splitlines() for rank in range(2)]
    assert [len(lines) for lines in losses] == [5, 5]
    # Each rank sees other images.
    assert losses[0] != losses[1]
    # Rank 0 alone writes checkpoints.
    assert [str(found.relative_to(project)) for found in project.glob("train_parallel*/ckpt*/*")] == [
        "train_parallel0/ckpt_0/faster_rcnn-1_5.ckpt"
    ]
    rule = "learning rate 0.0005 = base_lr 0.004 x 2 devices x batch 1 / 16"
    assert rule in (project / "train_parallel1" / "train.log").read_text()


# ---- ends


@pytest.fixture
def running(project, cells, start, request):
    """The launcher, when both processes have made three steps of a long training; afterwards nothing of it is left.

    The third step of a rank comes after its line of the second, so those who look for that line need not wait.
    """
    arguments = [
        "2",
        start[0],
        "resnet_v1.5_50",
        *cells,
        *SIZES,
        "--finetune=True",
        "--batch_size=1",
        "--frozen_stages=-1",
        "--norm_eval=False",
        "--epoch_size=100",
        *getattr(request, "param", []),
    ]
    launcher = subprocess.Popen(
        ["bash", project / "scripts" / "run_distribute_train_cpu.sh", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    logs = [project / f"train_parallel{rank}" / f"loss_{rank}.log" for rank in range(2)]
    deadline = time.monotonic() + 300
    while not all(log.is_file() and "step: 3," in log.read_text() for log in logs):
        assert not launcher.poll(), launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    yield launcher
    for pid in processes_of(project):
        os.kill(pid, signal.SIGKILL)


def processes_of(project, rank=None):
    """Processes of a program in this copy of the project; of one rank alone, that of train.py."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            continue
        if f"{project}/train.py" in command:
            found[int(folder.name)] = (command[1], variables)
    if rank is None:
        return list(found)
    return [
        pid
        for pid, (program, variables) in found.items()
        if program == f"{project}/train.py" and f"RANK_ID={rank}" in variables and "MS_ROLE=MS_WORKER" in variables
    ]


def test_killed_rank_ends_the_others(running, project):
    (killed,) = processes_of(project, rank=1)
    os.kill(killed, signal.SIGKILL)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert processes_of(project) == []
    # The screen has shown rank 0; then comes the log of the rank that failed first.
    assert re.search(r"epoch 1/100 step 2/5: total_loss", output)
    assert f"the end of {project}/train_parallel1/train.log:\n" in errors
    assert errors.endswith(
        "ERROR: rank 1 was killed by signal 9, and the others were ended; the end of its log is above\n"
    )
    assert "Traceback" not in errors


def test_sigterm_ends_all_ranks(running, project):
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert processes_of(project) == []


@pytest.mark.parametrize("running", [["--detach"]], indirect=True)
def test_detached_run_is_stopped_by_its_number(running, project):
    said, _ = running.communicate(timeout=20)
    assert running.returncode == 0
    os.kill(int(re.match(r"process (\d+) runs in the background", said)[1]), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while processes_of(project):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "epoch 1/100 step 2/5: total_loss" in (project / "train_parallel0" / "msrun" / "launcher.log").read_text()


# ---- several hosts


@pytest.fixture
def hosts():
    """Two network namespaces with a cable between them: 10.9.0.1 and 10.9.0.2."""
    names = [f"frcnn{os.getpid()}{side}" for side in "ab"]
    made = (
        [
            subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
            for name in names
        ]
        if shutil.which("ip")
        else [False]
    )
    try:
        if not all(made):
            pytest.skip("network namespaces cannot be made here: they need root and the package iproute2")
        subprocess.run(
            [
                "ip",
                "link",
                "add",
                "cable",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                names[1],
            ],
            check=True,
        )
        for number, name in enumerate(names, start=1):
            for command in (
                ["addr", "add", f"10.9.0.{number}/24", "dev", "cable"],
                ["link", "set", "cable", "up"],
                ["link", "set", "lo", "up"],
            ):
                subprocess.run(["ip", "-n", name, *command], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_two_hosts(project, cells, start, hosts):
    """The launcher is called on each, with the variables of a cluster; together they take half of the images each."""
    variables = {"NNODES": "2", "MASTER_ADDR": "10.9.0.1", "MASTER_PORT": "8200"}
    arguments = [
        "1",
        start[0],
        "resnet_v1.5_50",
        *cells,
        *SIZES,
        "--finetune=True",
        "--batch_size=1",
        "--frozen_stages=-1",
        "--norm_eval=False",
        "--epoch_size=1",
    ]
    launchers = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, "bash", project / "scripts" / "run_distribute_train_cpu.sh", *arguments],
            env=os.environ | variables | {"NODE_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, host in enumerate(hosts)
    ]
    outputs = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert "x 2 devices x batch 1 / 16" in outputs[1]
    losses = [(project / f"train_parallel{rank}" / f"loss_{rank}.log").read_text().splitlines() for rank in range(2)]
    assert [len(lines) for lines in losses] == [5, 5]
    assert losses[0] != losses[1]

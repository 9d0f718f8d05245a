"""Checkpoints: when they are written, which are kept, and that a failed or killed write costs no file."""

import dataclasses
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from src.convert_checkpoint import read_checkpoint, write_checkpoint
from src.model_utils.errors import UserError
from src.network_define import TrainStep, train
from src.runtime import Device
from src.training.checkpoints import Checkpoints
from src.training.optimizer import build_optimizer
from tests.helpers import REPO_ROOT
from tests.unit.training.tiny_detector import (
    BIAS,
    CPU,
    TinyDetector,
    batch_of,
    samples_of,
    saved_names,
    short_run,
    train_data,
)

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two short epochs; everything is written below tmp_path, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return short_run(tmp_path)


@pytest.mark.parametrize(
    "every, epochs, keep, expected",
    [
        (1, 3, 5, ["faster_rcnn-1_7.ckpt", "faster_rcnn-2_7.ckpt", "faster_rcnn-3_7.ckpt"]),
        (2, 5, 5, ["faster_rcnn-2_7.ckpt", "faster_rcnn-4_7.ckpt", "faster_rcnn-5_7.ckpt"]),  # the last is always saved
        (10, 3, 5, ["faster_rcnn-3_7.ckpt"]),
        (1, 6, 2, ["faster_rcnn-5_7.ckpt", "faster_rcnn-6_7.ckpt"]),
        (1, 12, 3, ["faster_rcnn-10_7.ckpt", "faster_rcnn-11_7.ckpt", "faster_rcnn-12_7.ckpt"]),
    ],
)
def test_checkpoints_due_and_kept(config, every, epochs, keep, expected):
    config = dataclasses.replace(config, save_checkpoint_epochs=every, epoch_size=epochs, keep_checkpoint_max=keep)
    checkpoints, network = Checkpoints(config, CPU), TinyDetector()
    for epoch in range(1, epochs + 1):
        checkpoints.save(network, epoch, 7)
    assert saved_names(config) == sorted(expected)


def test_checkpoint_holds_the_network_and_nothing_of_the_optimiser(config):
    network = TinyDetector()
    step = TrainStep(network, build_optimizer(config, network, [0.1]))
    step.set_train()
    step(*batch_of(*samples_of(1)[0]))
    Checkpoints(config, CPU).save(network, 2, 1)
    path = Path(config.save_checkpoint_path) / "ckpt_0" / "faster_rcnn-2_1.ckpt"
    entries = ms.load_checkpoint(str(path), crc_check=True)
    tensors = {name: value.asnumpy() for name, value in entries.items() if isinstance(value, Parameter)}
    assert {"backbone.weight", "rcnn.bias", "backbone.fixed"} <= set(tensors)
    assert not [name for name in tensors if name.startswith(("accum.", "stat.", "moments.", "learning_rate"))]
    np.testing.assert_array_equal(tensors["backbone.weight"], network.weight.asnumpy())


@pytest.mark.parametrize("rank, save", [(1, True), (0, False)])
def test_nothing_is_written(config, rank, save):
    config = dataclasses.replace(config, save_checkpoint=save)
    checkpoints = Checkpoints(config, Device("CPU", rank=rank, num_devices=2))
    checkpoints.save(TinyDetector(), 2, 3)
    checkpoints.keep_best(TinyDetector(), 2, {"AP": 0.5})
    assert list(Path().rglob("*")) == []


def test_that_no_best_is_kept_without_checkpoints_is_said_at_the_start(config, caplog):
    Checkpoints(dataclasses.replace(config, run_eval=True, save_checkpoint=True), Device("CPU"))
    assert not caplog.text
    Checkpoints(dataclasses.replace(config, run_eval=True, save_checkpoint=False), Device("CPU"))
    assert "no best checkpoint is kept" in caplog.text


@pytest.mark.parametrize("metric, other", [("AP", "AP50"), ("AP50", "AP")])
def test_best_is_replaced_by_better_only(config, metric, other):
    checkpoints, network = Checkpoints(dataclasses.replace(config, best_metric=metric), CPU), TinyDetector()
    path = Path(config.save_checkpoint_path) / "best_ckpt" / "best.ckpt"
    kept = []
    for epoch, score in enumerate([0.1, 0.3, 0.2, 0.3, 0.4], start=1):
        network.bias.set_data(Tensor(np.float32([epoch])))
        checkpoints.keep_best(network, epoch, {metric: score, other: 1 - score})
        kept.append(float(read_checkpoint(path)["rcnn.bias"].asnumpy()[0]))
    assert kept == [1, 2, 2, 2, 5]


@pytest.mark.parametrize("score", [-1.0, float("nan")])
def test_a_network_without_a_score_is_never_the_best(config, info, score):
    """pycocotools gives -1 where there is no ground truth."""
    checkpoints, network = Checkpoints(config, CPU), TinyDetector()
    path = Path(config.save_checkpoint_path) / "best_ckpt" / "best.ckpt"
    checkpoints.keep_best(network, 1, {"AP": score})
    assert not path.exists()
    (line,) = [record.message for record in info.records if "nothing to score" in record.message]
    assert line.startswith(f"AP is {score:g}: ")
    checkpoints.keep_best(network, 2, {"AP": 0.0})  # 0 is a score: something was there and was not found
    assert path.exists()
    path.unlink()
    checkpoints.keep_best(network, 3, {"AP": score})
    assert not path.exists()


def test_patience_counts_evaluations_since_the_best(config, info):
    """Also those that could not be scored, and on any rank that asks."""
    checkpoints, network = Checkpoints(dataclasses.replace(config, run_eval=True, patience=2), CPU), TinyDetector()
    hopeless = []
    for epoch, score in enumerate([0.1, 0.1, 0.3, 0.2, -1.0], start=1):
        checkpoints.keep_best(network, epoch, {"AP": score})
        hopeless.append(checkpoints.is_hopeless())
    assert hopeless == [False, False, False, False, True]
    (line,) = [record.message for record in info.records if "training stops" in record.message]
    assert "2 evaluations" in line and "0.3000 of epoch 3" in line


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_checkpoints_can_be_read_by_others_as_the_umask_says(config, umask, mode):
    old = os.umask(umask)
    try:
        checkpoints = Checkpoints(config, CPU)
        checkpoints.save(TinyDetector(), 2, 3)
        checkpoints.keep_best(TinyDetector(), 2, {"AP": 0.5})
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in Path().rglob("*.ckpt")]
    assert modes == [mode, mode]


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in a folder of its own."""
    path = tmp_path / "folder" / "a.ckpt"
    write_checkpoint(TinyDetector().parameters_dict(), path)
    return path


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("failed to save"), KeyboardInterrupt()]
)
def test_failed_write_keeps_the_old_file(checkpoint, monkeypatch, error):
    before = checkpoint.read_bytes()

    def fails(parameters, path, **options):
        Path(path).write_bytes(before[:40])
        raise error

    monkeypatch.setattr(ms, "save_checkpoint", fails)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        write_checkpoint(TinyDetector().parameters_dict(), checkpoint)
    assert caught.type is (KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError)
    if caught.type is UserError:
        assert str(checkpoint) in str(caught.value)
    assert checkpoint.read_bytes() == before


def test_failed_write_leaves_no_part_behind(checkpoint, monkeypatch):
    def fails(parameters, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ms, "save_checkpoint", fails)
    with pytest.raises(UserError, match="No space left"):
        write_checkpoint(TinyDetector().parameters_dict(), checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["a.ckpt"]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/ckpt_0/a.ckpt"):
        write_checkpoint(TinyDetector().parameters_dict(), tmp_path / "file" / "ckpt_0" / "a.ckpt")


# Every child overwrites one checkpoint for ever: all values 1, all values 2, ... MindSpore is imported only once.
WRITERS = """
import os, sys
import numpy as np
from mindspore import Tensor
from src.convert_checkpoint import write_checkpoint

def write(path, count):
    value = Tensor(np.full(100_000, count, np.float32))
    write_checkpoint({f"backbone.p{k}": value for k in range(4)}, path, {"epoch_num": count})

for path in sys.argv[1:]:
    write(path, 1)
children = []
for path in sys.argv[1:]:
    children.append(os.fork())
    if not children[-1]:
        for count in range(2, 100_000):
            write(path, count)
print(*children, flush=True)
sys.stdin.read()        # until the test has killed them: nobody else gets their numbers before they are waited for
for child in children:
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Ten checkpoints whose writers were killed by SIGKILL at a random moment of overwriting them."""
    folder = tmp_path_factory.mktemp("killed")
    paths = [folder / str(k) / "ckpt_0" / "faster_rcnn-9_3.ckpt" for k in range(10)]
    writers = subprocess.Popen(
        [sys.executable, "-c", WRITERS, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
    )
    for child in writers.stdout.readline().split():
        time.sleep(random.uniform(0.05, 0.15))
        os.kill(int(child), signal.SIGKILL)
    writers.communicate(b"")
    return paths


def test_checkpoint_survives_a_kill_at_any_moment(killed):
    """The file is a whole one, the old or the new."""
    counts = []
    for path in killed:
        values = [value.asnumpy() for name, value in read_checkpoint(path).items() if name.startswith("backbone.")]
        assert [value.shape for value in values] == [(100_000,)] * 4
        counts.append(values[0][0])
        assert all((value == counts[-1]).all() for value in values)
    assert max(counts) > 1  # the writers were at work


def test_checkpoint_can_be_written_again_after_a_kill(killed):
    for path in killed[:5]:
        write_checkpoint(TinyDetector().parameters_dict(), path)
        np.testing.assert_array_equal(read_checkpoint(path)["rcnn.bias"].asnumpy(), BIAS)


def test_next_run_removes_the_parts_that_a_kill_left(config, killed):
    for path in killed[5:]:
        config = dataclasses.replace(config, save_checkpoint_path=str(path.parents[1]), epoch_size=1, milestones=())
        train(TinyDetector(), train_data(samples_of(1)), config, CPU)
        assert saved_names(config) == ["faster_rcnn-1_1.ckpt", "faster_rcnn-9_3.ckpt"]

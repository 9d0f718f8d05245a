"""The losses of a training: the published line, when it is written, what the terminal and TensorBoard show."""

import dataclasses
import io
import sys
from pathlib import Path

import pytest

from src.model_utils.errors import UserError
from src.runtime import Device
from src.training.loss_log import LossLog
from src.training.run_files import find_old_run
from tests.unit.training.tiny_detector import CPU, read_events, short_run

# The losses of the line in the published documentation; at its end the learning rate, as the published code writes it.
PUBLISHED = (0.12054, 0.40601, 0.04025, 0.08032, 0.25854, 0.14746)
PUBLISHED_LINE = (
    "epoch: 1 step: 7393, rpn_loss: 0.12054, rcnn_loss: 0.40601, rpn_cls_loss: 0.04025, "
    "rpn_reg_loss: 0.08032, rcnn_cls_loss: 0.25854, rcnn_reg_loss: 0.14746, total_loss: 0.52655, "
    "lr: 0.000250"
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two short epochs; everything is written below tmp_path, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return short_run(tmp_path)


def test_log_line_is_the_published_one(config):
    config = dataclasses.replace(config, epoch_size=1)
    with LossLog(config, CPU, 7393, [*[0.1] * 7392, 0.00025]) as log:
        log.write(1, 7393, PUBLISHED)
    assert Path("loss_0.log").read_text() == PUBLISHED_LINE + "\n"


def test_log_line_has_the_learning_rate_of_its_step(config):
    with LossLog(config, CPU, 2, [0.1, 0.2, 0.3, 0.0000444]) as log:
        for epoch, step in ((1, 1), (1, 2), (2, 1), (2, 2)):
            log.write(epoch, step, PUBLISHED)
    lines = Path("loss_0.log").read_text().splitlines()
    assert [line.split(", ")[-1] for line in lines] == ["lr: 0.100000", "lr: 0.200000", "lr: 0.300000", "lr: 0.000044"]


def test_log_has_a_line_every_interval_at_once(config):
    config = dataclasses.replace(config, log_interval=3)
    with LossLog(config, CPU, 7, [0.1] * 14) as log:
        for epoch in (1, 2):
            for step in range(1, 8):
                log.write(epoch, step, PUBLISHED)
        lines = Path("loss_0.log").read_text().splitlines()  # while it is still open: a killed run keeps its log
    assert [line.split(",")[0] for line in lines] == [
        "epoch: 1 step: 3",
        "epoch: 1 step: 6",
        "epoch: 2 step: 3",
        "epoch: 2 step: 6",
    ]


def test_every_rank_has_its_own_log(config):
    with LossLog(config, Device("CPU", rank=3, num_devices=4), 2, [0.1] * 4) as log:
        log.write(1, 1, PUBLISHED)
    assert [path.name for path in Path().iterdir()] == ["loss_3.log"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("position", [0, 1, 5])
def test_loss_that_is_not_finite_stops_and_is_logged(config, bad, position):
    config = dataclasses.replace(config, log_interval=100)
    losses = [*PUBLISHED]
    losses[position] = bad
    with LossLog(config, CPU, 5, [0.1] * 10) as log:
        log.write(1, 1, PUBLISHED)
        with pytest.raises(UserError, match="finite") as error:
            log.write(1, 2, losses)
    (line,) = Path("loss_0.log").read_text().splitlines()
    assert line.startswith("epoch: 1 step: 2, rpn_loss: ")
    assert line in str(error.value)


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_that_is_going_on_is_left_alone(config, keep):
    """Its log is empty while the first step is compiled; the lock goes with the process, so none is ever left over."""
    config = dataclasses.replace(config, keep_old_run=keep)
    with (
        LossLog(config, CPU, 1, [0.1] * 2),
        pytest.raises(UserError, match=rf"still going on here and writes {Path.cwd()}/loss_0\.log"),
    ):
        find_old_run(config)
    find_old_run(config)


def test_log_file_that_cannot_be_opened_is_named(config):
    Path("loss_0.log").mkdir()
    with pytest.raises(UserError, match=r"loss_0\.log"), LossLog(config, CPU, 1, [0.1] * 2):
        pass


def test_tensorboard_gets_losses_and_learning_rate(config):
    config = dataclasses.replace(config, log_summary=True)
    with LossLog(config, CPU, 2, [0.1, 0.2, 0.3, 0.4]) as log:
        for epoch, step in ((1, 1), (1, 2), (2, 1), (2, 2)):
            log.write(epoch, step, PUBLISHED)
    scalars = read_events("summary")
    assert {tag for tag, _ in scalars} == {
        "rpn_loss",
        "rcnn_loss",
        "rpn_cls_loss",
        "rpn_reg_loss",
        "rcnn_cls_loss",
        "rcnn_reg_loss",
        "total_loss",
        "learning_rate",
    }
    assert [scalars["learning_rate", step] for step in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert scalars["rcnn_cls_loss", 3] == pytest.approx(0.25854)
    assert scalars["total_loss", 4] == pytest.approx(0.52655)


@pytest.mark.parametrize("log_summary, rank", [(False, 0), (True, 1)])
def test_no_tensorboard_files(config, log_summary, rank):
    config = dataclasses.replace(config, log_summary=log_summary)
    with LossLog(config, Device("CPU", rank=rank, num_devices=2), 1, [0.1] * 2) as log:
        log.write(1, 1, PUBLISHED)
    assert not Path("summary").exists()


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self):
        return True


def write_steps(config, steps, device=CPU):
    with LossLog(config, device, steps, [0.1] * steps * config.epoch_size) as log:
        for epoch in range(1, config.epoch_size + 1):
            for step in range(1, steps + 1):
                log.write(epoch, step, PUBLISHED)


def test_terminal_shows_a_bar_with_rate_and_time_left(config, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    write_steps(config, 30)
    shown = sys.stderr.getvalue()
    assert "60/60" in shown  # steps of both epochs
    assert "step/s" in shown
    assert "<" in shown  # tqdm's mark between time gone and time left
    assert "0.5265" in shown or "0.527" in shown


def test_plain_lines_where_there_is_no_terminal(config, monkeypatch, info):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    write_steps(config, 30)
    assert sys.stderr.getvalue() == ""
    lines = [record.message for record in info.records if "0.52655" in record.message]
    assert 4 <= len(lines) <= 30  # some for every epoch, far fewer than steps
    assert "epoch 2/2 step 30/30" in lines[-1]
    assert "left" in lines[-1]


def test_plain_line_of_the_first_step_promises_no_pace(config, monkeypatch, info):
    # All time so far was the first step's, most of it compilation.
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    write_steps(config, 1)
    lines = [record.message for record in info.records if "0.52655" in record.message]
    assert ["s/step" in line for line in lines] == [False, True]


def test_only_rank_0_talks(config, monkeypatch, info):
    monkeypatch.setattr(sys, "stderr", Terminal())
    write_steps(config, 5, Device("CPU", rank=1, num_devices=2))
    assert sys.stderr.getvalue() == ""
    assert not [record for record in info.records if "0.52655" in record.message]

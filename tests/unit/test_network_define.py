"""The training step and loop on a network of two trainable parameters, against the same arithmetic in numpy."""

import dataclasses
import io
import logging
import math
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
from mindspore import Parameter, Tensor, nn
from mindspore import dataset as ds

from src.convert_checkpoint import load_detector, read_checkpoint, write_checkpoint
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.network_define import Checkpoints, LossLog, TrainStep, build_step, check_start, train
from src.runtime import Device
from src.training.optimizer import SGD, build_optimizer
from src.training.run_files import find_old_run
from tests.helpers import REPO_ROOT

CPU = Device("CPU")
WEIGHT, BIAS, FIXED = np.float32([1.0, -2.0]), np.float32([0.5]), np.float32([7.0])
# The losses of the line in the published documentation; at its end the learning rate, as the published code writes it.
PUBLISHED = (0.12054, 0.40601, 0.04025, 0.08032, 0.25854, 0.14746)
PUBLISHED_LINE = (
    "epoch: 1 step: 7393, rpn_loss: 0.12054, rcnn_loss: 0.40601, rpn_cls_loss: 0.04025, "
    "rpn_reg_loss: 0.08032, rcnn_cls_loss: 0.25854, rcnn_reg_loss: 0.14746, total_loss: 0.52655, "
    "lr: 0.000250"
)


class TinyDetector(nn.Cell):
    """Six losses of a weight w, a bias b and a parameter that is not trained.

    The means over the batch of the image and of the boxes give x and the aim t, 2 values each. The parts have weights
    other than 1, so that only the first two outputs have the gradient computed below.
    """

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(WEIGHT), name="backbone.weight")
        self.bias = Parameter(Tensor(BIAS), name="rcnn.bias")
        self.fixed = Parameter(Tensor(FIXED), name="backbone.fixed", requires_grad=False)

    def construct(self, image, image_shape, box, label, valid):
        x, aim = image.mean(0), box.mean(0)
        rpn_cls, rpn_reg = (self.weight * x).sum(), ((self.weight - aim) ** 2).sum()
        rcnn_cls, rcnn_reg = self.fixed.sum(), (self.bias**2).sum()
        return (2 * rpn_cls**2 + 0.5 * rpn_reg, 0.1 * rcnn_cls + 3 * rcnn_reg, rpn_cls**2, rpn_reg, rcnn_cls, rcnn_reg)


class LogDetector(TinyDetector):
    """Its rpn_loss is the logarithm of the label and nothing else: below 0 it is NaN."""

    def construct(self, image, image_shape, box, label, valid):
        loss, zero = label.mean().log() + self.weight.sum() * 0, self.bias.sum()
        return loss, zero, loss, zero, zero, zero


class RootDetector(TinyDetector):
    """Its loss is the length of w times the root of the label: 0 at label 0, where its gradient is not finite."""

    def construct(self, image, image_shape, box, label, valid):
        loss, zero = ((self.weight**2).sum() * label.mean()).sqrt(), self.bias.sum() * 0
        return loss, zero, loss, zero, zero, zero


def numpy_losses(weight, bias, x, aim):
    """The six losses of TinyDetector."""
    rpn_cls, rpn_reg, rcnn_reg = (weight @ x) ** 2, ((weight - aim) ** 2).sum(), (bias**2).sum()
    return np.array([2 * rpn_cls + 0.5 * rpn_reg, 0.1 * FIXED[0] + 3 * rcnn_reg, rpn_cls, rpn_reg, FIXED[0], rcnn_reg])


def numpy_gradients(weight, bias, x, aim):
    """Gradients of the sum of the first two losses."""
    return 4 * (weight @ x) * x + (weight - aim), 6 * bias


def numpy_sgd(samples, rates, momentum, weight_decay, clip_norm=None):
    """Momentum SGD as published: v = m * v + g + decay * w, w = w - lr * v; v starts at 0.

    Returns the losses before every update, and the weight and bias after the last.
    """
    params, speeds, losses = [WEIGHT.astype(float), BIAS.astype(float)], [0.0, 0.0], []
    for (x, aim), rate in zip(samples, rates, strict=True):
        losses.append(numpy_losses(*params, x, aim))
        gradients = numpy_gradients(*params, x, aim)
        if clip_norm is not None:
            norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
            gradients = [gradient * min(1, clip_norm / norm) for gradient in gradients]
        for k, gradient in enumerate(gradients):
            speeds[k] = momentum * speeds[k] + gradient + weight_decay * params[k]
            params[k] = params[k] - rate * speeds[k]
    return losses, params[0], params[1]


def samples_of(count, seed=0):
    """Inputs x and aims t."""
    rng = np.random.default_rng(seed)
    return [(rng.uniform(-1, 1, 2).astype(np.float32), rng.uniform(-1, 1, 2).astype(np.float32)) for _ in range(count)]


def batch_of(x, aim, label=1.0):
    """A batch of two rows whose means are x and the aim."""
    shift = np.float32([[0.25], [-0.25]])
    return (
        Tensor(x + shift),
        Tensor(np.ones((2, 3), np.float32)),
        Tensor(aim + shift),
        Tensor(np.full(2, label, np.float32)),
        Tensor(np.ones(2, bool)),
    )


def steps_of(step, samples):
    """Run the steps; returns their losses as arrays."""
    return [np.array([float(loss.asnumpy()) for loss in step(*batch_of(*sample))]) for sample in samples]


def train_data(samples, labels=None):
    """A data set of one batch of two rows per sample, in order, with the columns of the real one.

    The image ids of the batches are 100 and 101, 200 and 201, and so on.
    """
    rows = []
    for k, (x, aim) in enumerate(samples):
        label = 1.0 if labels is None else labels[k]
        for row, shift in enumerate(np.float32([0.25, -0.25])):
            rows.append((x + shift, np.ones(3, np.float32), aim + shift, np.float32(label), True, 100 * (k + 1) + row))
    names = ["image", "image_shape", "box", "label", "valid_num", "image_id"]
    return ds.GeneratorDataset(rows, names, shuffle=False, num_parallel_workers=1).batch(2, drop_remainder=True)


@pytest.fixture(scope="module")
def defaults():
    """The default configuration."""
    return load_config(["--compile_cache_path="])


@pytest.fixture
def config(defaults, tmp_path, monkeypatch):
    """Two short epochs; everything is written below tmp_path, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return dataclasses.replace(
        defaults,
        epoch_size=2,
        batch_size=2,
        base_lr=0.08,
        warmup_step=2,
        warmup_ratio=0.5,
        weight_decay=0.1,
        milestones=(1,),
        save_checkpoint_path=str(tmp_path / "out"),
    )


@pytest.fixture
def info(caplog, monkeypatch):
    """What the program says, whether or not another test has set up its log."""
    monkeypatch.setattr(logging.getLogger("src"), "propagate", True)
    caplog.set_level(logging.INFO, logger="src")
    return caplog


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    """Training runs in graph mode."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


def make_step(rates=0.1, momentum=0.9, weight_decay=0.0, **options):
    """A network and its training step with SGD."""
    network = TinyDetector()
    rates = rates if isinstance(rates, Tensor) else Tensor([rates] * 10, ms.float32)
    optimizer = SGD(network.trainable_params(), rates, momentum, weight_decay)
    step = TrainStep(network, optimizer, **options)
    step.set_train()
    return network, step


# ---- the step


def test_sgd_follows_numpy_over_several_steps():
    samples, rates = samples_of(5), [0.01, 0.05, 0.02, 0.1, 0.03]
    network, step = make_step(Tensor(rates, ms.float32), momentum=0.91, weight_decay=0.1)
    losses = steps_of(step, samples)
    expected, weight, bias = numpy_sgd(samples, rates, 0.91, 0.1)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=2e-5)


def test_six_float32_scalars_are_returned():
    _, step = make_step()
    losses = step(*batch_of(*samples_of(1)[0]))
    assert len(losses) == 6
    assert all(loss.dtype == ms.float32 and loss.shape == () for loss in losses)


@pytest.mark.parametrize("loss_scale", [1.0, 256.0, 1000.0])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_result_does_not_depend_on_the_loss_scale(loss_scale, clip_norm):
    samples = samples_of(3, seed=1)
    network, step = make_step(0.02, weight_decay=0.1, loss_scale=loss_scale, clip_norm=clip_norm)
    losses = steps_of(step, samples)
    expected, weight, bias = numpy_sgd(samples, [0.02] * 3, 0.9, 0.1, clip_norm)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)  # the losses returned are not scaled either
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=2e-5)


@pytest.mark.parametrize("clip_norm", [0.01, 1.0, 4.0, 1e4])
def test_gradients_are_clipped_by_their_global_norm(clip_norm):
    x, aim = np.float32([1.0, 0.5]), np.float32([0.0, 0.0])
    # w . x = 0, so the gradient is w - t = (1, -2) for the weight and 6 * 0.5 for the bias: norm sqrt(14) = 3.742.
    factor = min(1, clip_norm / np.sqrt(14))
    network, step = make_step(1.0, momentum=0.0, clip_norm=clip_norm)
    step(*batch_of(x, aim))
    np.testing.assert_allclose(network.weight.asnumpy(), WEIGHT - factor * np.float32([1, -2]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(network.bias.asnumpy(), BIAS - factor * 3, rtol=1e-5, atol=1e-6)


def test_parameters_that_are_not_trained_stay(config):
    network = TinyDetector()
    step = TrainStep(network, build_optimizer(config, network, [0.1] * 3))
    step.set_train()
    steps_of(step, samples_of(3))
    np.testing.assert_array_equal(network.fixed.asnumpy(), FIXED)
    assert not np.array_equal(network.weight.asnumpy(), WEIGHT)


def test_more_steps_than_rates_are_refused(config):
    network = TinyDetector()
    step = TrainStep(network, build_optimizer(config, network, [0.1]))
    step.set_train()
    batch = batch_of(*samples_of(1)[0])
    step(*batch)
    weight = network.weight.asnumpy().copy()
    with pytest.raises(IndexError):
        step(*batch)
    np.testing.assert_array_equal(network.weight.asnumpy(), weight)


def test_memory_of_the_compilation_is_given_back_once(config, monkeypatch):
    calls = []
    monkeypatch.setattr("src.network_define.give_back_memory", lambda: calls.append(True))
    network = TinyDetector()
    step = TrainStep(network, build_optimizer(config, network, [0.1] * 3))
    step.set_train()
    steps_of(step, samples_of(3))
    assert len(calls) == 1


def test_losses_do_not_add_up_over_calls():
    network, step = make_step(0.0, weight_decay=0.1, loss_scale=256.0)
    losses = steps_of(step, samples_of(1) * 4)
    for loss in losses[1:]:
        np.testing.assert_array_equal(loss, losses[0])
    np.testing.assert_array_equal(network.weight.asnumpy(), WEIGHT)


def test_configured_sgd_takes_momentum_decay_and_rates(config):
    samples, rates = samples_of(4, seed=3), [0.02, 0.01, 0.04, 0.03]
    network = TinyDetector()
    step = TrainStep(network, build_optimizer(dataclasses.replace(config, momentum=0.6), network, rates), 256.0)
    step.set_train()
    steps_of(step, samples)
    _, weight, bias = numpy_sgd(samples, rates, 0.6, 0.1)
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=2e-5)


class ShiftDetector(TinyDetector):
    """Its bias bears the name of a batch norm's shift."""

    def __init__(self):
        super().__init__()
        self.bias.name = "rcnn.bn.beta"


def test_scales_and_shifts_do_not_decay():
    samples = samples_of(3, seed=5)
    network = ShiftDetector()
    step = TrainStep(network, SGD(network.trainable_params(), Tensor([0.02] * 3, ms.float32), 0.9, 0.1))
    step.set_train()
    steps_of(step, samples)
    np.testing.assert_allclose(network.weight.asnumpy(), numpy_sgd(samples, [0.02] * 3, 0.9, 0.1)[1], rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), numpy_sgd(samples, [0.02] * 3, 0.9, 0.0)[2], rtol=2e-5)


def test_sgd_with_parameters_of_equal_shapes():
    """They share what marks an empty momentum; a zero in the first gradient leaves none."""
    rng = np.random.default_rng(6)
    gradients = rng.normal(size=(4, 3, 2)).astype(np.float32)  # steps, parameters, values
    gradients[0, 0, 0] = 0
    params = [Parameter(Tensor(np.full(2, k, np.float32)), name=f"backbone.{k}") for k in range(3)]
    sgd = SGD(params, [0.1, 0.2, 0.05, 0.3], 0.9, 0.0)
    values, speed = np.float64([[0, 0], [1, 1], [2, 2]]), np.zeros((3, 2))
    for rate, step in zip(sgd.rates, gradients, strict=True):
        sgd([Tensor(gradient) for gradient in step])
        speed = 0.9 * speed + step
        values = values - rate * speed
    np.testing.assert_allclose([param.asnumpy() for param in params], values, rtol=1e-5)


@pytest.mark.parametrize("target,loss_scale", [("CPU", 1.0), ("GPU", 128.0), ("Ascend", 128.0)])
def test_the_loss_is_scaled_where_float16_may_be(config, target, loss_scale):
    step = build_step(TinyDetector(), dataclasses.replace(config, loss_scale=128.0), [0.1], Device(target))
    assert step.loss_scale == loss_scale


def numpy_adam(samples, rates, weight_decay):
    """Kingma & Ba 2015 with beta 0.9 and 0.999, epsilon 1e-8; the decay of the weight is part of its gradient."""
    params, means, squares = [WEIGHT.astype(float), BIAS.astype(float)], [0.0, 0.0], [0.0, 0.0]
    for t, ((x, aim), rate) in enumerate(zip(samples, rates, strict=True), start=1):
        weight_gradient, bias_gradient = numpy_gradients(*params, x, aim)
        for k, gradient in enumerate((weight_gradient + weight_decay * params[0], bias_gradient)):
            means[k] = 0.9 * means[k] + 0.1 * gradient
            squares[k] = 0.999 * squares[k] + 0.001 * gradient**2
            root = np.sqrt(squares[k] / (1 - 0.999**t))
            params[k] = params[k] - rate * means[k] / (1 - 0.9**t) / (root + 1e-8)
    return params


@pytest.mark.parametrize("loss_scale, weight_decay", [(1.0, 0.0), (256.0, 0.0), (1.0, 0.5)])
def test_adam(config, loss_scale, weight_decay):
    samples, rates = samples_of(3, seed=4), [0.1, 0.2, 0.05]
    network = ShiftDetector()  # its bias does not decay
    config = dataclasses.replace(config, opt_type="adam", weight_decay=weight_decay)
    step = TrainStep(network, build_optimizer(config, network, rates), loss_scale)
    step.set_train()
    steps_of(step, samples)
    weight, bias = numpy_adam(samples, rates, weight_decay)
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=1e-4)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=1e-4)


class NormDetector(nn.Cell):
    """A batch norm that learns its statistics, momentum 0.9 for the old ones."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, momentum=0.9)

    def construct(self, image, image_shape, box, label, valid):
        loss = (self.norm(image) ** 2).sum()
        return loss, loss, loss, loss, loss, loss


def test_batch_norm_statistics_move_once_a_step():
    network = NormDetector()
    step = TrainStep(network, SGD(network.trainable_params(), [0.1], 0.0, 0.0))
    step.set_train()
    step(*batch_of(np.float32([1.0, -3.0]), np.float32([0.0, 0.0])))
    np.testing.assert_allclose(network.norm.moving_mean.asnumpy(), [0.1, -0.3], rtol=1e-5)


# ---- the start


@pytest.mark.parametrize(
    "pre_trained, frozen_stages, norm_eval, starts",
    [
        ("resnet.ckpt", 1, True, True),
        ("", 1, True, False),
        ("", 0, False, False),
        ("", -1, True, False),
        ("", -1, False, True),
        ("resnet.ckpt", -1, False, True),
    ],
)
def test_random_layers_are_never_fixed(defaults, pre_trained, frozen_stages, norm_eval, starts):
    config = dataclasses.replace(defaults, pre_trained=pre_trained, frozen_stages=frozen_stages, norm_eval=norm_eval)
    if starts:
        check_start(config)
        return
    with pytest.raises(UserError, match="pre_trained") as error:
        check_start(config)
    assert "frozen_stages" in str(error.value)
    assert "norm_eval" in str(error.value)


# ---- the log


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


def read_events(folder):
    """Scalars of TensorBoard's files: (tag, step) -> value."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = {}
    for path in Path(folder).iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")  # length, its checksum, record, its checksum
            event = Event.FromString(data[12 : 12 + length])
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return scalars


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


# ---- checkpoints


def saved_names(config, rank=0):
    folder = Path(config.save_checkpoint_path) / f"ckpt_{rank}"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


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
    checkpoints.keep_best(TinyDetector(), 0.5, 0.0)
    assert list(Path().rglob("*")) == []


def test_that_no_best_is_kept_without_checkpoints_is_said_at_the_start(config, caplog):
    Checkpoints(dataclasses.replace(config, run_eval=True, save_checkpoint=True), Device("CPU"))
    assert not caplog.text
    Checkpoints(dataclasses.replace(config, run_eval=True, save_checkpoint=False), Device("CPU"))
    assert "no best checkpoint is kept" in caplog.text


def test_best_is_replaced_by_better_only(config):
    checkpoints, network = Checkpoints(config, CPU), TinyDetector()
    best, path = 0.0, Path(config.save_checkpoint_path) / "best_ckpt" / "best.ckpt"
    kept = []
    for epoch, score in enumerate([0.1, 0.3, 0.2, 0.3, 0.4], start=1):
        network.bias.set_data(Tensor(np.float32([epoch])))
        best = checkpoints.keep_best(network, score, best)
        kept.append(float(read_checkpoint(path)["rcnn.bias"].asnumpy()[0]))
    assert kept == [1, 2, 2, 2, 5]
    assert best == 0.4


@pytest.mark.parametrize("score", [-1.0, float("nan")])
def test_a_network_without_a_score_is_never_the_best(config, info, score):
    """pycocotools gives -1 where there is no ground truth."""
    checkpoints, network = Checkpoints(config, CPU), TinyDetector()
    path = Path(config.save_checkpoint_path) / "best_ckpt" / "best.ckpt"
    best = checkpoints.keep_best(network, score, -math.inf)
    assert not path.exists()
    (line,) = [record.message for record in info.records if "nothing to score" in record.message]
    assert line.startswith(f"AP is {score:g}: ")
    best = checkpoints.keep_best(network, 0.0, best)  # 0 is a score: something was there and was not found
    assert path.exists()
    assert best == 0.0
    path.unlink()
    assert checkpoints.keep_best(network, score, best) == 0.0
    assert not path.exists()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_checkpoints_can_be_read_by_others_as_the_umask_says(config, umask, mode):
    old = os.umask(umask)
    try:
        checkpoints = Checkpoints(config, CPU)
        checkpoints.save(TinyDetector(), 2, 3)
        checkpoints.keep_best(TinyDetector(), 0.5, 0.0)
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


# ---- the loop


@pytest.fixture(scope="module")
def trained(defaults, tmp_path_factory):
    """One run of two epochs of three steps with evaluation; returns its folder and what the evaluation saw."""
    folder = tmp_path_factory.mktemp("trained")
    config = dataclasses.replace(
        defaults,
        epoch_size=2,
        batch_size=2,
        base_lr=0.08,
        warmup_step=2,
        warmup_ratio=0.5,
        weight_decay=0.1,
        log_summary=True,
        save_checkpoint_path=str(folder / "out"),
    )
    network, seen = TinyDetector(), []

    def evaluate():
        network.set_train(False)
        seen.append(network.weight.asnumpy().copy())
        return [0.4, 0.2][len(seen) - 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(network, train_data(samples_of(3, seed=5)), config, CPU, evaluate)
    return folder, network, seen


def expected_run():
    """Losses and final values of that run: rate 0.08 * 1 * 2 / 16 = 0.01, T = 3 * 3 = 9, two warm-up steps."""
    rates = [0.005, 0.0075, *(0.01 * (1 + np.cos(np.pi * np.arange(4) / 9)) / 2)]
    return numpy_sgd(samples_of(3, seed=5) * 2, rates, 0.91, 0.1)


def test_train_logs_every_step_of_every_epoch(trained):
    folder, _, _ = trained
    lines = (folder / "loss_0.log").read_text().splitlines()
    losses, _, _ = expected_run()
    heads = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert len(lines) == 6
    for line, (epoch, step), expected in zip(lines, heads, losses, strict=True):
        assert line.startswith(f"epoch: {epoch} step: {step}, rpn_loss: ")
        values = [float(part.split(": ")[1]) for part in line.split(", ")[1:]]
        np.testing.assert_allclose(values[:-1], [*expected, expected[0] + expected[1]], rtol=1e-4, atol=1e-5)
    rates = [float(line.split(", lr: ")[1]) for line in lines]
    np.testing.assert_allclose(rates[:4], [0.005, 0.0075, 0.01, 0.005 * (1 + np.cos(np.pi / 9))], atol=5e-7)


def test_train_updates_by_the_schedule(trained):
    _, network, _ = trained
    _, weight, bias = expected_run()
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=2e-5)


def test_train_saves_checkpoints_that_load(trained):
    folder, network, _ = trained
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [name for name in written if not name.startswith("summary/")] == [
        "loss_0.log",
        "out/best_ckpt/best.ckpt",
        "out/ckpt_0/faster_rcnn-1_3.ckpt",
        "out/ckpt_0/faster_rcnn-2_3.ckpt",
    ]
    fresh = load_detector(TinyDetector(), folder / "out/ckpt_0/faster_rcnn-2_3.ckpt")
    np.testing.assert_array_equal(fresh.weight.asnumpy(), network.weight.asnumpy())


def test_train_keeps_the_best_network(trained):
    folder, network, seen = trained
    best = load_detector(TinyDetector(), folder / "out/best_ckpt/best.ckpt")
    np.testing.assert_array_equal(best.weight.asnumpy(), seen[0])  # AP 0.4 after the first epoch, then 0.2
    assert not np.array_equal(seen[0], network.weight.asnumpy())


def test_train_writes_tensorboard_files(trained):
    folder, _, _ = trained
    scalars = read_events(folder / "summary")
    assert [scalars["learning_rate", step] for step in (1, 2, 3)] == pytest.approx([0.005, 0.0075, 0.01])
    losses, _, _ = expected_run()
    assert scalars["total_loss", 6] == pytest.approx(losses[5][0] + losses[5][1], rel=1e-4)


@pytest.mark.parametrize(
    "epoch_size, interval, evaluated", [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (3, 1, [1, 2, 3]), (3, 10, [3]), (1, 1, [1])]
)
def test_train_evaluates_every_interval_and_at_the_end(config, epoch_size, interval, evaluated):
    config = dataclasses.replace(config, epoch_size=epoch_size, interval=interval, save_checkpoint=False)
    epochs = []

    def evaluate():
        epochs.append(len(Path("loss_0.log").read_text().splitlines()))
        return 0.5

    train(TinyDetector(), train_data(samples_of(1)), config, CPU, evaluate)
    assert epochs == evaluated


def test_train_says_the_rule_of_the_learning_rate(config, info):
    train(TinyDetector(), train_data(samples_of(1)), config, CPU)
    line = next(record.message for record in info.records if "learning rate" in record.message)
    for part in ("0.01", "0.08", "16", "dynamic"):  # 0.01 = 0.08 * 1 device * batch 2 / 16
        assert part in line


def test_clipping_is_chosen_by_the_configuration(config):
    config = dataclasses.replace(
        config,
        epoch_size=1,
        grad_clip=True,
        grad_clip_norm=0.3,
        lr_type="multistep",
        milestones=(),
        save_checkpoint=False,
    )
    network = TinyDetector()
    train(network, train_data(samples_of(2)), config, CPU)
    _, weight, bias = numpy_sgd(samples_of(2), [0.01] * 2, 0.91, 0.1, clip_norm=0.3)
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), bias, rtol=2e-5)


def test_nan_stops_training_and_spares_the_checkpoints(config):
    """The loss of the second step is the logarithm of -1."""
    old = Path(config.save_checkpoint_path) / "ckpt_0" / "faster_rcnn-1_2.ckpt"
    write_checkpoint(TinyDetector().parameters_dict(), old)
    before = old.read_bytes()
    with pytest.raises(UserError, match="epoch: 1 step: 2") as error:
        train(LogDetector(), train_data(samples_of(2), labels=[1.0, -1.0]), config, CPU)
    assert old.read_bytes() == before
    assert saved_names(config) == [old.name]
    lines = Path("loss_0.log").read_text().splitlines()
    assert len(lines) == 2
    assert "rpn_loss: nan" in lines[1]
    assert "200, 201" in str(error.value)  # the images of the batch
    assert "100" not in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(config):
    """A finite loss with a gradient that is not, in the last step of an epoch: the update spoils the weights."""
    config = dataclasses.replace(config, epoch_size=1, milestones=())
    with pytest.raises(UserError, match="finite"):
        train(RootDetector(), train_data(samples_of(2), labels=[1.0, 0.0]), config, CPU)
    for path in Path(config.save_checkpoint_path).rglob("*.ckpt"):
        assert np.isfinite(read_checkpoint(path)["backbone.weight"].asnumpy()).all(), path

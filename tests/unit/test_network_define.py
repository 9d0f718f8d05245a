"""The training step and loop on a network of two trainable parameters, against the same arithmetic in numpy."""

import csv
import dataclasses
from pathlib import Path

import cv2
import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.convert_checkpoint import load_detector, read_checkpoint, write_checkpoint
from src.model_utils.errors import UserError
from src.network_define import TrainStep, build_step, check_start, train
from src.runtime import Device
from src.training.loss_log import LOSS_NAMES
from src.training.optimizer import SGD, build_optimizer
from tests.unit.training.tiny_detector import (
    BIAS,
    CPU,
    FIXED,
    WEIGHT,
    TinyDetector,
    batch_of,
    read_events,
    samples_of,
    saved_names,
    short_run,
    train_data,
)

pytestmark = pytest.mark.usefixtures("graph_mode")


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


def steps_of(step, samples):
    """Run the steps; returns their losses as arrays."""
    return [np.array([float(loss.asnumpy()) for loss in step(*batch_of(*sample))]) for sample in samples]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two short epochs; everything is written below tmp_path, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    return short_run(tmp_path)


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
    monkeypatch.setattr("src.training.train_step.give_back_memory", lambda: calls.append(True))
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


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_one_update_by_the_mean_of_several_steps(clip_norm):
    """Losses are those of each step; the norm of the mean is clipped; the rest is updated at the end."""
    samples = samples_of(5, seed=8)
    network, step = make_step(0.1, momentum=0.0, accumulate_steps=2, clip_norm=clip_norm)
    losses, params, expected = steps_of(step, samples), [WEIGHT.astype(float), BIAS.astype(float)], []
    step.finish()
    step.finish()  # nothing waits any more
    for first in (0, 2, 4):
        gathered = samples[first : first + 2]
        expected += [numpy_losses(*params, *sample) for sample in gathered]
        gradients = [numpy_gradients(*params, *sample) for sample in gathered]
        means = [np.mean([pair[k] for pair in gradients], 0) for k in range(2)]
        norm = np.sqrt(sum((mean**2).sum() for mean in means))
        factor = 1 if clip_norm is None else min(1, clip_norm / norm)
        params = [param - 0.1 * factor * mean for param, mean in zip(params, means, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    np.testing.assert_allclose(network.weight.asnumpy(), params[0], rtol=2e-5)
    np.testing.assert_allclose(network.bias.asnumpy(), params[1], rtol=2e-5)


def test_updates_take_the_rate_of_their_last_step(config):
    config = dataclasses.replace(config, accumulate_steps=2)
    step = build_step(TinyDetector(), config, [0.1, 0.2, 0.3, 0.4, 0.5], CPU)
    np.testing.assert_array_equal(step.optimizer.rates, np.float32([0.2, 0.4, 0.5]))
    assert build_step(TinyDetector(), config, [0.1, 0.2], CPU).optimizer.rates.tolist() == [np.float32(0.2)]


def test_a_loss_scale_that_overflows_is_halved_and_the_step_passed_by():
    """Gradients of some 1 times 2^127 are not finite; those of 2^126 may not be either; the losses are as ever."""
    samples = samples_of(8, seed=9)
    network, step = make_step(
        Tensor([0.01 * k for k in range(1, 9)], ms.float32), loss_scale=2.0**127, dynamic_scale=True
    )
    passed_by, params, speeds = 0, [WEIGHT.astype(float), BIAS.astype(float)], [0.0, 0.0]
    for k, sample in enumerate(samples):
        before, scale = network.weight.asnumpy().copy(), float(step.scaler.scale_value)
        np.testing.assert_allclose(steps_of(step, [sample])[0], numpy_losses(*params, *sample), rtol=2e-5)
        gradients = numpy_gradients(*params, *sample)
        if max(np.abs(gradient).max() for gradient in gradients) * scale >= 2.0**128:
            passed_by += 1
            assert float(step.scaler.scale_value) == scale / 2
            np.testing.assert_array_equal(network.weight.asnumpy(), before)
            continue
        assert float(step.scaler.scale_value) == scale
        for j, gradient in enumerate(gradients):
            speeds[j] = 0.9 * speeds[j] + gradient
            params[j] = params[j] - 0.01 * (k + 1) * speeds[j]
        np.testing.assert_allclose(network.weight.asnumpy(), params[0], rtol=2e-5)
    assert 0 < passed_by < 5


def test_a_loss_scale_grows_after_many_steps_without_overflow(monkeypatch):
    monkeypatch.setattr(TrainStep, "SCALE_WINDOW", 3)
    _, step = make_step(0.01, loss_scale=8.0, dynamic_scale=True)
    scales = []
    for sample in samples_of(7):
        steps_of(step, [sample])
        scales.append(float(step.scaler.scale_value))
    assert scales == [8, 8, 16, 16, 16, 32, 32]


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
def test_random_layers_are_never_fixed(config, pre_trained, frozen_stages, norm_eval, starts):
    config = dataclasses.replace(config, pre_trained=pre_trained, frozen_stages=frozen_stages, norm_eval=norm_eval)
    if starts:
        check_start(config)
        return
    with pytest.raises(UserError, match="pre_trained") as error:
        check_start(config)
    assert "frozen_stages" in str(error.value)
    assert "norm_eval" in str(error.value)


# ---- the loop


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run of two epochs of three steps with evaluation; returns its folder and what the evaluation saw."""
    folder = tmp_path_factory.mktemp("trained")
    config = dataclasses.replace(short_run(folder), log_summary=True)
    network, seen = TinyDetector(), []

    def evaluate():
        network.set_train(False)
        seen.append(network.weight.asnumpy().copy())
        return {"AP": [0.4, 0.2][len(seen) - 1], "AP50": 0.6, "AP75": 0.3}

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
        "out/results.csv",
        "out/results.png",
    ]
    fresh = load_detector(TinyDetector(), folder / "out/ckpt_0/faster_rcnn-2_3.ckpt")
    np.testing.assert_array_equal(fresh.weight.asnumpy(), network.weight.asnumpy())


def test_train_keeps_the_best_network(trained):
    folder, network, seen = trained
    best = load_detector(TinyDetector(), folder / "out/best_ckpt/best.ckpt")
    np.testing.assert_array_equal(best.weight.asnumpy(), seen[0])  # AP 0.4 after the first epoch, then 0.2
    assert not np.array_equal(seen[0], network.weight.asnumpy())


def test_train_writes_a_row_for_every_epoch(trained):
    """Means of the losses, the last rate, the metrics of the evaluation."""
    folder, _, _ = trained
    with (folder / "out/results.csv").open() as table:
        rows = list(csv.DictReader(table))
    losses, _, _ = expected_run()
    rates = [0.01, 0.005 * (1 + np.cos(np.pi * 3 / 9))]
    for k, (row, score) in enumerate(zip(rows, (0.4, 0.2), strict=True)):
        mean = np.mean(losses[3 * k : 3 * k + 3], axis=0)
        found = [float(row[name]) for name in ("total_loss", *LOSS_NAMES, "learning_rate", "AP", "AP50", "AP75")]
        np.testing.assert_allclose(found, [mean[0] + mean[1], *mean, rates[k], score, 0.6, 0.3], rtol=1e-4)
        assert (row["epoch"], row["step"]) == (str(k + 1), "3")
        # 3 steps of 2 images
        assert float(row["images_per_second"]) == pytest.approx(6 / float(row["seconds"]), rel=0.3)
    assert cv2.imread(str(folder / "out/results.png")).std() > 1


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
        return {"AP": 0.5, "AP50": 0.6, "AP75": 0.3}

    train(TinyDetector(), train_data(samples_of(1)), config, CPU, evaluate)
    assert epochs == evaluated


def test_train_stops_when_patience_ends(config):
    """AP 0.5 in the second epoch is the best of four; best.ckpt and the log end accordingly."""
    config = dataclasses.replace(config, epoch_size=9, run_eval=True, patience=2)
    scores, network = iter([0.4, 0.5, 0.5, 0.3, 0.9]), TinyDetector()
    weights = []

    def evaluate():
        weights.append(network.weight.asnumpy().copy())
        return {"AP": next(scores), "AP50": 0.6, "AP75": 0.3}

    train(network, train_data(samples_of(1)), config, CPU, evaluate)
    assert len(weights) == 4 and len(Path("loss_0.log").read_text().splitlines()) == 4
    best = load_detector(TinyDetector(), Path(config.save_checkpoint_path) / "best_ckpt/best.ckpt")
    np.testing.assert_array_equal(best.weight.asnumpy(), weights[1])


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_of_the_weights_is_what_is_evaluated_and_saved(config, decay):
    """The training itself goes on with its own weights."""
    config = dataclasses.replace(config, ema_decay=decay, run_eval=True)
    network, seen = TinyDetector(), []

    def evaluate():
        seen.append(network.weight.asnumpy().copy())
        return {"AP": 0.5, "AP50": 0.6, "AP75": 0.3}

    samples = samples_of(3, seed=5)
    train(network, train_data(samples), config, CPU, evaluate)
    rates = [0.005, 0.0075, *(0.01 * (1 + np.cos(np.pi * np.arange(4) / 9)) / 2)]
    average, averages = WEIGHT.astype(float), []
    for step in range(1, 7):
        _, weight, _ = numpy_sgd((samples * 2)[:step], rates[:step], 0.91, 0.1)
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * weight
        averages.append(average)
    np.testing.assert_allclose(seen, [averages[2], averages[5]], rtol=2e-5)
    np.testing.assert_allclose(network.weight.asnumpy(), weight, rtol=2e-5)
    for name, expected in (("ckpt_0/faster_rcnn-2_3.ckpt", averages[5]), ("best_ckpt/best.ckpt", averages[2])):
        saved = load_detector(TinyDetector(), Path(config.save_checkpoint_path) / name)
        np.testing.assert_allclose(saved.weight.asnumpy(), expected, rtol=2e-5)


class FrozenBackbone(nn.Cell):
    """A weight that is not trained until it is thawed."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.weight.requires_grad = False

    def thaw(self):
        self.weight.requires_grad = True


class FrozenDetector(TinyDetector):
    """Its weight belongs to a backbone that is fixed at first."""

    def __init__(self):
        super().__init__()
        self.backbone = FrozenBackbone(self.weight)


@pytest.mark.parametrize("opt_type", ["sgd", "adam"])
def test_thawed_stages_join_while_the_rest_goes_on(config, info, opt_type):
    """The bias moves as if nothing had happened; the weight stays for an epoch, then as in a new training."""
    config = dataclasses.replace(config, opt_type=opt_type, frozen_stages=1, thaw_epoch=1, weight_decay=0.0)
    samples, network = samples_of(3, seed=5), FrozenDetector()
    weights = []

    def evaluate():
        weights.append(network.weight.asnumpy().copy())
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}

    train(network, train_data(samples), config, CPU, evaluate)
    plain = TinyDetector()
    train(plain, train_data(samples), dataclasses.replace(config, thaw_epoch=0, frozen_stages=-1), CPU)
    np.testing.assert_array_equal(network.bias.asnumpy(), plain.bias.asnumpy())
    np.testing.assert_array_equal(weights[0], WEIGHT)
    assert np.abs(weights[1] - WEIGHT).max() > 1e-3
    if opt_type == "sgd":
        rates = 0.01 * (1 + np.cos(np.pi * np.arange(1, 4) / 9)) / 2
        np.testing.assert_allclose(weights[1], numpy_sgd(samples, rates, 0.91, 0.0)[1], rtol=2e-5)
    assert any("all stages are trained from here on" in record.message for record in info.records)


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


def test_thawing_between_two_updates_gives_up_what_waits_and_keeps_the_count(config):
    """3 steps an epoch, an update every 2: 3 updates, the second by the fourth step's gradients alone."""
    config = dataclasses.replace(
        config, accumulate_steps=2, frozen_stages=1, thaw_epoch=1, weight_decay=0.0, lr_type="multistep", momentum=0.0
    )
    samples, network = samples_of(3, seed=5), FrozenDetector()
    train(network, train_data(samples), config, CPU)
    # 0.08 * 2 steps * batch 2 / 16 = 0.02, a tenth of it from epoch 1 on; the bias's gradient is 6 * bias.
    np.testing.assert_allclose(network.bias.asnumpy(), BIAS * (1 - 0.12) * (1 - 0.012) ** 2, rtol=1e-5)

"""The loop of a training; its parts are in ``src.training``: step, optimiser, loss log, checkpoints."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator

from mindspore import nn
from mindspore.dataset import Dataset

from src.common.compile_cache import compile_once
from src.lr_schedule import BASE_IMAGES, learning_rates, scaled_base_lr
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.runtime import Device, told_by_rank_0
from src.training.checkpoints import Checkpoints
from src.training.epoch_results import EpochResults
from src.training.loss_log import LossLog
from src.training.profiling import step_profiler
from src.training.train_step import TrainStep, build_step
from src.training.weight_average import WeightAverage

__all__ = ["Checkpoints", "LossLog", "TrainStep", "build_step", "check_start", "train"]

LOGGER = logging.getLogger(__name__)


def check_start(config: Config) -> None:
    """Refuse to train on layers that are both random and fixed.

    Args:
        config (Config): ``pre_trained``, ``frozen_stages``, ``norm_eval``.

    Raises:
        UserError: no weights are given, but layers or batch-norm statistics would stay as they are.
    """
    if config.finetune and not config.pre_trained:
        raise UserError(
            "finetune is True, but pre_trained is empty: name the detector to start from, "
            "--pre_trained=DETECTOR.ckpt, or leave finetune out"
        )
    if config.pre_trained or (config.frozen_stages < 0 and not config.norm_eval):
        return
    raise UserError(
        f"--pre_trained is empty, but frozen_stages={config.frozen_stages} and "
        f"norm_eval={config.norm_eval} would keep random layers or batch-norm statistics as they are, and "
        f"the detector could not learn. Give a checkpoint with --pre_trained, or train all layers with "
        f"--recipe=scratch (frozen_stages=-1, norm_eval=False and what goes with them)"
    )


def train(
    network: nn.Cell,
    dataset: Dataset,
    config: Config,
    device: Device,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Train a detector: ``epoch_size`` passes over the data set, or fewer with ``patience``.

    Writes ``loss_{rank}.log``, checkpoints and the results of every epoch below ``save_checkpoint_path``, and
    TensorBoard files and a profile when asked for.

    Args:
        network (Cell): a detector.
        dataset (Dataset): batches of image, image_shape, box, label, valid_num, image_id.
        config (Config): the run's settings.
        device (Device): this process: target, rank, number of devices.
        evaluate (Callable | None): returns the metrics of the network as it is; called every ``interval`` epochs and
            after the last, and the network with the best ``best_metric`` is kept as ``best_ckpt/best.ckpt``.

    Raises:
        UserError: a loss is not finite, or a file cannot be written.
    """
    steps = dataset.get_dataset_size()
    rates = learning_rates(config, steps, device.num_devices)
    _log_rate(config, device, steps)
    step_network = build_step(network, config, rates, device)
    average = WeightAverage(network, config.ema_decay) if config.ema_decay else None
    checkpoints, results = Checkpoints(config, device), EpochResults(config, device)
    batches = dataset.create_tuple_iterator(num_epochs=config.epoch_size)
    with LossLog(config, device, steps, rates) as log, step_profiler(config, device, steps) as step_done:
        for epoch in range(1, config.epoch_size + 1):
            if config.thaw_epoch and epoch == config.thaw_epoch + 1:
                step_network = _thawed(network, step_network, config, rates, device)
            step_network.set_train()
            results.start_epoch()
            # One iterator for all epochs; each pass over it is the next epoch.
            for step, (losses, image_ids) in enumerate(_steps(step_network, batches, config, average), start=1):
                log.write(epoch, step, losses, image_ids)
                results.add_step(losses)
                step_done()
            if epoch == config.epoch_size:
                step_network.finish()
            with average.in_network() if average is not None else contextlib.nullcontext():
                checkpoints.save(network, epoch, steps)
                is_due = epoch % config.interval == 0 or epoch == config.epoch_size
                metrics = evaluate() if evaluate is not None and is_due else None
                if metrics is not None:
                    checkpoints.keep_best(network, epoch, metrics)
            results.write(epoch, steps, rates[epoch * steps - 1], metrics)
            if config.patience and told_by_rank_0(checkpoints.is_hopeless(), device):
                break


def _steps(
    step_network: TrainStep, batches: Iterable, config: Config, average: WeightAverage | None
) -> Iterator[tuple[list[float], list[int]]]:
    """Train on every batch; yields the six losses and the ids of its images."""
    for *batch, image_ids in batches:
        compile_once(step_network, batch, config)
        losses = [float(loss.asnumpy()) for loss in step_network(*batch)]
        if average is not None:
            average.update()
        yield losses, image_ids.asnumpy().tolist()


def _log_rate(config: Config, device: Device, steps: int) -> None:
    accumulated = f" x {config.accumulate_steps} steps" if config.accumulate_steps > 1 else ""
    LOGGER.info(
        "learning rate %.6g = base_lr %g x %d devices x batch %d%s / %d, %s schedule, %d epochs of %d steps",
        scaled_base_lr(config.base_lr, device.num_devices * config.accumulate_steps, config.batch_size),
        config.base_lr,
        device.num_devices,
        config.batch_size,
        accumulated,
        BASE_IMAGES,
        config.lr_type,
        config.epoch_size,
        steps,
    )


def _thawed(network: nn.Cell, old: TrainStep, config: Config, rates: list[float], device: Device) -> TrainStep:
    """The step that trains the fixed stages too; the rest goes on as it was."""
    network.backbone.thaw()
    step_network = build_step(network, config, rates, device)
    step_network.go_on_from(old)
    LOGGER.info(
        "thaw_epoch %d: all stages are trained from here on; the network is compiled once more", config.thaw_epoch
    )
    return step_network

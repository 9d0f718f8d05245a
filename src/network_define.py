"""Training: the step, the loop, and what happens between steps."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mindspore import Tensor, nn, ops
from tqdm import tqdm

from src.common.compile_cache import compile_once
from src.common.files import cannot_write, remove_partial_files
from src.convert_checkpoint import write_checkpoint
from src.lr_schedule import learning_rates
from src.model_utils.errors import UserError
from src.runtime import Device, give_back_memory
from src.training.optimizer import Optimizer, build_optimizer
from src.training.profiling import step_profiler
from src.training.run_files import BEST_FOLDER, CHECKPOINT_FOLDER, LOSS_LOG, SUMMARY_FOLDER, hold
from src.weights.detector_notes import notes_of

LOGGER = logging.getLogger(__name__)

LOSS_NAMES = ("rpn_loss", "rcnn_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss")
CHECKPOINT_PREFIX = "faster_rcnn"
# Lines per epoch where there is no terminal to draw a progress bar on.
PLAIN_LINES_PER_EPOCH = 10


class TrainStep(nn.Cell):
    """One step: losses, gradients, optional clipping, update. All but the update is one compiled graph.

    For calls from Python: inside another graph there would be no update.

    Args:
        network (Cell): a detector; its first two outputs are summed to the loss that is minimised.
        optimizer (Optimizer): updates its parameters.
        loss_scale (float): factor on the loss during the backward pass, taken out of the gradients again; keeps
            small float16 gradients from vanishing.
        clip_norm (float | None): largest global norm of the gradients (Pascanu et al. 2013); None: not clipped.
        num_devices (int): gradients are averaged over so many devices.

    Inputs: those of the network in training.
    Outputs: the network's six losses, float32 scalars.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: Optimizer,
        loss_scale: float = 1.0,
        clip_norm: float | None = None,
        num_devices: int = 1,
    ):
        super().__init__(auto_prefix=False)
        self.network = network
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.clip_norm = clip_norm
        self.reduce = nn.DistributedGradReducer(optimizer.parameters, True, num_devices) if num_devices > 1 else None
        self.trimmed = False
        self.loss_and_gradients = ops.value_and_grad(self.scaled_loss, None, optimizer.parameters, has_aux=True)

    def __call__(self, *batch) -> tuple[Tensor, ...]:
        losses, gradients = super().__call__(*batch)
        self.optimizer(gradients)
        return losses

    def compile(self, *batch, **options):
        """The base class's. Every step calls it, the first compiles, which leaves 80 MB of free pages behind."""
        super().compile(*batch, **options)
        if not self.trimmed:
            self.trimmed = True
            give_back_memory()

    def construct(self, *batch):
        """The losses, and the gradients that the optimiser takes."""
        (_, losses), gradients = self.loss_and_gradients(*batch)
        if self.reduce is not None:
            gradients = self.reduce(gradients)
        if self.loss_scale != 1.0:
            gradients = ops.HyperMap()(ops.partial(_scale_gradient, 1.0 / self.loss_scale), gradients)
        if self.clip_norm is not None:
            gradients = ops.clip_by_global_norm(gradients, self.clip_norm)
        return losses, gradients

    def scaled_loss(self, *batch):
        """The scaled sum that is minimised, and the six losses."""
        losses = self.network(*batch)
        return (losses[0] + losses[1]) * self.loss_scale, losses


def _scale_gradient(factor, gradient):
    return gradient * ops.cast(factor, gradient.dtype)


def build_step(network: nn.Cell, config, rates: Sequence[float], device: Device) -> TrainStep:
    """The training step of a configuration.

    Args:
        network (Cell): a detector.
        config (Config): ``loss_scale``, ``grad_clip``, ``grad_clip_norm``, and those of :func:`build_optimizer`.
        rates (Sequence[float]): learning rate of every step.
        device (Device): where this process stands among its fellows.

    Returns:
        TrainStep
    """
    # A CPU computes in float32, where no gradient vanishes; unscaling all of them would only take time to compile.
    loss_scale = 1.0 if device.target == "CPU" else config.loss_scale
    return TrainStep(
        network,
        build_optimizer(config, network, rates),
        loss_scale,
        config.grad_clip_norm if config.grad_clip else None,
        device.num_devices,
    )


def check_start(config) -> None:
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
        f"--frozen_stages=-1 --norm_eval=False"
    )


def train(network: nn.Cell, dataset, config, device: Device, evaluate: Callable[[], float] | None = None) -> None:
    """Train a detector: ``epoch_size`` passes over the data set.

    Writes ``loss_{rank}.log``, checkpoints below ``save_checkpoint_path``, and TensorBoard files and a profile when
    asked for.

    Args:
        network (Cell): a detector.
        dataset (Dataset): batches of image, image_shape, box, label, valid_num, image_id.
        config (Config): the run's settings.
        device (Device): where this process stands among its fellows.
        evaluate (Callable | None): returns the AP of the network as it is; called every ``interval`` epochs and after
            the last, and the best network is kept as ``best_ckpt/best.ckpt``.

    Raises:
        UserError: a loss is not finite, or a file cannot be written.
    """
    steps = dataset.get_dataset_size()
    rates = learning_rates(config, steps, device.num_devices)
    LOGGER.info(
        "learning rate %.6g = base_lr %g x %d devices x batch %d / 16, %s schedule, %d epochs of %d steps",
        config.base_lr * device.num_devices * config.batch_size / 16,
        config.base_lr,
        device.num_devices,
        config.batch_size,
        config.lr_type,
        config.epoch_size,
        steps,
    )
    step_network = build_step(network, config, rates, device)
    checkpoints = Checkpoints(config, device)
    best = -math.inf
    batches = dataset.create_tuple_iterator(num_epochs=config.epoch_size)
    with LossLog(config, device, steps, rates) as log, step_profiler(config, device, steps) as step_done:
        for epoch in range(1, config.epoch_size + 1):
            step_network.set_train()
            # One iterator for all epochs; each pass over it is the next epoch.
            for step, (*batch, image_ids) in enumerate(batches, start=1):
                compile_once(step_network, batch, config)
                losses = [float(loss.asnumpy()) for loss in step_network(*batch)]
                log.write(epoch, step, losses, image_ids.asnumpy().tolist())
                step_done()
            checkpoints.save(network, epoch, steps)
            if evaluate is not None and (epoch % config.interval == 0 or epoch == config.epoch_size):
                best = checkpoints.keep_best(network, evaluate(), best)


class LossLog:
    """Writes every step's losses where people look: the log file, the terminal, TensorBoard.

    Args:
        config (Config): ``log_interval``, ``log_summary``, ``epoch_size``.
        device (Device): rank 0 talks to the terminal.
        steps (int): steps per epoch.
        rates (Sequence[float]): learning rate of every step.
    """

    def __init__(self, config, device: Device, steps: int, rates: Sequence[float]):
        self.interval = config.log_interval
        self.steps = steps
        self.epochs = config.epoch_size
        self.rates = rates
        self.start = time.time()
        self.talks = device.rank == 0
        self.plain_interval = max(1, steps // PLAIN_LINES_PER_EPOCH)
        self.path = Path(LOSS_LOG.format(device.rank))
        self.summary = self._open_summary() if config.log_summary and device.rank == 0 else None

    @staticmethod
    def _open_summary():
        from tensorboardX import SummaryWriter

        return SummaryWriter(SUMMARY_FOLDER)

    def __enter__(self) -> "LossLog":
        try:
            self.file = self.path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise cannot_write(self.path.absolute(), error) from error
        hold(self.file)
        # disable=None: a bar on a terminal, nothing elsewhere.
        self.bar = tqdm(total=self.steps * self.epochs, unit="step", disable=None if self.talks else True)
        if self.talks:
            LOGGER.info("losses go to %s; the first step may take a minute, because the network is compiled", self.path)
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()
        self.file.close()
        if self.summary is not None:
            self.summary.close()

    def write(self, epoch: int, step: int, losses: Sequence[float], image_ids: Sequence[int] = ()) -> None:
        """Log one step.

        Args:
            epoch, step (int): from 1; the step counts within the epoch.
            losses (Sequence[float]): the six losses, see LOSS_NAMES.
            image_ids (Sequence[int]): the images of the batch, named when a loss is not finite.

        Raises:
            UserError: a loss is NaN or infinite.
        """
        total = losses[0] + losses[1]
        parts = ", ".join(f"{name}: {value:.5f}" for name, value in zip(LOSS_NAMES, losses, strict=True))
        rate = self.rates[(epoch - 1) * self.steps + step - 1]
        line = f"epoch: {epoch} step: {step}, {parts}, total_loss: {total:.5f}, lr: {rate:.6f}"
        finite = all(map(math.isfinite, losses))
        if step % self.interval == 0 or not finite:
            try:
                self.file.write(line + "\n")
            except OSError as error:
                raise cannot_write(self.path.absolute(), error) from error
        if not finite:
            raise UserError(
                f"the loss is not finite any more; training stops, saved checkpoints stay as they are.\n"
                f"  {line}\n  image ids of the batch: {', '.join(map(str, image_ids))}\n"
                f"Try a lower --base_lr, or --grad_clip=True"
            )
        self._show(epoch, step, losses, total, rate)

    def _show(self, epoch: int, step: int, losses: Sequence[float], total: float, rate: float) -> None:
        done = (epoch - 1) * self.steps + step
        if self.summary is not None:
            for name, value in (*zip(LOSS_NAMES, losses, strict=True), ("total_loss", total), ("learning_rate", rate)):
                self.summary.add_scalar(name, value, done)
        self.bar.set_postfix_str(f"epoch {epoch}, loss {total:.4f}", refresh=False)
        self.bar.update()
        if done == 1:
            # The first step holds the compilation; rates count from here.
            LOGGER.info("first step done after %.1f s", time.time() - self.start)
            self.start = time.time()
        if self.talks and self.bar.disable and (step % self.plain_interval == 0 or step == self.steps):
            LOGGER.info(
                "epoch %d/%d step %d/%d: total_loss %.5f, lr %.6f%s",
                epoch,
                self.epochs,
                step,
                self.steps,
                total,
                rate,
                self._pace(done),
            )

    def _pace(self, done: int) -> str:
        """Seconds per step and time left for the plain line; nothing after the first step, as both count from it."""
        if done == 1:
            return ""
        per_step = (time.time() - self.start) / (done - 1)
        left = per_step * (self.steps * self.epochs - done)
        return f", {per_step:.2f} s/step, {left / 60:.1f} min left"


class Checkpoints:
    """Saves the network every few epochs, keeps the newest, and the best.

    Args:
        config (Config): ``save_checkpoint``, ``save_checkpoint_path``, ``save_checkpoint_epochs``,
            ``keep_checkpoint_max``.
        device (Device): rank 0 writes.
    """

    def __init__(self, config, device: Device):
        self.folder = Path(config.save_checkpoint_path) / CHECKPOINT_FOLDER.format(device.rank)
        self.best_path = Path(config.save_checkpoint_path) / BEST_FOLDER / "best.ckpt"
        self.active = config.save_checkpoint and device.rank == 0
        self.every = config.save_checkpoint_epochs
        self.last_epoch = config.epoch_size
        self.keep_max = config.keep_checkpoint_max
        self.notes = notes_of(config)
        self.written: list[Path] = []
        if config.run_eval and not config.save_checkpoint:
            LOGGER.warning("save_checkpoint is False: evaluations are shown, but no best checkpoint is kept")
        if self.active:
            remove_partial_files(self.folder)
            remove_partial_files(self.best_path.parent)

    def save(self, network: nn.Cell, epoch: int, step: int) -> None:
        """Write ``faster_rcnn-{epoch}_{step}.ckpt`` if this epoch is due (the last always is)."""
        if not self.active or (epoch % self.every and epoch != self.last_epoch):
            return
        path = self.folder / f"{CHECKPOINT_PREFIX}-{epoch}_{step}.ckpt"
        write_checkpoint(network.parameters_dict(), path, {**self.notes, "epoch_num": epoch, "step_num": step})
        LOGGER.info("saved %s", path)
        self.written.append(path)
        while len(self.written) > self.keep_max:
            self.written.pop(0).unlink(missing_ok=True)

    def keep_best(self, network: nn.Cell, score: float, best: float) -> float:
        """Write ``best_ckpt/best.ckpt`` if the score beats the best so far. An AP of -1 or NaN never does.

        Returns:
            float: the best score now.
        """
        if not self.active:
            return best
        if not score >= 0:  # -1 without ground truth, or NaN
            LOGGER.warning("AP is %g: there was nothing to score, so this network is not kept as the best", score)
            return best
        if score <= best:
            return best
        write_checkpoint(network.parameters_dict(), self.best_path, self.notes)
        LOGGER.info("AP %.4f is the best so far, saved %s", score, self.best_path)
        return score

"""The losses of a training, step by step: in the log file, on the terminal, in TensorBoard."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from src.common.files import cannot_write
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.runtime import Device
from src.training.run_files import LOSS_LOG, SUMMARY_FOLDER, hold

LOGGER = logging.getLogger(__name__)

LOSS_NAMES = ("rpn_loss", "rcnn_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss")
# Lines per epoch where there is no terminal to draw a progress bar on.
PLAIN_LINES_PER_EPOCH = 10


class LossLog:
    """Writes every step's losses where people look: the log file, the terminal, TensorBoard.

    Args:
        config (Config): ``log_interval``, ``log_summary``, ``epoch_size``.
        device (Device): rank 0 talks to the terminal.
        steps (int): steps per epoch.
        rates (Sequence[float]): learning rate of every step.
    """

    def __init__(self, config: Config, device: Device, steps: int, rates: Sequence[float]):
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

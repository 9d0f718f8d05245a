"""The checkpoints of a training: the newest ones and the best."""

import logging
import math
from pathlib import Path

from mindspore import nn

from src.common.files import remove_partial_files
from src.convert_checkpoint import write_checkpoint
from src.model_utils.config import Config
from src.runtime import Device
from src.training.run_files import BEST_FOLDER, CHECKPOINT_FOLDER
from src.weights.detector_notes import notes_of

LOGGER = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "faster_rcnn"


class Checkpoints:
    """Saves the network every few epochs, keeps the newest, and the best.

    Args:
        config (Config): ``save_checkpoint``, ``save_checkpoint_path``, ``save_checkpoint_epochs``,
            ``keep_checkpoint_max``, ``best_metric``, ``patience``.
        device (Device): rank 0 writes.
    """

    def __init__(self, config: Config, device: Device):
        self.folder = Path(config.save_checkpoint_path) / CHECKPOINT_FOLDER.format(device.rank)
        self.best_path = Path(config.save_checkpoint_path) / BEST_FOLDER / "best.ckpt"
        self.active = config.save_checkpoint and device.rank == 0
        self.every = config.save_checkpoint_epochs
        self.last_epoch = config.epoch_size
        self.keep_max = config.keep_checkpoint_max
        self.notes = notes_of(config)
        self.metric, self.patience = config.best_metric, config.patience
        self.best, self.best_epoch, self.failures = -math.inf, 0, 0
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

    def keep_best(self, network: nn.Cell, epoch: int, metrics: dict[str, float]) -> None:
        """Write ``best_ckpt/best.ckpt`` if ``best_metric`` beats the best so far. -1 and NaN never do."""
        score = metrics[self.metric]
        self.failures += 1
        if not score >= 0:  # -1 without ground truth, or NaN
            LOGGER.warning(
                "%s is %g: there was nothing to score, so this network is not kept as the best", self.metric, score
            )
            return
        if score <= self.best:
            return
        self.best, self.best_epoch, self.failures = score, epoch, 0
        if not self.active:
            return
        write_checkpoint(network.parameters_dict(), self.best_path, self.notes)
        LOGGER.info("%s %.4f is the best so far, saved %s", self.metric, score, self.best_path)

    def is_hopeless(self) -> bool:
        """Whether ``patience`` evaluations in a row were no better than one before them; says so."""
        if self.failures < self.patience:
            return False
        LOGGER.info(
            "training stops: %d evaluations in a row without a better %s than %.4f of epoch %d (patience)",
            self.failures,
            self.metric,
            self.best,
            self.best_epoch,
        )
        return True

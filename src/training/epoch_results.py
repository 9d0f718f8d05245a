"""What every epoch of a training came to: a table and its picture beside the checkpoints."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.common.files import write_bytes, write_whole
from src.model_utils.config import Config
from src.runtime import Device
from src.training.loss_log import LOSS_NAMES
from src.training.run_files import RESULTS_IMAGE, RESULTS_TABLE

METRICS = ("AP", "AP50", "AP75")
COLUMNS = ("epoch", "step", "total_loss", *LOSS_NAMES, "learning_rate", "seconds", "images_per_second", *METRICS)


class EpochResults:
    """Writes ``results.csv`` and draws ``results.png`` anew after every epoch.

    A row has the means of the six losses and of their total, the last learning rate, the seconds of the training steps
    (those of the first epoch with the compilation), the images of all devices per second, and the metrics where the
    network was evaluated.

    Args:
        config (Config): ``save_checkpoint``, ``save_checkpoint_path``, ``batch_size``.
        device (Device): rank 0 writes.
    """

    def __init__(self, config: Config, device: Device):
        self.folder = Path(config.save_checkpoint_path)
        self.active = config.save_checkpoint and device.rank == 0
        self.images_per_step = config.batch_size * device.num_devices
        self.rows: list[dict[str, float | str]] = []
        self.losses: list[list[float]] = []
        self.start = self.seconds = 0.0

    def start_epoch(self) -> None:
        """The time of an epoch counts from here."""
        self.start, self.losses = time.perf_counter(), []

    def add_step(self, losses: Sequence[float]) -> None:
        """Take in the six losses of a step."""
        self.losses.append([losses[0] + losses[1], *losses])
        self.seconds = time.perf_counter() - self.start

    def write(self, epoch: int, step: int, rate: float, metrics: Mapping[str, float] | None) -> None:
        """Add an epoch's row.

        Args:
            epoch, step (int): both from 1, the step within the epoch.
            rate (float): its last learning rate.
            metrics (Mapping | None): of an evaluation after it.

        Raises:
            UserError: a file cannot be written.
        """
        if not self.active:
            return
        count = len(self.losses)
        means = [sum(values) / count for values in zip(*self.losses, strict=True)]
        speed = self.images_per_step * count / self.seconds
        scores = [metrics[name] if metrics else "" for name in METRICS]
        row = [epoch, step, *means, rate, round(self.seconds, 2), round(speed, 3), *scores]
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_bytes(self.folder / RESULTS_TABLE, text.getvalue().encode())
        write_whole(self.folder / RESULTS_IMAGE, lambda path: draw_results(self.rows, path))


def draw_results(rows: Sequence[Mapping[str, float | str]], path: str | Path) -> None:
    """Draw losses and metrics over the epochs into an image.

    Args:
        rows (Sequence[Mapping]): rows of ``results.csv``, values by COLUMNS; metrics are "" where there was no
            evaluation.
        path (str | Path): image to write; the suffix says its kind.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [row for row in rows if row["AP"] != ""]
    figure = Figure(figsize=(11 if scored else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    for name in ("total_loss", *LOSS_NAMES[2:]):
        axes[0].plot([row["epoch"] for row in rows], [row[name] for row in rows], marker=".", label=name)
    axes[0].set(yscale="log", title="losses, mean of each epoch")
    if scored:
        for name in METRICS:
            axes[1].plot([row["epoch"] for row in scored], [row[name] for row in scored], marker="o", label=name)
            axes[1].annotate(f"{scored[-1][name]:.3f}", (scored[-1]["epoch"], scored[-1][name]))
        axes[1].set(ylim=(0, 1), title="COCO metrics on the evaluation images")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)

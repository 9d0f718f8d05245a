"""Draw the losses of a training: ``python -m src.tools.plot_losses loss_0.log`` writes ``loss_0.png``."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

_VALUE = re.compile(r"(\w+_loss): (\S+?)(?:,|$)")
# Steps averaged for the bold line.
_WINDOW = 20


def read_losses(path: str | Path) -> dict[str, np.ndarray]:
    """Read a loss log.

    Args:
        path (str | Path): a file of lines ``epoch: 1 step: 1, rpn_loss: 0.1, ...``.

    Returns:
        dict: name of each loss to an array with one value per line.

    Raises:
        UserError: no such file, or no line of that form in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"loss log {path} does not exist; training writes loss_0.log into the folder it is started in")
    rows = [dict(_VALUE.findall(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row]
    if not rows:
        raise UserError(f"loss log {path} holds no line like 'epoch: 1 step: 1, rpn_loss: 0.1, ...'")
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def plot_losses(losses: dict[str, np.ndarray], path: str | Path) -> None:
    """Draw each loss over the steps into an image.

    Args:
        losses (dict): from :func:`read_losses`.
        path (str | Path): image to write; the suffix says its kind.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    for name in ("total_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss"):
        values = losses[name]
        window = min(_WINDOW, len(values))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(np.arange(window, len(values) + 1), mean, label=name)
        axes.plot(np.arange(1, len(values) + 1), values, color=line.get_color(), alpha=0.2, linewidth=0.7)
    axes.set(xlabel="step", ylabel=f"loss (bold: mean of {_WINDOW} steps)", yscale="log", title="Training losses")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a loss log as an image beside it."""
    parser = argparse.ArgumentParser(prog="python -m src.tools.plot_losses", description=main.__doc__)
    parser.add_argument("log", help="Loss log of a training, loss_0.log.")
    parser.add_argument("--output", help="Image to write (default: the log's name with .png).")
    args = parser.parse_args(argv)
    image = args.output or Path(args.log).with_suffix(".png")
    plot_losses(read_losses(args.log), image)
    LOGGER.info("wrote %s", image)
    return 0


if __name__ == "__main__":
    from src.runtime import run

    sys.exit(run(main))

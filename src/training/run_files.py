"""Where a training writes, and what an earlier one has left there: two runs are never mixed.

No MindSpore here: the look at an earlier run comes before anything is converted or compiled.
"""

import contextlib
import fcntl
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from src.common.files import PARTIAL_PREFIX
from src.common.wording import listed
from src.model_utils.errors import UserError
from src.runtime import Device

LOGGER = logging.getLogger(__name__)

# Below save_checkpoint_path, {} is the rank. Rank 0 alone writes checkpoints.
CHECKPOINT_FOLDER = "ckpt_{}"
BEST_FOLDER = "best_ckpt"
RESULTS_TABLE, RESULTS_IMAGE = "results.csv", "results.png"
# In the folder that training is started in.
LOSS_LOG = "loss_{}.log"
SUMMARY_FOLDER = "summary"
_LOSS_LOG = re.compile(r"loss_(0|[1-9][0-9]*)\.log")
_MAX_NAMES_SHOWN = 3


@dataclass(frozen=True)
class OldRun:
    """Files and folders of an earlier run that get a number, the same for all of them.

    Attributes:
        paths (tuple[Path, ...]): those of rank 0: folders of checkpoints and summary, results of the epochs.
        logs (dict[int, Path]): loss logs by rank.
        number (int): appended to every name, ``ckpt_0`` becomes ``ckpt_0.1``.
    """

    paths: tuple[Path, ...] = ()
    logs: dict[int, Path] = field(default_factory=dict)
    number: int = 1

    def set_aside(self, device: Device) -> None:
        """Rename what is there; call it before this run writes.

        Each rank takes its own loss log, rank 0 the rest, also the logs of ranks that this run lacks.

        Args:
            device (Device): ``rank`` and ``num_devices``.

        Raises:
            UserError: something cannot be renamed, or a file of the new name exists by now.
        """
        paths = list(self.paths) if device.rank == 0 else []
        paths += [
            path
            for rank, path in sorted(self.logs.items())
            if (rank if rank < device.num_devices else 0) == device.rank
        ]
        for path in paths:
            target = _numbered(path, self.number)
            try:
                if os.path.lexists(target):  # a file would be replaced silently
                    raise FileExistsError(None, "there is something of that name by now")
                path.rename(target)
            except OSError as error:
                raise UserError(
                    f"cannot rename {path} of an earlier run to {target}: {error.strerror}. Move it "
                    "yourself, or train in another folder"
                ) from error
        if paths:
            LOGGER.info(
                "an earlier run has been here; kept as %s",
                ", ".join(str(_numbered(path, self.number)) for path in paths),
            )


def find_old_run(config) -> OldRun:
    """Look for what an earlier run has left, and refuse to mix its checkpoints with new ones. Nothing is changed.

    Every rank looks before it meets the others, that is, before any of them can have written: no rank takes the new
    files of another for old ones, and ranks that share a folder find the same free number.

    Args:
        config (Config): ``save_checkpoint``, ``save_checkpoint_path``, ``keep_old_run``.

    Returns:
        OldRun: loss logs, summary and results, which a run that ended early leaves without checkpoints; with
        ``keep_old_run`` the checkpoints too.

    Raises:
        UserError: there are checkpoints, this run would write some, and ``keep_old_run`` is False; or another training
            is still going on in this folder.
    """
    # msrun's scheduler runs the program too, in any folder; it writes nothing.
    if os.environ.get("MS_ROLE") == "MS_SCHED":
        return OldRun()
    logs = _loss_logs()
    _check_ended(logs.values())
    output = Path(config.save_checkpoint_path)
    places = [output / name for name in (CHECKPOINT_FOLDER.format(0), BEST_FOLDER)]
    results = [output / name for name in (RESULTS_TABLE, RESULTS_IMAGE)]
    checkpoints = {place: names for place in places if (names := _checkpoint_names(place))}
    summary = Path(SUMMARY_FOLDER)
    number = _free_number([*places, *results, summary])
    if checkpoints and config.save_checkpoint and not config.keep_old_run:
        raise UserError(_refusal(checkpoints, number))
    paths = list(checkpoints) if config.keep_old_run else []
    if config.save_checkpoint or config.keep_old_run:
        paths += [path for path in results if path.is_file()]
    if any(summary.glob("events.out.tfevents.*")):
        paths.append(summary)
    # A run that ended before its first step has left an empty log.
    return OldRun(tuple(paths), {rank: path for rank, path in logs.items() if path.stat().st_size}, number)


def hold(log: IO) -> None:
    """Tell other starts in this folder that the run is going on, until the loss log is closed.

    Args:
        log (IO): the open loss log, nothing written yet.

    Raises:
        UserError: a run that was started at the same time has been faster.
    """
    _lock(log, fcntl.LOCK_EX)


def _check_ended(logs: Iterable[Path]) -> None:
    for path in logs:
        with contextlib.suppress(PermissionError), path.open("rb") as log:  # said by name when it is written
            _lock(log, fcntl.LOCK_SH)


def _lock(log: IO, mode: int) -> None:
    try:
        fcntl.flock(log, mode | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another training is still going on here and writes {Path(log.name).absolute()}. Wait for it "
            "or stop it, or train in another folder"
        ) from error
    except OSError:  # there are file systems without locks
        return


def _checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt") if not path.name.startswith(PARTIAL_PREFIX))


def _loss_logs() -> dict[int, Path]:
    """The loss logs in the current folder by rank."""
    found = {path: _LOSS_LOG.fullmatch(path.name) for path in Path().glob("loss_*.log")}
    return {int(match[1]): path for path, match in found.items() if match and path.is_file()}


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _free_number(folders: Iterable[Path]) -> int:
    """The least number from 1 that neither the folders nor a loss log of any rank have been given."""
    number = 1
    while any(os.path.lexists(_numbered(path, number)) for path in folders) or any(
        Path().glob(LOSS_LOG.format("*") + f".{number}")
    ):
        number += 1
    return number


def _refusal(checkpoints: dict[Path, list[str]], number: int) -> str:
    found = []
    for folder, names in checkpoints.items():
        found.append(f"{folder} ({listed(names, _MAX_NAMES_SHOWN, ', ')})")
    kept = [str(_numbered(folder, number)) for folder in checkpoints]
    return (
        f"an earlier run has left checkpoints where this one would write its own: {' and '.join(found)}. Nothing "
        f"has been changed. To start anew, add --keep_old_run=True, which keeps the earlier run as "
        f"{' and '.join(kept)} (the loss log, summary and results that lie there get the same number), train in "
        f"another folder, or give another --save_checkpoint_path"
    )

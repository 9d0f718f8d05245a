"""Compiled graphs that outlive their process: the next start with the same settings compiles in seconds.

MindSpore can keep a graph on disk, but it looks only at the source files when it takes one up again: a graph compiled
with another threshold would be used silently. So every graph gets a folder of its own, named after all that it
depends on.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
from mindspore import nn

from src.model_utils.config import Config
from src.model_utils.keys import graph_settings

LOGGER = logging.getLogger(__name__)

# Graphs that stay; of more, those not used for longest go. One takes 16 MB at 256x320.
MAX_GRAPHS = 20
# Our folders, finished or not; others in the same place are the user's.
_NAME = re.compile(r"(\.partial-\d+-)?[0-9a-f]{32}")

# MindSpore reads the folder once in a process and numbers its graphs: one graph of each process is kept.
_compiled: list[bool] = []


def compile_once(cell: nn.Cell, inputs: Sequence[ms.Tensor], config: Config) -> None:
    """Compile the first graph of this process, from ``compile_cache_path`` if an earlier process has left it there.

    Without a folder, on other devices than the CPU, in distributed runs and without a program file nothing is done,
    and the cell compiles when it is called. A folder that cannot be used is a warning.

    Args:
        cell (Cell): the whole computation, in graph mode; its training flag is set.
        inputs (Sequence[Tensor]): what it will be called with.
        config (Config): what the cell was built from.
    """
    if _compiled or not config.compile_cache_path or config.device_target != "CPU" or config.run_distribute:
        return
    program = Path(sys.argv[0])
    if not program.is_file():  # MindSpore would look for it
        return
    _compiled.append(True)
    try:
        folder = Path(config.compile_cache_path).expanduser() / _key(cell, inputs, config, program)
        known = folder.is_dir()
        place = folder if known else folder.with_name(f".partial-{os.getpid()}-{folder.name}")
        place.mkdir(parents=True, exist_ok=True)
        os.utime(place)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        LOGGER.warning(
            "compiled graphs cannot be kept in %s (%s); name another folder with --compile_cache_path",
            config.compile_cache_path,
            getattr(error, "strerror", None) or error,
        )
        return
    if known:
        LOGGER.info("taking the compiled graph from %s", folder)
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(place))
    try:
        cell.compile(*inputs)
        if not known:
            _publish(place, folder)
    finally:
        ms.set_context(enable_compile_cache=False)
        if not known:
            shutil.rmtree(place, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give a folder that holds a whole graph its name, and drop the oldest of too many."""
    # MindSpore goes on silently when the disk is full.
    written = [path for path in partial.rglob("*") if path.is_file()]
    try:
        if len(written) < 2 or not all(path.stat().st_size for path in written):
            raise OSError(errno.EIO, "the graph was not written whole")
        if not folder.is_dir():  # another process may have been faster, with the same graph
            partial.rename(folder)
            LOGGER.info("kept the compiled graph in %s for the next start with the same settings", folder)
        ours = [path for path in folder.parent.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
        for path in sorted(ours, key=os.path.getmtime)[:-MAX_GRAPHS]:
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        # A graph less is no reason to end a training; so is a folder that another process has just removed.
        LOGGER.warning("the compiled graph may not be kept in %s: %s", folder.parent, error.strerror)


def _key(cell: nn.Cell, inputs: Sequence[ms.Tensor], config: Config, program: Path) -> str:
    """A name for all that the compiled graph depends on: settings, layers, parameters, inputs, source code."""
    parts = [ms.__version__, cell.training, graph_settings(config)]
    parts += [(name, type(part).__qualname__) for name, part in cell.cells_and_names()]
    parts += [
        (parameter.name, parameter.shape, parameter.dtype, parameter.requires_grad)
        for parameter in cell.get_parameters()
    ]
    parts += [(value.shape, value.dtype) for value in inputs]
    digest = hashlib.sha256(repr(parts).encode())
    # The program too, because MindSpore compares it.
    for path in [program, *sorted(Path(__file__).parents[1].rglob("*.py"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]

"""Compiled graphs that outlive their process: the next start with the same settings compiles in seconds.

MindSpore can keep a graph on disk, but it looks only at the source files when it takes one up again: a graph compiled
with another threshold would be used without a word. So every graph gets a folder of its own, named after all that it
depends on.
"""
import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
from mindspore import nn

from src.model_utils.config import Config, graph_settings

LOGGER = logging.getLogger(__name__)

# Folders that stay; of more, those not used for longest go. A graph takes 7 MB at 256x320, 25 MB at 768x1280.
MAX_GRAPHS = 20

# MindSpore reads the folder once in a process and numbers its graphs: one graph of each process is kept.
_compiled = []


def compile_once(cell: nn.Cell, inputs: Sequence[ms.Tensor], config: Config) -> None:
    """Compile the first graph of this process, from ``compile_cache_path`` if an earlier process has left it there.

    Without a folder, on other devices than the CPU and in distributed runs nothing is done, and the cell compiles
    when it is called. A folder that cannot be used is a warning.

    Args:
        cell (Cell): the whole computation, in graph mode; its training flag is set.
        inputs (Sequence[Tensor]): what it will be called with.
        config (Config): what the cell was built from.
    """
    if _compiled or not config.compile_cache_path or config.device_target != "CPU" or config.run_distribute:
        return
    _compiled.append(cell)
    folder = Path(config.compile_cache_path).expanduser() / _key(cell, inputs, config)
    partial = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    known = folder.is_dir()
    try:
        (folder if known else partial).mkdir(parents=True, exist_ok=True)
        os.utime(folder if known else partial)
    except OSError as error:
        LOGGER.warning("compiled graphs cannot be kept in %s (%s); name another folder with --compile_cache_path",
                       folder.parent, error.strerror)
        return
    LOGGER.info("taking the compiled graph from %s" if known else
                "keeping the compiled graph in %s for the next start with the same settings", folder)
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(folder if known else partial))
    try:
        cell.compile(*inputs)
        if not known:
            _publish(partial, folder)
    finally:
        ms.set_context(enable_compile_cache=False)
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, folder: Path) -> None:
    """Give a finished folder its name, and drop the oldest of too many."""
    try:
        partial.rename(folder)
    except OSError:
        # Another process was faster, with the same graph.
        return
    # Those that a killed process has left unfinished go the same way.
    for path in sorted(folder.parent.iterdir(), key=os.path.getmtime)[:-MAX_GRAPHS]:
        shutil.rmtree(path, ignore_errors=True)


def _key(cell: nn.Cell, inputs: Sequence[ms.Tensor], config: Config) -> str:
    """A name for all that the compiled graph depends on: settings, program, parameters, inputs, source code."""
    parts = [ms.__version__, type(cell).__name__, cell.training, graph_settings(config)]
    parts += [(parameter.name, parameter.shape, parameter.dtype, parameter.requires_grad)
              for parameter in cell.get_parameters()]
    parts += [(value.shape, value.dtype) for value in inputs]
    digest = hashlib.sha256(repr(parts).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]

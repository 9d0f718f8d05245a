"""Picks who tells a process its device, rank and job, and who moves its files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from src.model_utils import local_adapter, moxing_adapter
from src.model_utils.config import Config
from src.model_utils.local_adapter import ProcessEnvironment

__all__ = ["ProcessEnvironment", "job", "read_environment"]


def read_environment(config: Config, environ: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Device, rank and job of this process; ModelArts sets the same variables as launchers elsewhere.

    Args:
        config (Config): the configuration of the run.
        environ (Mapping[str, str] | None): the environment; None means ``os.environ``.

    Returns:
        ProcessEnvironment: see ``local_adapter.read_environment``.

    Raises:
        UserError: the environment is contradictory.
    """
    return local_adapter.read_environment(config, environ)


def job(config: Config) -> contextlib.AbstractContextManager[Config]:
    """What a run stands in: on ModelArts its files are moved in and out, elsewhere nothing happens.

        with job(config) as config:

    Args:
        config (Config): ``enable_modelarts`` and the keys of ``moxing_adapter.synchronised``.

    Returns:
        AbstractContextManager: enter it before files are read; it gives the configuration for the run.

    Raises:
        UserError: see ``read_environment``; on entering and leaving see ``moxing_adapter.synchronised``.
    """
    # msrun's scheduler runs the program too, but reads and writes no files.
    if not config.enable_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        return contextlib.nullcontext(config)
    return moxing_adapter.synchronised(config, read_environment(config))

"""Picks who tells a process its device, rank and job."""
from __future__ import annotations

from collections.abc import Mapping

from src.model_utils import local_adapter
from src.model_utils.config import Config
from src.model_utils.local_adapter import ProcessEnvironment

__all__ = ["ProcessEnvironment", "read_environment"]


def read_environment(config: Config, environ: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Device, rank and job of this process.

    Args:
        config (Config): the configuration of the run.
        environ (Mapping[str, str] | None): the environment; None means ``os.environ``.

    Returns:
        ProcessEnvironment: see ``local_adapter.read_environment``.

    Raises:
        UserError: the environment is contradictory.
    """
    return local_adapter.read_environment(config, environ)

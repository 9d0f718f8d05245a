"""Device, rank and job of this process on a machine of one's own, as its launcher set them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from src.model_utils.config import Config
from src.model_utils.errors import UserError

DEFAULT_JOB_ID = "default"


@dataclass(frozen=True)
class ProcessEnvironment:
    """Device, rank and job of one process of a run.

    Args:
        device_id (int): number of the device on this machine.
        rank_id (int): number of the process among all, from 0.
        rank_size (int): number of processes, at least 1.
        job_id (str): name of the job, "default" outside a job system.
    """

    device_id: int
    rank_id: int
    rank_size: int
    job_id: str


def read_environment(config: Config, environ: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Read DEVICE_ID, RANK_ID, RANK_SIZE and JOB_ID.

    A flag takes precedence over the environment, the environment over the configuration file. But the rank among the
    processes of a distributed run is set by their launcher: a flag may only repeat it.

    Args:
        config (Config): its ``device_id``, ``rank_id``, ``device_num`` stand in for variables not set.
        environ (Mapping[str, str] | None): the environment; None means ``os.environ``.

    Returns:
        ProcessEnvironment: for this process.

    Raises:
        UserError: a variable is not an integer from 0, the rank is not below the number of processes, or a flag
            contradicts the launcher.
    """
    environ = os.environ if environ is None else environ
    process = ProcessEnvironment(
        device_id=_read_number(config, "device_id", "DEVICE_ID", environ),
        rank_id=_read_number(config, "rank_id", "RANK_ID", environ),
        rank_size=_read_number(config, "device_num", "RANK_SIZE", environ),
        job_id=environ.get("JOB_ID") or DEFAULT_JOB_ID,
    )
    if process.rank_id >= process.rank_size:
        raise UserError(
            f"rank {process.rank_id} is not below the number of devices, {process.rank_size}: "
            "launchers set RANK_ID and RANK_SIZE in the environment; else set rank_id and device_num."
        )
    return process


def _read_number(config: Config, key: str, variable: str, environ: Mapping[str, str]) -> int:
    own, value = getattr(config, key), environ.get(variable, "").strip()
    is_flag = key in config.command_line
    if not value or (is_flag and (key == "device_id" or not config.run_distribute)):
        return own
    if not value.isdecimal():
        raise UserError(f"the environment variable {variable} is {value!r}: expected an integer from 0.")
    if is_flag and own != int(value):
        raise UserError(
            f"--{key} is {own}, but {variable}, which the launcher of a distributed run sets, is {value}: "
            f"leave --{key} out."
        )
    return int(value)

"""What surrounds a run: the process environment, the configuration, the device, the log, and how a script ends."""

import argparse
import ctypes
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from src import __version__
from src.model_utils.config import Config, describe, load_config
from src.model_utils.config_checks import check_model_flags
from src.model_utils.errors import UserError, first_line

LOGGER = logging.getLogger(__name__)

# oneDNN reads the first of these that is set.
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def prepare_process(cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """Set what MindSpore reads from the environment when it starts; call it before MindSpore is imported.

    The oneDNN inside MindSpore 2.9 and 2.10 has no fast 3x3 convolution for plain NCHW tensors on processors with
    AVX-512: it takes a reference kernel, a hundred times slower. Capped at AVX2 it takes a fast one. So the cap is
    set where the processor has AVX-512 and the user has set nothing. Worker processes inherit it.

    Args:
        cpu_info (Path): the kernel's description of the processor.

    Returns:
        str: one line for the log.
    """
    # Its own log speaks to developers of MindSpore; what users need comes as an exception.
    os.environ.setdefault("GLOG_v", "4")
    for variable in ISA_VARIABLES:
        if os.environ.get(variable):
            return f"oneDNN instruction set: {variable}={os.environ[variable]}, as set in the environment"
    flags = cpu_info.read_text(encoding="utf-8").split() if cpu_info.is_file() else []
    if "avx512f" not in flags:
        return "oneDNN instruction set: not limited, this processor does not need it"
    os.environ[ISA_VARIABLES[0]] = "AVX2"
    return (
        f"oneDNN instruction set: {ISA_VARIABLES[0]}=AVX2, because 3x3 convolutions are far slower with AVX-512 in "
        f"this MindSpore; set the variable yourself to overrule"
    )


def give_back_memory() -> None:
    """Return freed pages to the system, where the C library can (glibc); it keeps them for later otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass(frozen=True)
class Device:
    """The device a process works on, and its rank among the processes of the run.

    Args:
        target (str): "CPU", "GPU" or "Ascend".
        device_id (int): number of the device on this machine.
        rank (int): number of this process, from 0.
        num_devices (int): processes that train together.
        local_rank (int): number of this process among those of its host, from 0.
    """

    target: str
    device_id: int = 0
    rank: int = 0
    num_devices: int = 1
    local_rank: int = 0


def with_available_device(config: Config) -> Config:
    """The configuration with the best device that this MindSpore can use, where the user has not named one.

    Args:
        config (Config): ``device_target``, and whether a flag or the user's own file sets it.

    Returns:
        Config
    """
    if "device_target" in config.command_line | config.file_keys:
        return config
    import mindspore as ms

    target = next(target for target in ("Ascend", "GPU", "CPU") if ms.hal.is_available(target))
    LOGGER.info("runs on %s; --device_target names another device", target)
    return dataclasses.replace(config, device_target=target)


def init_device(config: Config) -> Device:
    """Choose graph mode, device and seed, and join the other processes of a distributed run.

    Args:
        config (Config): ``device_target``, ``device_id``, ``run_distribute``, ``seed``.

    Returns:
        Device

    Raises:
        UserError: this MindSpore has no support for the device.
    """
    import mindspore as ms

    from src.model_utils.device_adapter import read_environment

    environment = read_environment(config)
    try:
        ms.set_device(config.device_target, environment.device_id)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"device_target is {config.device_target}, but this MindSpore {ms.__version__} cannot use "
            f"device {environment.device_id} of that kind. Use --device_target=CPU, or install the "
            f"MindSpore package and driver for {config.device_target}. "
            f"MindSpore says: {first_line(error)}"
        ) from error
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(config.seed)
    if not config.run_distribute:
        return Device(config.device_target, environment.device_id)
    return _join_ranks(config.device_target, environment.device_id)


# What says that a launcher has started this process: msrun, mpirun, or a rank table as on older Ascend systems.
LAUNCHER_VARIABLES = ("MS_ROLE", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE")


def _join_ranks(target: str, device_id: int) -> Device:
    """Meet the other processes of a distributed run; the scheduler, which runs the program too, stays in here.

    Raises:
        UserError: no launcher has started this process, or the others do not come.
    """
    from mindspore.communication import get_group_size, get_local_rank, get_rank, init

    if not any(os.environ.get(variable) for variable in LAUNCHER_VARIABLES):
        raise UserError(
            f"run_distribute is True, but no launcher has started this process. Use "
            f"scripts/run_distribute_train_{target.lower()}.sh, or leave run_distribute at False"
        )
    try:
        init()
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run did not come together; are all hosts started, and can they reach "
            f"each other? MindSpore says: {first_line(error)}"
        ) from error
    return Device(target, device_id, get_rank(), get_group_size(), get_local_rank())


def told_by_rank_0(answer: bool, device: Device) -> bool:
    """The answer of rank 0, for all processes of a run; each of them has to ask.

    Args:
        answer (bool): what this process would say.
        device (Device): its rank, and how many there are.
    """
    if device.num_devices == 1:
        return answer
    from mindspore import Tensor, ops

    said = ops.AllReduce()(Tensor([1.0 if answer and device.rank == 0 else 0.0]))
    return bool(said.asnumpy()[0])


def run_configured(
    program: Callable[[Config], object],
    argv: Sequence[str] | None = None,
    *,
    model_keys: Sequence[str] = (),
    prepare: Callable[[Config], Config] | None = None,
) -> int:
    """Run a program on the configuration of its command line: the ``main`` of an entry script.

    ``--help`` and wrong flags end it before anything is imported that takes time, so a program imports MindSpore, and
    what uses it, itself.

    Args:
        program (Callable): the program.
        argv (Sequence[str] | None): arguments; None for those of the process.
        model_keys (Sequence[str]): the keys that name its model file, the main one first; those of other programs
            are refused. Default: not checked.
        prepare (Callable | None): checks and completes the configuration before files are moved, see ``job``.

    Returns:
        int: the exit code 0.

    Raises:
        UserError: for every mistake in a file or a flag, and what ``program`` raises.
        SystemExit: with code 0 after ``--help``.
    """
    prepare_process()
    config = load_config(argv)
    if model_keys:
        check_model_flags(config, f"--{model_keys[0]}", *model_keys)
    for line in describe(config):
        LOGGER.info(line)
    if prepare is not None:
        config = prepare(config)
    from src.model_utils.device_adapter import job

    with job(config) as config:
        program(config)
    return 0


def version_parser() -> argparse.ArgumentParser:
    """A parser of ``--version``, which prints the version of this program and ends it; a parent for other parsers."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}", help="Show the version of this program."
    )
    return parser


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a script: answer ``--version``, log to the standard output, and turn a user's mistake into one message.

    Args:
        main (Callable): the script's ``main(argv)``.
        argv (Sequence[str] | None): arguments; None for those of the process.

    Returns:
        int: the exit code: what ``main`` returns, 1 after a user's mistake, 130 after Ctrl-C.
    """
    version_parser().parse_known_args(argv)
    setup_logging()
    LOGGER.info(prepare_process())
    try:
        return main(argv)
    except UserError as error:
        LOGGER.error(error)
        return 1
    except PermissionError as error:
        LOGGER.error(
            "%s: %s. Give this user the right to read and write there, or name another place",
            error.filename,
            error.strerror,
        )
        return 1
    except KeyboardInterrupt:
        LOGGER.error("stopped by Ctrl-C")
        return 130


class _Formatter(logging.Formatter):
    """The message alone for information, the level in front of anything worse."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname}: {message}"


def setup_logging() -> None:
    """Send the log of this program to the standard output, line by line."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter())
    # A module run as ``python -m src.NAME`` logs as __main__.
    for name in ("src", "__main__"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False

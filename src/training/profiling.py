"""Profiling by MindSpore's own profiler: the time of every operator in a few training steps."""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mindspore.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from src.common.files import check_writable
from src.runtime import Device

LOGGER = logging.getLogger(__name__)

PROFILE_FOLDER = Path("profile")
# The first step holds the compilation, the second still warms up.
SKIPPED_STEPS = 2
PROFILED_STEPS = 5
ACTIVITIES = {
    "CPU": [ProfilerActivity.CPU],
    "GPU": [ProfilerActivity.CPU, ProfilerActivity.GPU],
    "Ascend": [ProfilerActivity.CPU, ProfilerActivity.NPU],
}


@contextlib.contextmanager
def step_profiler(config, device: Device, steps: int) -> Iterator[Callable[[], object]]:
    """Profile the steps 3 to 7 of the first epoch, or what a shorter epoch has of them, into ``profile/``.

    Args:
        config (Config): ``enable_profiling``; nothing is done without it.
        device (Device): ``target`` decides what is recorded; ``rank`` is part of the folder's name.
        steps (int): steps per epoch.

    Returns:
        A context manager that gives a function; call it after every step.

    Raises:
        UserError: the folder cannot be written.
    """
    if not config.enable_profiling:
        yield lambda: None
        return
    check_writable(PROFILE_FOLDER)
    skipped = min(SKIPPED_STEPS, steps - 1)
    worker = f"rank_{device.rank}"
    write = tensorboard_trace_handler(str(PROFILE_FOLDER), worker)

    def write_profile(recorded):
        # MindSpore shows its progress on the standard output, and swallows its errors.
        with contextlib.redirect_stdout(io.StringIO()):
            write(recorded)
        _say_where(worker, skipped + 1, profiler.step_num)

    profiler = profile(
        activities=ACTIVITIES[device.target],
        on_trace_ready=write_profile,
        schedule=schedule(wait=0, warmup=0, active=min(PROFILED_STEPS, steps - skipped), repeat=1, skip_first=skipped),
    )
    try:
        yield profiler.step
    finally:
        profiler.stop()


def _say_where(worker: str, first: int, last: int) -> None:
    """One line: which steps, where they are, how to look at them."""
    folders = sorted(PROFILE_FOLDER.glob(f"{worker}_{os.getpid()}_*"))
    if not folders or not any(folders[-1].rglob("trace_view.json")):
        LOGGER.warning("MindSpore's profiler has written no profile to %s", PROFILE_FOLDER.absolute())
        return
    LOGGER.info(
        "profile of the steps %d to %d in %s: ASCEND_PROFILER_OUTPUT/trace_view.json is a time line for "
        "https://ui.perfetto.dev or chrome://tracing, on CPU FRAMEWORK/*.csv are the times by operator",
        first,
        last,
        folders[-1],
    )

"""Is this machine fit for the detector? What is installed, what is there, and whether convolutions are fast.

    python -m src.tools.check_env
    python -m src.tools.check_env --device_target=Ascend

A line for each finding; the exit code is 0 when nothing stands in the way of a run. Docker's health check calls it with
--quick.
"""

import argparse
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.model_utils.errors import first_line
from src.runtime import ISA_VARIABLES, prepare_process, run

LOGGER = logging.getLogger(__name__)

OK, WARNING, FAILURE = "ok", "WARNING", "FAILURE"
PYTHON = (3, 11)
PACKAGES = (
    "mindspore",
    "opencv-python-headless",
    "pycocotools",
    "PyYAML",
    "onnx",
    "onnxruntime",
    "safetensors",
    "matplotlib",
    "tqdm",
    "pillow",
    "tensorboardX",
)
GIB = 2**30
# Measured with ResNet-50 and 2 images: a training step takes 3.6 GiB at 768 x 1280, 1.9 GiB at 256 x 320. The rest is
# room for data workers and an evaluation.
MEMORY_FULL, MEMORY_LEAST = 6 * GIB, 3 * GIB
DISK_LEAST = 2 * GIB  # records, checkpoints of 170 MB each
# The test convolution: 3x3, 64 to 64 channels, on a map of 96 x 160; and a matrix product to compare its speed with.
CHANNELS, HEIGHT, WIDTH = 64, 96, 160
MATRIX_SIDE = 768
TEST_SECONDS = 0.5
# The fast kernel reaches 40 to 100 % of a matrix product's speed, the slow one about 1 %.
SLOW_SHARE = 0.1


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state (str): OK, WARNING (it runs, but) or FAILURE.
        text (str): what was found.
        advice (str): what to do, empty when all is well.
    """

    state: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<8} {self.text}" + (f"\n{'':<8} -> {self.advice}" if self.advice else "")


def check_python() -> Iterator[Finding]:
    """The interpreter: MindSpore's wheels are built for one version."""
    fits = sys.version_info[:2] == PYTHON
    yield Finding(
        OK if fits else FAILURE,
        f"Python {platform.python_version()} in {sys.prefix}",
        "" if fits else "install Python 3.11 and make the environment again: bash scripts/quick_start.sh",
    )


def check_packages(version_of: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Versions of what the programs need.

    Args:
        version_of (Callable): the installed version of a package; raises PackageNotFoundError.
    """
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version_of(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if found:
        yield Finding(OK, ", ".join(found))
    if missing:
        yield Finding(FAILURE, f"not installed: {', '.join(missing)}", "pip install -r requirements.txt")


def check_numpy(version_of: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """numpy 1: the first operator of a MindSpore built for it dies with numpy 2."""
    try:
        version = version_of("numpy")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    fits = version.startswith("1.")
    yield Finding(
        OK if fits else FAILURE,
        f"numpy {version}",
        "" if fits else "MindSpore was built for numpy 1: pip install 'numpy>=1.26,<2'",
    )


def check_resources(
    folder: Path = Path(), memory_info: Path = Path("/proc/meminfo"), control_group: Path = Path("/sys/fs/cgroup")
) -> Iterator[Finding]:
    """Processor cores, free memory and free disk space.

    Args:
        folder (Path): where a run would write.
        memory_info (Path): the kernel's description of the memory.
        control_group (Path): the limits of a container, version 2.
    """
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        OK, f"{len(os.sched_getaffinity(0))} processor cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    )
    available = _available_memory(memory_info, control_group)
    text = f"{(available or 0) / GIB:.1f} GiB of memory free"
    if available is None:
        yield Finding(
            WARNING, "free memory unknown", f"training takes {MEMORY_LEAST // GIB} to {MEMORY_FULL // GIB} GiB"
        )
    elif available < MEMORY_LEAST:
        yield Finding(FAILURE, text, f"training needs at least {MEMORY_LEAST // GIB} GiB, on small canvases")
    elif available < MEMORY_FULL:
        yield Finding(
            WARNING,
            text,
            "a training step of 2 images at 768 x 1280 takes 3.6 GiB, and the data workers need some too: from "
            f"{MEMORY_FULL // GIB} GiB on it is safe. Use a smaller canvas (img_width, img_height) or batch_size",
        )
    else:
        yield Finding(OK, text)
    free = shutil.disk_usage(folder).free
    fits = free >= DISK_LEAST
    yield Finding(
        OK if fits else WARNING,
        f"{free / GIB:.1f} GiB of disk free in {folder.absolute()}",
        "" if fits else "records take as much as the images, a checkpoint 170 MB",
    )


def _available_memory(memory_info: Path, control_group: Path) -> int | None:
    """Bytes that a process could have without swapping, in a container within its limit; None where nobody says."""
    found = []
    for line in memory_info.read_text(encoding="utf-8").splitlines() if memory_info.is_file() else ():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = control_group / "memory.max", control_group / "memory.current"
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
        found.append(int(text) - int(used.read_text(encoding="ascii")))
    return min(found, default=None)


def check_devices(target: str) -> Iterator[Finding]:
    """Which of the device kinds this MindSpore can use.

    Args:
        target (str): the kind that a run would use; another one may be missing.
    """
    import mindspore as ms

    available = [name for name in ("CPU", "GPU", "Ascend") if ms.hal.is_available(name)]
    yield Finding(OK, f"MindSpore finds: {', '.join(f'{ms.hal.device_count(name)} {name}' for name in available)}")
    if target not in available:
        yield Finding(
            FAILURE,
            f"no {target}",
            f"install the MindSpore package and driver for {target}, or use --device_target={available[0]}",
        )


def check_convolution() -> Iterator[Finding]:
    """Whether 3x3 convolutions take a fast kernel here, measured against a matrix product."""
    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, ops

    ms.set_device("CPU")
    rng = np.random.default_rng(0)
    image, weight, matrix = (
        Tensor(rng.normal(size=shape).astype(np.float32))
        for shape in ((1, CHANNELS, HEIGHT, WIDTH), (CHANNELS, CHANNELS, 3, 3), (MATRIX_SIDE, MATRIX_SIDE))
    )
    convolution = ops.Conv2D(CHANNELS, 3, pad_mode="pad", pad=1)
    seconds = _seconds_per_call(lambda: convolution(image, weight).asnumpy())
    speed = 2 * CHANNELS**2 * 9 * HEIGHT * WIDTH / seconds
    reference = 2 * MATRIX_SIDE**3 / _seconds_per_call(lambda: ops.matmul(matrix, matrix).asnumpy())
    yield judge_convolution(seconds, speed / reference)


def _seconds_per_call(call: Callable[[], object]) -> float:
    """The fastest of some calls: others on the machine only make it slower."""
    call()  # compiles
    times: list[float] = []
    end = time.perf_counter() + TEST_SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def judge_convolution(seconds: float, share: float) -> Finding:
    """What a measured convolution says.

    Args:
        seconds (float): it took.
        share (float): its speed as a share of a matrix product's, in operations per second.

    Returns:
        Finding
    """
    text = f"a 3x3 convolution takes {1000 * seconds:.1f} ms, {100 * share:.0f} % of the speed of a matrix product"
    if share >= SLOW_SHARE:
        return Finding(OK, text)
    chosen = next((f"{name}={os.environ[name]}" for name in ISA_VARIABLES if os.environ.get(name)), "not limited")
    return Finding(
        FAILURE,
        f"{text}: MindSpore took its slow kernel (oneDNN instruction set: {chosen})",
        f"unset {' and '.join(ISA_VARIABLES)}, or set {ISA_VARIABLES[0]}=AVX2",
    )


def check_all(target: str, *, quick: bool = False) -> Iterator[Finding]:
    """Every finding in turn; MindSpore is not tried where it cannot work.

    Args:
        target (str): the kind of device that runs would use.
        quick (bool): only what is installed and which devices there are; right beside a run that needs the rest.
    """
    installed = [*check_python(), *check_packages(), *check_numpy()]
    yield from installed
    if not quick:
        yield from check_resources()
    if any(finding.state == FAILURE for finding in installed):
        return
    try:
        yield from check_devices(target)
        if target == "CPU" and not quick:
            yield from check_convolution()
    except (ImportError, RuntimeError) as error:
        missing_library = "cannot open shared object file" in str(error)
        yield Finding(
            FAILURE,
            f"MindSpore does not work: {first_line(error)}",
            "install the system's package of this library; libgomp.so.1 is in Debian's libgomp1"
            if missing_library
            else "pip install --force-reinstall -r requirements.txt",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Check whether this machine is fit for training and detection, and say what to do where it is not."""
    parser = argparse.ArgumentParser(prog="python -m src.tools.check_env", description=main.__doc__)
    parser.add_argument(
        "--device_target",
        choices=("CPU", "GPU", "Ascend"),
        default="CPU",
        help="The kind of device that runs would use. (default: %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Only what is installed and which devices there are: for a machine that is at work.",
    )
    args = parser.parse_args(argv)
    prepare_process()
    failures = 0
    for finding in check_all(args.device_target, quick=args.quick):
        LOGGER.info("%s", finding)
        failures += finding.state == FAILURE
    LOGGER.info("not fit for a run: see the lines with FAILURE" if failures else "fit for a run")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(run(main))

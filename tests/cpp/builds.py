"""What building ascend310_infer/ needs, and how the tests build it."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import REPO_ROOT

SOURCE = REPO_ROOT / "ascend310_infer"
LITE_HOME = Path(os.environ.get("MS_LITE_HOME") or REPO_ROOT / ".mindspore-lite").absolute()


def missing_tools() -> list[str]:
    """What is not there of g++, CMake and OpenCV's headers."""
    missing = [tool for tool in ("cmake", "g++") if not shutil.which(tool)]
    headers = [Path(prefix, "include/opencv4/opencv2/imgcodecs.hpp") for prefix in ("/usr", "/usr/local")]
    if not any(header.is_file() for header in headers) and "OpenCV_DIR" not in os.environ:
        missing.append("OpenCV's headers")
    return missing


def missing_for_program() -> list[str]:
    """What is not there of all that the whole program needs."""
    return missing_tools() + ([] if LITE_HOME.is_dir() else ["MindSpore Lite"])


def reason(missing: list[str]) -> str:
    """Why a test is left out."""
    return f"{', '.join(missing)} not found: run bash scripts/install_cpp_tools.sh"


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess:
    """Run CMake on the sources."""
    return subprocess.run(["cmake", "-S", SOURCE, "-B", folder, *options], capture_output=True, text=True, check=False)


def build(folder: Path, targets: Sequence[str], *options: str) -> Path:
    """Build targets with warnings as errors and the sanitizers on; returns the folder of the programs.

    What has been compiled in this folder is not compiled again, by whichever test process and with whichever options.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured = configure(folder, "-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", *options)
        assert configured.returncode == 0, configured.stderr
        command = ["cmake", "--build", folder, "--parallel", "2", "--target", *targets]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout + built.stderr
    return folder

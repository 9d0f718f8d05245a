"""The script that installs what the C++ program is built with, as far as that goes without installing."""

import os
import shutil
import subprocess

import pytest

from tests.cpp.builds import missing_for_program, reason
from tests.helpers import REPO_ROOT

SCRIPT = REPO_ROOT / "scripts/install_cpp_tools.sh"


def install(*arguments, path=None):
    return subprocess.run(
        ["/bin/bash", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path or os.environ["PATH"]},
    )


def test_takes_no_arguments():
    result = install("--all")
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "Usage: install_cpp_tools.sh\n")


def test_a_system_without_apt_is_told_what_to_install(tmp_path):
    for tool in ("dirname", "grep", "sed"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    result = install(path=str(tmp_path))
    assert result.returncode == 1
    assert "apt-get, which is not here. Install g++, CMake and OpenCV's headers" in result.stderr


@pytest.mark.skipif(bool(missing_for_program()) or "MS_LITE_HOME" in os.environ, reason=reason(missing_for_program()))
@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="no Debian packages on this system")
def test_does_nothing_when_all_is_there():
    before = (REPO_ROOT / ".mindspore-lite").stat().st_mtime_ns
    result = install()
    assert result.returncode == 0, result.stderr
    assert "Found the system packages" in result.stdout and "Found MindSpore Lite" in result.stdout
    assert "Downloading" not in result.stdout
    assert (REPO_ROOT / ".mindspore-lite").stat().st_mtime_ns == before

"""The functions that the scripts share, run by bash in folders with blanks in their names."""
import os
import subprocess

import pytest

from tests.helpers import REPO_ROOT


def bash(command, *arguments, **environment):
    """Run a command after sourcing common.sh; arguments are $1, $2, ..."""
    return subprocess.run(["bash", "-c", f"source {REPO_ROOT}/scripts/common.sh; {command}", "test", *arguments],
                          env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture
def fake_python(tmp_path):
    """A folder to put on the PATH, with interpreters of chosen versions."""
    folder = tmp_path / "fake bin"
    folder.mkdir()

    def make(name, is_3_11):
        # Stands for an interpreter: its exit code answers "are you 3.11?".
        (folder / name).write_text(f"#!/bin/bash\nexit {int(not is_3_11)}\n")
        (folder / name).chmod(0o755)

    make.folder = folder
    return make


def test_takes_the_python_that_was_named(fake_python):
    fake_python("mine", True)
    fake_python("python3.11", True)
    mine = str(fake_python.folder / "mine")
    result = bash("find_python", PYTHON=mine, PATH=f"{fake_python.folder}:{os.environ['PATH']}")
    assert (result.returncode, result.stdout.strip()) == (0, mine)


def test_passes_over_other_versions(fake_python):
    fake_python("python3.11", False)
    fake_python("python3", False)
    fake_python("python", True)
    result = bash("find_python", PATH=f"{fake_python.folder}:{os.environ['PATH']}", PYTHON="")
    assert result.stdout.strip() == "python"


def test_says_what_to_do_without_python_3_11(fake_python):
    for name in ("python3.11", "python3", "python"):
        fake_python(name, False)
    result = bash("find_python", PATH=f"{fake_python.folder}:{os.environ['PATH']}", PYTHON="")
    assert result.returncode == 1
    assert "no Python 3.11 found" in result.stderr and "PYTHON=" in result.stderr


def test_a_used_folder_is_kept_under_the_next_number(tmp_path):
    run = tmp_path / "my run"
    for content in ("first", "second", "third"):
        assert bash('fresh_folder "$1"', str(run)).returncode == 0
        assert list(run.iterdir()) == []
        (run / "note").write_text(content)
    assert (tmp_path / "my run.1" / "note").read_text() == "first"
    assert (tmp_path / "my run.2" / "note").read_text() == "second"
    assert (run / "note").read_text() == "third"


def test_errors_end_a_script_with_one_message():
    result = bash("die 'no such thing'; echo not reached")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "ERROR: no such thing\n")


def test_quick_start_takes_no_arguments():
    result = subprocess.run(["bash", REPO_ROOT / "scripts/quick_start.sh", "--fast"], capture_output=True, text=True,
                            check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "Usage: quick_start.sh\n")

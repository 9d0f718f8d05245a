"""The functions that the scripts share, run by bash in folders with spaces in their names."""

import os
import subprocess

import pytest

from tests.helpers import REPO_ROOT


def bash(command, *arguments, **environment):
    """Run a command after sourcing common.sh; arguments are $1, $2, ..."""
    return subprocess.run(
        ["bash", "-c", f"source {REPO_ROOT}/scripts/common.sh; {command}", "test", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


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
    result = subprocess.run(
        ["bash", REPO_ROOT / "scripts/quick_start.sh", "--fast"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "Usage: quick_start.sh\n")


def test_usage_is_the_head_of_the_script(tmp_path):
    script = tmp_path / "my script.sh"
    script.write_text(
        f"#!/bin/bash\n# Usage: my script.sh A B\n#        [C]\n# What it does.\n"
        f"source '{REPO_ROOT}/scripts/common.sh'\nusage\n"
    )
    result = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "Usage: my script.sh A B\n       [C]\n")


@pytest.mark.parametrize("name", ["it's a file", "$(date)", "-n", "a;b"])
def test_paths_come_back_absolute(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / name).touch()
    command = 'cd "$1"; require_dir FOLDER "$2"; require_file FILE "$2/$2"'
    result = bash(command, str(tmp_path), name)
    assert result.stdout.splitlines() == [f"{tmp_path}/{name}", f"{tmp_path}/{name}/{name}"], result.stderr


@pytest.mark.parametrize(
    "function, path",
    [
        ("require_file", "none"),
        ("require_file", "."),
        ("require_dir", "none"),
        ("require_dir", "file"),
        ("require_file", ""),
    ],
)
def test_a_missing_path_ends_the_script_with_its_name(tmp_path, function, path):
    (tmp_path / "file").touch()
    result = bash(f'cd "$1"; found=$({function} MODEL "$2"); echo not reached', str(tmp_path), path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"ERROR: MODEL: '{path}' is not a f")


def test_a_logged_command_is_silent_until_it_fails(tmp_path):
    log = str(tmp_path / "my.log")
    good = bash('run_logged "$1" printf "%s|" "a b" c', log)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    assert (tmp_path / "my.log").read_text() == "a b|c|"
    bad = bash('run_logged "$1" bash -c "seq 30; echo why >&2; exit 3"; echo not reached', log)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.splitlines()[-3:-1] == ["30", "why"] and "\n11\n" not in bad.stderr
    assert f"all of its output is in {log}" in bad.stderr
    assert (tmp_path / "my.log").read_text().startswith("1\n2\n")


def test_an_activated_environment_keeps_its_python(fake_python):
    fake_python("python", True)
    path = f"{fake_python.folder}:{os.environ['PATH']}"
    mine = bash("use_python; command -v python", PATH=path, VIRTUAL_ENV="/mine", CONDA_PREFIX="")
    assert mine.stdout.strip() == str(fake_python.folder / "python")
    ours = bash("use_python; command -v python", PATH=path, VIRTUAL_ENV="", CONDA_PREFIX="")
    expected = REPO_ROOT / ".venv/bin/python"
    assert ours.stdout.strip() == str(expected if expected.exists() else fake_python.folder / "python")

"""Compiled graphs on disk: every start is a process of its own, as for users, with a small network.

Tests that need a graph take a copy of the one that a first start has left.
"""

import os
import shutil
import subprocess
import sys
import time

import pytest

from src.model_utils.config import load_config
from src.model_utils.keys import graph_settings
from tests.helpers import REPO_ROOT

PROGRAM = """
import sys

from src.runtime import prepare_process, setup_logging

prepare_process()
setup_logging()

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.common.compile_cache import compile_once
from src.model_utils.config import load_config


class Scaled(nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.shift = Parameter(Tensor(np.full((1,), 10.0), ms.float32), name="shift")

    def construct(self, x):
        return x * self.factor + self.shift


ms.set_context(mode=ms.GRAPH_MODE)
size, shift, *flags = sys.argv[1:]
config = load_config(flags)
cell = Scaled(config.test_score_thr)
cell.shift.set_data(Tensor(np.full((1,), float(shift)), ms.float32))
inputs = [Tensor(np.ones(int(size)), ms.float32)]
compile_once(cell, inputs, config)
print("result", cell(*inputs).asnumpy().tolist())
"""

# Typed in, as in a notebook; MindSpore compiles layers of files only, so this one is its own.
INLINE_PROGRAM = """
from src.runtime import prepare_process

prepare_process()

import sys

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.common.compile_cache import compile_once
from src.model_utils.config import load_config

ms.set_context(mode=ms.GRAPH_MODE)
compile_once(nn.ReLU(), [Tensor(np.ones(2), ms.float32)], load_config(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program's file; graphs belong to the program that has compiled them."""
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def first(program):
    """Folder of the graph that a first start has left, the start's result and what it has said."""
    folder = program.parent / "graphs"
    return folder, *finished(launch(program, folder))


@pytest.fixture
def kept(first, tmp_path):
    """The name of the first start's graph, which lies in the folder that this test's starts use."""
    shutil.copytree(first[0], tmp_path / "graphs")
    (name,) = graphs(tmp_path)
    return name


@pytest.fixture
def start(program, tmp_path):
    """Start the program; returns the process, its output in one pipe."""

    def start(folder=tmp_path / "graphs", program=program, **settings):
        return launch(program, folder, **settings)

    return start


@pytest.fixture
def run(start):
    """Run the program; returns its result and what else it says."""

    def run(**settings):
        return finished(start(**settings))

    return run


def launch(program, folder, size=2, shift=10.0, thr=0.5, project=REPO_ROOT):
    return subprocess.Popen(
        [
            sys.executable,
            program,
            str(size),
            str(shift),
            "--device_target=CPU",
            f"--test_score_thr={thr}",
            f"--compile_cache_path={folder}",
        ],
        cwd=program.parent,
        env=os.environ | {"PYTHONPATH": str(project)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    *said, result = output.splitlines()
    assert result.startswith("result ")
    return result.removeprefix("result "), "\n".join(said)


def graphs(tmp_path):
    return sorted(path.name for path in (tmp_path / "graphs").iterdir())


def test_the_second_start_takes_the_graph_and_its_own_weights(run, first):
    folder, result, said = first
    assert result == "[10.5, 10.5]"
    (path,) = folder.iterdir()
    assert said == f"kept the compiled graph in {path} for the next start with the same settings"
    result, said = run(shift=20.0, folder=folder)
    assert result == "[20.5, 20.5]"
    assert said == f"taking the compiled graph from {path}"
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("other,expected", [({"thr": 0.25}, "[10.25, 10.25]"), ({"size": 3}, "[10.5, 10.5, 10.5]")])
def test_other_settings_and_inputs_have_a_graph_of_their_own(run, kept, tmp_path, other, expected):
    result, said = run(**other)
    assert result == expected
    assert said.startswith("kept the compiled graph")
    assert len(graphs(tmp_path)) == 2


def test_the_graph_depends_on_gradients_but_not_on_updates_and_images():
    """Optimizers stand behind the graph, augmentation before it."""

    def settings(flag):
        return graph_settings(load_config([flag]))

    usual = settings("--device_target=CPU")
    assert settings("--base_lr=0.5") == settings("--opt_type=adam") == settings("--epoch_size=3") == usual
    assert settings("--mosaic_ratio=0.5") == settings("--flip_ratio=0") == usual
    assert usual not in (settings("--grad_clip=True"), settings("--loss_scale=2"), settings("--seed=2"))


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_damaged_graph_is_compiled_again(run, kept, tmp_path, content):
    (path,) = (tmp_path / "graphs").rglob("*.mindir")
    damaged = path.read_bytes()[: path.stat().st_size // 2] if content is None else content
    path.chmod(0o600)
    path.write_bytes(damaged)
    result, _ = run()
    assert result == "[10.5, 10.5]"
    assert graphs(tmp_path) == [kept]


def test_a_killed_process_leaves_no_graph(start, run, tmp_path):
    process = start()
    while not (tmp_path / "graphs").is_dir() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    process.stdout.close()
    assert all(name.startswith(".partial-") for name in graphs(tmp_path))
    assert run()[0] == "[10.5, 10.5]"
    assert len([name for name in graphs(tmp_path) if not name.startswith(".partial-")]) == 1


def test_two_at_once_leave_one_graph(start, tmp_path):
    for process in [start(), start()]:
        assert finished(process)[0] == "[10.5, 10.5]"
    assert len(graphs(tmp_path)) == 1


def test_the_oldest_of_too_many_go(run, tmp_path):
    """Graphs only, those of killed processes among them: what else lies there is the user's."""
    names = [f"{age:032x}" if age % 2 else f".partial-{age}-{age:032x}" for age in range(1, 31)]
    for age, name in enumerate([*names, "holidays", "f" * 31, ".partial-x"], start=1):
        folder = tmp_path / "graphs" / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - 3600 * age,) * 2)
    (tmp_path / "graphs" / ("e" * 32)).write_text("a file")
    run()
    left = set(graphs(tmp_path))
    assert left.issuperset({*names[:19], "holidays", "f" * 31, ".partial-x", "e" * 32})
    assert left.isdisjoint(names[19:])
    assert len(left) == 20 + 4


def test_a_folder_that_cannot_be_used_is_a_warning(run, tmp_path):
    (tmp_path / "file").write_text("")
    result, said = run(folder=tmp_path / "file" / "graphs")
    assert result == "[10.5, 10.5]"
    assert said == (
        f"WARNING: compiled graphs cannot be kept in {tmp_path}/file/graphs (Not a directory); "
        f"name another folder with --compile_cache_path"
    )


def test_an_unknown_home_is_a_warning(run):
    result, said = run(folder="~no-such-user/graphs")
    assert result == "[10.5, 10.5]"
    assert said.startswith("WARNING: compiled graphs cannot be kept in ~no-such-user/graphs (")


def test_another_program_has_a_graph_of_its_own(run, kept, tmp_path):
    """MindSpore compares the program's file too and would write over the first one's graph."""
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "graphs" / kept).rglob("*.mindir")}
    other = tmp_path / "other.py"
    other.write_text(PROGRAM + "# another program\n")
    result, said = run(program=other)
    assert result == "[10.5, 10.5]"
    assert said.startswith("kept the compiled graph")
    assert len(graphs(tmp_path)) == 2
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_program_without_a_file_compiles_as_ever(tmp_path):
    done = subprocess.run(
        [sys.executable, "-", "2", "10", "--device_target=CPU", f"--compile_cache_path={tmp_path / 'graphs'}"],
        input=INLINE_PROGRAM,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{REPO_ROOT}:{tmp_path}"},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "graphs").exists()


def test_no_folder_no_graph(run, tmp_path):
    own = tmp_path / "program.py"
    own.write_text(PROGRAM)
    assert run(folder="", program=own) == ("[10.5, 10.5]", "")
    assert list(tmp_path.iterdir()) == [own]


def test_changed_source_code_has_a_graph_of_its_own(tmp_path):
    """A copy of the project, because this one must not change."""
    shutil.copytree(REPO_ROOT / "src", tmp_path / "src")
    for name in ("default_config.yaml", "default_config_101.yaml", "default_config_152.yaml"):
        shutil.copy(REPO_ROOT / name, tmp_path)
    own = tmp_path / "program.py"
    own.write_text(PROGRAM)
    for change, number in (("", 1), ("# changed\n", 2)):
        with (tmp_path / "src" / "FasterRcnn" / "rpn.py").open("a") as file:
            file.write(change)
        finished(launch(own, tmp_path / "graphs", project=tmp_path))
        assert len(graphs(tmp_path)) == number

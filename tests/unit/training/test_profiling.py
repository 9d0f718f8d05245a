"""Profiles of real operators by MindSpore's profiler."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.runtime import Device
from src.training.profiling import step_profiler


class Product(nn.Cell):
    """One matrix product and one ReLU."""

    def construct(self, x):
        return ops.relu(ops.matmul(x, x))


@pytest.fixture(scope="module")
def step(graph_mode):
    """A step of one product, compiled already."""
    cell, x = Product(), Tensor(np.ones((64, 64)), ms.float32)
    cell(x)
    return lambda: cell(x).asnumpy()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Profiling is on; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return dataclasses.replace(load_config(["--device_target=CPU"]), enable_profiling=True)


def ours(info):
    """The lines of this program; MindSpore's profiler has a log of its own."""
    return [record for record in info.records if record.name == "src.training.profiling"]


def profiled_counts(folder):
    """How often each kind of operator ran, by the table of times."""
    with (folder / "FRAMEWORK" / "cpu_op_type_info_0.csv").open() as file:
        return {row["op_type"]: int(row["type_occurrences"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("steps_per_epoch, epochs, first, last", [(12, 1, 3, 7), (4, 2, 3, 4), (1, 2, 1, 1)])
def test_the_steps_after_the_first_two_are_profiled(config, step, info, capfd, steps_per_epoch, epochs, first, last):
    with step_profiler(config, Device("CPU", rank=2, num_devices=4), steps_per_epoch) as step_done:
        for _ in range(steps_per_epoch * epochs):
            step()
            step_done()
    (folder,) = Path("profile").iterdir()
    assert folder.name.startswith(f"rank_2_{os.getpid()}_")
    assert profiled_counts(folder) == {"MatMul": last - first + 1, "ReLU": last - first + 1}
    events = json.loads((folder / "ASCEND_PROFILER_OUTPUT" / "trace_view.json").read_text())
    assert len([event for event in events if event["ph"] == "X" and "MatMul" in event["name"]]) == last - first + 1
    (line,) = [record.message for record in ours(info)]
    assert line.startswith(f"profile of the steps {first} to {last} in {folder}: ")
    assert capfd.readouterr().out == ""  # MindSpore's own progress


def test_a_run_that_ends_early_leaves_the_profile_of_its_steps(config, step, info):
    def five_steps_and_a_mistake():
        with step_profiler(config, Device("CPU"), 12) as step_done:
            for _ in range(5):
                step()
                step_done()
            raise UserError("the loss is not finite any more")

    with pytest.raises(UserError, match="not finite"):
        five_steps_and_a_mistake()
    (folder,) = Path("profile").iterdir()
    assert profiled_counts(folder)["MatMul"] == 3
    assert "profile of the steps 3 to 5 in" in info.text


def test_without_the_key_nothing_is_written(config, step, info):
    with step_profiler(dataclasses.replace(config, enable_profiling=False), Device("CPU"), 12) as step_done:
        for _ in range(10):
            step()
            step_done()
    assert list(Path().iterdir()) == []
    assert ours(info) == []


def test_a_folder_that_cannot_be_made_is_named_before_the_first_step(config):
    Path("profile").write_text("")
    with pytest.raises(UserError, match="cannot write profile: "), step_profiler(config, Device("CPU"), 12):
        pytest.fail("the first step")


def test_a_profile_that_could_not_be_written_is_said(config, step, info):
    """The profiler swallows its errors."""
    with step_profiler(config, Device("CPU"), 4) as step_done:
        for _ in range(4):
            step()
            shutil.rmtree("profile", ignore_errors=True)
            step_done()
    assert [record.levelname for record in ours(info)] == ["WARNING"]
    assert f"has written no profile to {Path('profile').absolute()}" in info.text

"""The check of the machine: each finding from made-up machines, and the whole on this one."""

import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple

import pytest

from src.tools import check_env
from src.tools.check_env import FAILURE, OK, WARNING
from tests.helpers import REPO_ROOT

GIB = 2**30


def versions(**known):
    """Looks packages up as importlib.metadata.version does."""

    def version_of(name):
        if name.replace("-", "_") not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name.replace("-", "_")]

    return version_of


@pytest.mark.parametrize("version, state", [("1.26.4", OK), ("2.0.0", FAILURE), ("10.1", FAILURE), (None, FAILURE)])
def test_numpy(version, state):
    (finding,) = check_env.check_numpy(versions(**({"numpy": version} if version else {})))
    assert finding.state == state
    if state == FAILURE:
        assert "pip install 'numpy>=1.26,<2'" in str(finding)


def test_missing_packages_are_named():
    everything = {name.replace("-", "_"): "9.9" for name in check_env.PACKAGES}
    assert [finding.state for finding in check_env.check_packages(versions(**everything))] == [OK]
    del everything["onnx"], everything["pycocotools"]
    good, bad = check_env.check_packages(versions(**everything))
    assert "mindspore 9.9" in good.text
    assert (bad.state, bad.text) == (FAILURE, "not installed: pycocotools, onnx")


def test_packages_are_those_of_the_requirements():
    lines = (REPO_ROOT / "requirements.txt").read_text().splitlines()
    required = {line.split("==")[0] for line in lines if "==" in line}
    assert required == {*check_env.PACKAGES, "numpy"}


@pytest.mark.parametrize("gib, state", [(2.9, FAILURE), (3.1, WARNING), (5.9, WARNING), (6.1, OK)])
def test_memory(tmp_path, gib, state):
    info = tmp_path / "meminfo"
    info.write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {int(gib * 2**20)} kB\n")
    _, memory, _ = check_env.check_resources(tmp_path, info, tmp_path / "none")
    assert memory.state == state
    assert f"{gib:.1f} GiB" in memory.text
    assert ("takes 3.6 GiB" in memory.advice) == (state == WARNING)


@pytest.mark.parametrize("limit, gib", [("max", 60), (str(5 * GIB), 4), (str(200 * GIB), 60)])
def test_memory_of_a_container(tmp_path, limit, gib):
    (tmp_path / "meminfo").write_text(f"MemAvailable: {60 * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    _, memory, _ = check_env.check_resources(tmp_path, tmp_path / "meminfo", tmp_path)
    assert f"{gib:.1f} GiB" in memory.text


def test_memory_unknown(tmp_path):
    _, memory, _ = check_env.check_resources(tmp_path, tmp_path / "none", tmp_path)
    assert (memory.state, memory.text) == (WARNING, "free memory unknown")


@pytest.mark.parametrize("free, state", [(GIB, WARNING), (3 * GIB, OK)])
def test_disk(tmp_path, monkeypatch, free, state):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(check_env.shutil, "disk_usage", lambda _: usage(free))
    *_, disk = check_env.check_resources(tmp_path)
    assert disk.state == state
    assert str(tmp_path) in disk.text


def test_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    cores, *_ = check_env.check_resources()
    assert f"{len(os.sched_getaffinity(0))} processor cores, OMP_NUM_THREADS=3" in str(cores)


# Measured on a processor with AVX-512: the reference kernel, and the fast one with the cap (1.13 GFLOP each; matrix
# products 150 GFLOP/s).
@pytest.mark.parametrize("seconds, state", [(1.1, FAILURE), (0.009, OK)])
def test_kernel(seconds, state, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    finding = check_env.judge_convolution(seconds, 1.13 / seconds / 150)
    assert finding.state == state
    if state == FAILURE:
        assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE" in finding.text
        assert "ONEDNN_MAX_CPU_ISA=AVX2" in finding.advice


def check(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "src.tools.check_env", *arguments],
        cwd=REPO_ROOT,
        check=False,
        timeout=100,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_this_machine():
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (
        "ok       Python 3.11.",
        "mindspore 2.",
        "numpy 1.",
        "processor cores",
        "MindSpore finds: 1 CPU",
        "a 3x3 convolution takes",
    ):
        assert text in done.stdout
    assert done.stdout.endswith("fit for a run\n")
    assert FAILURE not in done.stdout


def test_quick():
    """For a machine at work: neither its free memory nor its speed is a finding."""
    done = check("--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MindSpore finds" in done.stdout
    assert "memory" not in done.stdout
    assert "convolution" not in done.stdout


def test_device_that_is_not_there():
    done = check("--device_target=Ascend")
    assert done.returncode == 1
    assert "FAILURE  no Ascend" in done.stdout
    assert "--device_target=CPU" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_numpy_2_is_found_before_mindspore_dies_of_it(tmp_path):
    """A numpy 2 before this environment's, as far as its metadata go; MindSpore must not be imported."""
    (tmp_path / "numpy-2.3.0.dist-info").mkdir()
    (tmp_path / "numpy-2.3.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.3.0\n")
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").write_text("raise SystemError('imported')")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "FAILURE  numpy 2.3.0\n         -> MindSpore was built for numpy 1" in done.stdout
    assert "imported" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "message, advice",
    [
        ("libgomp.so.1: cannot open shared object file: No such file", "libgomp.so.1 is in Debian's libgomp1"),
        ("cannot import name c_expression", "pip install --force-reinstall"),
    ],
)
def test_broken_mindspore_is_one_line(tmp_path, message, advice):
    (tmp_path / "mindspore").mkdir()
    (tmp_path / "mindspore" / "__init__.py").write_text(f"raise ImportError({message!r})")
    done = check(PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"FAILURE  MindSpore does not work: {message}\n" in done.stdout
    assert advice in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

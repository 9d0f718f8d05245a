"""What surrounds a run: environment, exit codes, messages; scripts run as processes of their own."""

import os
import platform
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from src import __version__
from src.runtime import give_back_memory, prepare_process
from tests.helpers import REPO_ROOT

CAP, OLD_CAP = "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"
ENTRY_SCRIPTS = ["train.py", "eval.py", "eval_onnx.py", "export.py", "postprocess.py", "predict.py"]
# As in /proc/cpuinfo: a line for each property of each core.
CPU_INFO = "processor\t: 0\nmodel name\t: A CPU @ 2.50GHz\nflags\t\t: fpu sse2 avx avx2 {}fma\n\n"


@pytest.fixture
def cpu_info(tmp_path):
    """Write a description of a processor with these flags; returns the file."""

    def write(flags):
        path = tmp_path / "cpuinfo"
        path.write_text(CPU_INFO.format(flags) + CPU_INFO.format(flags).replace(": 0", ": 1"))
        return path

    return write


@pytest.fixture
def bare(monkeypatch):
    """An environment in which nobody has chosen an instruction set; put back afterwards."""
    for variable in (CAP, OLD_CAP):
        monkeypatch.setenv(variable, "")  # so that monkeypatch knows it and restores it
        monkeypatch.delenv(variable)
    monkeypatch.setenv("GLOG_v", "3")


def run_script(folder, text, *arguments, environment=None):
    """Run a script in a process of its own with the default environment plus this one."""
    script = folder / "script.py"
    script.write_text(text)
    variables = {name: value for name, value in os.environ.items() if name not in (CAP, OLD_CAP, "GLOG_v")}
    variables |= {"PYTHONPATH": str(REPO_ROOT)} | (environment or {})
    return subprocess.run(
        [sys.executable, script, *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
    )


# ---- the instruction set


def test_processor_with_avx512_is_capped(bare, cpu_info):
    line = prepare_process(cpu_info("avx512f avx512bw "))
    assert os.environ[CAP] == "AVX2"
    assert OLD_CAP not in os.environ
    assert f"{CAP}=AVX2" in line
    assert "\n" not in line


@pytest.mark.parametrize("flags", ["", "avx512f_not_quite "])
def test_processor_without_avx512_is_left_alone(bare, cpu_info, flags):
    before = dict(os.environ)
    line = prepare_process(cpu_info(flags))
    assert dict(os.environ) == before
    assert "not limited" in line


def test_system_without_cpuinfo_is_left_alone(bare, tmp_path):
    prepare_process(tmp_path / "none")
    assert CAP not in os.environ


@pytest.mark.parametrize("variable", [CAP, OLD_CAP])
@pytest.mark.parametrize("value", ["AVX512_CORE", "SSE41", "DEFAULT"])
def test_choice_of_the_user_stands(bare, cpu_info, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    before = dict(os.environ)
    line = prepare_process(cpu_info("avx512f "))
    assert dict(os.environ) == before
    assert f"{variable}={value}" in line


def test_second_call_changes_nothing(bare, cpu_info):
    prepare_process(cpu_info("avx512f "))
    before = dict(os.environ)
    prepare_process(cpu_info("avx512f "))
    assert dict(os.environ) == before


def test_worker_processes_inherit_the_cap(bare, cpu_info):
    prepare_process(cpu_info("avx512f "))
    child = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.environ['{CAP}'])"], capture_output=True, text=True, check=True
    )
    assert child.stdout == "AVX2\n"


def test_mindspore_is_not_imported_by_it(tmp_path):
    """The environment has to be set before MindSpore is imported."""
    done = run_script(
        tmp_path,
        "import sys\nfrom src.runtime import prepare_process, run, setup_logging\n"
        "prepare_process()\nprint('mindspore' in sys.modules)",
    )
    assert done.stdout == "False\n", done.stderr


# ---- how a script ends

SCRIPT = """
import logging
import os
import sys
from pathlib import Path
from src.model_utils.errors import UserError
from src.runtime import prepare_process, run

def main(argv=None):
    prepare_process()
    log = logging.getLogger("src.somewhere")
{body}

if __name__ == "__main__":
    sys.exit(run(main))
"""


def run_main(folder, *body, arguments=(), environment=None):
    text = SCRIPT.replace("{body}", "\n".join(f"    {line}" for line in body))
    return run_script(folder, text, *arguments, environment=environment)


@pytest.mark.parametrize("code", [0, 3])
def test_exit_code_is_what_main_returns(tmp_path, code):
    assert run_main(tmp_path, f"return {code}").returncode == code


def test_a_missing_right_is_one_message_that_names_the_place(tmp_path):
    done = run_main(tmp_path, "raise PermissionError(13, 'Permission denied', '/data/set.json')")
    assert done.returncode == 1
    assert "ERROR: /data/set.json: Permission denied. Give this user the right" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_mistake_of_the_user_is_one_message_and_code_1(tmp_path):
    done = run_main(tmp_path, "raise UserError('coco_root is /none: no such folder; give --coco_root')")
    assert done.returncode == 1
    assert done.stdout.count("coco_root is /none: no such folder; give --coco_root") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_message_of_a_derived_error_with_a_cause(tmp_path):
    done = run_main(
        tmp_path,
        "class ConfigError(UserError):",
        "    pass",
        "try:",
        "    int('x')",
        "except ValueError as error:",
        "    raise ConfigError('no number') from error",
    )
    assert done.returncode == 1
    assert "no number" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "invalid literal" not in done.stdout + done.stderr


def test_percent_sign_in_a_message(tmp_path):
    done = run_main(tmp_path, "raise UserError('100% of %s and %d')")
    assert done.returncode == 1
    assert "100% of %s and %d" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "error", ["ValueError('broken inside')", "OSError('broken inside')", "RuntimeError('broken inside')"]
)
def test_other_errors_keep_their_trace(tmp_path, error):
    done = run_main(tmp_path, f"raise {error}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "broken inside" in done.stderr
    assert "in main" in done.stderr


def test_system_exit_passes_through(tmp_path):
    assert run_main(tmp_path, "sys.exit(5)").returncode == 5


def test_ctrl_c_ends_with_130(tmp_path):
    done = run_main(tmp_path, "import signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(20)")
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stdout + done.stderr


def test_log_goes_to_the_standard_output_at_once(tmp_path):
    done = run_main(
        tmp_path, "log.info('plain words')", "log.warning('something odd')", "log.debug('too much')", "os._exit(0)"
    )  # buffers are lost
    assert "\nplain words\n" in done.stdout
    assert "WARNING: something odd" in done.stdout
    assert "too much" not in done.stdout
    assert done.stderr == ""


def test_instruction_set_is_said_once(tmp_path):
    """The script prepares the process twice: before its main, and in it."""
    done = run_main(tmp_path, "return 0")
    assert done.stdout.count("oneDNN instruction set") == 1


def test_choice_of_the_user_is_said(tmp_path):
    done = run_main(
        tmp_path, f"print(os.environ['{OLD_CAP}'], os.environ.get('{CAP}'))", "return 0", environment={OLD_CAP: "AVX"}
    )
    assert f"{OLD_CAP}=AVX" in done.stdout
    assert "\nAVX None\n" in done.stdout


def test_arguments_reach_main(tmp_path):
    text = SCRIPT.replace("{body}", "    print(argv)\n    return 0").replace("run(main)", "run(main, ['--a=1'])")
    assert "['--a=1']" in run_script(tmp_path, text).stdout


# ---- the device


def test_device_of_a_run(tmp_path):
    """Graph mode, seed and a device that works alone; a device that this MindSpore lacks is one message."""
    done = run_main(
        tmp_path,
        "import dataclasses",
        "from src.model_utils.config import load_config",
        "from src.runtime import Device, init_device",
        "config = load_config(['--device_target=CPU', '--seed=7'])",
        "device = init_device(config)",
        "import mindspore as ms",
        "import numpy as np",
        "print(device == Device('CPU', 0, 0, 1), ms.get_context('mode') == ms.GRAPH_MODE, ms.get_seed(),",
        "      ms.get_context('device_target'))",
        "init_device(dataclasses.replace(config, device_target='Ascend'))",
    )
    assert "\nTrue True 7 CPU\n" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "device_target is Ascend" in done.stdout
    assert "--device_target=CPU" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_best_device_that_is_there_is_taken_unless_one_is_named(tmp_path):
    """On this machine MindSpore has the CPU alone, and the shipped files say Ascend."""
    (tmp_path / "own.yaml").write_text("device_target: GPU\n")
    done = run_main(
        tmp_path,
        "from src.model_utils.config import load_config",
        "from src.runtime import with_available_device",
        "for flags in ([], ['--config_path=default_config.yaml'], ['--device_target=Ascend'],",
        f"              ['--config_path={tmp_path / 'own.yaml'}']):",
        "    print(with_available_device(load_config(flags)).device_target)",
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in ("CPU", "GPU", "Ascend")] == [
        "CPU",
        "CPU",
        "Ascend",
        "GPU",
    ]
    assert "runs on CPU; --device_target names another device" in done.stdout


def run_entry_script(folder, script, *arguments):
    """The finished process, which lists on its standard error what it has imported."""
    return subprocess.run(
        [sys.executable, "-X", "importtime", REPO_ROOT / script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def slow_imports(done):
    """The packages that a finished process has imported and that take time."""
    modules = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "src.runtime" in modules
    return {module.split(".")[0] for module in modules} & {"mindspore", "numpy", "cv2", "pycocotools", "tqdm"}


# What predict.py asks for besides the flags of the configuration.
NEEDED = {"predict.py": ["--model=none.onnx", "--input=none"]}


@pytest.mark.parametrize("script", ENTRY_SCRIPTS)
def test_wrong_flag_of_an_entry_script(tmp_path, script):
    done = run_entry_script(tmp_path, script, *NEEDED.get(script, ()), "--coco_rot=x")
    assert done.returncode == 1
    assert slow_imports(done) == set()
    assert "coco_rot" in done.stdout
    assert "coco_root" in done.stdout  # the nearest key
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_training_without_weights_is_refused_at_once(tmp_path):
    done = subprocess.run(
        [sys.executable, REPO_ROOT / "train.py", "--device_target=CPU", "--pre_trained="],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "ERROR: --pre_trained is empty" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ENTRY_SCRIPTS)
def test_help(tmp_path, script):
    done = run_entry_script(tmp_path, script, "--help")
    assert done.returncode == 0
    assert ("--model" if script == "predict.py" else "--coco_root") in done.stdout
    assert slow_imports(done) == set()


@pytest.mark.parametrize("script", ENTRY_SCRIPTS)
def test_version(tmp_path, script):
    done = run_entry_script(tmp_path, script, "--version")
    assert (done.returncode, done.stdout) == (0, f"{script} {__version__}\n")
    assert slow_imports(done) == set()


def test_the_version_of_the_project_is_that_of_the_source():
    """Read as setuptools does it, without a package that has to be built."""
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "src.__version__"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps and returns pages so")
def test_freed_memory_goes_back_to_the_system():
    """Pieces of 100 kB: glibc returns a page on its own only from the end of its heap, and every other piece stays."""
    pieces = [bytearray(b"x" * 100_000) for _ in range(2000)]
    before = resident_megabytes()
    del pieces[::2]
    give_back_memory()
    assert resident_megabytes() < before - 50


def resident_megabytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

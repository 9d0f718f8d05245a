"""Device, rank and job: which of flag, environment and file decides."""

import pytest

from src.model_utils import device_adapter
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.model_utils.local_adapter import ProcessEnvironment, read_environment


def test_without_a_launcher_the_file_decides():
    assert read_environment(load_config([]), {}) == ProcessEnvironment(
        device_id=0, rank_id=0, rank_size=1, job_id="default"
    )


def test_the_environment_goes_before_the_file():
    environ = {"DEVICE_ID": "3", "RANK_ID": "5", "RANK_SIZE": "8", "JOB_ID": "job-7"}
    assert read_environment(load_config([]), environ) == ProcessEnvironment(
        device_id=3, rank_id=5, rank_size=8, job_id="job-7"
    )


def test_a_flag_goes_before_the_environment():
    environ = {"DEVICE_ID": "3", "RANK_ID": "5", "RANK_SIZE": "8"}
    process = read_environment(load_config(["--device_id=2"]), environ)
    assert (process.device_id, process.rank_id, process.rank_size) == (2, 5, 8)
    on_modelarts = load_config(["--enable_modelarts=True", "--device_id=2", "--rank_id=1", "--device_num=4"])
    process = read_environment(on_modelarts, environ)
    assert (process.device_id, process.rank_id, process.rank_size) == (2, 1, 4)


def test_rank_in_a_distributed_run_is_the_launchers():
    """The published commands repeat it: mpirun ... --run_distribute=True --device_num=$RANK_SIZE."""
    environ = {"RANK_ID": "5", "RANK_SIZE": "8"}
    distributed = ["--run_distribute=True"]
    process = read_environment(load_config([*distributed, "--rank_id=5", "--device_num=8"]), environ)
    assert (process.rank_id, process.rank_size) == (5, 8)
    for flag, message in (
        ("--rank_id=4", "--rank_id is 4, but RANK_ID, .* is 5: leave --rank_id out"),
        ("--device_num=4", "--device_num is 4, but RANK_SIZE, .* is 8: leave --device_num out"),
    ):
        with pytest.raises(UserError, match=message):
            read_environment(load_config([*distributed, flag]), environ)


def test_an_empty_variable_counts_as_not_set():
    process = read_environment(load_config([]), {"DEVICE_ID": "", "RANK_ID": " ", "JOB_ID": ""})
    assert (process.device_id, process.rank_id, process.job_id) == (0, 0, "default")


@pytest.mark.parametrize("text", ["a", "-1", "1.5", "0x1"])
def test_a_variable_that_is_not_a_number_is_named(text):
    with pytest.raises(UserError, match=f"DEVICE_ID is '{text}'"):
        read_environment(load_config([]), {"DEVICE_ID": text})


@pytest.mark.parametrize("environ", [{"RANK_ID": "1"}, {"RANK_ID": "8", "RANK_SIZE": "8"}, {"RANK_SIZE": "0"}])
def test_a_rank_beyond_the_number_of_devices(environ):
    with pytest.raises(UserError, match="is not below the number of devices"):
        read_environment(load_config([]), environ)


def test_the_process_environment_is_the_default(monkeypatch):
    for name in ("RANK_ID", "RANK_SIZE", "JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEVICE_ID", "6")
    assert read_environment(load_config([])).device_id == 6
    assert device_adapter.read_environment(load_config([])).device_id == 6

"""Scripts of several devices: what they hand to msrun, told by a stub, and what they do when ranks fail."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import REPO_ROOT

TRAIN = ["it's.ckpt", "resnet_v1_101", "my coco"]
FLAGS = ["--backbone=resnet_v1_101", "--coco_root={home}/my coco", "--pre_trained={home}/it's.ckpt"]
SCRIPTS = {
    "run_distribute_train_ascend.sh": ("table.json", "Ascend"),
    "run_distribute_train_gpu.sh": ("2", "GPU"),
    "run_distribute_train_cpu.sh": ("2", "CPU"),
}
# Variables that the stub writes down, and what the ranks must find in them.
WAITING = {
    "MS_CPU_COMM_OP_TIMEOUT": "86400",
    "HCCL_CONNECT_TIMEOUT": "600",
    "HCCL_EXEC_TIMEOUT": "7200",
    "MS_NODE_TIMEOUT": "30",
}


def rank_table(*servers):
    """A table as hccl_tools writes it: an address and device ids for each server, ranks counted through."""
    listed, rank = [], 0
    for address, device_ids in servers:
        devices = []
        for device_id in device_ids:
            devices.append({"device_id": str(device_id), "device_ip": f"192.1.27.{rank}", "rank_id": str(rank)})
            rank += 1
        listed.append({"server_id": address, "device": devices, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(servers)), "server_list": listed, "status": "completed"}


@pytest.fixture
def user(caller):
    (caller.folder / "table.json").write_text(json.dumps(rank_table(("10.0.0.7", (4, 5)))))
    return caller


def msrun_flags(project, **changes):
    flags = {
        "worker_num": 2,
        "local_worker_num": 2,
        "node_rank": 0,
        "master_addr": "127.0.0.1",
        "master_port": 8200,
        "log_dir": f"{project}/train_parallel0/msrun",
        "join": True,
    } | changes
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_environment_and_folders(user, script):
    first, target = SCRIPTS[script]
    result = user(script, first, *TRAIN, "new records", "--epoch_size=1", MASTER_PORT="8200")
    assert result.returncode == 0, result.stderr
    project = user.project
    assert user.recorded()[0] == [
        *msrun_flags(project),
        f"{project}/scripts/rank_worker.py",
        f"{project}/train_parallel",
        "train.log",
        f"{project}/train.py",
        f"--device_target={target}",
        "--run_distribute=True",
        *(flag.format(home=user.folder) for flag in FLAGS),
        f"--mindrecord_dir={user.folder}/new records",
        "--epoch_size=1",
    ]
    environment = user.environment_of_the_stub()
    assert {name: environment.get(name) for name in WAITING} == WAITING
    assert environment.get("ASCEND_RT_VISIBLE_DEVICES") == ("4,5" if target == "Ascend" else None)
    for rank in range(2):
        folder = project / f"train_parallel{rank}"
        assert (folder / "train.log").read_text() == ""
        assert str((folder / "log").readlink()) == "train.log"
    assert not (project / "train_parallel2").exists()
    assert (project / "train_parallel0" / "msrun" / "msrun.log").read_text() == "the program's output\n"


def test_two_runs_on_one_machine_take_different_ports(user):
    ports = set()
    for _ in range(2):
        assert user("run_distribute_train_cpu.sh", "2", *TRAIN).returncode == 0
        ports.add(user.recorded()[0][4])
    assert len(ports) == 2
    assert all(re.fullmatch(r"--master_port=\d{4,5}", port) for port in ports)
    assert (user.project / "train_parallel1.1").is_dir()  # that of the first run


def test_foreign_master_of_a_single_host(user):
    """Left by another system: this host is the master."""
    assert user("run_distribute_train_cpu.sh", "2", *TRAIN, MASTER_ADDR="10.9.9.9").returncode == 0
    assert "--master_addr=127.0.0.1" in user.recorded()[0]


def test_second_run_does_not_touch_the_first(user):
    first = subprocess.Popen(
        ["bash", user.project / "scripts" / "run_distribute_train_cpu.sh", "2", *TRAIN],
        cwd=user.folder,
        env=user.environment | {"STUB_WAIT": "5"},
    )
    log = user.project / "train_parallel0" / "msrun" / "msrun.log"
    while not (log.exists() and log.read_text()):
        time.sleep(0.1)
    second = user("run_distribute_train_cpu.sh", "2", *TRAIN)
    assert second.returncode == 1
    assert second.stderr.startswith(f"ERROR: a run is still going on in {user.project}/train_parallel0; ")
    assert not (user.project / "train_parallel0.1").exists()
    assert first.wait(20) == 0
    assert user("run_distribute_train_cpu.sh", "2", *TRAIN).returncode == 0


def test_results_elsewhere(user):
    assert user("run_distribute_train_cpu.sh", "1", *TRAIN, RUN_ROOT=str(user.folder)).returncode == 0
    assert user("run_standalone_train_cpu.sh", *TRAIN, RUN_ROOT=str(user.folder)).returncode == 0
    assert (user.folder / "train_parallel0" / "train.log").exists()
    assert (user.folder / "train" / "train.log").exists()
    assert not list(user.project.glob("train*/"))


def test_records_of_a_flag_are_the_callers(user):
    assert (
        user("run_distribute_train_cpu.sh", "2", *TRAIN, "--mindrecord_dir=new records", "--image_dir=").returncode == 0
    )
    assert user.recorded()[0][-2:] == [f"--mindrecord_dir={user.folder}/new records", "--image_dir="]


def test_without_msrun(user):
    programs = user.folder.parent / "stub bin"
    (programs / "msrun").unlink()
    path = ":".join(part for part in user.environment["PATH"].split(":") if not (Path(part) / "msrun").exists())
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, PATH=path)
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR: no msrun on the PATH")
    assert list(user.project.glob("train_parallel*")) == []


def test_settings_of_the_user_stand(user):
    own = dict.fromkeys(WAITING, "77")
    assert user("run_distribute_train_cpu.sh", "2", *TRAIN, **own).returncode == 0
    environment = user.environment_of_the_stub()
    assert {name: environment[name] for name in WAITING} == own


def test_second_of_two_hosts(user):
    result = user("run_distribute_train_gpu.sh", "3", *TRAIN, NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    assert result.returncode == 0, result.stderr
    assert user.recorded()[0][:7] == msrun_flags(
        user.project,
        worker_num=6,
        local_worker_num=3,
        node_rank=1,
        master_addr="10.0.0.1",
        master_port=8118,
        log_dir=f"{user.project}/train_parallel3/msrun",
    )
    assert sorted(path.name for path in user.project.glob("train_parallel*")) == [
        "train_parallel3",
        "train_parallel4",
        "train_parallel5",
    ]


@pytest.mark.parametrize("again", ["--run_distribute=True", "--distribute=true", "--device_target=GPU"])
def test_a_flag_of_the_launcher_may_be_given(user, again):
    """The published commands have it; the program would refuse it twice."""
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, again)
    assert result.returncode == 0, result.stderr
    flags = user.recorded()[0][11:]
    own = ["--device_target=CPU"] if "distribute" in again else ["--run_distribute=True"]
    assert flags == [*own, *(flag.format(home=user.folder) for flag in FLAGS), again]


@pytest.mark.parametrize("flag", ["--run_distribute=False", "--distribute=false"])
def test_several_devices_that_train_alone(user, flag):
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, flag)
    assert result.returncode == 1
    assert result.stderr == f"ERROR: {flag}: these processes train together; run_standalone_train_*.sh trains alone\n"
    assert list(user.project.glob("train_parallel*")) == []


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"NNODES": "2"}, "NNODES is 2: set MASTER_ADDR"),
        ({"NNODES": "two"}, "NNODES: 'two' is not an integer of at least 1"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "10.0.0.1"}, "NODE_RANK is 2, but the hosts are 0 to 1"),
        ({"NODE_RANK": "-1"}, "NODE_RANK: '-1' is not an integer of at least 0"),
    ],
)
def test_hosts_that_cannot_be(user, environment, message):
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"ERROR: {message}")
    assert list(user.project.glob("train_parallel*")) == []


@pytest.mark.parametrize("number", ["0", "-2", "2x", ""])
def test_number_of_devices(user, number):
    result = user("run_distribute_train_cpu.sh", number, *TRAIN)
    assert result.returncode == 1
    assert result.stderr == f"ERROR: DEVICE_NUM: '{number}' is not an integer of at least 1\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_use_shows_the_usage(user, script):
    first, _ = SCRIPTS[script]
    for wrong in ([], [first, *TRAIN[:-1]], [first, *TRAIN, "records", "more"], [first, *TRAIN, "--flag"]):
        result = user(script, *wrong)
        assert result.returncode == 2
        assert result.stderr.startswith(f"Usage: {script} ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named(user, script):
    first, _ = SCRIPTS[script]
    for position, argument in enumerate(TRAIN):
        wrong = [*TRAIN[:position], f"no {argument}", *TRAIN[position + 1 :]]
        result = user(script, first, *wrong)
        assert result.returncode == 1
        assert re.match(rf"ERROR: [A-Z_]+: 'no {re.escape(argument)}' is ", result.stderr)


def test_detached_it_runs_on_by_itself(user):
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, "--detach", STUB_EXIT="7")
    assert result.returncode == 0
    assert re.fullmatch(
        r"process \d+ runs in the background; the output of rank i goes to "
        rf"{re.escape(str(user.project))}/train_parallel\{{i\}}/train.log\n",
        result.stdout,
    )
    log = user.project / "train_parallel0" / "msrun" / "launcher.log"
    for _ in range(100):
        if "ERROR" in log.read_text():
            break
        time.sleep(0.1)
    assert "the program's output\n" in log.read_text()
    assert log.read_text().endswith(f"more is in {log.parent}\n")


def test_failure_of_msrun_itself_is_shown(user):
    result = user("run_distribute_train_cpu.sh", "2", *TRAIN, STUB_EXIT="7")
    assert result.returncode == 1
    assert "the program's output\n" in result.stderr
    assert result.stderr.endswith(f"more is in {user.project}/train_parallel0/msrun\n")


# --- rank tables ------------------------------------------------------------------------------------------------------


def call_with_table(user, content, **environment):
    (user.folder / "table.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return user("run_distribute_train_ascend.sh", "table.json", *TRAIN, MASTER_PORT="8200", **environment)


TWO_SERVERS = rank_table(("10.0.0.7", (0, 1, 2)), ("10.0.0.8", (5, 6, 7)))


def test_table_of_two_servers_and_a_number(user):
    result = call_with_table(user, TWO_SERVERS, NODE_RANK="1")
    assert result.returncode == 0, result.stderr
    assert user.recorded()[0][:7] == msrun_flags(
        user.project,
        worker_num=6,
        local_worker_num=3,
        node_rank=1,
        master_addr="10.0.0.7",
        log_dir=f"{user.project}/train_parallel3/msrun",
    )
    assert user.environment_of_the_stub()["ASCEND_RT_VISIBLE_DEVICES"] == "5,6,7"


def test_server_is_found_by_its_address(user):
    """127.0.0.3 is an address of every Linux machine, 192.0.2.1 of none (RFC 5737); ranks, not places, decide."""
    table = rank_table(("192.0.2.1", (0, 1)), ("127.0.0.3", (2, 3)))
    table["server_list"].reverse()
    table["server_list"][0]["device"].reverse()
    result = call_with_table(user, table)
    assert result.returncode == 0, result.stderr
    assert user.recorded()[0][:4] == [
        "--worker_num=4",
        "--local_worker_num=2",
        "--node_rank=1",
        "--master_addr=192.0.2.1",
    ]
    assert user.environment_of_the_stub()["ASCEND_RT_VISIBLE_DEVICES"] == "2,3"


def changed(**changes):
    return TWO_SERVERS | changes


@pytest.mark.parametrize(
    "content, environment, message",
    [
        (TWO_SERVERS, {}, "no server_id is an address of this machine: 10.0.0.7, 10.0.0.8"),
        (TWO_SERVERS, {"NODE_RANK": "2"}, "NODE_RANK is '2', the table holds servers 0 to 1"),
        ("{", {}, "not a rank table"),
        ("[]", {}, "not a rank table"),
        ("{}", {}, "not a rank table"),
        (changed(server_list=[{"server_id": "10.0.0.7", "device": []}]), {}, "not a rank table"),
        (changed(server_list=[TWO_SERVERS["server_list"][1]] * 2), {}, "the ranks are [3, 4, 5, 3, 4, 5]"),
        (changed(server_list=[]), {}, "server_count is 2, server_list holds 0"),
        (changed(server_count="3"), {}, "server_count is 3, server_list holds 2"),
        (rank_table(("10.0.0.7", (0, 1)), ("10.0.0.8", (0,))), {"NODE_RANK": "0"}, "equally many on each"),
    ],
)
def test_tables_that_cannot_be_used(user, content, environment, message):
    result = call_with_table(user, content, **environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"ERROR: RANK_TABLE_FILE: '{user.folder}/table.json': ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(user.project.glob("train_parallel*")) == []


# --- a rank -----------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
print("rank", os.environ["RANK_ID"], "in", os.getcwd(), *sys.argv[1:], flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60 if sys.argv[1] == "wait" else 0)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def rank(tmp_path):
    """Start rank_worker.py as msrun does, with a small program; returns the process."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "logs").mkdir()
    for number in range(2):
        (tmp_path / f"run{number}").mkdir()

    def start(number, *arguments, role="MS_WORKER"):
        environment = os.environ | {"RANK_ID": str(number), "MS_ROLE": role, "RANK_LOGS": str(tmp_path / "logs")}
        return subprocess.Popen(
            [
                sys.executable,
                REPO_ROOT / "scripts" / "rank_worker.py",
                tmp_path / "run",
                "a.log",
                tmp_path / "program.py",
                *arguments,
            ],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def test_rank_works_in_its_folder(rank, tmp_path):
    assert rank(1, "0", "a b").wait(20) == 0
    assert (tmp_path / "run1" / "a.log").read_text() == f"rank 1 in {tmp_path}/run1 0 a b\n"
    assert not (tmp_path / "logs" / "failures").exists()


@pytest.mark.parametrize(
    "argument, code, how", [("3", 3, "ended with code 3"), ("kill", 128 + signal.SIGKILL, "was killed by signal 9")]
)
def test_failing_rank_ends_the_scheduler(rank, tmp_path, argument, code, how):
    scheduler = rank(0, "wait", role="MS_SCHED")
    assert scheduler.stdout.readline() == f"rank 0 in {Path.cwd()} wait\n"  # as msrun's log shows it
    assert rank(1, argument).wait(20) == code
    assert scheduler.wait(20) == -signal.SIGKILL
    assert rank(0, "5").wait(20) == 5
    assert (tmp_path / "logs" / "failures").read_text() == f"1 {how}\n0 ended with code 5\n"

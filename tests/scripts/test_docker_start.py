"""docker_start.sh against a stub of docker that records what it is called with, and what the Dockerfile copies."""

import os
import stat
import subprocess

import pytest

from tests.helpers import REPO_ROOT


@pytest.fixture
def user(caller):
    """A caller with a folder for results and a machine without devices."""
    for name in ("my models", "machine"):
        (caller.folder / name).mkdir()
    caller.environment["DEVICE_ROOT"] = str(caller.folder / "machine")
    return caller


def options_of(user, *more):
    home = user.folder
    return [
        "run",
        "--rm",
        "--interactive",
        "--ipc=host",
        f"--user={os.getuid()}:{os.getgid()}",
        "--env=HOME=/tmp",
        f"--env=RUN_ROOT={home}/my models",
        f"--volume={home}/my coco:{home}/my coco",
        f"--volume={home}/my models:{home}/my models",
        f"--workdir={home}/my models",
        *more,
    ]


def test_processor_and_a_shell(user):
    result = user("docker_start.sh", "faster_rcnn:1", "my coco", "my models")
    assert result.returncode == 0, result.stderr
    assert user.recorded()[0] == [*options_of(user), "faster_rcnn:1"]


def test_command(user):
    command = ["python", "/faster_rcnn/train.py", "--coco_classes=['background','a b']", "$(touch x)"]
    assert user("docker_start.sh", "image", "my coco", "my models", *command).returncode == 0
    assert user.recorded()[0] == [*options_of(user), "image", *command]


def test_ascend_devices(user):
    machine = user.folder / "machine"
    for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc"):
        (machine / name).write_text("")
    assert user("docker_start.sh", "image", "my coco", "my models").returncode == 0
    group = (machine / "davinci0").stat().st_gid
    driver = "/usr/local/Ascend/driver"
    assert user.recorded()[0] == [
        *options_of(
            user,
            *(
                f"--device={machine}/{name}"
                for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm", "hisi_hdc")
            ),
            f"--group-add={group}",
            f"--volume={driver}:{driver}:ro",
            "--volume=/usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro",
        ),
        "image",
    ]


def test_gpus(user):
    (user.folder / "machine" / "nvidiactl").write_text("")
    assert user("docker_start.sh", "image", "my coco", "my models").returncode == 0
    assert user.recorded()[0] == [*options_of(user, "--gpus=all"), "image"]


def test_exit_code_of_the_container(user):
    assert user("docker_start.sh", "image", "my coco", "my models", STUB_EXIT="7").returncode == 7


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["image", "my coco"], 2, "Usage: docker_start.sh IMAGE DATA_DIR MODEL_DIR"),
        (["", "my coco", "my models"], 1, "ERROR: IMAGE: '' is not the name"),
        (["--privileged", "my coco", "my models"], 1, "ERROR: IMAGE: '--privileged' is not the name"),
        (["image", "none", "my models"], 1, "ERROR: DATA_DIR: 'none' is not a folder"),
        (["image", "my coco", "val.json"], 1, "ERROR: MODEL_DIR: 'val.json' is not a folder"),
    ],
)
def test_wrong_use(user, arguments, code, message):
    result = user("docker_start.sh", *arguments)
    assert result.returncode == code
    assert result.stderr.startswith(message)


def test_folder_with_a_colon(user):
    (user.folder / "a:b").mkdir()
    result = user("docker_start.sh", "image", "a:b", "my models")
    assert result.returncode == 1
    assert "colon" in result.stderr


def test_without_docker(user):
    programs = user.folder.parent / "stub bin"
    (programs / "docker").unlink()
    for name in ("bash", "dirname", "realpath", "sed", "id"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    result = user("docker_start.sh", "image", "my coco", "my models", PATH=str(programs))
    assert result.returncode == 1
    assert result.stderr.startswith("ERROR: no docker on the PATH")


def test_scripts_that_users_call_can_be_executed():
    for path in (REPO_ROOT / "scripts").glob("*.sh"):
        assert path.stat().st_mode & stat.S_IXUSR, path.name


def test_what_the_image_needs_is_not_ignored():
    """Every tracked file of the program reaches the image; tests, history and benchmarks do not."""
    ignored = [line for line in (REPO_ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    tracked = subprocess.run(["git", "ls-files"], cwd=REPO_ROOT, check=True, capture_output=True, text=True).stdout
    tops = {name.split("/")[0] for name in tracked.splitlines()}
    assert {top for top in tops if top in ignored} == {".ci", "tests", "benchmarks"}

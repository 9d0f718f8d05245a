"""ModelArts: files in, files out, against a small moxing package whose object store is a folder."""

import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import zipfile

import numpy as np
import pytest

import eval_onnx
import predict
from src.model_utils import moxing_adapter
from src.model_utils.config import load_config
from src.model_utils.device_adapter import job
from src.model_utils.errors import UserError
from src.model_utils.local_adapter import ProcessEnvironment
from tests.helpers import REPO_ROOT

MOXING = '''
"""Stands for ModelArts' moxing: s3://NAME is a folder; every copy is written down."""
import os, pathlib, shutil
STORE = pathlib.Path(os.environ["FAKE_STORE"])

class file:
    @staticmethod
    def exists(url):
        return (STORE / url.removeprefix("s3://")).exists()

    @staticmethod
    def copy_parallel(source, target):
        with (STORE / "copies").open("a") as log:
            log.write(f"{source} {target}\\n")
        if "forbidden" in source + target:
            raise OSError("no permission")
        places = [STORE / name.removeprefix("s3://") if name.startswith("s3://") else pathlib.Path(name)
                  for name in (source, target)]
        if places[0].is_dir():
            shutil.copytree(*places, dirs_exist_ok=True, copy_function=shutil.copyfile)
'''
ALONE = ProcessEnvironment(device_id=0, rank_id=0, rank_size=1, job_id="job-1")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The object store; a process that inherits the environment finds the package too."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "moxing.py").write_text(textwrap.dedent(MOXING))
    folder = tmp_path / "store"
    for name in ("data", "weights"):
        (folder / name).mkdir(parents=True)
    (folder / "data" / "a.txt").write_text("data")
    (folder / "weights" / "a.ckpt").write_text("weights")
    monkeypatch.setenv("FAKE_STORE", str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/packages:{REPO_ROOT}")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "moxing", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # ask the environment again
    monkeypatch.chdir(tmp_path)
    yield folder
    sys.modules.pop("moxing", None)


def flags_of(tmp_path, **changes):
    flags = {
        "enable_modelarts": True,
        "data_url": "s3://data",
        "checkpoint_url": "s3://weights",
        "train_url": "s3://results",
        "data_path": tmp_path / "in",
        "load_path": tmp_path / "load",
        "output_path": tmp_path / "out",
    } | changes
    return [f"--{name}={value}" for name, value in flags.items()]


def config_of(tmp_path, **changes):
    return load_config(flags_of(tmp_path, **changes))


def copies(store):
    return [line.split() for line in (store / "copies").read_text().splitlines()]


def test_data_in_results_out(store, tmp_path):
    with job(config_of(tmp_path)):
        assert (tmp_path / "in" / "a.txt").read_text() == "data"
        assert (tmp_path / "load" / "a.ckpt").read_text() == "weights"
        with open("loss_0.log", "w") as log:  # noqa: PTH123 - a relative name lands in output_path
            log.write("losses")
        assert not (store / "results").exists()
    assert (tmp_path / "out" / "loss_0.log").read_text() == "losses"
    assert (store / "results" / "loss_0.log").read_text() == "losses"


def test_without_modelarts_nothing_happens(store, tmp_path):
    with job(config_of(tmp_path, enable_modelarts=False)):
        assert os.getcwd() == str(tmp_path)  # noqa: PTH109
    assert not (store / "copies").exists()
    assert not (tmp_path / "in").exists()


def test_scheduler_moves_nothing(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    with job(config_of(tmp_path)):
        pass
    assert not (store / "copies").exists()


def test_empty_urls_are_skipped(store, tmp_path):
    with job(config_of(tmp_path, data_url="", checkpoint_url="", train_url="")):
        pass
    assert not (store / "copies").exists()


def test_results_of_a_failed_run_go_out(store, tmp_path):
    with pytest.raises(UserError, match="the loss is not finite"), job(config_of(tmp_path)):
        (tmp_path / "out" / "loss_0.log").write_text("nan")
        raise UserError("the loss is not finite")
    assert (store / "results" / "loss_0.log").read_text() == "nan"


def test_failing_copies_are_reported(store, tmp_path, caplog):
    for key, value in (
        ("data_url", "s3://forbidden"),
        ("checkpoint_url", "s3://forbidden"),
        ("train_url", "s3://forbidden"),
    ):
        with (
            pytest.raises(UserError, match="s3://forbidden.*: no permission"),
            job(config_of(tmp_path, **{key: value})),
        ):
            pass
    # The run's own error is the one that counts.
    caplog.clear()
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(UserError, match="own error"),
        job(config_of(tmp_path, train_url="s3://forbidden")),
    ):
        raise UserError("own error")
    assert "s3://forbidden: no permission" in caplog.text


def test_nothing_arrives(store, tmp_path):
    with (
        pytest.raises(UserError, match="s3://none is empty or does not exist"),
        job(config_of(tmp_path, data_url="s3://none")),
    ):
        pass


def test_without_moxing(tmp_path):
    with pytest.raises(UserError, match="package moxing cannot be imported"), job(config_of(tmp_path)):
        pass


def test_folder_that_cannot_be_made(store, tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="choose another with data_path"),
        job(config_of(tmp_path, data_path=tmp_path / "file" / "in")),
    ):
        pass


# --- paths ------------------------------------------------------------------------------------------------------------


def test_relative_paths_that_are_read_are_those_of_the_start(store, tmp_path, monkeypatch):
    """The published code never changes its folder. Results land in output_path, whatever they are called."""
    read = {
        "coco_root": "in/coco",
        "image_dir": "./images",
        "anno_path": "val.json",
        "pre_trained": "a.ckpt",
        "checkpoint": "./faster_rcnn/b.ckpt",
        "ckpt_file": "../c.ckpt",
        "result_path": "results",
        "val_anno_path": "/absolute/val.txt",
        "mindrecord_dir": "records",
    }
    with job(config_of(tmp_path, **read, save_checkpoint_path="checkpoints", file_name="model")) as config:
        assert os.getcwd() == str(tmp_path / "out")  # noqa: PTH109
        found = {key: getattr(config, {"checkpoint": "checkpoint_path"}.get(key, key)) for key in read}
        assert found == {key: str(tmp_path / path) for key, path in read.items()}
        assert (config.save_checkpoint_path, config.file_name) == ("checkpoints", "model")
    monkeypatch.chdir(tmp_path)
    with job(config_of(tmp_path, pre_trained="", coco_root="in/coco")) as config:
        assert (config.pre_trained, config.anno_path) == ("", "")
        assert config.mindrecord_dir == str(tmp_path / "in/coco/MindRecord_COCO_TRAIN")


def test_elsewhere_the_configuration_is_as_it_was(tmp_path):
    config = load_config(["--coco_root=coco"])
    with job(config) as found:
        assert found is config


def test_relative_folders(store, tmp_path):
    with job(config_of(tmp_path, data_path="in", output_path="out")) as config:
        assert (tmp_path / "in" / "a.txt").is_file()
        (tmp_path / "out" / "a.log").write_text("here")
        assert config.output_path == "out"
    assert (store / "results" / "a.log").read_text() == "here"


def test_files_that_other_programs_read(store, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"model {tmp_path}/missing.onnx does not exist"):
        eval_onnx.main(flags_of(tmp_path, file_name="missing.onnx"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}/none"):
        predict.main([*flags_of(tmp_path), "--model=missing.onnx", "--input=none"])


# --- results of earlier runs ------------------------------------------------------------------------------------------


@pytest.fixture
def earlier(store):
    """What an earlier run has left where this one's results will go."""
    (store / "results" / "ckpt_0").mkdir(parents=True)
    (store / "results" / "ckpt_0" / "old.ckpt").write_text("old weights")
    (store / "results" / "loss_0.log").write_text("old losses")
    (store / "results" / "loss_8.log").write_text("old losses of rank 8")
    return store / "results"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != moxing_adapter.RESULTS_MARKER_NAME
    }


def test_a_run_sees_earlier_results(earlier, tmp_path):
    before = contents(earlier)
    with job(config_of(tmp_path)):
        assert contents(tmp_path / "out") == before
        (tmp_path / "out" / "loss_0.log").write_text("old losses, new losses")
        (tmp_path / "out" / "ckpt_0" / "new.ckpt").write_text("new weights")
    assert contents(earlier) == before | {"loss_0.log": "old losses, new losses", "ckpt_0/new.ckpt": "new weights"}
    assert not list(earlier.glob(".*"))
    assert contents(tmp_path / "out") == contents(earlier)  # and nothing else is left there


def test_what_came_does_not_go_out_again(earlier, tmp_path):
    """Another host of the run has put its log there meanwhile."""
    with job(config_of(tmp_path)):
        (earlier / "loss_8.log").write_text("new losses of rank 8")
        (tmp_path / "out" / "loss_0.log").write_text("new losses")
    assert contents(earlier) == {
        "ckpt_0/old.ckpt": "old weights",
        "loss_0.log": "new losses",
        "loss_8.log": "new losses of rank 8",
    }


def test_a_refused_run_puts_nothing_out(store, earlier, tmp_path):
    """Such as one that finds the checkpoints of another."""
    with pytest.raises(UserError, match="an earlier run"), job(config_of(tmp_path, data_url="", checkpoint_url="")):
        raise UserError("an earlier run has left checkpoints")
    assert copies(store) == [["s3://results", f"{tmp_path}/out"]]


def test_renamed_results_are_mentioned(earlier, tmp_path, caplog):
    """As --keep_old_run=True does."""
    with job(config_of(tmp_path)):
        (tmp_path / "out" / "ckpt_0").rename(tmp_path / "out" / "ckpt_0.1")
    assert (earlier / "ckpt_0.1" / "old.ckpt").read_text() == "old weights"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "such as ckpt_0/old.ckpt; in s3://results they stay" in warnings[0]


@pytest.mark.parametrize("has_exists", [True, False])
def test_there_need_be_no_earlier_results(store, tmp_path, monkeypatch, has_exists):
    """The folder may not exist, in a store that says so or fails, or be empty."""
    import moxing

    if not has_exists:

        def copy(source, target):
            if source == "s3://results" and not (store / "results").exists():
                raise FileNotFoundError(source)
            original(source, target)

        original = moxing.file.copy_parallel
        monkeypatch.delattr(moxing.file, "exists")
        monkeypatch.setattr(moxing.file, "copy_parallel", copy)
    with job(config_of(tmp_path)):
        assert contents(tmp_path / "out") == {}
    (store / "results").mkdir(exist_ok=True)
    with job(config_of(tmp_path, output_path=tmp_path / "again")):
        (tmp_path / "again" / "loss_0.log").write_text("losses")
    assert contents(store / "results") == {"loss_0.log": "losses"}


def test_earlier_results_that_cannot_be_had_stop_the_run(store, tmp_path):
    (store / "forbidden").mkdir()
    with (
        pytest.raises(UserError, match=r"s3://forbidden \(train_url\) could not be copied to .*: no permission"),
        job(config_of(tmp_path, train_url="s3://forbidden")),
    ):
        raise AssertionError("must not begin")


def test_killed_job_goes_on_with_its_own_results(earlier, tmp_path):
    """The first process leaves without taking anything out; the next of the same job must not copy over its files."""
    config, log = config_of(tmp_path), tmp_path / "out" / "loss_0.log"
    with moxing_adapter.synchronised(config, ProcessEnvironment(1, 1, 2, "job-1")):
        log.write_text("new losses")
    assert (earlier / "loss_0.log").read_text() == "old losses"
    with moxing_adapter.synchronised(config, ProcessEnvironment(0, 0, 2, "job-1")):
        assert log.read_text() == "new losses"
    assert (earlier / "loss_0.log").read_text() == "new losses"
    (earlier / "loss_0.log").write_text("losses of a job elsewhere")
    with moxing_adapter.synchronised(config, ProcessEnvironment(0, 0, 2, "job-2")):
        assert log.read_text() == "losses of a job elsewhere"


def test_file_systems_without_links(earlier, tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(moxing_adapter.os, "link", no_link)
    with job(config_of(tmp_path)):
        (tmp_path / "out" / "new").write_text("new")
    assert (earlier / "new").read_text() == "new"


# --- several processes ------------------------------------------------------------------------------------------------


def test_one_process_of_a_host_copies(store, tmp_path):
    """Four processes at once; four copies in all: data, checkpoints and earlier results in, results out."""
    (store / "results").mkdir()
    (store / "results" / "loss_0.log").write_text("old")
    program = (
        "import os, sys\nfrom src.model_utils.config import load_config\n"
        "from src.model_utils.device_adapter import job\n"
        "with job(load_config(sys.argv[1:])):\n    print(open(sys.argv[1][12:] + '/a.txt').read())\n"
        "    assert open('loss_0.log').read() == 'old'\n"
        "    open(f'loss_{os.environ[\"RANK_ID\"]}.txt', 'w')"
    )
    flags = flags_of(tmp_path)
    flags.sort(key=lambda flag: not flag.startswith("--data_path="))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *flags],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"DEVICE_ID": str(rank), "RANK_ID": str(rank), "RANK_SIZE": "4"},
        )
        for rank in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["data\n"] * 4
    assert [process.returncode for process in processes] == [0] * 4
    *came, (source, target) = copies(store)
    assert sorted(came) == [
        ["s3://data", f"{tmp_path}/in"],
        ["s3://results", f"{tmp_path}/out"],
        ["s3://weights", f"{tmp_path}/load"],
    ]
    assert source.startswith(f"{tmp_path}/out/") and target == "s3://results"


@pytest.mark.parametrize(
    "device_id, rank_id, rank_size, takes",
    [(0, 0, 1, True), (3, 0, 1, True), (0, 0, 8, True), (1, 1, 8, False), (0, 8, 16, True), (7, 15, 16, False)],
)
def test_who_takes_results_out(store, tmp_path, device_id, rank_id, rank_size, takes):
    with moxing_adapter.synchronised(config_of(tmp_path), ProcessEnvironment(device_id, rank_id, rank_size, "job-1")):
        pass
    assert ([f"{tmp_path}/out", "s3://results"] in copies(store)) == takes


def test_another_job_copies_again(store, tmp_path):
    config = config_of(tmp_path, train_url="", checkpoint_url="")
    for job_id in ("job-1", "job-1", "job-2"):
        with moxing_adapter.synchronised(config, ProcessEnvironment(0, 0, 1, job_id)):
            pass
    assert len(copies(store)) == 2


def test_broken_off_copy_is_made_again(store, tmp_path):
    """A process that was killed leaves files and a free lock, but no marker."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("da")
    with (tmp_path / "in" / moxing_adapter.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    with moxing_adapter.synchronised(config_of(tmp_path), ALONE):
        assert (tmp_path / "in" / "a.txt").read_text() == "data"


# --- archives ---------------------------------------------------------------------------------------------------------


def test_archives_are_unpacked(store, tmp_path):
    with zipfile.ZipFile(store / "data" / "coco.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("coco/annotations/a b.json", "{}")
    with job(config_of(tmp_path)):
        assert (tmp_path / "in" / "coco" / "annotations" / "a b.json").read_text() == "{}"


def write_link(archive):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-the-archive", "a/../../outside", None])
def test_archives_that_lead_out(tmp_path, name):
    target = tmp_path / "target"
    target.mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", "good")
        write_link(archive) if name is None else archive.writestr(name, "bad")
    with pytest.raises(UserError, match="leads out of"):
        moxing_adapter.unpack(tmp_path / "a.zip", target)
    assert list(target.iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_damaged_compressed_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", np.random.default_rng(0).bytes(2000).hex())
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[100:400] = bytes(300)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip cannot be unpacked"):
        moxing_adapter.unpack(tmp_path / "a.zip", tmp_path)


def test_damaged_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("file", "content" * 1000)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[500] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip cannot be unpacked: Bad CRC"):
        moxing_adapter.unpack(tmp_path / "a.zip", tmp_path)
    (tmp_path / "a.zip").write_bytes(data[:700])
    with pytest.raises(UserError, match=r"a\.zip cannot be unpacked: File is not a zip file"):
        moxing_adapter.unpack(tmp_path / "a.zip", tmp_path)


def test_archive_larger_than_the_disk(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("file", "x" * 1000)
    monkeypatch.setattr(moxing_adapter.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 999}))
    with pytest.raises(UserError, match="needs 1,000 bytes unpacked, 999 are free"):
        moxing_adapter.unpack(tmp_path / "a.zip", tmp_path)


# --- an entry script --------------------------------------------------------------------------------------------------


def test_entry_script_on_modelarts(store, tmp_path):
    """postprocess.py scores two images whose annotations and result files come from the store, and its metrics go
    there; stopped or not, with the exit code of the run."""
    boxes = [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}]
    (store / "data" / "val.json").write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 100}],
                "annotations": boxes,
                "categories": [{"id": 1, "name": "cell"}],
            }
        )
    )
    (store / "data" / "results").mkdir()
    for number, array in enumerate(
        (np.array([[10, 20, 40, 60, 0.9]], np.float32), np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    ):
        array.tofile(store / "data" / "results" / f"a_{number}.bin")
    done = subprocess.run(
        [
            sys.executable,
            REPO_ROOT / "postprocess.py",
            *flags_of(tmp_path),
            "--anno_path=in/val.json",
            "--result_path=in/results",
            "--coco_classes=['background','cell']",
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((store / "results" / "metrics.json").read_text())["AP"] == pytest.approx(1.0)
    assert "copying s3://data to" in done.stdout


def test_stopped_job_takes_its_results_out(store, tmp_path):
    program = (
        "import sys, time\nfrom src.model_utils.config import load_config\n"
        "from src.model_utils.device_adapter import job\n"
        "with job(load_config(sys.argv[1:])):\n    open('loss_0.log', 'w').write('so far')\n"
        "    print('running', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, *flags_of(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "running\n"
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert (store / "results" / "loss_0.log").read_text() == "so far"

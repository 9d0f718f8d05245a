"""What an earlier run has left: looked at by every rank before any of them writes, then renamed or refused."""

import dataclasses
from pathlib import Path

import pytest

from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.runtime import Device
from src.training.run_files import find_old_run

ALONE = Device("CPU")
PAIR = [Device("CPU", rank=rank, num_devices=2) for rank in range(2)]
EVENTS = "summary/events.out.tfevents.1700000000.host"


@pytest.fixture(scope="module")
def defaults():
    return load_config([])


@pytest.fixture
def config(defaults, tmp_path, monkeypatch):
    """Training is started in tmp_path and writes its checkpoints there too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MS_ROLE", raising=False)
    return defaults


def write(*names):
    """Files that hold their own names."""
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def files():
    """Every file and what it holds, or its name alone where it holds just that."""
    found = {str(path): path.read_text() for path in Path().rglob("*") if path.is_file()}
    return {name if name == content else (name, content) for name, content in found.items()}


def keeping(config):
    return dataclasses.replace(config, keep_old_run=True)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["loss_0.png", "train.log", "MindRecord/FasterRcnn.mindrecord0"],
        ["ckpt_0/notes.txt", "summary/notes.txt"],
        ["ckpt_0/.partial-1-faster_rcnn-1_2.ckpt"],
        ["ckpt_0.1/faster_rcnn-1_2.ckpt", "loss_0.log.1"],
        ["loss_x.log"],
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_a_folder_without_an_earlier_run_stays_as_it_is(config, info, names, keep):
    write(*names)
    find_old_run(dataclasses.replace(config, keep_old_run=keep)).set_aside(ALONE)
    assert files() == set(names)
    assert info.records == []


def test_results_of_the_epochs_are_set_aside_with_the_rest(config):
    """Also where no checkpoint was due yet; a run without checkpoints writes no results and leaves old ones."""
    write("results.csv", "results.png", "loss_0.log")
    find_old_run(dataclasses.replace(config, save_checkpoint=False)).set_aside(ALONE)
    assert {"results.csv", "results.png", ("loss_0.log.1", "loss_0.log")} == files()
    find_old_run(config).set_aside(ALONE)
    assert {("results.csv.2", "results.csv"), ("results.png.2", "results.png")} < files()


def test_an_empty_loss_log_is_no_run(config, info):
    Path("loss_0.log").touch()
    find_old_run(config).set_aside(ALONE)
    assert files() == {("loss_0.log", "")}
    assert info.records == []


@pytest.mark.parametrize(
    "names, found, kept",
    [
        (["ckpt_0/faster_rcnn-1_2.ckpt"], "ckpt_0 (faster_rcnn-1_2.ckpt)", "ckpt_0.1"),
        (["best_ckpt/best.ckpt"], "best_ckpt (best.ckpt)", "best_ckpt.1"),
        (
            [
                "ckpt_0/a.ckpt",
                "ckpt_0/b.ckpt",
                "ckpt_0/c.ckpt",
                "ckpt_0/d.ckpt",
                "ckpt_0/e.ckpt",
                "best_ckpt/best.ckpt",
                "loss_0.log.1",
                "summary.2/x",
            ],
            "ckpt_0 (a.ckpt, b.ckpt, c.ckpt and 2 more) and best_ckpt (best.ckpt)",
            "ckpt_0.3 and best_ckpt.3",
        ),
    ],
)
def test_checkpoints_are_refused_and_nothing_is_changed(config, names, found, kept):
    names = [*names, "loss_0.log", EVENTS]
    write(*names)
    with pytest.raises(UserError) as error:
        find_old_run(config)
    assert files() == set(names)
    message = str(error.value)
    assert f"would write its own: {found}. " in message
    assert f"--keep_old_run=True, which keeps the earlier run as {kept} " in message
    assert "--save_checkpoint_path" in message


def test_an_earlier_run_gets_one_number(config, info):
    write("ckpt_0/faster_rcnn-1_2.ckpt", "ckpt_0/mine.txt", "best_ckpt/best.ckpt", "loss_0.log", EVENTS)
    find_old_run(keeping(config)).set_aside(ALONE)
    assert files() == {
        ("ckpt_0.1/faster_rcnn-1_2.ckpt", "ckpt_0/faster_rcnn-1_2.ckpt"),
        ("ckpt_0.1/mine.txt", "ckpt_0/mine.txt"),
        ("best_ckpt.1/best.ckpt", "best_ckpt/best.ckpt"),
        ("loss_0.log.1", "loss_0.log"),
        (EVENTS.replace("/", ".1/"), EVENTS),
    }
    assert [record.message for record in info.records] == [
        "an earlier run has been here; kept as ckpt_0.1, best_ckpt.1, summary.1, loss_0.log.1"
    ]


@pytest.mark.parametrize(
    "taken", ["ckpt_0.1/x", "best_ckpt.1/x", "summary.1/x", "loss_0.log.1", "loss_5.log.1", "ckpt_0.1"]
)
def test_the_number_is_free_for_every_part(config, taken):
    """Also a part that this run lacks: equal numbers always mean one run."""
    write(taken, "ckpt_0/a.ckpt", "loss_0.log")
    find_old_run(keeping(config)).set_aside(ALONE)
    assert files() == {taken, ("ckpt_0.2/a.ckpt", "ckpt_0/a.ckpt"), ("loss_0.log.2", "loss_0.log")}


def test_runs_are_numbered_one_after_the_other(config):
    for number in (1, 2, 3):
        write("ckpt_0/a.ckpt", "loss_0.log")
        find_old_run(keeping(config)).set_aside(ALONE)
        assert {str(path) for path in Path().iterdir()} == {
            f"{name}.{k}" for name in ("ckpt_0", "loss_0.log") for k in range(1, number + 1)
        }


@pytest.mark.parametrize("names", [["loss_0.log"], [EVENTS], ["loss_0.log", EVENTS]])
def test_a_run_that_ended_before_its_first_checkpoint_is_set_aside(config, info, names):
    """Without the flag: nothing of it is worth a refusal, and its losses must not be mixed with new ones."""
    write(*names)
    find_old_run(config).set_aside(ALONE)
    assert files() == {(name.replace("summary", "summary.1").replace(".log", ".log.1"), name) for name in names}
    assert len(info.records) == 1


def test_a_run_that_writes_no_checkpoints_leaves_old_ones_alone(config):
    config = dataclasses.replace(config, save_checkpoint=False)
    write("ckpt_0/a.ckpt", "best_ckpt/best.ckpt", "loss_0.log")
    find_old_run(config).set_aside(ALONE)
    assert files() == {"ckpt_0/a.ckpt", "best_ckpt/best.ckpt", ("loss_0.log.1", "loss_0.log")}


def test_a_run_that_writes_no_checkpoints_keeps_all_when_asked(config):
    config = dataclasses.replace(keeping(config), save_checkpoint=False)
    write("ckpt_0/a.ckpt", "loss_0.log")
    find_old_run(config).set_aside(ALONE)
    assert files() == {("ckpt_0.1/a.ckpt", "ckpt_0/a.ckpt"), ("loss_0.log.1", "loss_0.log")}


def test_checkpoints_in_a_folder_of_their_own(config, tmp_path):
    """The number is free in both places."""
    config = dataclasses.replace(keeping(config), save_checkpoint_path=str(tmp_path / "out"))
    write("out/ckpt_0/a.ckpt", "out/ckpt_0.1/x", "loss_0.log")
    find_old_run(config).set_aside(ALONE)
    assert files() == {"out/ckpt_0.1/x", ("out/ckpt_0.2/a.ckpt", "out/ckpt_0/a.ckpt"), ("loss_0.log.2", "loss_0.log")}


def test_what_cannot_be_renamed_is_named_and_nothing_is_replaced(config):
    write("loss_0.log")
    old_run = find_old_run(config)
    write("loss_0.log.1")  # by another program, between the look and now
    with pytest.raises(UserError, match=r"cannot rename loss_0\.log of an earlier run to loss_0\.log\.1: there is"):
        old_run.set_aside(ALONE)
    assert files() == {"loss_0.log", "loss_0.log.1"}


# ---- several ranks: all look, then all write


@pytest.mark.parametrize("order", [PAIR, PAIR[::-1]])
def test_ranks_that_share_a_folder(config, order):
    """Whichever rank is the first to write, none of its new files is taken for an old one."""
    write("ckpt_0/a.ckpt", "loss_0.log", "loss_1.log", "loss_2.log")  # of a run with three ranks
    looks = [find_old_run(keeping(config)) for _ in order]
    for device, old_run in zip(order, looks, strict=True):
        old_run.set_aside(device)
        Path(f"loss_{device.rank}.log").write_text("new")
        if device.rank == 0:
            Path("ckpt_0").mkdir()
            Path("ckpt_0/a.ckpt").write_text("new")
    assert files() == {
        ("ckpt_0/a.ckpt", "new"),
        ("ckpt_0.1/a.ckpt", "ckpt_0/a.ckpt"),
        ("loss_0.log", "new"),
        ("loss_1.log", "new"),
        *((f"loss_{rank}.log.1", f"loss_{rank}.log") for rank in range(3)),
    }


def test_ranks_with_a_folder_each_and_checkpoints_in_one_place(config, tmp_path, monkeypatch):
    """As the launchers start them, with --save_checkpoint_path."""
    shared = dataclasses.replace(config, save_checkpoint_path=str(tmp_path / "shared"))
    write("shared/ckpt_0/a.ckpt", "rank0/loss_0.log", "rank1/loss_1.log")
    looks = []
    for device in PAIR:
        monkeypatch.chdir(tmp_path / f"rank{device.rank}")
        with pytest.raises(UserError, match="an earlier run has left checkpoints"):
            find_old_run(shared)
        looks.append(find_old_run(keeping(shared)))
    for device, old_run in zip(PAIR, looks, strict=True):
        monkeypatch.chdir(tmp_path / f"rank{device.rank}")
        old_run.set_aside(device)
    monkeypatch.chdir(tmp_path)
    assert files() == {
        ("shared/ckpt_0.1/a.ckpt", "shared/ckpt_0/a.ckpt"),
        ("rank0/loss_0.log.1", "rank0/loss_0.log"),
        ("rank1/loss_1.log.1", "rank1/loss_1.log"),
    }


def test_the_scheduler_of_msrun_looks_at_nothing(config, monkeypatch):
    """It runs train.py as well, in the folder of the user's shell, and writes nothing."""
    write("ckpt_0/a.ckpt", "loss_0.log")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    find_old_run(config).set_aside(ALONE)
    assert files() == {"ckpt_0/a.ckpt", "loss_0.log"}

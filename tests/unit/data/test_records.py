"""Sets of record files: no kill, change or stranger leaves a wrong set in use."""

import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

from src.data import records
from src.data.records import ensure_mindrecord
from src.model_utils.errors import UserError
from tests.helpers import REPO_ROOT
from tests.unit.image_sets import (
    config_for,
    image_ids,
    make_coco,
    names_in,
    rows_of,
    set_of,
    smooth_image,
    write_annotations,
)

# ---- the folder


def test_the_first_run_makes_the_folder_and_leaves_only_records_in_it(coco_root):
    config = config_for(coco_root, mindrecord_dir=coco_root / "new" / "folder")
    place = set_of(ensure_mindrecord(config, training=True))
    expected = [f"FasterRcnn.mindrecord{index}{suffix}" for index in range(8) for suffix in ("", ".db")]
    assert names_in(place) == sorted([*expected, "manifest.json"])
    assert names_in(coco_root / "new" / "folder") == [place.name] and place.name.startswith("train-")


def test_missing_images_are_listed_before_anything_is_written(coco_root):
    (coco_root / "train2017" / "003.png").unlink()
    (coco_root / "train2017" / "007.png").unlink()
    with pytest.raises(UserError, match="2 images cannot be used") as raised:
        ensure_mindrecord(config_for(coco_root), training=True)
    assert "003.png: there is no such file" in str(raised.value)
    assert "007.png" in str(raised.value)
    assert names_in(coco_root / "records") == []


def test_too_little_disk_space_is_said_beforehand(coco_root, monkeypatch):
    monkeypatch.setattr(records.shutil, "disk_usage", lambda folder: records.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match="5 are free"):
        ensure_mindrecord(config_for(coco_root), training=True)


def test_a_folder_that_cannot_be_made(coco_root):
    (coco_root / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        ensure_mindrecord(config_for(coco_root, mindrecord_dir=coco_root / "file" / "records"), training=True)


# ---- up to date or not


def test_the_report_is_logged_again_when_records_are_used_again(coco_root, caplog):
    make_coco(coco_root, "train2017", 3, boxes_of=lambda index: 5 * index)
    config = config_for(coco_root, "--num_gts=4")
    ensure_mindrecord(config, training=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ensure_mindrecord(config, training=True)
    assert "2 images with more than num_gts = 4 boxes" in caplog.text
    assert "001.png (5); 002.png (10)" in caplog.text


def stamps(paths):
    return [Path(path).stat().st_mtime_ns for path in paths]


def test_a_second_run_changes_nothing(coco_root):
    config = config_for(coco_root)
    before = stamps(ensure_mindrecord(config, training=True))
    assert stamps(ensure_mindrecord(config, training=True)) == before


def test_changed_annotations_make_new_records(coco_root):
    config = config_for(coco_root)
    ensure_mindrecord(config, training=True)
    make_coco(coco_root, "train2017", 4, first_id=50)
    assert image_ids(ensure_mindrecord(config, training=True)) == [47, 48, 49, 50]


def test_changed_classes_make_new_records(coco_root):
    ensure_mindrecord(config_for(coco_root), training=True)
    paths = ensure_mindrecord(config_for(coco_root, classes=("dog", "cat")), training=True)
    labels = {int(row["image_id"]): row["label"].tolist() for row in rows_of(paths)}
    assert labels[98] == [2, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "FasterRcnn.mindrecord3").unlink(),
        lambda folder: (folder / "FasterRcnn.mindrecord3.db").write_bytes(b""),
        lambda folder: (folder / "manifest.json").write_text('{"comp'),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_a_damaged_set_is_made_again(coco_root, damage):
    config = config_for(coco_root)
    place = set_of(ensure_mindrecord(config, training=True))
    damage(place)
    paths = ensure_mindrecord(config, training=True)
    assert image_ids(paths) == list(range(91, 101))
    assert set_of(paths) == place


def test_files_of_others_are_left_alone(coco_root):
    folder = coco_root / "records"
    folder.mkdir()
    (folder / "FasterRcnn.mindrecord0").write_text("of the published program")
    (folder / "notes.txt").write_text("mine")
    place = set_of(ensure_mindrecord(config_for(coco_root), training=True))
    assert (folder / "FasterRcnn.mindrecord0").read_text() == "of the published program"
    assert names_in(folder) == sorted(["FasterRcnn.mindrecord0", "notes.txt", place.name])


# ---- a set is of these images


def repaint(path, number=77):
    """Another image of the same size under the same name."""
    cv2.imwrite(str(path), smooth_image(30, 40, number))


def test_replaced_images_make_new_records(coco_root):
    config = config_for(coco_root)
    ensure_mindrecord(config, training=True)
    repaint(coco_root / "train2017" / "002.png")
    rows = {int(row["image_id"]): row for row in rows_of(ensure_mindrecord(config, training=True))}
    assert rows[98]["image"].tobytes() == (coco_root / "train2017" / "002.png").read_bytes()


def test_an_image_of_another_time_alone_is_another_image(coco_root):
    """Same name and same number of bytes, as many formats give."""
    config = config_for(coco_root)
    paths = ensure_mindrecord(config, training=True)
    path = coco_root / "train2017" / "002.png"
    data = bytearray(path.read_bytes())
    path.write_bytes(data)
    assert set_of(ensure_mindrecord(config, training=True)) != set_of(paths)


def test_another_image_folder_gives_its_images(tmp_path):
    """The annotation file is the same: a corrupted copy of the images, say."""
    make_coco(tmp_path, "val2017", 4)
    other = tmp_path / "val_black"
    other.mkdir()
    for path in (tmp_path / "val2017").iterdir():
        repaint(other / path.name)
    anno_path = f"--anno_path={tmp_path / 'annotations' / 'instances_val2017.json'}"
    ensure_mindrecord(config_for(tmp_path, anno_path), training=False)
    rows = rows_of(ensure_mindrecord(config_for(tmp_path, anno_path, "--val_data_type=val_black"), training=False))
    assert {row["image"].tobytes() for row in rows} == {(other / "000.png").read_bytes()}
    with pytest.raises(UserError, match="image folder .*val_nowhere does not exist"):
        ensure_mindrecord(config_for(tmp_path, anno_path, "--val_data_type=val_nowhere"), training=False)


def test_an_image_that_is_gone_is_missed(coco_root):
    config = config_for(coco_root)
    ensure_mindrecord(config, training=True)
    (coco_root / "train2017" / "002.png").unlink()
    with pytest.raises(UserError, match=r"002\.png: there is no such file"):
        ensure_mindrecord(config, training=True)


def test_links_that_lead_elsewhere_make_new_records(tmp_path):
    """The names in the annotation file are links, and two of them are exchanged."""
    make_coco(tmp_path, "val2017", 2)
    for name in ("000.png", "001.png"):
        path = tmp_path / "val2017" / name
        (tmp_path / "val2017" / "raw").mkdir(exist_ok=True)
        path.rename(path.parent / "raw" / name)
        path.symlink_to(path.parent / "raw" / name)
    config = config_for(tmp_path)
    ensure_mindrecord(config, training=False)
    for name, other in (("000.png", "001.png"), ("001.png", "000.png")):
        (tmp_path / "val2017" / name).unlink()
        (tmp_path / "val2017" / name).symlink_to(tmp_path / "val2017" / "raw" / other)
    rows = {int(row["image_id"]): row for row in rows_of(ensure_mindrecord(config, training=False))}
    assert rows[100]["image"].tobytes() == (tmp_path / "val2017" / "raw" / "001.png").read_bytes()


def test_the_exact_name_that_has_come_takes_the_place_of_another_spelling(tmp_path):
    content = make_coco(tmp_path, "val2017", 1)
    content["images"][0]["file_name"] = "sub\\000.png"
    write_annotations(tmp_path, "val2017", content)
    (tmp_path / "val2017" / "sub").mkdir()
    (tmp_path / "val2017" / "000.png").rename(tmp_path / "val2017" / "sub" / "000.png")
    config = config_for(tmp_path)
    ensure_mindrecord(config, training=False)
    repaint(tmp_path / "val2017" / "sub\\000.png")
    (row,) = rows_of(ensure_mindrecord(config, training=False))
    assert row["image"].tobytes() == (tmp_path / "val2017" / "sub\\000.png").read_bytes()


def test_a_name_that_is_too_long_is_a_missing_image(tmp_path):
    content = make_coco(tmp_path, "val2017", 1)
    content["images"][0]["file_name"] = "a" * 300 + ".png"
    write_annotations(tmp_path, "val2017", content)
    with pytest.raises(UserError, match="there is no such file"):
        ensure_mindrecord(config_for(tmp_path), training=False)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"source": {}}', '{"source": {"format_version": 2}, "report": {"x": 1}}']
)
def test_odd_manifests_of_other_sets_are_no_obstacle(tmp_path, content):
    make_coco(tmp_path, "val2017", 2)
    for path in (
        tmp_path / "records" / "eval-other" / "manifest.json",
        tmp_path / "records" / "FasterRcnn_eval.mindrecord.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert len(image_ids(ensure_mindrecord(config_for(tmp_path), training=False))) == 2


def test_a_skipped_image_that_has_come_joins_in(coco_root):
    lost = coco_root / "train2017" / "003.png"
    data = lost.read_bytes()
    lost.unlink()
    config = config_for(coco_root, "--skip_bad_images=True")
    assert len(image_ids(ensure_mindrecord(config, training=True))) == 9
    lost.write_bytes(data)
    assert len(image_ids(ensure_mindrecord(config, training=True))) == 10


USE_RECORDS = """
import sys, time
from src.model_utils.config import load_config
from src.data.records import ensure_mindrecord
print(ensure_mindrecord(load_config(sys.argv[1:]), training=False)[0], flush=True)
sys.stdin.read()
"""


def flags_of(config):
    return [
        f"--coco_root={config.coco_root}",
        f"--mindrecord_dir={config.mindrecord_dir}",
        "--device_target=CPU",
        "--coco_classes=['background','cat','dog']",
        "--num_parallel_workers=1",
    ]


@contextmanager
def another_program(*flags):
    """A process that has taken evaluation records into use; gives the file it reads."""
    with subprocess.Popen(
        [sys.executable, "-c", USE_RECORDS, *flags],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lines = (line.strip() for line in process.stdout)
        yield next(line for line in lines if line.endswith("FasterRcnn_eval.mindrecord"))
        process.stdin.close()


def test_two_programs_with_two_evaluation_sets_do_not_meet(tmp_path):
    """A training that evaluates on val2017, and an eval.py of a test set, in the same mindrecord_dir."""
    make_coco(tmp_path, "val2017", 3, first_id=100)
    make_coco(tmp_path, "test2017", 5, first_id=300)
    config = config_for(tmp_path)
    first = ensure_mindrecord(config, training=False)
    with another_program(*flags_of(config), "--val_data_type=test2017") as second:
        assert second != first[0]
        assert image_ids(first) == [98, 99, 100] and image_ids([second]) == [296, 297, 298, 299, 300]
    assert set_of(ensure_mindrecord(config, training=False)) == set_of(first)
    assert Path(second).is_file()


def test_a_set_goes_when_it_is_replaced_but_not_while_a_program_uses_it(tmp_path, caplog):
    make_coco(tmp_path, "val2017", 3)
    config = config_for(tmp_path)
    with another_program(*flags_of(config)) as used:
        repaint(tmp_path / "val2017" / "001.png")
        second = ensure_mindrecord(config, training=False)
        assert len(image_ids([used])) == 3
    records._in_use.clear()  # as when this process had ended
    with caplog.at_level(logging.INFO):
        repaint(tmp_path / "val2017" / "001.png", number=78)
        third = ensure_mindrecord(config, training=False)
    assert names_in(tmp_path / "records") == [set_of(third).name]
    assert "removed 2 record sets that nothing uses any more" in caplog.text
    assert Path(used).parent.name in caplog.text and set_of(second).name in caplog.text


def test_sets_of_other_annotation_files_stay_while_these_exist(tmp_path):
    for subset in ("val2017", "test2017", "night"):
        make_coco(tmp_path, subset, 2)
        ensure_mindrecord(config_for(tmp_path, f"--val_data_type={subset}"), training=False)
    assert len(names_in(tmp_path / "records")) == 3
    records._in_use.clear()
    (tmp_path / "annotations" / "instances_night.json").unlink()
    make_coco(tmp_path, "val2017", 4)
    ensure_mindrecord(config_for(tmp_path), training=False)
    assert len(names_in(tmp_path / "records")) == 2  # val2017 anew, and test2017


def test_records_of_the_first_release_go(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    names = ["FasterRcnn_eval.mindrecord", "FasterRcnn_eval.mindrecord.db"]
    for name in names:
        (folder / name).write_text("old")
    manifest = json.dumps({"complete": True, "files": dict.fromkeys(names)})
    (folder / "FasterRcnn_eval.mindrecord.json").write_text(manifest)
    make_coco(tmp_path, "val2017", 2)
    place = set_of(ensure_mindrecord(config_for(tmp_path), training=False))
    assert names_in(folder) == [place.name]


def test_records_can_be_read_by_others_as_the_umask_says(tmp_path):
    make_coco(tmp_path, "val2017", 2)
    before = os.umask(0o027)
    try:
        place = set_of(ensure_mindrecord(config_for(tmp_path), training=False))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o640}
    assert stat.S_IMODE(place.stat().st_mode) == 0o750


AS_ANOTHER_USER = """
import os, sys
from tests.unit.image_sets import image_ids
from src.model_utils.config import load_config
from src.data.records import ensure_mindrecord
config = load_config(sys.argv[1:])        # Python itself may lie where only its owner can read
os.setgid(12345)
os.setuid(12345)
print(image_ids(ensure_mindrecord(config, training=False)))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
def test_another_user_reads_the_records():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        make_coco(Path(folder), "val2017", 2)
        config = config_for(Path(folder))
        ensure_mindrecord(config, training=False)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER, *flags_of(config)],
            cwd=REPO_ROOT,
            text=True,
            capture_output=True,
            check=False,
            timeout=100,
        )
    assert done.stdout.splitlines()[-1:] == ["[99, 100]"], done.stderr


# ---- kills and other processes

KILLED_RUN = """
import os, signal, sys
from src.data import conversion, records
from src.model_utils.config import load_config

def killing(function, call_number, after=False):
    calls = []
    def replacement(*args, **options):
        calls.append(1)
        if len(calls) == call_number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **options)
        if len(calls) == call_number and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return replacement

point = sys.argv[1]
conversion.ROWS_PER_WRITE = 3
if point == "while writing":
    conversion._row = killing(conversion._row, 7)
elif point == "before commit":
    conversion.FileWriter.commit = killing(conversion.FileWriter.commit, 1)
elif point == "after commit":
    conversion.FileWriter.commit = killing(conversion.FileWriter.commit, 1, after=True)
elif point == "before the manifest":
    records.write_json = killing(records.write_json, 1)
elif point == "before it has its name":
    records.Path.rename = killing(records.Path.rename, 1)
elif point == "before others go":
    records._remove_replaced = killing(records._remove_replaced, 1)
records.ensure_mindrecord(load_config(sys.argv[2:]), training=True)
"""
KILL_POINTS = [
    "while writing",
    "before commit",
    "after commit",
    "before the manifest",
    "before it has its name",
    "before others go",
]


@pytest.mark.parametrize("point", KILL_POINTS)
def test_the_run_after_a_sigkill_makes_the_set(coco_root, point):
    """A set of an older annotation file is there when the killed run starts; it must not come back to life."""
    config = config_for(coco_root)
    old = set_of(ensure_mindrecord(config, training=True))
    records._in_use.clear()
    make_coco(coco_root, "train2017", 12, first_id=200)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, point, *flags_of(config)],
        cwd=REPO_ROOT,
        check=False,
        capture_output=True,
        timeout=100,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (old / "manifest.json").is_file()
    new = ensure_mindrecord(config, training=True)
    assert image_ids(new) == list(range(189, 201))
    # Killed between its name and the removal, the next conversion removes the old set.
    assert set(names_in(coco_root / "records")) - {old.name} == {set_of(new).name}
    assert len(names_in(set_of(new))) == 17  # 8 files, 8 indexes, the manifest: no remains


@contextmanager
def conversion_held(config):
    """As while another process converts."""
    folder = Path(config.mindrecord_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".train.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def test_another_process_that_does_not_finish_is_not_waited_for_for_ever(coco_root):
    config = config_for(coco_root)
    with conversion_held(config), pytest.raises(UserError, match="another process has not finished the records"):
        ensure_mindrecord(config, training=True, stall_seconds=0.3)
    assert len(image_ids(ensure_mindrecord(config, training=True))) == 10


def test_another_rank_waits_for_the_first(coco_root):
    config = config_for(coco_root)
    result = []
    waiting = threading.Thread(target=lambda: result.append(ensure_mindrecord(config, training=True, local_rank=1)))
    waiting.start()
    waiting.join(timeout=0.5)
    assert waiting.is_alive()
    paths = ensure_mindrecord(config, training=True)
    waiting.join(timeout=10)
    assert result == [paths]


def test_hosts_that_share_a_folder_wait_for_each_other(coco_root, monkeypatch):
    """The first ranks of two hosts start at once: one converts, the other takes what it made."""
    config = config_for(coco_root)
    conversions, result = [], []
    convert = records._convert
    monkeypatch.setattr(records, "_convert", lambda *args: conversions.append(1) or convert(*args))

    def host():
        result.append(ensure_mindrecord(config, training=True))

    with conversion_held(config):
        waiting = [threading.Thread(target=host) for _ in range(2)]
        for thread in waiting:
            thread.start()
        time.sleep(0.5)
        assert all(thread.is_alive() for thread in waiting)
    for thread in waiting:
        thread.join(timeout=20)
    assert len(conversions) == 1
    assert result[0] == result[1] != []


def test_another_rank_does_not_wait_for_ever(coco_root):
    with pytest.raises(UserError, match="first rank of this host has not finished"):
        ensure_mindrecord(config_for(coco_root), training=True, local_rank=1, stall_seconds=0.3)


def test_another_rank_does_not_take_an_old_set(coco_root):
    config = config_for(coco_root)
    ensure_mindrecord(config, training=True)
    make_coco(coco_root, "train2017", 4, first_id=50)
    with pytest.raises(UserError, match="first rank of this host has not finished"):
        ensure_mindrecord(config, training=True, local_rank=1, stall_seconds=0.3)

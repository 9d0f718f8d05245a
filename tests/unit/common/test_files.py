"""Files and folders: whole or not at all, and what is said when they cannot be written."""

import json
import os
import stat
from pathlib import Path

import pytest

from src.common import files
from src.common.files import (
    PARTIAL_PREFIX,
    check_writable,
    file_size,
    open_to_others,
    remove_partial_files,
    whole_folder,
    write_bytes,
    write_json,
    write_whole,
)
from src.model_utils.errors import UserError


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- files


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    assert write_bytes(str(path), b"first") == path
    assert write_bytes(path, b"second") == path
    assert path.read_bytes() == b"second"
    assert names_in(path.parent) == ["a.bin"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = write_bytes(tmp_path / "a.txt", b"old")

    def write(partial):
        partial.write_bytes(b"new")
        assert partial.parent == tmp_path and partial.suffix == ".txt"
        assert path.read_bytes() == b"old"

    write_whole(path, write)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a.txt", "a[1].txt", "a*.txt"])
@pytest.mark.parametrize(
    "error, shown",
    [
        (OSError(28, "No space left on device"), UserError),
        (RuntimeError("cannot be written\nand a stack trace"), UserError),
        (ValueError("not a number"), UserError),
        (UserError("the content is wrong"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full disk", "RuntimeError", "ValueError", "UserError", "Ctrl-C"],
)
def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, name, error, shown):
    path = write_bytes(tmp_path / name, b"old")

    def write(partial):
        partial.write_bytes(b"hal")
        partial.with_name(partial.name + ".index").touch()  # a writer's own second file
        raise error

    with pytest.raises(shown):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == [name]


def test_a_full_disk_is_named_with_its_free_space(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: files.shutil._ntuple_diskusage(10, 9, 1234))

    def full(partial):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left on device \(1,234 bytes free\); choose"):
        write_whole(tmp_path / "a.txt", full)


def test_a_message_of_several_lines_is_cut_to_the_first(tmp_path):
    def fail(partial):
        raise RuntimeError("wrong tensor\n  at file.cc:12")

    with pytest.raises(UserError, match=r"a\.txt: wrong tensor \(") as raised:
        write_whole(tmp_path / "a.txt", fail)
    assert "file.cc" not in str(raised.value)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/a\.txt: (Not a directory|File exists)"):
        write_bytes(tmp_path / "file" / "a.txt", b"")


def test_remains_of_a_killed_process_are_removed(tmp_path):
    write_bytes(tmp_path / "a.txt", b"")
    (tmp_path / f"{PARTIAL_PREFIX}123-b.txt").touch()
    remove_partial_files(tmp_path)
    assert names_in(tmp_path) == ["a.txt"]
    remove_partial_files(tmp_path / "none")


def test_json_is_one_line_or_indented_and_never_nan(tmp_path):
    path = write_json(tmp_path / "a.json", {"b": [1, 2.5]})
    assert path.read_bytes() == b'{"b": [1, 2.5]}\n'
    write_json(path, {"b": 1}, indent=1)
    assert path.read_bytes() == b'{\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"b": float("nan")})
    assert json.loads(path.read_text()) == {"b": 1}


# ---- permissions


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_are_open_to_others_as_the_umask_says(tmp_path, umask):
    path = tmp_path / "a.txt"
    path.touch(mode=0o600)
    open_to_others(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.umask(umask) == umask  # as it was
    assert stat.S_IMODE(write_bytes(tmp_path / "b.txt", b"").stat().st_mode) == 0o666 & ~umask


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path):
    assert check_writable(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert names_in(tmp_path / "a" / "b") == []


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)  # root may write everywhere
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}: Permission denied \([\d,]+ bytes free\); choose"):
        check_writable(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/a: Not a directory"):
        check_writable(tmp_path / "file" / "a")


# ---- folders


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "new" / "data"
    with whole_folder(str(path)) as unfinished:
        (unfinished / "a.txt").write_text("a")
        assert not path.exists()
        assert unfinished == tmp_path / "new" / ".data.unfinished"
    assert names_in(path) == ["a.txt"]
    assert names_in(path.parent) == ["data"]


def test_an_empty_folder_is_replaced_and_another_one_kept(tmp_path):
    (tmp_path / "data").mkdir()
    with whole_folder(tmp_path / "data") as unfinished:
        (unfinished / "a.txt").touch()
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "data") as unfinished:
        (unfinished / "b.txt").touch()
    assert names_in(tmp_path / "data") == ["a.txt"]
    assert names_in(tmp_path) == ["data"]


@pytest.mark.parametrize("error", [OSError, UserError, KeyboardInterrupt])
def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "data") as unfinished:
        (unfinished / "a.txt").touch()
        raise error
    assert names_in(tmp_path) == []


def test_what_a_killed_run_left_is_removed_first(tmp_path):
    mine = tmp_path / ".mine"
    (mine / "sub").mkdir(parents=True)
    with whole_folder(tmp_path / "data", mine) as unfinished:
        assert unfinished == mine
        assert names_in(unfinished) == []
    assert names_in(tmp_path) == ["data"]


# ---- sizes


def test_the_size_of_a_file_and_of_what_is_not_one(tmp_path):
    assert file_size(write_bytes(tmp_path / "a.txt", b"12345")) == 5
    for name in ("none", "a" * 300):
        assert file_size(tmp_path / name) is None
    assert file_size(tmp_path) is None

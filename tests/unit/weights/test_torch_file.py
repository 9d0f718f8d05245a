"""Files of PyTorch, written by PyTorch (make_fixtures.py), read without it; and files that would run something."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from src.model_utils.errors import UserError
from src.weights.torch_file import read_torch_file

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name", ["today.pth", "before_1_6.pth"])
def test_tensors_arrive_bit_for_bit(name):
    content = read_torch_file(FIXTURES / name)
    found = content.get("state_dict", content)
    expected = np.load(FIXTURES / "expected.npz")
    assert sorted(found) == sorted(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype, key
        assert found[key].shape == expected[key].shape, key
        assert found[key].tobytes() == expected[key].tobytes(), key


def test_what_stands_beside_the_weights_arrives_too():
    assert read_torch_file(FIXTURES / "before_1_6.pth")["meta"] == {"epoch": 3}


@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_numpy(protocol):
    content = read_torch_file(FIXTURES / f"numpy_{protocol}.pkl")
    assert content["model"]["a"].dtype == np.float32
    assert content["model"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["harm.pth", "harm_before_1_6.pth", "harm.pkl"])
def test_a_file_that_would_run_a_command_is_refused_by_name_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name} names (posix|os)\.system, .* refused; nothing of it was run"):
        read_torch_file(FIXTURES / name)
    assert list(tmp_path.iterdir()) == []


def test_the_command_would_have_run(tmp_path, monkeypatch):
    """Python's own unpickler runs it: the test above shows something."""
    monkeypatch.chdir(tmp_path)
    pickle.loads((FIXTURES / "harm.pkl").read_bytes())
    assert [path.name for path in tmp_path.iterdir()] == ["HARM"]


def test_a_whole_module_is_refused():
    with pytest.raises(UserError, match=r"names torch\.nn\.modules\.linear\.Linear, .* save its state_dict alone"):
        read_torch_file(FIXTURES / "whole_module.pth")


@pytest.mark.parametrize("name", ["today.pth", "before_1_6.pth", "numpy_5.pkl"])
def test_a_file_cut_at_any_place_is_refused(name, tmp_path):
    data = (FIXTURES / name).read_bytes()
    for size in range(0, len(data), max(1, len(data) // 60)):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(UserError, match="is damaged or not a file of weights"):
            read_torch_file(tmp_path / name)


def test_a_storage_that_is_too_short_is_refused(tmp_path):
    """The pickle promises more numbers than the archive holds."""
    with zipfile.ZipFile(FIXTURES / "today.pth") as source, zipfile.ZipFile(tmp_path / "short.pth", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[:-4] if name.endswith("/data/0") else data)
    with pytest.raises(UserError, match="a storage of 12 numbers holds 11"):
        read_torch_file(tmp_path / "short.pth")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x05\x06" + bytes(18)])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(UserError, match="is damaged or not a file of weights"):
        read_torch_file(tmp_path / "other.pth")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pth does not exist"):
        read_torch_file(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_torch_file(tmp_path)

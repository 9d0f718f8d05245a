"""Files of PyTorch, written by PyTorch (make_fixtures.py), read without it; and files that would run something."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from src.convert_checkpoint import read_checkpoint
from src.model_utils.errors import UserError
from src.weights.torch_file import read_torch_file
from tests.unit.weights.pth_writer import Named, Storage, View, write_pth

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


# ---- what people keep under these suffixes ----------------------------------------------------------------


def test_the_writer_of_these_tests_writes_what_the_reader_takes(tmp_path):
    """Otherwise the refusals below would show nothing."""
    given = {name: np.arange(6, dtype=kind).reshape(2, 3) for name, kind in (("a", "<f4"), ("b", "<f2"), ("c", "<i8"))}
    found = read_torch_file(write_pth(tmp_path / "a.pth", given))
    for name, value in given.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_views_of_one_storage(tmp_path):
    storage = Storage(np.arange(12, dtype=np.float32))
    views = {"rows": View(storage, (3, 4), (4, 1)), "columns": View(storage, (4, 2), (1, 4), offset=4)}
    found = read_torch_file(write_pth(tmp_path / "a.pth", views))
    assert found["rows"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert found["columns"].tolist() == [[4, 8], [5, 9], [6, 10], [7, 11]]


def test_objects_of_training_programs_beside_the_weights_are_left_alone(tmp_path):
    content = {
        "model": {"a": np.ones(2, np.float32)},
        "args": Named("argparse", "Namespace", 1, state={"device": Named("torch", "device", "cuda")}),
        "lr_scheduler": {"milestones": Named("collections", "Counter", {8: 1, 11: 1})},
        "hyper_parameters": Named("pytorch_lightning.utilities.parsing", "AttributeDict", {"lr": 0.1}),
        "epoch": 3,
    }
    found = read_torch_file(write_pth(tmp_path / "a.pth", content))
    assert found["model"]["a"].tolist() == [1, 1]
    assert found["epoch"] == 3


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """A number repeated by strides of 0 would fill the memory."""
    view = View(Storage(np.ones(1, np.float32)), (10**6, 10**6), (0, 0))
    with pytest.raises(UserError, match=r"a tensor \(1000000, 1000000\) is larger than its storage of 1 numbers"):
        read_torch_file(write_pth(tmp_path / "a.pth", {"a": view}))


def test_a_storage_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    view = View(Storage(np.ones(3, np.float32), count=10**12), (10**6, 10**6), (10**6, 1))
    with pytest.raises(UserError, match="a storage of 1000000000000 numbers holds 3"):
        read_torch_file(write_pth(tmp_path / "a.pth", {"a": view}))


def test_compressed_archives_are_refused_before_they_are_unpacked(tmp_path):
    path = write_pth(tmp_path / "a.pth", {"a": np.zeros(10**6, np.float32)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(UserError, match="compressed, which torch.save never does"):
        read_torch_file(path)


def test_a_list_that_holds_itself_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02]q\x00h\x00a.")
    with pytest.raises(UserError, match="is damaged or not a file of weights"):
        read_torch_file(tmp_path / "a.pkl")


def test_torchscript_is_refused_with_the_way_out(tmp_path):
    content = {"model": Named("__torch__.Net", "Net", state={})}
    path = write_pth(tmp_path / "script.pt", content, others=["constants.pkl", "code/__torch__.py"])
    with pytest.raises(
        UserError, match=r"script\.pt is a program of TorchScript.*torch\.jit\.load\('script\.pt'\)\.state_dict\(\)"
    ):
        read_torch_file(path)


def test_a_whole_module_is_refused_with_the_way_out(tmp_path):
    path = write_pth(tmp_path / "yolo.pt", {"model": Named("ultralytics.nn.tasks", "DetectionModel", state={})})
    with pytest.raises(
        UserError, match=r"yolo\.pt names ultralytics\.nn\.tasks\.DetectionModel.*torch\.save\(torch\.load\('yolo\.pt'"
    ):
        read_torch_file(path)


@pytest.mark.parametrize(
    "content",
    [
        Named("torch._utils", "_rebuild_qtensor", 1),
        View(Storage(np.ones(2, np.uint8), kind="QInt8Storage"), (2,), (1,)),
    ],
)
def test_quantised_tensors_are_refused_by_name(tmp_path, content):
    with pytest.raises(
        UserError, match=r"a\.pth holds quantised numbers \(torch\..*Q|a\.pth holds quantised numbers .*_q"
    ):
        read_torch_file(write_pth(tmp_path / "a.pth", {"a": content}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 99\n", "the pointer that Git LFS leaves"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "it is a web page"),
        (b"<html><body>404</body></html>", "it is a web page"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".ckpt"])
def test_what_a_download_left_in_place_of_the_file_is_named(tmp_path, content, words, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as refusal:
        read_checkpoint(path)
    assert str(path) in str(refusal.value)

"""PyTorch's files of weights, read without PyTorch and without running what they hold.

A pickle is a program: it names functions, and whoever loads it calls them. This reader knows the few names that files
of weights need and refuses every other, by name, before anything of it runs. It reads

- ``.pth`` and ``.pt`` of today's ``torch.save``: a zip archive with one pickle, and one file per storage of numbers;
- those of ``torch.save`` before 1.6: pickles and storages one after the other;
- ``.pkl`` of detectron2: one pickle of numpy arrays.
"""

import collections
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from src.model_utils.errors import UserError

# First of the pickles of a file before PyTorch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# numpy knows no bfloat16: its two bytes are the upper half of a float32.
_BFLOAT16 = "BFloat16Storage"
_STORAGE_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    _BFLOAT16: "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


@dataclass
class _Storage:
    """A row of numbers that tensors look into; its bytes may come later."""

    kind: str
    count: int
    data: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def numbers(self) -> np.ndarray:
        """Its numbers, (count,).

        Raises:
            ValueError: the bytes are not as many as it needs.
        """
        numbers = np.frombuffer(self.data, _STORAGE_TYPES[self.kind])
        if len(numbers) != self.count:
            raise ValueError(f"a storage of {self.count} numbers holds {len(numbers)}")
        return (numbers.astype("<u4") << 16).view("<f4") if self.kind == _BFLOAT16 else numbers


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, as the file describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The values, a copy.

        Raises:
            ValueError: the view reaches beyond its storage.
        """
        numbers = self.storage.numbers()
        size = math.prod(self.shape)
        if size == 0:
            return np.empty(self.shape, numbers.dtype)
        if size > len(numbers):  # strides of 0 would make gigabytes of a few bytes
            raise ValueError(f"a tensor {self.shape} is larger than its storage of {len(numbers)} numbers")
        steps = [(size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)]
        if min((*self.shape, *self.strides, self.offset), default=0) < 0 or self.offset + sum(steps) >= len(numbers):
            raise ValueError(f"a tensor {self.shape} reaches beyond its storage of {len(numbers)} numbers")
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False).copy()


class _Ignored:
    """Stands for objects of training programs that some files carry beside their weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Takes an entry of a list of theirs."""


class _UnknownName(Exception):
    """A name that files of weights do not need."""


class _Program(Exception):
    """An archive of TorchScript."""


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_others: Any
) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_others: Any) -> _Tensor:
    return tensor


def _empty_array(_kind: Any, _shape: Any, _dtype: Any) -> np.ndarray:
    """The array that a pickle of numpy fills afterwards by its state."""
    return np.empty(0, np.uint8)


def _array_of_bytes(data: bytes, dtype: np.dtype, shape: Sequence[int], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(tuple(shape), order="F" if order == "F" else "C")


def _numpy_scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


def _bytes_of(text: str, _encoding: str) -> bytes:
    """Python 2 wrote bytes as text."""
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): _Ignored,
    ("collections", "deque"): collections.deque,
    ("collections", "Counter"): _Ignored,  # of MultiStepLR
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch", "device"): _Ignored,
    ("torch", "Size"): tuple,
    ("_codecs", "encode"): _bytes_of,
    ("numpy", "ndarray"): "ndarray",  # only ever an argument
    ("numpy", "dtype"): np.dtype,
    ("mmengine.logging.history_buffer", "HistoryBuffer"): _Ignored,
    ("argparse", "Namespace"): _Ignored,
    ("pathlib", "PosixPath"): _Ignored,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _Ignored,
    ("lightning.fabric.utilities.data", "AttributeDict"): _Ignored,
    ("lightning_fabric.utilities.data", "AttributeDict"): _Ignored,
    **{("torch", kind): kind for kind in _STORAGE_TYPES},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_bytes for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _numpy_scalar for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Reads a pickle in which nothing has a name but what `_KNOWN` lists."""

    def __init__(self, stream: IO[bytes], storage: Callable[[str, str, int], _Storage] | None = None):
        super().__init__(stream, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """The object that stands for a name.

        Raises:
            _UnknownName: it is not one of those that files of weights need.
        """
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _UnknownName(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage that a tensor looks into: ("storage", type, key, device, numbers, ...)."""
        word, kind, key, _device, count = pid[:5]
        if self._storage is None or word not in ("storage", b"storage") or kind not in _STORAGE_TYPES:
            raise ValueError(f"an object outside of the pickle is of an unknown kind: {word!r}")
        return self._storage(kind, key, count)


def read_torch_file(path: str | Path) -> Any:
    """Read a file of PyTorch or detectron2.

    Args:
        path (str | Path): see the top of this module.

    Returns:
        what was saved, with a numpy array in place of every tensor; bfloat16 as float32. Objects of training programs
        are replaced by placeholders.

    Raises:
        UserError: the file does not exist, is damaged, of another kind, or names something that would have to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file of weights")
    try:
        read = _read_archive if zipfile.is_zipfile(path) else _read_stream
        return _with_arrays(read(path))
    except _UnknownName as error:
        raise UserError(_refusal(path, str(error))) from error
    except _Program as error:
        raise UserError(
            f"{path} is a program of TorchScript, of which nothing was run; expected weights alone. Where PyTorch is, "
            f"this makes them of it: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
        ) from error
    except (
        AttributeError,
        EOFError,
        ImportError,
        IndexError,
        KeyError,
        MemoryError,
        OSError,
        OverflowError,
        RuntimeError,  # also encrypted archives and lists that hold themselves
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{path} is damaged or not a file of weights ({path.stat().st_size} bytes){looks_like(path)}; copy or "
            f"download it again. Reading it says: {str(error) or type(error).__name__}"
        ) from error


def looks_like(path: Path) -> str:
    """What a file is in place of weights, for the message about a damaged one; empty if its first bytes do not say."""
    try:
        with path.open("rb") as stream:
            start = stream.read(200).lstrip().lower()
    except OSError:  # what is wrong is said beside this
        return ""
    if start.startswith(b"version https://git-lfs"):
        return ": it is the pointer that Git LFS leaves in place of the file, which `git lfs pull` fetches"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return ": it is a web page, so its address did not lead to the file itself"
    return ""


def _refusal(path: Path, name: str) -> str:
    if name.startswith("torch._utils._rebuild_q") or re.fullmatch(r"torch\.Q\w+Storage", name):
        return (
            f"{path} holds quantised numbers ({name}), which cannot be trained or converted; use the weights of before "
            "the quantisation"
        )
    return (
        f"{path} names {name}, which is not part of any weights, so it is refused; nothing of it was run. If you trust "
        "the file, save its state_dict alone where PyTorch and the program that wrote it are: "
        f"torch.save(torch.load({path.name!r}, weights_only=False).state_dict(), 'weights.pth'), or "
        '["model"] in place of .state_dict() as the file has it'
    )


def _read_archive(path: Path) -> Any:
    """Files of PyTorch from 1.6 on."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("expected one data.pkl inside, as torch.save writes it")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.namelist():
            raise _Program
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch.save never does")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        storages: dict[str, _Storage] = {}

        def storage(kind: str, key: str, count: int) -> _Storage:
            if key not in storages:
                data = archive.read(f"{folder}data/{key}")
                storages[key] = _Storage(kind, count, np.frombuffer(data, np.uint8))
            return storages[key]

        with archive.open(pickles[0]) as stream:
            return _Unpickler(stream, storage).load()


def _read_stream(path: Path) -> Any:
    """Files of PyTorch before 1.6, whose first pickle is a magic number, and files of detectron2."""
    storages: dict[str, _Storage] = {}

    def storage(kind: str, key: str, count: int) -> _Storage:
        return storages.setdefault(key, _Storage(kind, count))

    with path.open("rb") as stream:
        first = _Unpickler(stream).load()
        if first != _LEGACY_MAGIC:
            return first
        _version, _system = _Unpickler(stream).load(), _Unpickler(stream).load()
        content = _Unpickler(stream, storage).load()
        for key in _Unpickler(stream).load():
            count = int.from_bytes(stream.read(8), "little")
            size = count * np.dtype(_STORAGE_TYPES[storages[key].kind]).itemsize
            if size > path.stat().st_size:
                raise ValueError(f"a storage of {size} bytes is larger than the file")
            storages[key].data = np.frombuffer(stream.read(size), np.uint8)
        return content


def _with_arrays(value: Any) -> Any:
    """The same with arrays in place of tensors."""
    if isinstance(value, _Tensor):
        return value.array()
    if isinstance(value, Mapping):
        return {key: _with_arrays(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_with_arrays(entry) for entry in value]
    return value

"""Files as torch.save writes them, without PyTorch: what tests of reading them are made of."""

import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np

STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage", "u1": "ByteStorage"}


class Named:
    """A name of another program, or a call of it, as a pickle holds them: by words alone."""

    def __init__(self, module, name, *arguments, state=None):
        self.module, self.name, self.arguments, self.state = module, name, arguments, state

    def __call__(self):
        """Only so that pickle takes it for a function."""


class Storage:
    """Numbers that tensors look into; `count` is what the pickle claims."""

    def __init__(self, numbers, kind=None, count=None):
        self.numbers = np.asarray(numbers)
        self.kind = kind or STORAGES[self.numbers.dtype.str[1:]]
        self.count = self.numbers.size if count is None else count


class View:
    """A tensor: a part of a storage."""

    def __init__(self, storage, shape, strides, offset=0):
        self.storage, self.shape, self.strides, self.offset = storage, tuple(shape), tuple(strides), offset


def tensor(values):
    """A tensor with a storage of its own."""
    values = np.asarray(values)
    strides = [int(np.prod(values.shape[axis + 1 :])) for axis in range(values.ndim)]
    return View(Storage(values.reshape(-1)), values.shape, strides)


class _Pickler(pickle._Pickler):  # the one in Python: that in C looks every name up
    def __init__(self, stream):
        super().__init__(stream, 2)
        self.storages = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named) and not obj.arguments and obj.state is None:
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Named):
            self.save_reduce(Named(obj.module, obj.name), obj.arguments, obj.state)
        elif isinstance(obj, np.ndarray):
            self.save(tensor(obj))
        elif isinstance(obj, View):
            rest = (obj.offset, obj.shape, obj.strides, False, OrderedDict())
            self.save_reduce(Named("torch._utils", "_rebuild_tensor_v2"), (obj.storage, *rest))
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        if obj not in self.storages:
            self.storages.append(obj)
        key = str(self.storages.index(obj))
        return ("storage", Named("torch", obj.kind), key, "cpu", obj.count)


def write_pth(path, content, *, compression=zipfile.ZIP_STORED, others=()) -> Path:
    """Write an archive of today's torch.save; numpy arrays in the content become tensors.

    Args:
        path (Path): its file.
        content: what is saved; `Named`, `Storage`, `View` and arrays anywhere in it.
        compression (int): of zipfile.
        others: names of further files in the archive.
    """
    stream = BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for key, storage in enumerate(pickler.storages):
            archive.writestr(f"archive/data/{key}", storage.numbers.tobytes())
        for name in others:
            archive.writestr(f"archive/{name}", b"")
    return path

"""Writing files and folders so that a failure never costs what was there before."""

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from src.model_utils.errors import UserError, first_line

PARTIAL_PREFIX = ".partial-"


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a file whole or not at all; folders above it are made.

    The content goes to a temporary file beside the target, reaches the disk, and takes the target's place in one
    step: a reader sees the old file or the new one, and a full disk leaves the old one untouched.

    Args:
        path (str | Path): the file to write.
        write (Callable): writes the content to the path it is given, which has the target's suffix.

    Returns:
        Path: the file written.

    Raises:
        UserError: the file cannot be written; names the path, the reason and the free space. ``write`` may raise its
            own, for what it finds wrong with the content.
    """
    path = Path(path)
    partial = path.with_name(f"{PARTIAL_PREFIX}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise cannot_write(path, error) from error
    finally:
        for leftover in path.parent.glob(f"{glob.escape(partial.name)}*"):
            leftover.unlink()
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes by :func:`write_whole`."""
    return write_whole(path, lambda partial: partial.write_bytes(data))


def remove_partial_files(folder: str | Path) -> None:
    """Remove what :func:`write_whole` left in a folder when its process was killed."""
    for path in Path(folder).glob(f"{PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> Path:
    """Write a value as JSON by `write_bytes`; NaN and infinity, which JSON lacks, are a ValueError."""
    return write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def whole_folder(path: str | Path, unfinished: Path | None = None) -> Iterator[Path]:
    """Make a folder whole or not at all; folders above it are made.

    The block fills another folder, which takes the target's place when the block ends and is removed when it fails.
    What a killed run left there is removed first.

    Args:
        path (str | Path): the folder to make; by the end of the block it does not exist or is empty.
        unfinished (Path | None): the folder to fill, on the same disk; None for `.NAME.unfinished` beside the target.

    Yields:
        Path: the folder to fill, empty.

    Raises:
        OSError: a folder cannot be made, removed or renamed.
    """
    path = Path(path)
    unfinished = unfinished or path.with_name(f".{path.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def file_size(path: str | Path) -> int | None:
    """Bytes of a file; None where there is none, also for a name that is too long."""
    return os.stat(path).st_size if os.path.isfile(path) else None  # noqa: PTH113, PTH116 - Path raises for such a name


def open_to_others(path: Path) -> None:
    """Give a file the permissions that any other new file of this process has: MindSpore's are for the owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def check_writable(folder: str | Path) -> Path:
    """Make a folder and prove that files can be written there, before hours of work depend on it.

    Raises:
        UserError: the folder cannot be made or written; names the path and the reason.
    """
    folder = Path(folder)
    probe = folder / f".write_test_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error for a file or folder that cannot be written: path, reason and free space."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return UserError(f"cannot write {path}: {reason} ({_free_space(path)}); choose a folder that can be written")


def _free_space(path: Path) -> str:
    """Free bytes where `path` would lie, asked of the nearest folder that exists."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free:,} bytes free"
    return "free space unknown"

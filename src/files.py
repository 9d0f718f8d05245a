"""Writing result files so that a failure never costs the file that was there before."""
import json
import os
import shutil
from pathlib import Path
from typing import Any

from src.model_utils.errors import UserError


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file whole or not at all; folders above it are made.

    The bytes go to a temporary file beside the target, reach the disk, and take the target's place in one
    step: a reader sees the old file or the new one, and a full disk leaves the old one untouched.

    Args:
        path (str | Path): the file to write.
        data (bytes): its content.

    Returns:
        Path: the file written.

    Raises:
        UserError: the file cannot be written; names the path, the reason and the free space.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        if partial.is_file():
            partial.unlink()
        raise _cannot_write(path, error) from error
    return path


def write_json(path: str | Path, value: Any, *, indent: int | None = None) -> Path:
    """Write a value as JSON by `write_bytes`; NaN and infinity, which JSON lacks, are a ValueError."""
    return write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


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
        raise _cannot_write(folder, error) from error
    return folder


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error} ({_free_space(path)}); "
                     "choose a folder that can be written")


def _free_space(path: Path) -> str:
    """Free bytes where `path` would lie, asked of the nearest folder that exists."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free:,} bytes free"
    return "free space unknown"

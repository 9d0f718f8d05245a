"""A run on ModelArts: data and checkpoints come in before it, results go out after it, by the platform's `moxing`.

    with synchronised(config, place):
        ...     # works in config.output_path

Data land in `data_path`, checkpoints in `load_path`, so the configuration names `coco_root`, `pre_trained` or
`checkpoint_path` there. One process per host copies; the others wait for a lock that ends with its holder.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import lzma
import os
import shutil
import signal
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from src.model_utils.config import Config
from src.model_utils.errors import UserError, first_line
from src.model_utils.local_adapter import ProcessEnvironment

LOGGER = logging.getLogger(__name__)

LOCK_NAME = ".modelarts.lock"
# Says what has been copied; written when all of it is there.
MARKER_NAME = ".modelarts.json"


@contextlib.contextmanager
def synchronised(config: Config, place: ProcessEnvironment) -> Iterator[None]:
    """Bring data and checkpoints in, work in `output_path`, and take what is there to `train_url` at the end.

    Results go out when the run fails or is stopped by SIGTERM too: the losses say why. Not from ranks of a distributed
    run that msrun kills because another one failed.

    Args:
        config (Config): ``data_url``, ``checkpoint_url``, ``train_url``, each skipped where empty; ``data_path``,
            ``load_path``, ``output_path``.
        place (ProcessEnvironment): this process among those of the run.

    Raises:
        UserError: there is no `moxing`, a copy fails, an archive is damaged or reaches outside `data_path`.
    """
    copy = _copy_function()
    for url, folder in ((config.data_url, config.data_path), (config.checkpoint_url, config.load_path)):
        if url:
            bring_in(copy, url, Path(folder), place.job_id)
    output = _folder(Path(config.output_path))
    os.chdir(output)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        # A second signal must not stop the copying.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if config.train_url and (place.rank_size == 1 or place.device_id == 0):
            _take_out(copy, output, config.train_url, failing=sys.exc_info()[0] is not None)
        signal.signal(signal.SIGTERM, before)


def bring_in(copy: Callable[[str, str], object], url: str, folder: Path, job_id: str) -> None:
    """Copy a folder of the object store here and unpack its archives, unless a process of this job has done so.

    Args:
        copy (Callable): copies a folder, from, to.
        url (str): of the folder.
        folder (Path): where its content goes.
        job_id (str): of the run; another job copies again.

    Raises:
        UserError: see `synchronised`.
    """
    done = json.dumps({"job_id": job_id, "url": url})
    with (_folder(folder) / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = folder / MARKER_NAME
        if marker.is_file() and marker.read_text(encoding="utf-8") == done:
            LOGGER.info("%s is in %s already (delete %s to copy it again)", url, folder, marker)
            return
        marker.unlink(missing_ok=True)
        LOGGER.info("copying %s to %s", url, folder)
        _copy(copy, url, str(folder))
        if all(path.name == LOCK_NAME for path in folder.iterdir()):
            raise UserError(f"{url} is empty or does not exist: nothing has arrived in {folder}")
        for archive in sorted(folder.glob("*.zip")):
            LOGGER.info("unpacking %s", archive)
            unpack(archive, folder)
        marker.write_text(done, encoding="utf-8")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ZIP file whose every entry stays below the folder.

    Args:
        archive (Path): the file.
        folder (Path): where its content goes; files of the same names are replaced.

    Raises:
        UserError: the archive is damaged, an entry leads out of the folder or is a link, or the disk is too small.
            Nothing has been written when an entry is refused.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            for entry in content.infolist():
                _check_entry(archive, entry, folder)
            needed, free = sum(entry.file_size for entry in content.infolist()), shutil.disk_usage(folder).free
            if needed > free:
                raise UserError(f"{archive} needs {needed:,} bytes unpacked, {free:,} are free in {folder}")
            content.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{archive} cannot be unpacked: {first_line(error)}") from error


def _check_entry(archive: Path, entry: zipfile.ZipInfo, folder: Path) -> None:
    target = (folder / entry.filename).resolve()
    if not target.is_relative_to(folder.resolve()) or stat.S_ISLNK(entry.external_attr >> 16):
        raise UserError(f"{archive} holds {entry.filename!r}, a link or a path that leads out of {folder}; pack it "
                        "again with plain relative paths")


def _take_out(copy: Callable[[str, str], object], output: Path, url: str, failing: bool) -> None:
    """Copy the results; where the run has failed already, its own error is the one that counts."""
    LOGGER.info("copying the results in %s to %s", output, url)
    try:
        _copy(copy, str(output), url)
    except UserError as error:
        if not failing:
            raise
        LOGGER.error(error)


def _copy(copy: Callable[[str, str], object], source: str, target: str) -> None:
    try:
        copy(source, target)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source} could not be copied to {target}: {first_line(error)}") from error


def _copy_function() -> Callable[[str, str], object]:
    try:
        import moxing
    except ImportError as error:
        raise UserError(f"enable_modelarts is True, but the package moxing cannot be imported ({first_line(error)}). "
                        "The images of ModelArts hold it; elsewhere leave it at False and give coco_root") from error
    return moxing.file.copy_parallel


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}; choose another with data_path, load_path or "
                        "output_path") from error
    return path

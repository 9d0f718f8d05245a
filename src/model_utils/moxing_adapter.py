"""A run on ModelArts: data and checkpoints come in before it, results go out after it, by the platform's `moxing`.

    with synchronised(config, process) as config:
        ...     # works in config.output_path

Data land in `data_path`, checkpoints in `load_path`, so the configuration names `coco_root`, `pre_trained` or
`checkpoint_path` there. What earlier runs have left in `train_url` lands in `output_path`. One process per host copies;
the others wait for a lock that ends with its holder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import lzma
import os
import shutil
import signal
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from src.model_utils.config import Config
from src.model_utils.errors import UserError, first_line
from src.model_utils.local_adapter import ProcessEnvironment

LOGGER = logging.getLogger(__name__)

LOCK_NAME = ".modelarts.lock"
# Says what has been copied; written when all of it is there.
MARKER_NAME = ".modelarts.json"
# The same for earlier results, which go out again: nothing of this name, or of one that begins so, is a result.
RESULTS_MARKER_NAME = ".modelarts-results.json"
OWN_PREFIX = ".modelarts"
# What a run reads. Relative paths are of the folder that the program is started in, where the published code stays.
INPUT_PATHS = (
    "coco_root",
    "image_dir",
    "anno_path",
    "val_anno_path",
    "mindrecord_dir",
    "pre_trained",
    "checkpoint_path",
    "ckpt_file",
    "result_path",
)
# Size and time of change of files, by their paths below a folder.
States = dict[str, list[int]]


@contextlib.contextmanager
def synchronised(config: Config, process: ProcessEnvironment) -> Iterator[Config]:
    """Bring data, checkpoints and earlier results in, work in `output_path`, and take what is new there to `train_url`.

    Results go out when the run fails or is stopped by SIGTERM too: the losses say why. Not from ranks of a distributed
    run that msrun kills because another one failed.

    Args:
        config (Config): ``data_url``, ``checkpoint_url``, ``train_url``, each skipped where empty; ``data_path``,
            ``load_path``, ``output_path``.
        process (ProcessEnvironment): this process: its device, rank and job.

    Yields:
        Config: for the run, with `INPUT_PATHS` that hold in `output_path`.

    Raises:
        UserError: there is no `moxing`, a copy fails, an archive is damaged or reaches outside `data_path`.
    """
    files = _moxing_files()
    for url, folder in ((config.data_url, config.data_path), (config.checkpoint_url, config.load_path)):
        if url:
            bring_in(files.copy_parallel, url, Path(folder), process.job_id)
    output = _folder(Path(config.output_path).absolute())
    arrived = bring_back(files, config.train_url, output, process.job_id) if config.train_url else {}
    inputs: dict[str, Any] = {key: str(Path(path).absolute()) for key in INPUT_PATHS if (path := getattr(config, key))}
    config = dataclasses.replace(config, **inputs)
    os.chdir(output)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield config
    finally:
        # A second signal must not stop the copying.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if config.train_url and (process.rank_size == 1 or process.device_id == 0):
            _take_out(files.copy_parallel, output, arrived, config.train_url, failing=sys.exc_info()[0] is not None)
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


def bring_back(files: Any, url: str, output: Path, job_id: str) -> States:
    """Copy what earlier runs have left where this one's results will go, unless a process of this job has done so.

    Args:
        files (Any): the module `moxing.file`.
        url (str): `train_url`; it need not exist yet.
        output (Path): where the files go.
        job_id (str): of the run; another job copies again.

    Returns:
        States: what came from there, before this run has changed anything.

    Raises:
        UserError: see `synchronised`.
    """
    done = {"job_id": job_id, "url": url}
    marker = output / RESULTS_MARKER_NAME
    # Not below the output folder, whose content goes out and may come in.
    key = hashlib.sha256(str(output).encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"{OWN_PREFIX}-{os.getuid()}-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError, ValueError):  # ValueError: half-written
            content = json.loads(marker.read_text(encoding="utf-8"))
            if done.items() <= content.items():
                return content["arrived"]
        before = _states(output)
        _copy_earlier(files, url, output)
        arrived = {name: state for name, state in _states(output).items() if before.get(name) != state}
        if arrived:
            marker.write_text(json.dumps(done | {"arrived": arrived}), encoding="utf-8")
        return arrived


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
        raise UserError(
            f"{archive} holds {entry.filename!r}, a link or a path that leads out of {folder}; pack it "
            "again with plain relative paths"
        )


def _copy_earlier(files: Any, url: str, output: Path) -> None:
    """Copy earlier results; where there are none, their folder may not exist."""
    try:
        # A folder of an object store is a prefix of names; with or without the last slash, one of the two is found.
        if hasattr(files, "exists") and not any(map(files.exists, {url, url.rstrip("/") + "/"})):
            raise FileNotFoundError
        LOGGER.info("copying the results of earlier runs in %s to %s", url, output)
        files.copy_parallel(url, str(output))
    except FileNotFoundError:
        LOGGER.info("no results of earlier runs: %s does not exist yet", url)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the results of earlier runs in {url} (train_url) could not be copied to {output}: "
            f"{first_line(error)}. Without them a run could write over them"
        ) from error


def _take_out(copy: Callable[[str, str], object], output: Path, arrived: States, url: str, failing: bool) -> None:
    """Copy the results; where the run has failed already, its own error is the one that counts."""
    try:
        with _new_results(output, arrived) as folder:
            if folder is None:
                LOGGER.info("nothing in %s is new: nothing is copied to %s", output, url)
            else:
                LOGGER.info("copying the results in %s to %s", output, url)
                _copy(copy, str(folder), url)
    except UserError as error:
        if not failing:
            raise
        LOGGER.error(error)
    gone = [name for name in arrived if not (output / name).exists()]
    if gone:
        LOGGER.warning(
            "%d files of earlier runs have been renamed or removed in %s, such as %s; in %s they stay, "
            "beside the new ones",
            len(gone),
            output,
            gone[0],
            url,
        )


@contextlib.contextmanager
def _new_results(output: Path, arrived: States) -> Iterator[Path | None]:
    """A folder of what this run has written or changed, or None.

    What came from the store stays out: by now another host of the run may have put its own file there.
    """
    if not arrived:
        yield output
        return
    try:
        names = [name for name, state in _states(output).items() if arrived.get(name) != state]
        folder = tempfile.TemporaryDirectory(prefix=f"{OWN_PREFIX}-", dir=output)
        for name in names:
            target = Path(folder.name) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(output / name, target)
    except OSError as error:
        raise UserError(f"the new results in {output} could not be gathered for copying: {error}") from error
    with folder:
        yield Path(folder.name) if names else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems over a network may have no links
        shutil.copy2(source, target)


def _states(folder: Path) -> States:
    states = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        with contextlib.suppress(FileNotFoundError):  # other processes remove old checkpoints
            info = path.stat()
            if stat.S_ISREG(info.st_mode) and not name.startswith(OWN_PREFIX):
                states[name] = [info.st_size, info.st_mtime_ns]
    return states


def _copy(copy: Callable[[str, str], object], source: str, target: str) -> None:
    try:
        copy(source, target)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{source} could not be copied to {target}: {first_line(error)}") from error


def _moxing_files() -> Any:
    try:
        import moxing
    except ImportError as error:
        raise UserError(
            f"enable_modelarts is True, but the package moxing cannot be imported ({first_line(error)}). "
            "The images of ModelArts hold it; elsewhere leave it at False and give coco_root"
        ) from error
    return moxing.file


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {path}: {error.strerror}; choose another with data_path, load_path or output_path"
        ) from error
    return path

"""Sets of MindRecord files: which of them are of these very images, and who makes, uses and removes them.

Each set of records lies in a folder of its own in `mindrecord_dir`, named after what it holds: `train-` or `eval-` and
a digest of annotations, image folder, classes, and size and time of every image. So two programs may work in the
same place, and a set never stands for other images. Beside the records lies `manifest.json`: what they were made
from, their sizes, and what was left out. A set is written in a hidden folder and renamed when it is whole;
killed at any moment, the next run finds a whole set or makes one.

When a set is made, those of its kind that it replaces are removed: of the same annotation file and image folder,
those whose annotation file is gone, and that of the first release; not while a program uses them.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from src.common.files import file_size, open_to_others, whole_folder, write_json
from src.common.wording import count_of, listed
from src.data.annotations import load_annotations
from src.data.conversion import ConversionReport, existing_images, write_records
from src.data.data_paths import annotation_file, find_below, image_folder
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

TRAIN_NAME, NUM_TRAIN_FILES = "FasterRcnn.mindrecord", 8
EVAL_NAME, NUM_EVAL_FILES = "FasterRcnn_eval.mindrecord", 1
MANIFEST = "manifest.json"
FORMAT_VERSION = 2  # of rows and manifest; another number makes old records stale
STALL_SECONDS = 600.0  # who waits gives up when nothing has changed for so long
_HASH_BLOCK = 1 << 20

# Manifests of the sets that this process reads, kept open: their locks say that the sets are in use, until it ends.
_in_use: list[BinaryIO] = []


@dataclass(frozen=True)
class RecordSets:
    """The sets of one kind in a folder, and the one that a run needs of them.

    Attributes:
        folder (Path): `mindrecord_dir`.
        kind (str): "train" or "eval".
        source (dict): all that the content of the set depends on, but for the images themselves.
        tolerant (bool): a set without the images that cannot be read will do.
    """

    folder: Path
    kind: str
    source: dict[str, Any]
    tolerant: bool

    @property
    def name(self) -> str:
        """What the record files are called, before a number where there are several."""
        return TRAIN_NAME if self.kind == "train" else EVAL_NAME

    @property
    def data_names(self) -> list[str]:
        """The files that a reader is given."""
        return [f"{TRAIN_NAME}{index}" for index in range(NUM_TRAIN_FILES)] if self.kind == "train" else [EVAL_NAME]

    @property
    def file_names(self) -> list[str]:
        """All files: MindRecord keeps an index beside each data file."""
        return [name + suffix for name in self.data_names for suffix in ("", ".db")]

    @property
    def prefix(self) -> str:
        """What the folders of all sets with this source begin with."""
        return f"{self.kind}-{_digest(self.source)}-"

    @property
    def unfinished(self) -> Path:
        """The folder where the records are written first."""
        return self.folder / f".{self.kind}-{os.getuid()}.unfinished"

    def find(self) -> Path | None:
        """The folder of a whole set that holds the images as they are now."""
        for place in sorted(self.folder.glob(f"{self.prefix}*")):
            manifest = _read_manifest(place)
            if not manifest or (manifest["report"]["skipped"] and not self.tolerant):
                continue
            root = Path(self.source["image_folder"])
            sizes = {name: file_size(place / name) for name in self.file_names}
            if sizes == manifest["files"] and manifest["pictures"] == _states(root, manifest["pictures"]):
                return place
        return None


def ensure_mindrecord(
    config: Config, *, training: bool, local_rank: int = 0, stall_seconds: float = STALL_SECONDS
) -> list[str]:
    """Give the record files of training or evaluation; they are made when there is no set of these images.

    A set is of these images when annotation file, image folder, `coco_classes`, `num_gts`, `ignore_unknown`, and
    size and time of every image are those it was made from, and nothing was skipped unless `skip_bad_images` says
    so. In a distributed run the first rank of each host makes it; where hosts share the folder, the one that comes
    first. The set stays in use until the process ends.

    Args:
        config (Config): gives data, classes and `mindrecord_dir`.
        training (bool): 8 files `FasterRcnn.mindrecord0..7`, or one file `FasterRcnn_eval.mindrecord`.
        local_rank (int): of this process on its host; all but rank 0 wait until the records are there.
        stall_seconds (float): who waits for another process gives up when nothing has changed for so long.

    Returns:
        list[str]: paths of the record files, for `create_train_dataset` or `create_eval_dataset`.

    Raises:
        UserError: annotations or images are missing or faulty (each is named), the disk is too small, or the process
            waited for has stopped.
    """
    sets = RecordSets(
        Path(config.mindrecord_dir),
        "train" if training else "eval",
        _source(config, training=training),
        training and config.skip_bad_images,
    )
    place = sets.find()
    while place is None or not _take_into_use(place):
        place = _make_or_wait(config, sets, makes=local_rank == 0, stall_seconds=stall_seconds)
    if local_rank == 0:
        report = ConversionReport(**_read_manifest(place)["report"])
        _log_report(sets, place, report, config.num_gts)
    return [str(place / name) for name in sets.data_names]


# ---- what a set is made from -----------------------------------------------------------------------------


def _source(config: Config, *, training: bool) -> dict[str, Any]:
    """All that the content of the records depends on, but for the images themselves."""
    path = annotation_file(config, training=training)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return {
        "format_version": FORMAT_VERSION,
        "dataset": config.dataset,
        "annotation_file": str(path.resolve()),
        "annotations_sha256": digest.hexdigest(),
        "image_folder": str(image_folder(config, training=training).resolve()),
        "coco_classes": list(config.coco_classes),
        "num_gts": config.num_gts,
        "ignore_unknown": config.ignore_unknown,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _states(root: Path, file_names: Iterable[str]) -> dict[str, list[int] | None]:
    """Size in bytes and time of change in ns of images, by the names that the annotation file gives them.

    Of a link those of the image that it leads to; None where there is none.
    """
    states: dict[str, list[int] | None] = {}
    for name in file_names:
        path = root / name  # resolving a hundred thousand paths takes seconds
        try:
            state = os.stat(path if os.path.isfile(path) else find_below(root, name))  # noqa: PTH113, PTH116
            states[name] = [state.st_size, state.st_mtime_ns]
        except OSError:
            states[name] = None
    return states


def _read_manifest(place: Path) -> dict[str, Any]:
    """The manifest of a set, or an empty one where it is missing, damaged or of another version."""
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["source"]["format_version"] == FORMAT_VERSION and ConversionReport(**manifest["report"])
        return manifest if known and {"pictures", "files"} <= set(manifest) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


# ---- several processes -----------------------------------------------------------------------------------


def _take_into_use(place: Path) -> bool:
    """Keep others from removing a set; False when it has just gone."""
    try:
        stream = (place / MANIFEST).open("rb")
    except FileNotFoundError:
        return False
    fcntl.flock(stream, fcntl.LOCK_SH)
    if not (place / MANIFEST).exists():
        stream.close()
        return False
    _in_use.append(stream)
    return True


@contextlib.contextmanager
def _lock(path: Path, mode: int) -> Iterator[bool]:
    """Try to lock a file; gives whether that went well. A lock ends with its process."""
    with path.open("rb") as stream:  # reading is enough for a lock, and files of other users can be read
        try:
            fcntl.flock(stream, mode | fcntl.LOCK_NB)
            is_ours = True
        except BlockingIOError:
            is_ours = False
        yield is_ours


def _make_or_wait(config: Config, sets: RecordSets, *, makes: bool, stall_seconds: float) -> Path:
    """Make the set, or wait while another process makes sets of this kind, as long as something keeps changing."""
    last_state, last_change = None, time.monotonic()
    while True:
        if makes:
            with _conversion_lock(sets) as is_ours:
                if is_ours:
                    # Another process may have made it meanwhile.
                    return sets.find() or _convert(config, sets)
        elif place := sets.find():
            return place
        state = {str(path): file_size(path) for path in (*sets.folder.glob("*"), *sets.unfinished.glob("*"))}
        if last_state is None and makes:
            LOGGER.info("another process is making records in %s; waiting for it", sets.folder)
        if state != last_state:
            last_state, last_change = state, time.monotonic()
        elif time.monotonic() - last_change > stall_seconds:
            who = "another process" if makes else "the first rank of this host"
            raise UserError(
                f"{who} has not finished the records in {sets.folder}: nothing has changed there for "
                f"{stall_seconds:g} s. See its log; all ranks need the same annotations, classes and "
                "mindrecord_dir, and a program of its own may take another mindrecord_dir"
            )
        time.sleep(min(1.0, stall_seconds / 10))


def _conversion_lock(sets: RecordSets) -> contextlib.AbstractContextManager[bool]:
    try:
        sets.folder.mkdir(parents=True, exist_ok=True)
        (sets.folder / f".{sets.kind}.lock").touch()
    except PermissionError as error:
        if not (sets.folder / f".{sets.kind}.lock").is_file():
            raise _not_writable(sets.folder, error) from error
    except OSError as error:
        raise _not_writable(sets.folder, error) from error
    return _lock(sets.folder / f".{sets.kind}.lock", fcntl.LOCK_EX)


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"mindrecord_dir {folder} cannot be written ({error.strerror}); give another folder with --mindrecord_dir"
    )


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; one in a folder that may not be looked into is not gone."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _remove_replaced(sets: RecordSets, made: Path) -> None:
    """Remove the sets that nothing needs any more; see the module's docstring for the rule."""
    removed = []
    for place in sorted(sets.folder.glob(f"{sets.kind}-*")):
        source = _read_manifest(place).get("source")
        if place == made or source is None:
            continue
        same = all(source[key] == sets.source[key] for key in ("annotation_file", "image_folder"))
        if not same and not _is_gone(Path(source["annotation_file"])):
            continue
        with contextlib.suppress(OSError), _lock(place / MANIFEST, fcntl.LOCK_EX) as is_free:
            if is_free:
                shutil.rmtree(place, ignore_errors=True)  # another user's may stay
                removed += [] if place.exists() else [place.name]
    first_release = sets.folder / f"{sets.name}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for name in json.loads(first_release.read_text(encoding="utf-8"))["files"]:
            (sets.folder / Path(name).name).unlink(missing_ok=True)
        first_release.unlink()
        removed.append(sets.name)
    if removed:
        LOGGER.info(
            "removed %s that nothing uses any more from %s: %s",
            count_of(len(removed), "record set"),
            sets.folder,
            listed(removed),
        )


# ---- making a set ------------------------------------------------------------------------------------------


def _convert(config: Config, sets: RecordSets) -> Path:
    """Check every image and write the records; what is unfinished goes when something fails."""
    report = ConversionReport()
    annotations = load_annotations(config, training=sets.kind == "train", remarks=report.remarks)
    root = Path(sets.source["image_folder"])
    images = _states(root, [annotation.file_name for annotation in annotations])
    annotations, sizes = existing_images(annotations, report, tolerant=sets.tolerant)
    _check_free_space(sets.folder, sum(sizes))
    made = sets.folder / f"{sets.prefix}{_digest(images)}"
    try:
        with whole_folder(made, sets.unfinished) as folder:
            write_records(
                folder / sets.name, len(sets.data_names), annotations, sizes, report, config, tolerant=sets.tolerant
            )
            for name in sets.file_names:
                open_to_others(folder / name)
            write_json(
                folder / MANIFEST,
                {
                    "source": sets.source,
                    "pictures": images,
                    "report": dataclasses.asdict(report),
                    "files": {name: file_size(folder / name) for name in sets.file_names},
                },
                indent=1,
            )
            shutil.rmtree(made, ignore_errors=True)  # a damaged or a tolerant one
    except OSError as error:
        raise _not_writable(sets.folder, error) from error
    _remove_replaced(sets, made)
    return made


def _check_free_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{folder}: the records need about {num_bytes:,} bytes, {free:,} are free; give another mindrecord_dir"
        )


def _log_report(sets: RecordSets, place: Path, report: ConversionReport, num_gts: int) -> None:
    """Say what the records hold, and by name what is not as the annotation file has it."""
    training, manifest = sets.kind == "train", place / MANIFEST
    LOGGER.info(
        "%s in %s: %s, %s, %d crowd boxes, %d boxes clipped to their image, %s without boxes",
        sets.name,
        place,
        count_of(report.num_images, "image"),
        count_of(report.num_boxes, "box", "boxes"),
        report.num_crowd,
        report.num_clipped,
        count_of(report.num_without_boxes, "image"),
    )
    for remark in (*report.remarks, *report.doubts()):
        LOGGER.warning("%s: %s", sets.source["annotation_file"], remark)
    if report.dropped:
        is_coco_truth = not training and sets.source["dataset"] == "coco"
        kept = "; the ground truth of a COCO file still has them" if is_coco_truth else ""
        LOGGER.warning(
            "%s that cannot be used (all are listed in %s)%s: %s",
            count_of(len(report.dropped), "box", "boxes"),
            manifest,
            kept,
            listed(report.dropped),
        )
    if report.skipped:
        LOGGER.warning(
            "%s skipped (all are listed in %s): %s",
            count_of(len(report.skipped), "image"),
            manifest,
            listed(report.skipped),
        )
    if training and report.crowded:
        LOGGER.warning(
            "%s with more than num_gts = %d boxes, of which each epoch takes another random choice: %s",
            count_of(len(report.crowded), "image"),
            num_gts,
            listed([f"{name} ({number})" for name, number in report.crowded.items()]),
        )
    if training and not report.num_boxes:
        LOGGER.warning("no image has a box to learn from: only background can be learnt")

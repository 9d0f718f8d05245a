"""The three result files per image that the C++ program writes, read for the one evaluation path.

For an image called NAME.SUFFIX, in whatever folder, there are, one after the other and without any header,

- `NAME_0.bin`: boxes (D, 5), x1 y1 x2 y2 in pixels of the image and the score, float32 or float16;
- `NAME_1.bin`: labels (D,) int32, 0 = the first foreground class;
- `NAME_2.bin`: mask (D,), one byte a row, 1 for a detection and 0 for padding.

All numbers are little-endian. The mask tells D, and the bytes of boxes per row, 20 or 10, their type.

NAME is compared in Unicode form NFC, since macOS writes "ü" as two characters and annotation files as one, and folders
may stand before "/" or, as Windows writes them, before a backslash.
"""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from src.common.wording import count_of, listed
from src.model_utils.errors import UserError
from src.util import CocoEvaluator

LOGGER = logging.getLogger(__name__)

NUM_FILES = 3
BOX_TYPES: dict[int, np.dtype] = {20: np.dtype("<f4"), 10: np.dtype("<f2")}  # by bytes per row of five numbers
LABEL_TYPE = np.dtype("<i4")


def result_name(file_name: str) -> str:
    """NAME of an image in Unicode form NFC: its file name without folders and without what follows the last dot.

    >>> result_name("val/a.b.jpg"), result_name("noextension"), result_name(".hidden"), result_name("val\\a.jpg")
    ('a.b', 'noextension', '.hidden', 'a')
    """
    return PurePosixPath(_normal(file_name)).stem


def _normal(file_name: str) -> str:
    """What is the same for all spellings of a file's name: without folders, in Unicode form NFC."""
    return unicodedata.normalize("NFC", PurePosixPath(file_name.replace("\\", "/")).name)


def result_paths(folder: str | Path, name: str) -> tuple[Path, Path, Path]:
    """The paths of boxes, labels and mask of the image called NAME."""
    boxes, labels, mask = (Path(folder) / f"{name}_{number}.bin" for number in range(NUM_FILES))
    return boxes, labels, mask


def read_result_files(folder: str | Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the outputs of one image.

    Args:
        folder (str | Path): where the files lie.
        name (str): NAME of the image, see `result_name`.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: boxes (D, 5) float32, labels (D, 1) int32, mask (D, 1) bool.

    Raises:
        UserError: a file cannot be read or is cut off, or its size does not fit the mask's; names the file.
    """
    boxes_path, labels_path, mask_path = result_paths(folder, name)
    mask = np.frombuffer(_content(mask_path), np.uint8)
    if not mask.size:
        raise UserError(f"{mask_path}: is empty; expected one byte for every row, padding included")
    if mask.max() > 1:
        raise UserError(f"{mask_path}: holds the byte {mask.max()}; a mask is one byte a row, 0 or 1")
    boxes = _content(boxes_path)
    box_type = BOX_TYPES.get(len(boxes) // mask.size)
    if box_type is None or len(boxes) % mask.size:
        expected = " or ".join(f"{mask.size * size:,} ({kind.name})" for size, kind in BOX_TYPES.items())
        raise _wrong_size(boxes_path, boxes, expected, mask)
    labels = _content(labels_path)
    if len(labels) != mask.size * LABEL_TYPE.itemsize:
        raise _wrong_size(labels_path, labels, f"{mask.size * LABEL_TYPE.itemsize:,} ({LABEL_TYPE.name})", mask)
    return (
        np.frombuffer(boxes, box_type).reshape(-1, 5).astype(np.float32),
        np.frombuffer(labels, LABEL_TYPE).reshape(-1, 1),
        mask.reshape(-1, 1).astype(bool),
    )


def add_result_files(evaluator: CocoEvaluator, folder: str | Path) -> None:
    """Hand the result files of every image of the ground truth to its evaluator.

    Args:
        evaluator (CocoEvaluator): knows the images; keeps the best `test_max_per_img` detections of each.
        folder (str | Path): `result_path`.

    Raises:
        UserError: `folder` is not given or does not exist, two images share NAME, files are missing or
            damaged, or a label has no class.
    """
    if not str(folder):
        raise UserError("result_path is empty: name the folder of the result files, --result_path=result_Files")
    folder = Path(folder)
    images = evaluator.ground_truth["images"]
    names = _names_in(folder, _distinct_names([image["file_name"] for image in images]))
    for image, name in zip(images, names, strict=True):
        boxes, labels, mask = read_result_files(folder, name)
        evaluator.add([image["id"]], boxes[None], labels[None], mask[None])
    LOGGER.info("read the result files of %s from %s", count_of(len(names), "image"), folder)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _wrong_size(path: Path, data: bytes, expected: str, mask: np.ndarray) -> UserError:
    return UserError(
        f"{path}: has {len(data):,} bytes; the mask has {count_of(mask.size, 'row')}, for which "
        f"{expected} bytes are expected. The file is cut off or belongs to another run"
    )


def _distinct_names(file_names: Sequence[str]) -> list[str]:
    """NAME of every image; the files of two that are equal cannot be told apart."""
    image_of: dict[str, str] = {}
    for file_name in file_names:
        other = image_of.setdefault(result_name(file_name), file_name)
        if other != file_name:
            raise UserError(
                f"{other!r} and {file_name!r} have the same result files {result_name(file_name)}_0.bin "
                "and so on: whose they are cannot be told. Rename one and run the model again"
            )
    return list(image_of)


def _names_in(folder: Path, names: Sequence[str]) -> list[str]:
    """NAME of every image as the folder spells it; what they need is looked for before any file is read."""
    spelling = _spellings(folder)
    needed = [path.name for name in names for path in result_paths(folder, name)]
    missing = [name for name in needed if name not in spelling]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(needed)} result files that "
            f"{count_of(len(names), 'image')} of the annotation file need: {listed(missing)}. "
            "Every image counts once: run the model on all of them"
        )
    extra = sorted(spelling[name] for name in spelling.keys() - set(needed))
    if extra:
        LOGGER.warning(
            "%s: %s of no image of the annotation file left out: %s",
            folder,
            count_of(len(extra), "file"),
            listed(extra),
        )
    return [spelling[f"{name}_0.bin"].removesuffix("_0.bin") for name in names]


def _spellings(folder: Path) -> dict[str, str]:
    """The folder's .bin files: what is the same for all spellings of a name, and the name itself."""
    try:
        found = sorted(path.name for path in folder.iterdir() if path.suffix == ".bin")
    except OSError as error:
        raise UserError(f"result_path {folder} cannot be read ({error.strerror})") from error
    spelling: dict[str, str] = {}
    for name in found:
        other = spelling.setdefault(_normal(name), name)
        if other != name:
            raise UserError(
                f"{folder} holds {other!r} and {name!r}, two spellings of one name: whose they are cannot "
                "be told. Remove the files of an earlier run, or rename one image and run the model "
                "again"
            )
    return spelling

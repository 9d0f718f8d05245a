"""What a user names as input, an image, a folder, a pattern or a video, as a list of files in natural order."""

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from src.common.wording import listed
from src.data.image_files import IMAGE_SUFFIXES
from src.model_utils.errors import UserError

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class Inputs(NamedTuple):
    """What an input stands for.

    Attributes:
        files (list[Path]): to be read, at least one, in natural order: 2.jpg before 10.jpg.
        left_out (list[Path]): all else in the folder or among what fits the pattern, in natural order.
    """

    files: list[Path]
    left_out: list[Path]


def find_inputs(what: str) -> Inputs:
    """The files that an input stands for.

    Args:
        what (str): a file of any name; or a folder, of which the images are taken (`IMAGE_SUFFIXES`) but not
            hidden ones nor those of folders in it; or a pattern with * ? [], in which ** goes through folders, of
            which all files are taken.

    Returns:
        Inputs: the files, and what was left out.

    Raises:
        UserError: there is no such file, or the folder holds no images, or the pattern fits no file.
    """
    path = Path(what)
    if what and path.is_file():  # also where the name holds the signs of a pattern
        return Inputs([path], [])
    if what and path.is_dir():
        inputs = _split(
            path.iterdir(), lambda file: file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        if not inputs.files:
            raise UserError(
                f"the folder {what} holds no images ({' '.join(IMAGE_SUFFIXES)}); folders in it are "
                f"not looked into, for them give a pattern: '{what}/**/*.jpg'"
                + (f". {left_out_summary(inputs.left_out)}" if inputs.left_out else "")
            )
        return inputs
    inputs = _split(map(Path, set(glob.glob(what, recursive=True))), lambda file: True)  # noqa: PTH207
    if not inputs.files:
        raise UserError(f"--input={what}: there is no such file or folder, and as a pattern it fits no file")
    looked_into = {folder for file in inputs.files for folder in file.parents}
    return Inputs(inputs.files, [path for path in inputs.left_out if path not in looked_into])


def _split(paths: Iterable[Path], is_wanted: Callable[[Path], bool]) -> Inputs:
    """Files that are wanted, and the rest: other files, folders, links to nothing."""
    inputs = Inputs([], [])
    for path in sorted(paths, key=natural_key):
        (inputs.files if is_wanted(path) and path.is_file() else inputs.left_out).append(path)
    return inputs


def left_out_summary(left_out: Sequence[Path]) -> str:
    """What of an input was left out, the first few by name: "2 other files or folders left out: a.gif; b.mp4 (...)".

    Args:
        left_out (Sequence[Path]): of `Inputs`, at least one.
    """
    number = f"{len(left_out)} other {'file or folder' if len(left_out) == 1 else 'files or folders'}"
    names = listed([f"{path.name}/" if path.is_dir() else path.name for path in left_out])
    hint = " (a video is detected in when it is named by itself)" if any(map(is_video, left_out)) else ""
    return f"{number} left out: {names}{hint}"


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sort key by which numbers in a path count as numbers and upper case as lower case."""
    words = re.split(r"(\d+)", str(path).lower())  # every second one is a number
    return [int(word) if index % 2 else word for index, word in enumerate(words)], str(path)


def is_video(path: Path) -> bool:
    """Whether a file is read as a video: its suffix says so."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def output_paths(inputs: Sequence[Path], output_dir: Path, image_suffix: str) -> list[Path]:
    """Where the drawn copy of every input goes: its name with a new suffix, numbered where two would be the same.

    Args:
        inputs (Sequence[Path]): images and videos.
        output_dir (Path): the folder of all outputs.
        image_suffix (str): of drawn images, ".png" or ".jpg"; drawn videos are .mp4.

    Returns:
        list[Path]: one for every input, all different: a.jpg and a.png become a.png and a_2.png.

    Raises:
        UserError: an input lies in `output_dir`, where it could be overwritten.
    """
    _check_apart(inputs, output_dir)
    taken: set[str] = set()
    paths = []
    for source in inputs:
        suffix = ".mp4" if is_video(source) else image_suffix
        name = next(name for name in _candidates(source.stem, suffix) if name.lower() not in taken)
        taken.add(name.lower())  # some file systems do not tell A.png from a.png
        paths.append(output_dir / name)
    return paths


def _candidates(stem: str, suffix: str) -> Iterable[str]:
    yield f"{stem}{suffix}"
    yield from (f"{stem}_{number}{suffix}" for number in count(2))


def _check_apart(inputs: Sequence[Path], output_dir: Path) -> None:
    folder = output_dir.resolve()
    for source in inputs:
        if folder in (source.parent.resolve(), source.resolve().parent):
            raise UserError(
                f"the output folder {output_dir} holds the input {source.name}, which must not be "
                "overwritten; give another one as --output_dir"
            )

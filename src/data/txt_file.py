"""TXT annotation lists.

A list holds one image a line, separated by spaces or tabs: its path below the image folder, in double
quotes if it has spaces in it, then any number of boxes `xmin,ymin,xmax,ymax,class[,iscrowd]` in pixels, the
class counted from 1 in the order of `coco_classes` (background is 0 and has no boxes):

    first.jpg 10,20,110.5,220,1 5,5,50,50,2,1
    "my second image.jpg"

A line without boxes is an image to learn background from. Empty lines are left out.
"""

import re
from pathlib import Path

import numpy as np

from src.common.wording import count_of, listed_below, short
from src.data.coco_file import read_limited
from src.data.data_paths import find_below
from src.data.image_annotation import ImageAnnotation, as_float32
from src.model_utils.errors import UserError

_TXT_LINE = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<plain>[^\s"]+))(?:\s+(?P<boxes>.*))?')


def read_txt(path: str | Path, image_root: str | Path, num_fg_classes: int) -> list[ImageAnnotation]:
    """Read a TXT annotation list; the module's docstring describes the format.

    Args:
        path (str | Path): the list, UTF-8, with or without byte order mark, Unix or Windows line ends.
        image_root (str | Path): the folder its paths start from.
        num_fg_classes (int): K; classes are 1..K.

    Returns:
        list[ImageAnnotation]: one per line that is not empty; image ids are 1, 2, ...

    Raises:
        UserError: lists the numbers of the lines, their content and what is wrong.
    """
    path, image_root = Path(path), Path(image_root).resolve()
    annotations: list[ImageAnnotation] = []
    faults: list[str] = []
    line_of: dict[Path, int] = {}
    for number, line in enumerate(read_limited(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            annotation = _image_from_line(line, number, len(annotations) + 1, image_root, num_fg_classes)
            if annotation.path in line_of:
                raise ValueError(f"{annotation.file_name!r} is already on line {line_of[annotation.path]}")
        except (ValueError, UserError) as error:
            text = line.decode(errors="backslashreplace").strip()
            faults.append(f"line {number}, {short(repr(text))}: {error}")
            continue
        line_of[annotation.path] = number
        annotations.append(annotation)
    if faults:
        raise UserError(
            f"{path}: {count_of(len(faults), 'line')} cannot be read; expected 'path "
            "xmin,ymin,xmax,ymax,class[,iscrowd] ...', names with spaces in double quotes:"
            f"{listed_below(faults)}"
        )
    return annotations


def _image_from_line(line: bytes, number: int, image_id: int, image_root: Path, num_fg_classes: int) -> ImageAnnotation:
    """Parse one line; ValueError says what is wrong with it."""
    try:
        match = _TXT_LINE.fullmatch(line.decode().strip())
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text") from error
    if match is None:
        raise ValueError("a double quote is missing")
    words = (match["boxes"] or "").split()
    rows = np.array([_box_numbers(word, num_fg_classes) for word in words], np.float64).reshape(-1, 6)
    file_name = match["quoted"] or match["plain"]
    return ImageAnnotation(
        image_id=image_id,
        file_name=file_name,
        path=find_below(image_root, file_name),
        size=None,
        boxes_xyxy=as_float32(rows[:, :4]),
        labels=rows[:, 4].astype(np.int32),
        is_crowd=rows[:, 5].astype(bool),
        box_ids=np.arange(1, len(rows) + 1),
        box_word=f"line {number}, box",
    )


def _box_numbers(word: str, num_fg_classes: int) -> list[float]:
    """`xmin,ymin,xmax,ymax,class[,iscrowd]` as six numbers; ValueError says what is wrong."""
    parts = word.split(",")
    if len(parts) not in (5, 6):
        raise ValueError(f"{short(repr(word))} is not a box: it has {count_of(len(parts), 'part')}, not 5 or 6")
    try:
        corners = [float(part) for part in parts[:4]]
        label, crowd = (int(part) for part in (*parts[4:], "0")[:2])
    except ValueError as error:
        raise ValueError(
            f"{short(repr(word))} is not a box: expected four numbers, a class number and perhaps 0 or 1"
        ) from error
    if not 1 <= label <= num_fg_classes:
        raise ValueError(
            f"class {label} of {short(repr(word))} is not one of 1..{num_fg_classes}, the numbers "
            "of coco_classes without background"
        )
    if crowd not in (0, 1):
        raise ValueError(f"iscrowd {crowd} of {short(repr(word))} is neither 0 nor 1")
    return [*corners, label, crowd]

"""Turn a data set in Pascal VOC layout (one XML file a picture) into the COCO layout that training reads.

    python -m src.voc_to_coco --images=images --annotations=annotations --output=face_masks \
        --classes=with_mask,without_mask,mask_worn_incorrectly

It writes OUTPUT/annotations/instances_train2017.json, OUTPUT/annotations/instances_val2017.json and the
pictures in OUTPUT/train2017 and OUTPUT/val2017. OUTPUT appears whole or not at all.

Coordinates: VOC's own files count pixels from 1 and include the last one, so that the pixels' outer edges are
xmin - 1 .. xmax; most other tools write these edges themselves, and some files hold xmin = 0. Numbers are
therefore kept as they are, unless --one_based is given. Here x2 = x + width.

Objects marked difficult become crowd boxes by default: no training target, neither reward nor penalty in
evaluation, which is VOC's own rule.
"""
import argparse
import logging
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from src.annotations import MAX_LISTED, count_of, listed, path_below
from src.files import write_json
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

SUBSETS = ("train2017", "val2017")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DIFFICULT_CHOICES = ("crowd", "keep", "drop")
MAX_XML_BYTES = 16 << 20


@dataclass(frozen=True)
class VocObject:
    """One `<object>`: its class, (xmin, ymin, xmax, ymax) as written, and its `difficult` flag."""

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class VocImage:
    """One XML file: its path, the picture it describes, the picture's (width, height), the objects."""

    xml_path: Path
    picture: Path
    size: tuple[int, int]
    objects: tuple[VocObject, ...]


@dataclass(frozen=True)
class Options:
    """How objects become annotations.

    Attributes:
        class_names (tuple[str, ...]): categories in order, ids from 1.
        one_based (bool): corners count pixels from 1 and include the last.
        difficult (str): one of DIFFICULT_CHOICES.
    """

    class_names: tuple[str, ...]
    one_based: bool = False
    difficult: str = "crowd"


@dataclass
class Summary:
    """Counts of what was written, by class, and names of the boxes left out."""

    boxes: Counter[str] = field(default_factory=Counter)
    num_crowd: int = 0
    dropped: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments and convert; returns the exit code 0."""
    arguments = _parser().parse_args(argv)
    images = read_voc(arguments.annotations, arguments.images)
    class_names = _class_names(arguments.classes, images)
    if arguments.train_list or arguments.val_list:
        subsets = split_by_lists(images, arguments.train_list, arguments.val_list)
    else:
        subsets = split_at_random(images, arguments.val_fraction, arguments.seed)
    options = Options(class_names, arguments.one_based, arguments.difficult)
    write_coco(arguments.output, subsets, options, hard_links=arguments.hard_links)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m src.voc_to_coco", allow_abbrev=False,
                                     description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--images", required=True, type=Path, help="folder of the pictures")
    parser.add_argument("--annotations", required=True, type=Path, help="folder of the XML files, one a picture")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; it must not exist or be empty")
    parser.add_argument("--classes", default="",
                        help="names separated by commas, in the order of the class numbers; other names in the XML "
                             "files are an error (default: all names found, in alphabetical order)")
    parser.add_argument("--val_fraction", type=float, default=0.2,
                        help="share of the pictures that goes to the evaluation set (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1,
                        help="another seed gives another division into the two sets (default: %(default)s)")
    parser.add_argument("--train_list", type=Path,
                        help="file of names without suffix, one a line, such as ImageSets/Main/train.txt: the "
                             "training set; needs --val_list and replaces --val_fraction")
    parser.add_argument("--val_list", type=Path, help="the same for the evaluation set")
    parser.add_argument("--one_based", action="store_true",
                        help="the corners count pixels from 1, as in the original VOC files: xmin and ymin are "
                             "lowered by 1 (default: numbers are kept)")
    parser.add_argument("--difficult", choices=DIFFICULT_CHOICES, default="crowd",
                        help="objects marked difficult become crowd boxes (neither learnt nor scored), are kept as "
                             "others, or are dropped (default: %(default)s)")
    parser.add_argument("--hard_links", action="store_true",
                        help="link the pictures instead of copying them, where both folders are on one disk")
    return parser


# ---- reading ---------------------------------------------------------------------------------------------

def read_voc(annotation_dir: str | Path, image_dir: str | Path) -> list[VocImage]:
    """Read all XML files of a folder.

    The picture is the one named by `<filename>`, or, where that does not exist, the one named like the XML file.

    Args:
        annotation_dir (str | Path): folder of the XML files.
        image_dir (str | Path): folder of the pictures.

    Returns:
        list[VocImage]: in the order of the XML files' names.

    Raises:
        UserError: lists every file that is broken, lacks something, or whose picture is missing.
    """
    annotation_dir, image_dir = Path(annotation_dir), Path(image_dir)
    for key, folder in (("--annotations", annotation_dir), ("--images", image_dir)):
        if not folder.is_dir():
            raise UserError(f"{key}={folder}: there is no such folder")
    paths = sorted(annotation_dir.glob("*.xml"))
    if not paths:
        raise UserError(f"--annotations={annotation_dir}: holds no *.xml files")
    images, faults = [], []
    xml_of: dict[Path, Path] = {}
    for path in paths:
        try:
            image = _read_image(path, image_dir.resolve())
            if image.picture in xml_of:
                raise UserError(f"its picture {image.picture.name} already belongs to {xml_of[image.picture].name}")
        except UserError as error:
            faults.append(f"{path}: {error}")
            continue
        xml_of[image.picture] = path
        images.append(image)
    if faults:
        more = f"\n  and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise UserError(f"{count_of(len(faults), 'annotation file')} cannot be used:\n  "
                        + "\n  ".join(faults[:MAX_LISTED]) + more)
    return images


def _read_image(path: Path, image_dir: Path) -> VocImage:
    """One XML file; the UserErrors do not name it."""
    root = parse_xml(path)
    picture = _find_picture(root.findtext("filename", "").strip(), path.stem, image_dir)
    try:
        with Image.open(picture) as opened:
            size = opened.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"its picture {picture} cannot be read") from error
    stated = tuple(_number(root.find("size"), side, "<size>") if root.findtext(f"size/{side}") else 0
                   for side in ("width", "height"))
    if 0 not in stated and stated != size:
        raise UserError(f"says {stated[0]:g} x {stated[1]:g} pixels, its picture {picture} has {size[0]} x {size[1]}")
    objects = tuple(_read_object(element, f"object {number}")
                    for number, element in enumerate(root.iter("object"), start=1))
    return VocImage(path, picture, size, objects)


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an XML file that may come from anywhere: document type declarations are refused.

    Entities are declared there, and a few lines of nested ones fill the memory.

    Raises:
        UserError: with line and column; does not name the file.
    """
    try:
        if path.stat().st_size > MAX_XML_BYTES:
            raise UserError(f"has more than {MAX_XML_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})") from error
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise UserError(f"is not valid XML ({error})") from error


def _refuse_doctype(*_: object) -> None:
    raise UserError("has a document type declaration (<!DOCTYPE ...>); VOC annotations need none, remove it")


def _find_picture(file_name: str, stem: str, image_dir: Path) -> Path:
    candidates = [file_name] if file_name else []
    candidates += [stem + suffix for suffix in (*PICTURE_SUFFIXES, *(suffix.upper() for suffix in PICTURE_SUFFIXES))]
    for candidate in candidates:
        picture = path_below(image_dir, candidate)
        if picture.is_file():
            return picture
    raise UserError(f"its picture {file_name or stem + '.*'} is not in {image_dir}")


def _read_object(element: ElementTree.Element, what: str) -> VocObject:
    name = element.findtext("name", "").strip()
    if not name:
        raise UserError(f"{what} has no <name>")
    box = element.find("bndbox")
    corners = tuple(_number(box, key, f"<bndbox> of {what}") for key in ("xmin", "ymin", "xmax", "ymax"))
    return VocObject(name, corners, element.findtext("difficult", "0").strip() == "1")


def _number(parent: ElementTree.Element | None, key: str, what: str) -> float:
    text = None if parent is None else parent.findtext(key)
    try:
        number = float(text)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: <{key}> is {text!r}; expected a number") from error
    if not math.isfinite(number):
        raise UserError(f"{what}: <{key}> is {text!r}; expected a finite number")
    return number


def _class_names(argument: str, images: Sequence[VocImage]) -> tuple[str, ...]:
    """The classes asked for, which must include all that occur; without a wish all that occur."""
    first_file: dict[str, Path] = {}
    for image in images:
        for item in image.objects:
            first_file.setdefault(item.name, image.xml_path)
    if not argument:
        if not first_file:
            raise UserError("the annotation files have no objects; give --classes")
        return tuple(sorted(first_file))
    names = tuple(name.strip() for name in argument.split(","))
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"--classes={argument}: expected different names separated by commas")
    unknown = [f"{name!r} (in {path})" for name, path in first_file.items() if name not in names]
    if unknown:
        raise UserError(f"--classes={argument} lacks {listed(unknown)}")
    return names


# ---- the two sets ----------------------------------------------------------------------------------------

def split_at_random(images: Sequence[VocImage], val_fraction: float, seed: int) -> dict[str, list[VocImage]]:
    """Divide pictures at random; the same seed gives the same division.

    Args:
        images (Sequence[VocImage]): at least two.
        val_fraction (float): share of the evaluation set, between 0 and 1; each set gets at least one picture.
        seed (int): 0 or more.

    Returns:
        dict[str, list[VocImage]]: by SUBSETS, each in the given order.

    Raises:
        UserError: the fraction or the seed is out of range, or there is only one picture.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction={val_fraction}: expected a number between 0 and 1")
    if seed < 0:
        raise UserError(f"--seed={seed}: expected 0 or more")
    if len(images) < 2:
        raise UserError("one picture cannot be divided into a training and an evaluation set")
    num_val = min(max(round(val_fraction * len(images)), 1), len(images) - 1)
    in_val = np.zeros(len(images), bool)
    in_val[np.random.default_rng(seed).permutation(len(images))[:num_val]] = True
    return {subset: [image for image, chosen in zip(images, in_val, strict=True) if chosen == wanted]
            for subset, wanted in zip(SUBSETS, (False, True), strict=True)}


def split_by_lists(images: Sequence[VocImage], train_list: Path | None,
                   val_list: Path | None) -> dict[str, list[VocImage]]:
    """Divide pictures by two lists of names; pictures in neither are left out, with their number logged.

    Returns:
        dict[str, list[VocImage]]: by SUBSETS, each in the order of its list.

    Raises:
        UserError: one list is missing or empty, a name is unknown or comes twice.
    """
    if not train_list or not val_list:
        raise UserError("--train_list and --val_list are only useful together: give both or neither")
    image_of = {image.xml_path.stem: image for image in images}
    place_of: dict[str, str] = {}
    subsets: dict[str, list[VocImage]] = {}
    for subset, path in zip(SUBSETS, (train_list, val_list), strict=True):
        subsets[subset] = []
        for number, name in _list_lines(path):
            place = f"{path} line {number}"
            if name not in image_of:
                raise UserError(f"{place}: there is no annotation file {name}.xml")
            if name in place_of:
                raise UserError(f"{place}: {name} is already on {place_of[name]}")
            place_of[name] = place
            subsets[subset].append(image_of[name])
        if not subsets[subset]:
            raise UserError(f"{path}: has no names; expected one a line")
    if len(place_of) < len(images):
        LOGGER.warning("%s in neither list left out", count_of(len(images) - len(place_of), "picture"))
    return subsets


def _list_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and first word of every line: the lists of single classes have 1 or -1 behind the name."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of names ({error})") from error
    return ((number, line.split()[0]) for number, line in enumerate(lines, start=1) if line.strip())


# ---- writing ---------------------------------------------------------------------------------------------

def write_coco(output: str | Path, subsets: dict[str, list[VocImage]], options: Options, *,
               hard_links: bool = False) -> None:
    """Write pictures and annotation files in COCO layout.

    Everything is made in a folder `.NAME.unfinished` beside the output, which takes its place at the end.

    Args:
        output (str | Path): folder to make; it must not exist or be empty.
        subsets (dict[str, list[VocImage]]): pictures by subset.
        options (Options): classes and rules.
        hard_links (bool): link pictures where that is possible, else copy them.

    Raises:
        UserError: the output exists and is not empty, or cannot be written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output}: exists and is not empty; give another folder or remove it")
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)         # a killed run left it
        for subset, images in subsets.items():
            _write_subset(unfinished, subset, images, options, hard_links=hard_links)
        unfinished.replace(output)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    LOGGER.info("%s is ready. Train with --coco_root=%s --coco_classes=\"%s\"", output, output,
                ["background", *options.class_names])


def _write_subset(root: Path, subset: str, images: Sequence[VocImage], options: Options, *,
                  hard_links: bool) -> None:
    folder = root / subset
    folder.mkdir(parents=True)
    summary = Summary()
    annotations: list[dict] = []
    for image_id, image in enumerate(tqdm(images, desc=subset, unit="picture", disable=None), start=1):
        target = folder / image.picture.name
        if target.exists():
            raise UserError(f"two pictures are called {image.picture.name}; names must differ without their folders")
        _place(image.picture, target, hard_links=hard_links)
        for row in _coco_rows(image, options, summary):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | row)
    categories = [{"id": number, "name": name} for number, name in enumerate(options.class_names, start=1)]
    write_json(root / "annotations" / f"instances_{subset}.json", {
        "images": [{"id": image_id, "file_name": image.picture.name, "width": image.size[0], "height": image.size[1]}
                   for image_id, image in enumerate(images, start=1)],
        "annotations": annotations, "categories": categories})
    LOGGER.info("%s: %s, %s (%s), %d of them crowd", subset, count_of(len(images), "picture"),
                count_of(len(annotations), "box", "boxes"),
                ", ".join(f"{name} {summary.boxes[name]}" for name in options.class_names), summary.num_crowd)
    if summary.dropped:
        LOGGER.warning("%s: %s left out: %s", subset, count_of(len(summary.dropped), "box", "boxes"),
                       listed(summary.dropped))


def _place(picture: Path, target: Path, *, hard_links: bool) -> None:
    if hard_links:
        try:
            os.link(picture, target)
            return
        except OSError as error:
            LOGGER.debug("%s is copied: %s", picture, error)
    shutil.copyfile(picture, target)


def _coco_rows(image: VocImage, options: Options, summary: Summary) -> Iterator[dict]:
    """The annotations of one picture without their ids."""
    for number, item in enumerate(image.objects, start=1):
        x1, y1, x2, y2 = item.corners
        if options.one_based:
            x1, y1 = x1 - 1, y1 - 1
        if x2 <= x1 or y2 <= y1:
            summary.dropped.append(f"{image.xml_path.name} object {number} (no area)")
            continue
        if item.is_difficult and options.difficult == "drop":
            summary.dropped.append(f"{image.xml_path.name} object {number} (difficult)")
            continue
        crowd = item.is_difficult and options.difficult == "crowd"
        summary.boxes[item.name] += 1
        summary.num_crowd += crowd
        yield {"category_id": options.class_names.index(item.name) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
               "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}


if __name__ == "__main__":
    from src.runtime import run
    sys.exit(run(main))

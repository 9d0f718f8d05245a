"""Turn a data set in Pascal VOC layout (one XML file an image) into the COCO layout that training reads.

    python -m src.tools.voc_to_coco --images=images --annotations=annotations --output=face_masks \
        --classes=with_mask,without_mask,mask_worn_incorrectly

It writes OUTPUT/annotations/instances_train2017.json, OUTPUT/annotations/instances_val2017.json and the
images in OUTPUT/train2017 and OUTPUT/val2017, in sub-folders as in the image folder. OUTPUT appears whole or
not at all. The last line accounts for every XML file and every image.

XML files: those in sub-folders too, hidden ones not. `src/data/xml_files.py` says in which encoding they are read,
`src/data/voc_xml.py` how the image of each is found. What the files leave open is refused, with an option that
decides it: --encoding, --match. Images without an XML file are left out, unless --keep_unlabelled is given.

Coordinates: VOC's own files count pixels from 1 and include the last one, so that the pixels' outer edges are
xmin - 1 .. xmax; most other tools write these edges themselves, and some files hold xmin = 0. Numbers are
therefore kept as they are, unless --one_based is given. Here x2 = x + width.

Objects marked difficult become crowd boxes by default: no training target, neither reward nor penalty in
evaluation, which is VOC's own rule.
"""

import argparse
import logging
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.common.files import whole_folder, write_json
from src.common.progress import with_progress
from src.common.wording import count_of, listed
from src.data.voc_xml import MATCH_CHOICES, ReadOptions, VocData, VocImage, nfc, read_voc
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

SUBSETS = ("train2017", "val2017")
DIFFICULT_CHOICES = ("crowd", "keep", "drop")


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
    if arguments.images.resolve() in (arguments.output.resolve(), *arguments.output.resolve().parents):
        raise UserError(
            f"--output={arguments.output} lies in the folder of the images, where a second conversion "
            "would find copies of them; give another folder"
        )
    read_options = ReadOptions(arguments.match, arguments.encoding, arguments.keep_unlabelled)
    data = read_voc(arguments.annotations, arguments.images, read_options)
    class_names = _class_names(arguments.classes, data.images)
    if arguments.train_list or arguments.val_list:
        subsets = split_by_lists(data.images, arguments.train_list, arguments.val_list)
    else:
        subsets = split_at_random(data.images, arguments.val_fraction, arguments.seed)
    options = Options(class_names, arguments.one_based, arguments.difficult)
    write_coco(arguments.output, subsets, options, hard_links=arguments.hard_links)
    log_account(data, subsets, read_options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m src.tools.voc_to_coco", allow_abbrev=False, description=__doc__.split("\n\n", 1)[0]
    )
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        help="folder of the images; each is looked for in the sub-folder that its XML file has below "
        "--annotations, then in this folder",
    )
    parser.add_argument(
        "--annotations", required=True, type=Path, help="folder of the XML files, one an image, also in sub-folders"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to make; it must not exist or be empty")
    _add_reading_options(parser)
    _add_division_options(parser)
    parser.add_argument(
        "--hard_links",
        action="store_true",
        help="link the images instead of copying them, where both folders are on one disk",
    )
    return parser


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes",
        default="",
        help="names separated by commas, in the order of the class numbers; other names in the XML "
        "files are an error (default: all names found, in alphabetical order)",
    )
    parser.add_argument(
        "--match",
        choices=MATCH_CHOICES,
        default="",
        help="which is right where <filename> in an XML file names one image and the XML file's own "
        "name is that of another (default: such files are refused by name)",
    )
    parser.add_argument(
        "--encoding",
        default="",
        metavar="NAME",
        help="encoding, such as gb18030 or cp1252, of XML files that declare none and are not plainly "
        "UTF-8, and of those that declare one that Python does not know or that their bytes "
        "contradict; all others are read as they declare (default: such files are refused by "
        "name, but one that declares none and can be read as UTF-8 is read so)",
    )
    parser.add_argument(
        "--keep_unlabelled",
        action="store_true",
        help="images without an XML file become images without boxes, which are background (default: "
        "they are left out)",
    )
    parser.add_argument(
        "--one_based",
        action="store_true",
        help="the corners count pixels from 1, as in the original VOC files: xmin and ymin are "
        "lowered by 1 (default: numbers are kept)",
    )
    parser.add_argument(
        "--difficult",
        choices=DIFFICULT_CHOICES,
        default="crowd",
        help="objects marked difficult become crowd boxes (neither learnt nor scored), are kept as "
        "others, or are dropped (default: %(default)s)",
    )


def _add_division_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.2,
        help="share of the images that goes to the evaluation set (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="another seed gives another division into the two sets (default: %(default)s)",
    )
    parser.add_argument(
        "--train_list",
        type=Path,
        help="file of names without suffix, one a line, such as ImageSets/Main/train.txt: the "
        "training set; needs --val_list and replaces --val_fraction. sub/1 is sub/1.xml below "
        "--annotations; 1 is 1.xml, or else the only one of that name in any sub-folder",
    )
    parser.add_argument("--val_list", type=Path, help="the same for the evaluation set")


def _class_names(argument: str, images: Sequence[VocImage]) -> tuple[str, ...]:
    """The classes asked for, which must include all that occur; without a wish all that occur."""
    first_file: dict[str, Path | None] = {}
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
    """Divide images at random; the same seed gives the same division.

    Args:
        images (Sequence[VocImage]): at least two.
        val_fraction (float): share of the evaluation set, between 0 and 1; each set gets at least one image.
        seed (int): 0 or more.

    Returns:
        dict[str, list[VocImage]]: by SUBSETS, each in the given order.

    Raises:
        UserError: the fraction or the seed is out of range, or there is only one image.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction={val_fraction}: expected a number between 0 and 1")
    if seed < 0:
        raise UserError(f"--seed={seed}: expected 0 or more")
    if len(images) < 2:
        raise UserError("one image cannot be divided into a training and an evaluation set")
    num_val = min(max(round(val_fraction * len(images)), 1), len(images) - 1)
    in_val = np.zeros(len(images), bool)
    in_val[np.random.default_rng(seed).permutation(len(images))[:num_val]] = True
    return {
        subset: [image for image, chosen in zip(images, in_val, strict=True) if chosen == wanted]
        for subset, wanted in zip(SUBSETS, (False, True), strict=True)
    }


def split_by_lists(
    images: Sequence[VocImage], train_list: Path | None, val_list: Path | None
) -> dict[str, list[VocImage]]:
    """Divide images by two lists of names; images in neither are left out.

    Args:
        images (Sequence[VocImage]): a name on a list is their `name`, or the part behind its last / where only one
            image has it.
        train_list (Path | None): text file, one name a line; 1, -1 or 0 may follow, as in VOC's lists of one class.
        val_list (Path | None): the same.

    Returns:
        dict[str, list[VocImage]]: by SUBSETS, each in the order of its list.

    Raises:
        UserError: one list is missing or empty, a name is unknown, stands for several images, or comes twice.
    """
    if not train_list or not val_list:
        raise UserError("--train_list and --val_list are only useful together: give both or neither")
    names = _ListNames(images)
    place_of: dict[Path, str] = {}
    subsets: dict[str, list[VocImage]] = {}
    for subset, path in zip(SUBSETS, (train_list, val_list), strict=True):
        subsets[subset] = []
        for number, line in _list_lines(path):
            place = f"{path} line {number}"
            image = names.image_of(line, place)
            if image.path in place_of:
                raise UserError(f"{place}: {image.name} is already on {place_of[image.path]}")
            place_of[image.path] = place
            subsets[subset].append(image)
        if not subsets[subset]:
            raise UserError(f"{path}: has no names; expected one a line")
    return subsets


class _ListNames:
    """What the names on a list stand for."""

    def __init__(self, images: Sequence[VocImage]) -> None:
        self._whole: dict[str, list[VocImage]] = defaultdict(list)
        self._bare: dict[str, list[VocImage]] = defaultdict(list)
        for image in images:
            self._whole[nfc(image.name)].append(image)
            self._bare[nfc(image.name).rsplit("/", 1)[-1]].append(image)

    def image_of(self, line: str, place: str) -> VocImage:
        whole = nfc(line.replace("\\", "/"))
        name = re.sub(r"\s+(-1|0|1)$", "", whole)  # the lists of single classes have these behind the name
        hits = next((known[key] for key in (whole, name) for known in (self._whole, self._bare) if key in known), [])
        if not hits:
            raise UserError(f"{place}: there is no annotation file {name}.xml")
        if len(hits) > 1:
            raise UserError(
                f"{place}: {name} stands for {listed([image.file_name for image in hits])}; write the "
                "folder too, such as sub/1, or give them different names"
            )
        return hits[0]


def _list_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and content of every line that is not empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of names ({error})") from error
    return ((number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip())


# ---- writing ---------------------------------------------------------------------------------------------


def write_coco(
    output: str | Path, subsets: dict[str, list[VocImage]], options: Options, *, hard_links: bool = False
) -> None:
    """Write images and annotation files in COCO layout.

    The output appears whole or not at all, see `whole_folder`.

    Args:
        output (str | Path): folder to make; it must not exist or be empty.
        subsets (dict[str, list[VocImage]]): images by subset.
        options (Options): classes and rules.
        hard_links (bool): link images where that is possible, else copy them.

    Raises:
        UserError: the output exists and is not empty, or cannot be written.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output}: exists and is not empty; give another folder or remove it")
    try:
        with whole_folder(output) as unfinished:
            for subset, images in subsets.items():
                _write_subset(unfinished, subset, images, options, hard_links=hard_links)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error})") from error
    LOGGER.info(
        '%s is ready. Train with --coco_root=%s --coco_classes="%s"',
        output,
        output,
        ["background", *options.class_names],
    )


def _write_subset(root: Path, subset: str, images: Sequence[VocImage], options: Options, *, hard_links: bool) -> None:
    folder = root / subset
    folder.mkdir(parents=True)
    summary = Summary()
    annotations: list[dict] = []
    for image_id, image in enumerate(with_progress(images, len(images), subset, "images"), start=1):
        target = folder / image.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(image.path, target, hard_links=hard_links)
        for row in _coco_rows(image, options, summary):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id} | row)
    categories = [{"id": number, "name": name} for number, name in enumerate(options.class_names, start=1)]
    write_json(
        root / "annotations" / f"instances_{subset}.json",
        {
            "images": [
                {"id": image_id, "file_name": image.file_name, "width": image.size[0], "height": image.size[1]}
                for image_id, image in enumerate(images, start=1)
            ],
            "annotations": annotations,
            "categories": categories,
        },
    )
    LOGGER.info(
        "%s: %s, %s (%s), %d of them crowd",
        subset,
        count_of(len(images), "image"),
        count_of(len(annotations), "box", "boxes"),
        ", ".join(f"{name} {summary.boxes[name]}" for name in options.class_names),
        summary.num_crowd,
    )
    if summary.dropped:
        LOGGER.warning(
            "%s: %s left out: %s", subset, count_of(len(summary.dropped), "box", "boxes"), listed(summary.dropped)
        )


def _place(image: Path, target: Path, *, hard_links: bool) -> None:
    if hard_links:
        try:
            os.link(image, target)
            return
        except OSError as error:
            LOGGER.debug("%s is copied: %s", image, error)
    shutil.copyfile(image, target)


def _coco_rows(image: VocImage, options: Options, summary: Summary) -> Iterator[dict]:
    """The annotations of one image without their ids."""
    for number, item in enumerate(image.objects, start=1):
        x1, y1, x2, y2 = item.corners
        if options.one_based:
            x1, y1 = x1 - 1, y1 - 1
        if x2 <= x1 or y2 <= y1:
            summary.dropped.append(f"{image.xml_path} object {number} (no area)")
            continue
        if item.is_difficult and options.difficult == "drop":
            summary.dropped.append(f"{image.xml_path} object {number} (difficult)")
            continue
        crowd = item.is_difficult and options.difficult == "crowd"
        summary.boxes[item.name] += 1
        summary.num_crowd += crowd
        row = {
            "category_id": options.class_names.index(item.name) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd),
        }
        # As CVAT's COCO files have it: whoever reads the file counts such boxes in a warning.
        yield (
            row
            | ({"attributes": {"rotation": item.rotation}} if item.rotation else {})
            | ({"ignore": 1} if item.is_ignored else {})
        )


# ---- the account -----------------------------------------------------------------------------------------


def log_account(data: VocData, subsets: dict[str, list[VocImage]], options: ReadOptions) -> None:
    """Log one line in which every XML file and every image is counted once; a warning if any was left out.

    Args:
        data (VocData): what was read.
        subsets (dict[str, list[VocImage]]): what was written.
        options (ReadOptions): how it was read.
    """
    used = [image for images in subsets.values() for image in images]
    with_xml = [image for image in used if image.xml_path]
    num_xml = sum(image.xml_path is not None for image in data.images)
    kept, unlisted_xml = len(used) - len(with_xml), num_xml - len(with_xml)
    unlisted = len(data.images) - num_xml - kept
    details = [
        (sum(not image.objects for image in with_xml), "without objects", False),
        (_found(with_xml, "stem"), "found their image by their own name, as <filename> found none", False),
        (_found(with_xml, "match"), f"decided by --match={options.match}", bool(options.match)),
        (
            sum(image.encoding_given for image in with_xml),
            f"read as --encoding={options.encoding}",
            bool(options.encoding),
        ),
    ]
    xml_parts = [
        (len(with_xml), f"used{_joined(details, ' ({})')}", True),
        (unlisted_xml, "left out (in neither list)", False),
    ]
    image_parts = [
        (len(with_xml), "used with their XML file", True),
        (unlisted_xml, "left out with theirs (in neither list)", False),
        (kept, "kept without one, as background", options.keep_unlabelled),
        (unlisted, "left out without one (in neither list)", False),
        (
            len(data.left_out),
            f"left out without one ({listed(data.left_out)}; --keep_unlabelled keeps them as background)",
            False,
        ),
    ]
    others = [(len(data.others), f"of other kinds, left out: {listed(data.others)}", False)]
    incomplete = unlisted_xml or unlisted or data.left_out
    LOGGER.log(
        logging.WARNING if incomplete else logging.INFO,
        "%s: %s; %s: %s%s",
        count_of(num_xml, "XML file"),
        _joined(xml_parts),
        count_of(len(data.images) + len(data.left_out), "image"),
        _joined(image_parts),
        _joined(others, "; files: {}"),
    )


def _found(images: Sequence[VocImage], how: str) -> int:
    return sum(image.found_by == how for image in images)


def _joined(parts: Sequence[tuple[int, str, bool]], frame: str = "{}") -> str:
    """The counts with their words, those of 0 only if marked; "" for none."""
    text = ", ".join(f"{number} {words}" for number, words, always in parts if number or always)
    return frame.format(text) if text else ""


if __name__ == "__main__":
    from src.runtime import run

    sys.exit(run(main))

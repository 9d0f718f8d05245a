"""Read a data set in Pascal VOC layout: XML files, one an image, and the images that they describe.

Encoding: see `src/data/xml_files.py`; a file that declares a wrong one is refused unless `--encoding` names another.

Image: the one that `<filename>` names, or the one with the XML file's own name where `<filename>` finds none. Where
they find two different images, the file is refused unless `--match` says which is right.
"""

import logging
import math
import os
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from PIL import Image, UnidentifiedImageError

from src.common.wording import count_of, listed, listed_below
from src.data.data_paths import path_below
from src.data.image_files import IMAGE_SUFFIXES
from src.data.xml_files import charset, parse_xml
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

MATCH_CHOICES = ("filename", "stem")
_MAX_PARTS = 32  # folders of a <filename> that are looked at, from its end
_MAX_TEXT = 100  # characters of a <filename> shown


@dataclass(frozen=True)
class VocObject:
    """One `<object>`.

    Attributes:
        name (str): its class.
        corners (tuple[float, float, float, float]): xmin, ymin, xmax, ymax as written.
        is_difficult (bool): its `difficult` flag.
        is_ignored (bool): its `ignore` flag, neither to be learnt nor scored.
        rotation (str): the angle that CVAT writes beside an upright box; "" for none.
    """

    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool
    is_ignored: bool
    rotation: str


@dataclass(frozen=True)
class VocImage:
    """One image and what its XML file says of it.

    Attributes:
        name (str): what lists call it: the XML file below its folder without suffix, such as sub/1; that of the
            image where there is no XML file.
        path (Path): the image, resolved.
        file_name (str): the image below the image folder, such as sub/1.jpg.
        size (tuple[int, int]): (width, height) of the image.
        objects (tuple[VocObject, ...]): in the file's order.
        xml_path (Path | None): None for an image without an XML file.
        found_by (str): "filename"; "stem" if `<filename>` found no image; "match" if the option had to decide.
        encoding_given (bool): the XML file was read in the encoding of the option.
    """

    name: str
    path: Path
    file_name: str
    size: tuple[int, int]
    objects: tuple[VocObject, ...] = ()
    xml_path: Path | None = None
    found_by: str = ""
    encoding_given: bool = False


@dataclass(frozen=True)
class ReadOptions:
    """What to do where the files leave it open; the defaults refuse.

    Attributes:
        match (str): one of MATCH_CHOICES, which is right where they contradict each other; "" refuses.
        encoding (str): for XML files whose own declaration is missing or wrong, see `decode_xml`; "" for none.
        keep_unlabelled (bool): images without an XML file are images without boxes.
    """

    match: str = ""
    encoding: str = ""
    keep_unlabelled: bool = False


STRICT = ReadOptions()


@dataclass(frozen=True)
class VocData:
    """All images read, those with an XML file first, and by name what is left out: images, and files of other kinds."""

    images: list[VocImage]
    left_out: list[str]
    others: list[str]


# ---- folders ---------------------------------------------------------------------------------------------


def read_voc(annotation_dir: str | Path, image_dir: str | Path, options: ReadOptions = STRICT) -> VocData:
    """Read all XML files of a folder and of the folders in it.

    Hidden files and folders (.NAME) are left out, and links to folders, which are named in the log.

    Args:
        annotation_dir (str | Path): folder of the XML files.
        image_dir (str | Path): folder of the images; nothing outside it is read.
        options (ReadOptions): what to do where the files leave it open.

    Returns:
        VocData: in the order of the names.

    Raises:
        UserError: lists every file that is broken, lacks something, or whose image is missing or uncertain.
    """
    annotation_dir, image_dir = Path(annotation_dir), Path(image_dir)
    for key, place in (("--annotations", annotation_dir), ("--images", image_dir)):
        if not place.is_dir():
            raise UserError(f"{key}={place}: there is no such folder")
    if options.encoding and not charset(options.encoding):
        raise UserError(
            f"--encoding={options.encoding}: Python knows no such encoding; expected a name such as "
            "gb18030, big5, shift_jis, cp1252 or utf-16"
        )
    xml_names = [name for name in _files_below(annotation_dir) if _suffix(name) == ".xml"]
    if not xml_names:
        raise UserError(f"--annotations={annotation_dir}: holds no *.xml files, nor do the folders in it")
    folder = ImageFolder(image_dir)
    images, faults = [], []
    xml_of: dict[Path, Path] = {}
    for xml_name in xml_names:
        xml_path = annotation_dir / xml_name
        try:
            image = _read_image(xml_path, xml_name, folder, options)
            other = xml_of.setdefault(image.path, xml_path)
            if other != xml_path:
                raise UserError(f"its image {image.file_name} already belongs to {other}")
            images.append(image)
        except UserError as error:
            faults.append(f"{xml_path}: {error}")
    _refuse_faulty(faults)
    unlabelled = [file_name for path, file_name in folder.images().items() if path not in xml_of]
    for file_name in unlabelled if options.keep_unlabelled else ():
        try:
            path = path_below(folder.root, file_name)
            images.append(VocImage(_without_suffix(file_name), path, file_name, _image_size(path)))
        except UserError as error:
            faults.append(f"{image_dir / file_name}: {error}")
    _refuse_faulty(faults)
    used = {image.file_name for image in images}
    others = [name for name in folder.names if _suffix(name) not in IMAGE_SUFFIXES and name not in used]
    return VocData(images, [] if options.keep_unlabelled else unlabelled, others)


def _refuse_faulty(faults: list[str]) -> None:
    if faults:
        raise UserError(f"{count_of(len(faults), 'file')} cannot be used:{listed_below(faults)}")


def _files_below(root: Path) -> list[str]:
    """Relative names, with /, of all files but hidden ones, sorted by folder and name."""
    names, links = [], []
    for folder, folders, files in os.walk(root, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [str(Path(folder, name)) for name in folders if Path(folder, name).is_symlink()]
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    if links:
        LOGGER.warning("links to folders are not followed: %s", listed(sorted(links)))
    for name in names:
        if _suffix(name) in (*IMAGE_SUFFIXES, ".xml") and not name.isascii():
            try:
                name.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{root}: the file name {name!a} is not UTF-8; rename it, for example with convmv -t utf-8 -f gbk"
                ) from error
    return sorted(names, key=lambda name: name.split("/"))


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"the folder {error.filename} cannot be read ({error.strerror})") from error


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _without_suffix(name: str) -> str:
    return name.removesuffix(PurePosixPath(name).suffix)


def nfc(text: str) -> str:
    """The composed Unicode form: macOS and some archives write file names in the other one."""
    return unicodedata.normalize("NFC", text)


# ---- the image of an XML file ----------------------------------------------------------------------------


class ImageFolder:
    """Finds images below a folder by name, by what the folder lists and never by a path from an XML file."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.names = [name for name in _files_below(self.root) if _suffix(name) != ".xml"]
        self._spelled = set(self.names)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            self._by_name[nfc(name)].append(name)
            if _suffix(name) in IMAGE_SUFFIXES:
                self._by_stem[nfc(_without_suffix(name))].append(name)

    def images(self) -> dict[Path, str]:
        """Resolved path and listed name of every image, told by its suffix; one that links lead to comes once."""
        paths: dict[Path, str] = {}
        for name in self.names:
            if _suffix(name) in IMAGE_SUFFIXES:
                paths.setdefault((self.root / name).resolve(), name)
        return paths

    def find(self, name: str, folder: PurePosixPath) -> dict[Path, str]:
        """The images of a name with or without suffix, in a folder below the root or else in the root itself.

        Args:
            name (str): may have folders in front, separated by /.
            folder (PurePosixPath): relative to the root.

        Returns:
            dict[Path, str]: resolved path and listed name; several where the name leaves it open.

        Raises:
            UserError: a link leads out of the root.
        """
        for parent in (folder, PurePosixPath()):
            hits = self._named((parent / name).as_posix())
            if hits:
                return {path_below(self.root, hit): hit for hit in hits}
        return {}

    def find_written(self, file_name: str, folder: PurePosixPath) -> dict[Path, str]:
        r"""The same for a path as another machine wrote it: C:\a\1.jpg, /a/1.jpg, ..\a\1.jpg.

        As many of its folders count as exist here: a/1.jpg is tried before 1.jpg.
        """
        parts = [part for part in re.split(r"[\\/]", file_name) if part not in ("", ".")][-_MAX_PARTS:]
        for start in range(len(parts)):
            hits = self.find("/".join(parts[start:]), folder)
            if hits:
                return hits
        return {}

    def _named(self, name: str) -> list[str]:
        """By the same spelling, else in another Unicode form, without a suffix, or with the suffix in other case."""
        if name in self._spelled:
            return [name]
        name, suffix = nfc(name), _suffix(name)
        return (
            self._by_name.get(name)
            or self._by_stem.get(name)
            or [hit for hit in self._by_stem.get(_without_suffix(name), ()) if _suffix(hit) == suffix]
        )


def _find_image(file_name: str, xml_name: str, folder: ImageFolder, match: str) -> tuple[Path, str, str]:
    """Resolved path and listed name of the image, and `found_by`."""
    place = PurePosixPath(xml_name)
    named = folder.find_written(file_name, place.parent)
    own = folder.find(place.stem, place.parent)
    agreed = {path: name for path, name in named.items() if path in own}
    hits, found_by = (agreed or named or own), ("filename" if named else "stem")
    if named and own and not agreed:
        if not match:
            raise UserError(
                f"its <filename> names {_either(named)}, but its own name is that of {_either(own)}; say "
                "with --match=filename or --match=stem which is right"
            )
        hits, found_by = (named if match == "filename" else own), "match"
    if not hits:
        wanted = f"{file_name[-_MAX_TEXT:]} or {place.stem}.*" if file_name else f"{place.stem}.*"
        raise UserError(f"its image, {wanted}, is not in {folder.root}")
    if len(hits) > 1:
        raise UserError(f"its image may be {_either(hits)}; write the right one into <filename>")
    ((path, name),) = hits.items()
    return path, name, found_by


def _either(hits: dict[Path, str]) -> str:
    return listed(sorted(hits.values()), separator=" or ")


def _read_image(xml_path: Path, xml_name: str, folder: ImageFolder, options: ReadOptions) -> VocImage:
    """One XML file and its image; the UserErrors do not name the XML file."""
    root, encoding_given = parse_xml(xml_path, options.encoding)
    if root.tag != "annotation":
        raise UserError(f"its outermost element is <{root.tag[:_MAX_TEXT]}>; in Pascal VOC's layout it is <annotation>")
    path, name, found_by = _find_image(root.findtext("filename", "").strip(), xml_name, folder, options.match)
    size = _image_size(path)
    stated = tuple(
        _number(root.find("size"), side, "<size>") if root.findtext(f"size/{side}") else 0
        for side in ("width", "height")
    )
    if 0 not in stated and stated != size:
        raise UserError(f"says {stated[0]:g} x {stated[1]:g} pixels, its image {path} has {size[0]} x {size[1]}")
    objects = tuple(
        _read_object(element, f"object {number}") for number, element in enumerate(root.iter("object"), start=1)
    )
    return VocImage(_without_suffix(xml_name), path, name, size, objects, xml_path, found_by, encoding_given)


def _image_size(path: Path) -> tuple[int, int]:
    try:
        if not path.is_file():
            raise OSError("not a file")
        with Image.open(path) as opened:
            return opened.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the image {path} cannot be read") from error


# ---- objects -------------------------------------------------------------------------------------------


def _read_object(element: ElementTree.Element, what: str) -> VocObject:
    name = element.findtext("name", "").strip()
    if not name:
        raise UserError(f"{what} has no <name>")
    box = element.find("bndbox")
    if box is None:
        others = [key for key in ("polygon", "robndbox", "mask") if element.find(key) is not None]
        raise UserError(f"{what} has no <bndbox>{f' but a <{others[0]}>, which is not converted' if others else ''}")
    x1, y1, x2, y2 = (_number(box, key, f"<bndbox> of {what}") for key in ("xmin", "ymin", "xmax", "ymax"))
    if name == "background":
        raise UserError(
            f"{what} is of the class 'background', which stands for what is not an object: remove it or "
            "give it another name"
        )
    rotation = next(
        (
            attribute.findtext("value", "")
            for attribute in element.iter("attribute")
            if attribute.findtext("name", "").strip() == "rotation"
        ),
        "",
    )
    return VocObject(
        name, (x1, y1, x2, y2), _flag(element, "difficult", what), _flag(element, "ignore", what), rotation.strip()
    )


def _flag(element: ElementTree.Element, key: str, what: str) -> bool:
    text = element.findtext(key, "").strip().lower()
    if text not in ("", "0", "false", "1", "true"):
        raise UserError(f"<{key}> of {what} is {text!r}; expected 0 or 1")
    return text in ("1", "true")


def _number(parent: ElementTree.Element | None, key: str, what: str) -> float:
    text = None if parent is None else parent.findtext(key)
    try:
        number = float(text or "")
    except ValueError as error:
        raise UserError(f"{what}: <{key}> is {text!r}; expected a number") from error
    if not math.isfinite(number):
        raise UserError(f"{what}: <{key}> is {text!r}; expected a finite number")
    return number

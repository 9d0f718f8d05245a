"""A COCO annotation file, read whole and checked entry by entry before anything depends on it.

Every field that training, evaluation or pycocotools looks at must mean one thing:

- `bbox`: four numbers x, y, width, height;
- `iscrowd`: 0 or 1, as number or as false and true; null and absent are 0;
- `ignore`: the same; 1 makes the box a crowd box, which is neither learnt nor scored;
- `area`: a finite number from 0; null and absent stand for width x height.

What a reader ought to know of a file that is accepted is kept as remarks, one sentence each.
"""

import contextlib
import difflib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from src.common.wording import count_of, listed, short
from src.model_utils.errors import UserError

MAX_ANNOTATION_BYTES = 4 << 30
_MAX_ID = 2**63 - 1  # the records hold int64
_KEYS = ("images", "annotations", "categories")
_CATEGORY = '{"id": 1, "name": "cat"}'


@dataclass(frozen=True)
class CocoFile:
    """The content of a COCO file.

    Attributes:
        path (Path): the file.
        images, annotations, categories (list[dict]): its entries; `iscrowd` is 0 or 1 where it is there, `area` a
            number where it is there. Categories that nothing uses are left out.
        label_of (dict[int, int]): category id to label 1..K, of the categories that are classes.
        remarks (list[str]): what was changed or left out.
    """

    path: Path
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    label_of: dict[int, int]
    remarks: list[str]


def load_coco_file(
    path: str | Path, class_names: Sequence[str], *, training: bool = True, ignore_unknown: bool = False
) -> CocoFile:
    """Read a COCO file, hold it to COCO's structure and match its categories to the classes by name.

    Args:
        path (str | Path): the JSON file.
        class_names (Sequence[str]): the K foreground classes.
        training (bool): for training every class must be a category of the file; an evaluation set may lack some.
        ignore_unknown (bool): accept boxes of other classes, and in training classes that the file lacks.

    Returns:
        CocoFile: ids are unique and every id that an annotation names exists.

    Raises:
        UserError: not JSON, wrong keys, no images, an entry without its fields or with one of another kind, an id or an
            image twice, other classes; names the file and the entry.
    """
    path = Path(path)
    content = _read_lists(path)
    if not content["images"]:
        raise UserError(f"{path}: 'images' is empty; expected at least one image")
    images = _by_id(content["images"], "images", path)
    _check_names(content["images"], "images", "file_name", path)
    category_of = _by_id(content["categories"], "categories", path)
    _by_id(content["annotations"], "annotations", path)
    for row in content["annotations"]:
        for key, known, what in (("image_id", images, "images"), ("category_id", category_of, "categories")):
            if not _is_id(row.get(key)) or row[key] not in known:
                raise UserError(f"{path}: annotation {row['id']} has {key} {row.get(key)!r}, which is not in {what!r}")
    remarks: list[str] = []
    annotations = _checked_annotations(content["annotations"], path, remarks)
    categories = _used_categories(content["categories"], annotations, class_names, path, remarks)
    label_of = _match_categories(
        categories, class_names, path, remarks, training=training, ignore_unknown=ignore_unknown
    )
    return CocoFile(path, content["images"], annotations, categories, label_of, remarks)


def read_category_names(path: str | Path) -> tuple[list[str], list[str]]:
    """The names of all categories of a COCO file, to be the classes of a detector.

    Args:
        path (str | Path): the JSON file; of its annotations only the categories are looked at.

    Returns:
        tuple: the K names in the order of the file, and those of them that have no box in it.

    Raises:
        UserError: as `load_coco_file`; no categories, a category without a name, two of one name, or one that is called
            background, which stands for what is no object.
    """
    path = Path(path)
    content = _read_lists(path)
    categories = content["categories"]
    if not categories:
        raise UserError(f"{path}: 'categories' is empty; expected one for every class, such as {_CATEGORY}")
    _by_id(categories, "categories", path)
    names = [category.get("name") for category in categories]
    for category, name in zip(categories, names, strict=True):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: the category with id {category['id']} has name {name!r}; expected a string")
    unique = [name for name in dict.fromkeys(names) if name != "background"]
    by_hand = f'name the classes yourself: --coco_classes="{["background", *unique]}"'
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"{path}: {listed([repr(name) for name in repeated])} is the name of more than one category; rename them, "
            f"or, if all boxes belong to one of them, {by_hand}"
        )
    if "background" in names:
        raise UserError(
            f"{path}: a category is called 'background', which stands for what is no object; remove it and its boxes, "
            f"or, if it has none, {by_hand}"
        )
    rows = content["annotations"]
    used = {row["category_id"] for row in rows if isinstance(row, dict) and _is_id(row.get("category_id"))}
    return names, [category["name"] for category in categories if category["id"] not in used]


def bbox_numbers(row: dict, path: Path) -> list[float]:
    """The four numbers of `bbox`; UserError when it is anything else."""
    bbox = row.get("bbox")
    if isinstance(bbox, list) and len(bbox) == 4 and {*map(type, bbox)} <= {int, float}:
        with contextlib.suppress(OverflowError):  # an integer of more than 308 digits
            return [float(number) for number in bbox]
    raise UserError(
        f"{path}: annotation {row['id']} has bbox {short(repr(bbox))}; expected four numbers [x, y, width, height]"
    )


# ---- annotations -----------------------------------------------------------------------------------------


def _checked_annotations(rows: list[dict], path: Path, remarks: list[str]) -> list[dict]:
    """The annotations with plain values in the fields that decide how a box counts."""
    counts: Counter[str] = Counter()
    checked = []
    for row in rows:
        _, _, width, height = bbox_numbers(row, path)
        counts["no area"] += row.get("area") == 0 and width > 0 and height > 0
        fields = {key: _flag(row, key, path) for key in ("iscrowd", "ignore") if key in row}
        if fields.get("ignore"):
            counts["ignore"] += not fields.get("iscrowd")
            fields["iscrowd"] = 1
        counts["rotated"] += _is_rotated(row)
        row = row | fields
        if row.get("area", 0) is None:
            del row["area"]
        elif not _is_number(row.get("area", 0)) or row.get("area", 0) < 0:
            raise UserError(
                f"{path}: annotation {row['id']} has area {short(repr(row['area']))}; expected a number "
                "from 0, or null or nothing for width x height"
            )
        checked.append(row)
    if counts["ignore"]:
        remarks.append(
            f'{count_of(counts["ignore"], "box", "boxes")} marked "ignore" taken for crowd: neither learnt nor scored'
        )
    if counts["no area"]:
        remarks.append(
            f"{count_of(counts['no area'], 'box', 'boxes')} with area 0, but not in width and height: "
            "scored as small; leave area out to have width x height"
        )
    if counts["rotated"]:
        remarks.append(
            f"{count_of(counts['rotated'], 'box', 'boxes')} with a rotation, which is not applied: the bbox "
            "counts as it stands, and tools that turn a rectangle often leave it upright"
        )
    return checked


def _flag(row: dict, key: str, path: Path) -> int:
    value = row[key]
    if value is None:
        return 0
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    raise UserError(
        f"{path}: annotation {row['id']} has {key} {short(repr(value))}; expected 0 or 1 (false, true and "
        "null are read too)"
    )


def _is_rotated(row: dict) -> bool:
    attributes = row.get("attributes")
    angle = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0
    try:
        return float(angle or 0) % 360 != 0
    except (TypeError, ValueError):
        return False


def _is_number(value: object) -> bool:
    with contextlib.suppress(OverflowError):  # an integer of more than 308 digits
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return False


# ---- categories ------------------------------------------------------------------------------------------


def _used_categories(
    categories: list[dict], annotations: list[dict], class_names: Sequence[str], path: Path, remarks: list[str]
) -> list[dict]:
    """Without those that no annotation uses and that are not a class, or have the name of another one.

    Tools write such at the top: a group of classes, "background", the data set's own name.
    """
    kept_ids = {row["category_id"] for row in annotations}
    names = [category.get("name") for category in categories if category["id"] in kept_ids]
    for category in reversed(categories):  # of two that are not used the group is the first
        name = category.get("name")
        if category["id"] not in kept_ids and name in class_names and name not in names:
            kept_ids.add(category["id"])
            names.append(name)
    left_out = [
        f"{category.get('name')!r} (id {category['id']})" for category in categories if category["id"] not in kept_ids
    ]
    if left_out:
        remarks.append(
            f"{count_of(len(left_out), 'category', 'categories')} that no annotation uses left out: {listed(left_out)}"
        )
    kept = [category for category in categories if category["id"] in kept_ids]
    _check_names(kept, "categories", "name", path)
    return kept


def _match_categories(
    categories: list[dict],
    class_names: Sequence[str],
    path: Path,
    remarks: list[str],
    *,
    training: bool,
    ignore_unknown: bool,
) -> dict[int, int]:
    """Category id to label 1..K for the names that both have; UserError where the two sets may not differ."""
    id_of = {category["name"]: category["id"] for category in categories}
    only_file = [name for name in id_of if name not in class_names]
    only_config = [name for name in class_names if name not in id_of]
    if not ignore_unknown and (only_file or (only_config and training)):
        near = {name: difflib.get_close_matches(name, only_config, n=1, cutoff=0.6) for name in only_file}
        hints = [f"{name!r} is perhaps {match[0]!r}" for name, match in near.items() if match]
        if "background" in only_file:
            hints.append("boxes of 'background' are not objects: remove them")
        raise UserError(
            f"{path} and coco_classes do not have the same classes. Only in the file: {only_file}. "
            f"Only in coco_classes: {only_config}. {'; '.join(hints) + '. ' if hints else ''}"
            "Change coco_classes (background comes first), or set ignore_unknown to True to leave "
            "out boxes of other classes"
        )
    if len(only_config) == len(class_names) and (training or id_of):
        raise UserError(f"{path} and coco_classes have no class in common: the file has {list(id_of)}")
    if only_config:
        remarks.append(
            f"no category for {listed(only_config)}: "
            + ("nothing to learn them from" if training else "these classes are not scored")
        )
    return {id_of[name]: label for label, name in enumerate(class_names, start=1) if name in id_of}


# ---- structure -------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    data = read_limited(path)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise UserError(f"{path}: is not valid JSON ({error}); the file is damaged or incomplete") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}; a COCO annotation file is an object with "
            f"the lists {', '.join(_KEYS)}"
        )
    return content


def _read_lists(path: Path) -> dict[str, Any]:
    """The content of a file that has the three lists."""
    content = _read_json(path)
    for key in _KEYS:
        if not isinstance(content.get(key), list):
            keys = listed([repr(name) for name in content], separator=", ") or "none"
            found = f"has the keys {keys}" if key not in content else f"{key!r} is not a list"
            raise UserError(f"{path}: {found}; a COCO annotation file has the lists {', '.join(_KEYS)}")
    return content


def read_limited(path: Path) -> bytes:
    """The content of an annotation file; UserError when it is empty, too large or cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_ANNOTATION_BYTES:
            raise UserError(f"{path}: has {size:,} bytes; the limit is {MAX_ANNOTATION_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not data.strip():
        raise UserError(f"{path}: is empty; expected annotations")
    return data


def is_side(value: object) -> TypeGuard[int]:
    """Whether a value can be a width or height in pixels."""
    return _is_id(value) and value > 0


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ID


def _by_id(rows: list, what: str, path: Path) -> dict[int, dict]:
    """Entries by their id; UserError for an entry without an id, and for an id that comes twice."""
    found: dict[int, dict] = {}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not _is_id(row.get("id")):
            shown = row.get("id") if isinstance(row, dict) else row
            raise UserError(
                f"{path}: {what}[{index}] has the id {short(repr(shown))}; every entry needs an id, an integer from 0"
            )
        if row["id"] in found:
            raise UserError(f"{path}: the id {row['id']} occurs twice in {what!r}; ids must be unique")
        found[row["id"]] = row
    return found


def _check_names(rows: list[dict], what: str, key: str, path: Path) -> None:
    """Every entry has a name, and no two the same."""
    first: dict[str, int] = {}
    for row in rows:
        name = row.get(key)
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: id {row['id']} in {what!r} has {key} {name!r}; expected a string")
        if name in first:
            raise UserError(
                f"{path}: {key} {name!r} has the ids {first[name]} and {row['id']} in {what!r}; it may occur once"
            )
        first[name] = row["id"]

"""Make a small data set in COCO format: discs, squares and stars on textured backgrounds.

    python -m src.tools.sample_data --output_dir=sample_data

It stands in for real data where a first run, a demonstration or a test of the whole flow is wanted: a
detector learns it from random weights within minutes. Every image depends on the seed, its subset and its
number alone, so equal arguments give equal files.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from src.common.files import cannot_write, whole_folder, write_json
from src.common.progress import with_progress
from src.model_utils.errors import UserError
from src.predict.draw import write_image
from src.runtime import run

LOGGER = logging.getLogger(__name__)

CLASS_NAMES = ("disc", "square", "star")
MARKER_FILE = "sample_data.json"  # holds the arguments; marks a folder as made by this program
_MADE_BY = "src.sample_data"  # the name that the first release had, so that its folders are known
_FORMAT_VERSION = 1  # raise it when the same arguments begin to give other images
_SUPERSAMPLING = 4  # shapes are drawn so many times larger, then averaged: soft edges
_SHIFT_BITS = 4  # fraction bits of OpenCV's polygon corners
_MAX_OBJECTS = 6
_EMPTY_SHARE = 0.06  # images without objects
_OBJECT_SIDE = (36.0, 128.0)  # pixels, side of the upright box, about
_MIN_VISIBLE_SHARE = 0.6  # of every object, whatever lies on it
_PLACEMENT_TRIES = 30
_MAX_COVER_BY_BAR = 0.3  # of the object under it
# every class has a usual hue, 0..360, with this spread; the rest of the objects have any hue
_CLASS_HUES = {"disc": 8.0, "square": 215.0, "star": 65.0}
_HUE_SPREAD = 18.0
_ANY_HUE_SHARE = 0.1
_STAR_INNER_RADIUS = 0.45  # of the outer one


@dataclass(frozen=True)
class SampleSpec:
    """What is made: the arguments of the program but the folder.

    Attributes:
        num_train (int): training images, default 240.
        num_val (int): evaluation images, default 48.
        width (int): pixels, at least 96. Default 320.
        height (int): pixels, at least 96. Default 256.
        seed (int): not negative, default 1.
    """

    num_train: int = 240
    num_val: int = 48
    width: int = 320
    height: int = 256
    seed: int = 1

    def __post_init__(self):
        for key, least in (("num_train", 1), ("num_val", 1), ("width", 96), ("height", 96), ("seed", 0)):
            if getattr(self, key) < least:
                raise UserError(f"--{key}={getattr(self, key)}: must be at least {least}")


@dataclass(frozen=True)
class SampleObject:
    """One object: its class, its outline, whole even where something covers it, and how it is painted."""

    class_name: str
    corners: np.ndarray  # (n, 2) x y in pixels, origin at the image's corner
    mask: np.ndarray  # (H, W) float32, share of each pixel inside the outline
    hue: float  # degrees


def make_sample_data(output_dir: str | Path, spec: SampleSpec) -> bool:
    """Write the data set: `annotations/instances_{train,val}2017.json` and the folders of images.

    The folder appears whole or not at all, see `whole_folder`.

    Args:
        output_dir (str | Path): a new or empty folder, or one made before with the same arguments.
        spec (SampleSpec): what to make.

    Returns:
        bool: False if the folder held this very data set already and was kept.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    output_dir = Path(output_dir).absolute()
    if _is_already_made(output_dir, spec):
        LOGGER.info("%s already holds this data set; it is kept as it is", output_dir)
        return False
    try:
        with whole_folder(output_dir) as unfinished:
            write_json(unfinished / MARKER_FILE, _marker(spec), indent=1)
            train_boxes = _make_subset(unfinished, 0, "train2017", spec.num_train, spec)
            val_boxes = _make_subset(unfinished, 1, "val2017", spec.num_val, spec)
    except OSError as error:
        raise cannot_write(output_dir, error) from error
    LOGGER.info(
        "wrote %d training images with %d boxes and %d evaluation images with %d boxes to %s",
        spec.num_train,
        train_boxes,
        spec.num_val,
        val_boxes,
        output_dir,
    )
    LOGGER.info('use it with --coco_root=%s --coco_classes="%s"', output_dir, ["background", *CLASS_NAMES])
    return True


def make_image(spec: SampleSpec, subset_number: int, index: int) -> tuple[np.ndarray, list[SampleObject]]:
    """Paint one image.

    Args:
        spec (SampleSpec): size and seed.
        subset_number (int): 0 training, 1 evaluation.
        index (int): number of the image in its subset.

    Returns:
        tuple: the image (height, width, 3) uint8 RGB, and its objects, the lowest first.
    """
    rng = np.random.default_rng([spec.seed, subset_number, index])
    image = _background(rng, spec.width, spec.height)
    for _ in range(rng.integers(0, 5)):
        _paint_distractor(image, rng)
    objects = _place_objects(rng, spec)
    for item in objects:
        _paint_object(image, item, rng)
        if rng.random() < 0.2:
            _paint_bar_across(image, item, rng)
    image += rng.normal(0.0, rng.uniform(2.0, 7.0), image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments and make the data set; returns the exit code 0."""
    parser = argparse.ArgumentParser(
        prog="python -m src.tools.sample_data", allow_abbrev=False, description=__doc__.split("\n\n", 1)[0]
    )
    parser.add_argument("--output_dir", required=True, help="folder to make")
    defaults = SampleSpec()
    helps = {
        "num_train": "training images",
        "num_val": "evaluation images",
        "width": "pixels",
        "height": "pixels",
        "seed": "another seed gives other images",
    }
    for key, text in helps.items():
        parser.add_argument(f"--{key}", type=int, default=getattr(defaults, key), help=f"{text} (default: %(default)s)")
    arguments = vars(parser.parse_args(argv))
    make_sample_data(arguments.pop("output_dir"), SampleSpec(**arguments))
    return 0


# ---------------------------------------------------------------------------------------------- files


def _marker(spec: SampleSpec) -> dict[str, Any]:
    return {"made_by": _MADE_BY, "format_version": _FORMAT_VERSION} | asdict(spec)


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """The arguments a folder was made with, None if this program did not make it."""
    try:
        marker = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("made_by") == _MADE_BY else None


def _is_already_made(output_dir: Path, spec: SampleSpec) -> bool:
    """True if the folder holds this data set, False if there is room for it."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir} is a file; give a new folder as --output_dir")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return False
    marker = _read_marker(output_dir)
    if marker is None:
        raise UserError(
            f"{output_dir} holds files that this program did not make and would overwrite; "
            "give a new folder as --output_dir"
        )
    if marker != _marker(spec):
        raise UserError(
            f"{output_dir} holds a sample data set made with other arguments ({marker}); "
            "remove that folder or give a new one as --output_dir"
        )
    return True


def _make_subset(root: Path, subset_number: int, subset: str, num_images: int, spec: SampleSpec) -> int:
    """Write the images and the annotation file of one subset; returns the number of boxes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in with_progress(range(num_images), num_images, subset, "images"):
        image, objects = make_image(spec, subset_number, index)
        image_id = index + 1
        file_name = f"{image_id:06d}.jpg"
        write_image(root / subset / file_name, image)
        images.append({"id": image_id, "file_name": file_name, "width": spec.width, "height": spec.height})
        annotations += [
            _annotation(item, len(annotations) + number, image_id) for number, item in enumerate(objects, start=1)
        ]
    categories = [
        {"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(CLASS_NAMES, start=1)
    ]
    write_json(
        root / "annotations" / f"instances_{subset}.json",
        {
            "info": {"description": f"discs, squares and stars, generated by {_MADE_BY}"},
            "images": images,
            "annotations": annotations,
            "categories": categories,
        },
    )
    return len(annotations)


def _annotation(item: SampleObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    """COCO's record of one object: box and outline of the whole shape, area of the outline."""
    x1, y1 = item.corners.min(axis=0)
    x2, y2 = item.corners.max(axis=0)
    x, y = item.corners.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))  # shoelace formula
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CLASS_NAMES.index(item.class_name) + 1,
        "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(float(area), 2),
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for v in item.corners.reshape(-1)]],
    }


# --------------------------------------------------------------------------------------------- shapes


def _outline(class_name: str, side: float, angle: float) -> np.ndarray:
    """Corners (n, 2) of a shape around the origin; `side` is about the side of its upright box."""
    if class_name == "square":
        directions = np.arange(4) * np.pi / 2 + np.pi / 4
        radii = np.full(4, 0.6 * side)  # box side 0.85 to 1.2 times `side`
    elif class_name == "star":
        directions = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, side / 2, side / 2 * _STAR_INNER_RADIUS)
    else:
        directions = np.arange(64) * np.pi / 32
        radii = np.full(64, side / 2)
    directions = directions + angle
    return np.stack([radii * np.cos(directions), radii * np.sin(directions)], axis=1)


def _coverage(corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """The share (height, width) float32 of every pixel that lies inside a polygon."""
    large = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # a pixel's number is the place of its centre for OpenCV, and half a pixel less than that for us
    fixed = np.rint((corners * _SUPERSAMPLING - 0.5) * 2**_SHIFT_BITS).astype(np.int32)
    cv2.fillPoly(large, [fixed], (255,), shift=_SHIFT_BITS)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def _place_objects(rng: np.random.Generator, spec: SampleSpec) -> list[SampleObject]:
    """Choose the objects of an image so that a good part of each stays visible."""
    num_objects = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(1, _MAX_OBJECTS + 1))
    objects: list[SampleObject] = []
    for _ in range(num_objects):
        for _ in range(_PLACEMENT_TRIES):
            candidate = _random_object(rng, spec)
            if all(
                _visible_share(item, [*objects[i + 1 :], candidate]) >= _MIN_VISIBLE_SHARE
                for i, item in enumerate(objects)
            ):
                objects.append(candidate)
                break
    return objects


def _random_object(rng: np.random.Generator, spec: SampleSpec) -> SampleObject:
    class_name = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
    largest = min(_OBJECT_SIDE[1], 0.5 * min(spec.width, spec.height))
    side = float(np.exp(rng.uniform(np.log(min(_OBJECT_SIDE[0], largest)), np.log(largest))))
    corners = _outline(class_name, side, rng.uniform(0, 2 * np.pi))
    low, high = 1.0 - corners.min(axis=0), (spec.width, spec.height) - corners.max(axis=0) - 1.0
    corners = corners + rng.uniform(low, high)
    hue = rng.uniform(0, 360) if rng.random() < _ANY_HUE_SHARE else _CLASS_HUES[class_name] + rng.normal(0, _HUE_SPREAD)
    return SampleObject(class_name, corners, _coverage(corners, spec.width, spec.height), hue % 360)


def _visible_share(item: SampleObject, above: Sequence[SampleObject]) -> float:
    """The share of an object that the objects painted after it leave uncovered."""
    visible = item.mask.copy()
    for other in above:
        visible *= 1.0 - other.mask
    return float(visible.sum() / item.mask.sum())


# ------------------------------------------------------------------------------------------- painting


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """An image (height, width, 3) float32: muted colours that run into each other, clouds, stripes."""
    corners = np.stack(
        [_colour(rng.uniform(0, 360), rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.75)) for _ in range(4)]
    ).reshape(2, 2, 3)
    image = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    for cells, strength in ((4, 22.0), (12, 14.0), (40, 9.0)):
        clouds = rng.normal(0, strength, (cells, cells, 1)) + rng.normal(0, strength / 3, (cells, cells, 3))
        image += cv2.resize(clouds.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
        y, x = np.mgrid[:height, :width]
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        image += (rng.uniform(4, 12) * wave[..., None]).astype(np.float32)
    return image


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) float32 in 0..255 of a hue in degrees and saturation and value in 0..1."""
    hsv = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255.0


def _blend(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Paint a colour (3,) or (H, W, 3) where the mask (H, W) in 0..1 says."""
    image += mask[..., None] * (colour - image)


def _paint_object(image: np.ndarray, item: SampleObject, rng: np.random.Generator) -> None:
    """A soft shadow, a shaded and textured face, a darker or lighter rim."""
    height, width = image.shape[:2]
    side = float(np.ptp(item.corners, axis=0).max())
    shadow = cv2.GaussianBlur(np.roll(item.mask, (3, 3), (0, 1)), (0, 0), 0.03 * side + 1)
    image *= 1.0 - rng.uniform(0.2, 0.5) * shadow[..., None]
    base = _colour(item.hue, rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.0))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centre = item.corners.mean(axis=0)
    along = ((x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)) / side
    face = base * (1.0 + rng.uniform(0.1, 0.45) * along[..., None])
    grain = rng.normal(0, rng.uniform(3, 14), (height // 4, width // 4, 1)).astype(np.float32)
    face = face + cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    _blend(image, item.mask, face.astype(np.float32))
    inner = _coverage(centre + (item.corners - centre) * (1.0 - rng.uniform(0.06, 0.14)), width, height)
    _blend(image, np.clip(item.mask - inner, 0, 1), base * (0.45 if rng.random() < 0.7 else 1.35))


def _paint_bar_across(image: np.ndarray, item: SampleObject, rng: np.random.Generator) -> None:
    """A bar that hides a part of an object; left out where it would hide too much."""
    height, width = image.shape[:2]
    centre = item.corners.mean(axis=0)
    side = np.ptp(item.corners, axis=0).max()
    corners = _bar(
        centre + rng.uniform(-0.25, 0.25, 2) * side, 1.6 * side, rng.uniform(0.06, 0.16) * side, rng.uniform(0, np.pi)
    )
    mask = _coverage(corners, width, height)
    if (mask * item.mask).sum() <= _MAX_COVER_BY_BAR * item.mask.sum():
        _blend(image, mask, _colour(rng.uniform(0, 360), rng.uniform(0.0, 0.4), rng.uniform(0.2, 0.8)))


def _paint_distractor(image: np.ndarray, rng: np.random.Generator) -> None:
    """Something that belongs to no class: a bar, a ring, a crescent of strokes or a word-like scribble."""
    height, width = image.shape[:2]
    centre = rng.uniform((0, 0), (width, height))
    painters: tuple[Callable[..., np.ndarray], ...] = (_bar_mask, _ring_mask, _scribble_mask)
    mask = painters[rng.integers(len(painters))](rng, centre, width, height)
    _blend(image, mask, _colour(rng.uniform(0, 360), rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.9)))


def _bar(centre: np.ndarray, length: float, thickness: float, angle: float) -> np.ndarray:
    """Corners (4, 2) of a long thin rectangle."""
    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * thickness / 2
    return centre + np.stack([along + across, along - across, -along - across, -along + across])


def _bar_mask(rng: np.random.Generator, centre: np.ndarray, width: int, height: int) -> np.ndarray:
    corners = _bar(centre, rng.uniform(60, 220), rng.uniform(3, 12), rng.uniform(0, np.pi))
    return _coverage(corners, width, height)


def _ring_mask(rng: np.random.Generator, centre: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    axes = tuple(int(v) for v in rng.integers(8, 40, 2))
    cv2.ellipse(
        mask,
        tuple(int(v) for v in centre),
        axes,
        float(rng.uniform(0, 180)),
        0,
        float(rng.uniform(200, 360)),
        (255,),
        int(rng.integers(1, 4)),
        cv2.LINE_AA,
    )
    return mask.astype(np.float32) / 255.0


def _scribble_mask(rng: np.random.Generator, centre: np.ndarray, width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    steps = rng.normal(0, 14, (7, 2)).cumsum(axis=0) + centre
    cv2.polylines(mask, [np.rint(steps).astype(np.int32)], False, (255,), int(rng.integers(1, 4)), cv2.LINE_AA)
    return mask.astype(np.float32) / 255.0


if __name__ == "__main__":
    sys.exit(run(main))

"""Draw labelled boxes on images and write images."""

import colorsys
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from src.common.files import write_bytes
from src.model_utils.errors import UserError
from src.util import CocoEvaluator

LOGGER = logging.getLogger(__name__)

MIN_LONG_SIDE = 640  # smaller images are drawn on an enlarged copy
_SIDE_FOR_UNIT_SCALE = 900.0  # sqrt(w * h) of an image whose text has OpenCV's scale 0.6
_GOLDEN_RATIO = 0.618033988749895  # hue step: neighbouring classes get far-apart hues
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _PAPER, _GT_COLOUR = (16, 16, 16), (255, 255, 255), (255, 255, 255)
_JPEG_QUALITY = 92

Rect = tuple[int, int, int, int]  # x1, y1, x2, y2 in drawn pixels


def class_colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: the same in every image and run, bright enough for a dark outline."""
    hue = (0.02 + label * _GOLDEN_RATIO) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.95, 0.8))[label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image_rgb: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    *,
    score_thr: float = 0.5,
    gt_boxes: np.ndarray | None = None,
) -> np.ndarray:
    """Draw detections, each with its class and score, on a copy of an image.

    Colours follow the class, line and text size the image; labels stay inside the image and avoid each
    other where there is room. Ground truth is drawn as dashed white boxes below the detections.

    Args:
        image_rgb (np.ndarray): (H, W, 3) uint8. A long side below 640 pixels is enlarged to 640 first.
        boxes (np.ndarray): (D, 4) x1 y1 x2 y2 in pixels of `image_rgb`.
        labels (np.ndarray): (D,) int, index into `class_names`.
        scores (np.ndarray): (D,) in [0, 1].
        class_names (Sequence[str]): foreground classes; letters outside ASCII show as "?".
        score_thr (float): detections below it are not drawn. Default 0.5.
        gt_boxes (np.ndarray | None): (G, 4) x1 y1 x2 y2. Default none.

    Returns:
        np.ndarray: (H', W', 3) uint8 RGB, enlarged by one factor if the image was small.
    """
    canvas, factor = _enlarged(image_rgb)
    thickness, font_scale = _sizes(canvas)
    for box in np.asarray([] if gt_boxes is None else gt_boxes, np.float64).reshape(-1, 4):
        _dashed_box(canvas, _drawn_rect(box, factor, canvas), thickness)
    scores = np.asarray(scores, np.float64).reshape(-1)
    labels = np.asarray(labels).reshape(-1)
    best_first = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= score_thr]
    rects = {i: _drawn_rect(np.asarray(boxes)[i], factor, canvas) for i in best_first}
    for i in reversed(best_first):
        _solid_box(canvas, rects[i], class_colour(int(labels[i])), thickness)
    placed: list[Rect] = []
    for i in best_first:
        text = f"{class_names[int(labels[i])]} {scores[i]:.2f}"
        placed.append(_label(canvas, rects[i], text, class_colour(int(labels[i])), font_scale, placed))
    return canvas


def write_image(path: str | Path, image_rgb: np.ndarray) -> Path:
    """Write an image in the format of the path's suffix, whole or not at all.

    Args:
        path (str | Path): ends in .jpg, .png or another suffix that OpenCV writes.
        image_rgb (np.ndarray): (H, W, 3) uint8.

    Raises:
        UserError: the format is unknown or the file cannot be written; names the path.
    """
    path = Path(path)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix.lower() in (".jpg", ".jpeg") else []
    if not path.suffix or not cv2.haveImageWriter(f"image{path.suffix}"):
        raise UserError(f"cannot write {path}: the suffix must name an image format such as .jpg or .png")
    written, data = cv2.imencode(path.suffix, cv2.cvtColor(image_rgb, cv2.COLOR_RGB2BGR), options)
    if not written:
        raise UserError(f"cannot write {path}: {image_rgb.shape} pixels do not fit the format {path.suffix}")
    return write_bytes(path, data.tobytes())


def draw_results(
    evaluator: CocoEvaluator, read_image: Callable[[dict], np.ndarray], output_dir: str | Path, num_images: int
) -> list[Path]:
    """Draw the detections and the ground truth of the first evaluated images into a folder.

    Args:
        evaluator (CocoEvaluator): holds the detections, after `evaluate`.
        read_image (Callable): from an entry of the ground truth's `images` to its image (H, W, 3) RGB.
        output_dir (str | Path): made if missing; files are called IMAGE_ID_NAME.png.
        num_images (int): images to draw; more than there are draws all.

    Returns:
        list[Path]: the files written.
    """
    names = {category["id"]: category["name"] for category in evaluator.ground_truth["categories"]}
    class_names = [names[category_id] for category_id in evaluator.category_ids]
    images = evaluator.ground_truth["images"][:num_images]
    gt_boxes: dict[int, list] = {image["id"]: [] for image in images}
    for annotation in evaluator.ground_truth["annotations"]:
        if annotation["image_id"] in gt_boxes:
            x, y, width, height = annotation["bbox"]
            gt_boxes[annotation["image_id"]].append((x, y, x + width, y + height))
    paths = []
    for image in images:
        found = evaluator.detections(image["id"])
        drawn = draw_detections(
            read_image(image),
            found.boxes_xyxy,
            found.labels,
            found.scores,
            class_names,
            gt_boxes=np.array(gt_boxes[image["id"]]),
        )
        name = f"{image['id']}_{Path(image['file_name']).stem}.png"
        paths.append(write_image(Path(output_dir) / name, drawn))
    LOGGER.info("drew %d images into %s (dashed white: ground truth)", len(paths), output_dir)
    return paths


def _enlarged(image_rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """A copy with a long side of at least `MIN_LONG_SIDE`, and the factor."""
    height, width = image_rgb.shape[:2]
    factor = max(1.0, MIN_LONG_SIDE / max(height, width))
    if factor == 1.0:
        return np.ascontiguousarray(image_rgb).copy(), 1.0
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image_rgb, size, interpolation=cv2.INTER_CUBIC), factor


def _sizes(canvas: np.ndarray) -> tuple[int, float]:
    """Line width in pixels and OpenCV's font scale for an image."""
    unit = (canvas.shape[0] * canvas.shape[1]) ** 0.5 / _SIDE_FOR_UNIT_SCALE
    return max(2, round(2.5 * unit)), max(0.45, 0.6 * unit)


def _drawn_rect(box: np.ndarray, factor: float, canvas: np.ndarray) -> Rect:
    """A box in pixels of the canvas, clipped to it."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = np.rint(np.asarray(box, np.float64) * factor)
    return (
        int(np.clip(x1, 0, width - 1)),
        int(np.clip(y1, 0, height - 1)),
        int(np.clip(x2, 0, width - 1)),
        int(np.clip(y2, 0, height - 1)),
    )


def _solid_box(canvas: np.ndarray, rect: Rect, colour: tuple[int, int, int], thickness: int) -> None:
    """A coloured frame on a thin dark one, so that it shows on any background."""
    cv2.rectangle(canvas, rect[:2], rect[2:], _INK, thickness + 2)
    cv2.rectangle(canvas, rect[:2], rect[2:], colour, thickness)


def _dashed_box(canvas: np.ndarray, rect: Rect, thickness: int) -> None:
    """A dashed white frame with dark gaps."""
    x1, y1, x2, y2 = rect
    cv2.rectangle(canvas, (x1, y1), (x2, y2), _INK, max(1, thickness - 1))
    dash = 4 * thickness
    for start in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2):
            cv2.line(canvas, (start, y), (min(start + dash, x2), y), _GT_COLOUR, max(1, thickness - 1))
    for start in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2):
            cv2.line(canvas, (x, start), (x, min(start + dash, y2)), _GT_COLOUR, max(1, thickness - 1))


def _label(
    canvas: np.ndarray, rect: Rect, text: str, colour: tuple[int, int, int], font_scale: float, placed: Sequence[Rect]
) -> Rect:
    """Write a label at its box and return the area it takes."""
    text_thickness = max(1, round(2 * font_scale))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, font_scale, text_thickness)
    pad = max(2, round(5 * font_scale))
    area = _label_area(rect, text_width + 2 * pad, text_height + baseline + pad, canvas.shape, placed)
    cv2.rectangle(canvas, area[:2], area[2:], colour, cv2.FILLED)
    red, green, blue = colour
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    cv2.putText(
        canvas,
        text,
        (area[0] + pad, area[3] - baseline),
        _FONT,
        font_scale,
        _INK if luminance > 128 else _PAPER,
        text_thickness,
        cv2.LINE_AA,
    )
    return area


def _label_area(rect: Rect, width: int, height: int, shape: tuple[int, ...], placed: Sequence[Rect]) -> Rect:
    """The first free place for a label: above the box, inside its top or bottom, below; else above all."""
    x1, y1, x2, y2 = rect
    candidates = []
    for left in (x1, x2 - width):
        for top in (y1 - height, y1, y2 - height, y2, y1 - 2 * height, y2 + height):
            left_inside = max(0, min(left, shape[1] - 1 - width))
            top_inside = max(0, min(top, shape[0] - 1 - height))
            candidates.append((left_inside, top_inside, left_inside + width, top_inside + height))
    free = (area for area in candidates if not any(_overlap(area, other) for other in placed))
    return next(free, candidates[0])


def _overlap(first: Rect, second: Rect) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]

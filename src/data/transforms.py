"""What happens to one image and its boxes on the way to the network: pure functions on numpy and OpenCV.

Images are (h, w, 3) uint8 RGB until `normalize_to_canvas` makes the (3, H, W) float32 input. Boxes are
(N, 4) float32 x1 y1 x2 y2 in pixels. `Canvas` holds the sizes that all images of a run share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# RGB, of the ImageNet images the backbones were trained on
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
MAX_EXPAND_RATIO = 4.0
PADDING_LABEL = -1
# SSD's ranges
MAX_BRIGHTNESS_SHIFT = 32.0  # of 255
MIN_COLOUR_FACTOR, MAX_COLOUR_FACTOR = 0.5, 1.5  # of contrast and of saturation
MAX_HUE_SHIFT = 18.0  # degrees
# The centre of a mosaic, as a share of the canvas, and the sizes of its images, as a share of those they usually have
MIN_MOSAIC_CENTRE, MAX_MOSAIC_CENTRE = 0.25, 0.75
MIN_MOSAIC_SCALE = 0.5
MIN_MOSAIC_AREA = 0.25  # share of a box that must be seen

# image (h, w, 3) uint8, boxes (N, 4) float32 in its pixels, labels (N,) int32, is_crowd (N,) bool
LabelledImage = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_BYTE_VALUES = np.arange(256)
# the normalised value of each of the 256 bytes, one row a channel: (3, 256)
_NORMALIZED = ((_BYTE_VALUES - np.array(PIXEL_MEAN)[:, None]) / np.array(PIXEL_STD)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Canvas:
    """The network's input size and how images are brought to it.

    Attributes:
        width (int): W, pixels.
        height (int): H, pixels.
        keep_ratio (bool): resize by one factor and pad, or stretch to the whole canvas.
    """

    width: int
    height: int
    keep_ratio: bool = True

    def shrunk(self, factor: float) -> "Canvas":
        """A smaller canvas, in which an image becomes smaller by the same factor: resized once, not twice."""
        return Canvas(max(1, round(self.width * factor)), max(1, round(self.height * factor)), self.keep_ratio)


# ---- images --------------------------------------------------------------------------------------------


def expand(image: np.ndarray, boxes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paste an image at a random place on a black canvas 1 to 4 times as wide and high.

    Args:
        image (np.ndarray): (h, w, 3) uint8.
        boxes (np.ndarray): (N, 4) float32, pixels of `image`.
        rng (np.random.Generator): draws the ratio and the place.

    Returns:
        tuple[np.ndarray, np.ndarray]: (int(h * ratio), int(w * ratio), 3) uint8, and the boxes moved along.
    """
    height, width = image.shape[:2]
    ratio = rng.uniform(1.0, MAX_EXPAND_RATIO)
    left = int(rng.uniform(0, width * ratio - width))
    top = int(rng.uniform(0, height * ratio - height))
    expanded = np.zeros((int(height * ratio), int(width * ratio), 3), np.uint8)
    expanded[top : top + height, left : left + width] = image
    return expanded, boxes + np.array([left, top, left, top], np.float32)


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each in one of two images, as SSD does (Liu et al. 2016).

    Brightness moves by up to 32, contrast and saturation are multiplied by 0.5 to 1.5, hue moves by up to 18 degrees.
    Contrast comes before or after the colours, with equal chance. Everything goes by tables of the 256 bytes.

    Args:
        image (np.ndarray): (h, w, 3) uint8 RGB.
        rng (np.random.Generator): draws what changes, and by how much.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.
    """
    changes_brightness, changes_contrast, changes_saturation, changes_hue, contrast_first = rng.random(5) < 0.5
    brightness = rng.uniform(-MAX_BRIGHTNESS_SHIFT, MAX_BRIGHTNESS_SHIFT) * changes_brightness
    contrast, saturation = rng.uniform(MIN_COLOUR_FACTOR, MAX_COLOUR_FACTOR, 2)
    hue = rng.uniform(-MAX_HUE_SHIFT, MAX_HUE_SHIFT) * changes_hue
    contrast = contrast if changes_contrast else 1.0
    saturation = saturation if changes_saturation else 1.0
    values = np.clip(_BYTE_VALUES + brightness, 0, 255)
    image = cv2.LUT(image, _as_bytes(values * contrast if contrast_first else values))
    if changes_saturation or changes_hue:
        # the full circle of hues is 256, so that moved bytes come round by themselves
        hues = (_BYTE_VALUES + round(hue * 256 / 360)) % 256
        tables = np.stack([_as_bytes(hues), _as_bytes(_BYTE_VALUES * saturation), _as_bytes(_BYTE_VALUES)], axis=1)
        colours = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL), tables[None])
        image = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB_FULL)
    return image if contrast_first else cv2.LUT(image, _as_bytes(_BYTE_VALUES * contrast))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def mosaic(parts: Sequence[LabelledImage], canvas: Canvas, rng: np.random.Generator) -> LabelledImage:
    """Paste four images into one of the canvas's size, around a random point (YOLOv4, Bochkovskiy et al. 2020).

    The point lies in the middle half of the canvas's width and height. Each image is resized to fit the canvas, and
    by a further factor from 0.5 to 1; its inner corner lies on the point, what leaves the canvas is cut off, and what
    nothing covers is black. Boxes are clipped to what is seen of their image; those that keep less than a quarter of
    their area are dropped.

    Args:
        parts (Sequence[LabelledImage]): four; the first is at the top left, then row by row.
        canvas (Canvas): the size of the result, and how images are brought to it.
        rng (np.random.Generator): draws the point and the factors.

    Returns:
        LabelledImage: image (H, W, 3) uint8, and the boxes, labels and crowd flags that stay, image by image.
    """
    pasted = np.zeros((canvas.height, canvas.width, 3), np.uint8)
    centre = rng.uniform(MIN_MOSAIC_CENTRE, MAX_MOSAIC_CENTRE, 2)
    x, y = int(canvas.width * centre[0]), int(canvas.height * centre[1])
    kept = []
    for place, (image, boxes, labels, is_crowd) in enumerate(parts):
        resized, scale_h, scale_w = resize(image, canvas.shrunk(rng.uniform(MIN_MOSAIC_SCALE, 1.0)))
        height, width = resized.shape[:2]
        left, top = (x - width, x)[place % 2], (y - height, y)[place // 2]
        # the part of the canvas where the image is seen
        x1, y1, x2, y2 = max(0, left), max(0, top), min(canvas.width, left + width), min(canvas.height, top + height)
        pasted[y1:y2, x1:x2] = resized[y1 - top : y2 - top, x1 - left : x2 - left]
        moved = boxes * np.array([scale_w, scale_h] * 2, np.float32) + np.array([left, top] * 2, np.float32)
        seen = np.clip(moved, np.array([x1, y1] * 2, np.float32), np.array([x2, y2] * 2, np.float32))
        stays = _areas(seen) >= MIN_MOSAIC_AREA * _areas(moved)
        kept.append((seen[stays], labels[stays], is_crowd[stays]))
    boxes, labels, is_crowd = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    return pasted, boxes, labels, is_crowd


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def resize(image: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, float, float]:
    """Resize an image so that it fits the canvas, by OpenCV's bilinear interpolation on uint8.

    With `keep_ratio` on a canvas at least as wide as high, the long side is held to the canvas's long side
    and the short to its short side, whatever the image's orientation; a portrait image that is then too
    high is resized once more, from the result, as the published system does. A canvas higher than wide takes
    the largest factor that fits at once. No side becomes 0.

    Args:
        image (np.ndarray): (h, w, 3) uint8.
        canvas (Canvas): the size to fit.

    Returns:
        tuple[np.ndarray, float, float]: (h', w', 3) uint8 with h' <= H and w' <= W, and the factors
        (scale_h, scale_w) from old pixels to new ones.
    """
    height, width = image.shape[:2]
    if not canvas.keep_ratio:
        resized = cv2.resize(image, (canvas.width, canvas.height), interpolation=cv2.INTER_LINEAR)
        return resized, canvas.height / height, canvas.width / width
    if canvas.width < canvas.height:
        scale = min(canvas.width / width, canvas.height / height)
        return _resize_by(image, scale), scale, scale
    scale = min(canvas.width / max(height, width), canvas.height / min(height, width))
    resized = _resize_by(image, scale)
    if resized.shape[0] > canvas.height:
        second_scale = canvas.height / max(resized.shape[:2])
        resized, scale = _resize_by(resized, second_scale), scale * second_scale
    return resized, scale, scale


def _resize_by(image: np.ndarray, scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    new_size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    return cv2.resize(image, new_size, interpolation=cv2.INTER_LINEAR)


def normalize_to_canvas(image: np.ndarray, canvas: Canvas, *, flip: bool = False) -> np.ndarray:
    """Pad with black at the right and bottom, normalise, and bring channels first.

    Padding comes before normalisation, so that padded pixels hold (0 - mean) / std; `flip` mirrors the padded
    canvas, which puts the padding on the left. Every byte value has one normalised value, so a table per
    channel, written straight into its place, replaces float passes over the whole canvas.

    Args:
        image (np.ndarray): (h, w, 3) uint8 RGB, h <= H, w <= W.
        canvas (Canvas): gives H and W.
        flip (bool): mirror left and right.

    Returns:
        np.ndarray: (3, H, W) float32.
    """
    height, width = image.shape[:2]
    if flip:
        image = cv2.flip(image, 1)
    left = canvas.width - width if flip else 0
    right = left + width
    out = np.empty((3, canvas.height, canvas.width), np.float32)
    for channel, (plane, table) in enumerate(zip(cv2.split(image), _NORMALIZED, strict=True)):
        out[channel, height:] = table[0]
        out[channel, :height, :left] = table[0]
        out[channel, :height, right:] = table[0]
        cv2.LUT(plane, table, dst=out[channel, :height, left:right])
    return out


# ---- boxes -----------------------------------------------------------------------------------------------


def scale_and_clip(boxes: np.ndarray, scale_h: float, scale_w: float, height: int, width: int) -> np.ndarray:
    """Scale boxes with their image, then clip them to its pixels, [0, width - 1] x [0, height - 1].

    Args:
        boxes (np.ndarray): (N, 4) float32.
        scale_h (float): factor of y.
        scale_w (float): factor of x.
        height (int): of the resized image, not of the canvas.
        width (int): of the resized image.

    Returns:
        np.ndarray: (N, 4) float32.
    """
    scaled = boxes * np.array([scale_w, scale_h, scale_w, scale_h], np.float32)
    return np.clip(scaled, 0, np.array([width - 1, height - 1] * 2, np.float32))


def flip_boxes(boxes: np.ndarray, canvas_width: int) -> np.ndarray:
    """Mirror boxes with their canvas: x1' = W - 1 - x2, x2' = W - 1 - x1."""
    flipped = boxes.copy()
    flipped[:, 0] = canvas_width - 1 - boxes[:, 2]
    flipped[:, 2] = canvas_width - 1 - boxes[:, 0]
    return flipped


def pad_ground_truth(
    boxes: np.ndarray, labels: np.ndarray, is_crowd: np.ndarray, num_gts: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring the ground truth of an image to a fixed number of rows.

    Crowd boxes stay as rows, but invalid ones. Of more than `num_gts` boxes crowds leave first, then a random
    choice stays, in the order of the file: another choice each time, so that every box is seen in the end.

    Args:
        boxes (np.ndarray): (N, 4) float32.
        labels (np.ndarray): (N,) int32, 1..K.
        is_crowd (np.ndarray): (N,) bool.
        num_gts (int): rows to return, G.
        rng (np.random.Generator): chooses when N > G.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: boxes (G, 4) float32 padded with 0, labels (G,) int32 padded
        with -1, valid (G,) bool: False on padding and crowds.
    """
    rows = np.arange(len(boxes))
    if len(rows) > num_gts:
        rows = rows[~is_crowd]
    if len(rows) > num_gts:
        rows = np.sort(rng.choice(rows, num_gts, replace=False))
    padded_boxes = np.zeros((num_gts, 4), np.float32)
    padded_labels = np.full(num_gts, PADDING_LABEL, np.int32)
    valid = np.zeros(num_gts, bool)
    padded_boxes[: len(rows)] = boxes[rows]
    padded_labels[: len(rows)] = labels[rows]
    valid[: len(rows)] = ~is_crowd[rows]
    return padded_boxes, padded_labels, valid


# ---- a whole image -------------------------------------------------------------------------------------


def training_input(
    image: np.ndarray,
    boxes: np.ndarray,
    canvas: Canvas,
    *,
    expand_ratio: float,
    flip_ratio: float,
    photometric_ratio: float = 0.0,
    min_scale: float = 1.0,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Augment one image for training.

    Args:
        image (np.ndarray): (h, w, 3) uint8 RGB.
        boxes (np.ndarray): (N, 4) float32, pixels of `image`.
        canvas (Canvas): the network's input size.
        expand_ratio (float): 0..1; half of it is the probability of `expand`, as in the published system.
        flip_ratio (float): 0..1, the probability of a horizontal flip.
        photometric_ratio (float): 0..1, the probability of `distort_colours`.
        min_scale (float): > 0, up to 1; below 1 the image becomes smaller than fits the canvas, by a factor drawn
            uniformly from here to 1.
        rng (np.random.Generator): all randomness of this image.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: image (3, H, W) float32, image_shape (3,) float32
        [H, W, 1], boxes (N, 4) float32 in pixels of the canvas.
    """
    # Nothing is drawn for what is off: settings with equal meaning give equal images.
    if photometric_ratio and rng.random() < photometric_ratio:
        image = distort_colours(image, rng)
    if rng.random() < 0.5 * expand_ratio:
        image, boxes = expand(image, boxes, rng)
    flip = rng.random() < flip_ratio
    fitted = canvas.shrunk(rng.uniform(min_scale, 1.0)) if min_scale < 1 else canvas
    resized, scale_h, scale_w = resize(image, fitted)
    boxes = scale_and_clip(boxes, scale_h, scale_w, *resized.shape[:2])
    if flip:
        boxes = flip_boxes(boxes, canvas.width)
    image_shape = np.array([canvas.height, canvas.width, 1], np.float32)
    return normalize_to_canvas(resized, canvas, flip=flip), image_shape, boxes


def evaluation_input(image: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Prepare one image for detection.

    Args:
        image (np.ndarray): (h, w, 3) uint8 RGB.
        canvas (Canvas): the network's input size.

    Returns:
        tuple[np.ndarray, np.ndarray]: image (3, H, W) float32, and image_shape (4,) float32
        [h, w, scale_h, scale_w] with the size of the original image.
    """
    resized, scale_h, scale_w = resize(image, canvas)
    image_shape = np.array([*image.shape[:2], scale_h, scale_w], np.float32)
    return normalize_to_canvas(resized, canvas), image_shape

"""Image files: which are read, how they become RGB pixels, and what is said about those that cannot.

EXIF orientation is ignored everywhere: annotations refer to the stored pixels, as in the published system.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from src.model_utils.errors import UserError

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF")  # MPO: a JPEG with further images behind it, from cameras
# In lower case: a file in a folder is taken for an image by its name.
IMAGE_SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TIFF_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B")  # Pillow's, of those it reads right
MAX_IMAGE_BYTES = 128 << 20

_READ_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH


class ImageError(UserError):
    """An image that cannot be read completely."""


def decode_rgb(data: np.ndarray) -> np.ndarray:
    """Decode the bytes of an image file to 3-channel RGB.

    Grey, palette and CMYK images are converted, alpha is dropped, 16-bit values are divided by 257.

    Args:
        data (np.ndarray): (num_bytes,) uint8, the file's content.

    Returns:
        np.ndarray: (h, w, 3) uint8.

    Raises:
        ImageError: OpenCV cannot decode all of it; does not name the file.
    """
    try:
        image = cv2.imdecode(data, _READ_FLAGS)
    except cv2.error as error:
        raise ImageError(f"cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError("is damaged or cut off")
    if image.dtype == np.uint16:
        image = np.rint(image / 257.0).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"has {image.dtype} pixels; expected 8 or 16 bits a channel")
    return image


def checked_rgb(data: bytes) -> np.ndarray:
    """Decode an image of unknown origin; its kind and size are looked at before any pixel is.

    Args:
        data (bytes): the file's content.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.

    Raises:
        ImageError: empty, not an image, too large, damaged or cut off; does not name the file.
    """
    if not data:
        raise ImageError("is empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"has {len(data):,} bytes; the limit is {MAX_IMAGE_BYTES:,}")
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header only
            kind = image.format
            if kind == "TIFF" and isinstance(image, TiffImageFile):
                return _tiff_rgb(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"is too large ({error})") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError("is not an image (JPEG, PNG, BMP, WEBP or TIFF), or damaged") from error
    if kind not in FORMATS:
        raise ImageError(f"is a {kind} file; expected JPEG, PNG, BMP, WEBP or TIFF")
    if kind in ("JPEG", "MPO") and b"\xff\xd9" not in data:  # no end marker: OpenCV lets some of these pass
        raise ImageError("is cut off")
    return decode_rgb(np.frombuffer(data, np.uint8))


def _tiff_rgb(image: TiffImageFile) -> np.ndarray:
    """Decode a TIFF file by Pillow: OpenCV reads some kinds wrongly, and half a file, without an error.

    Of 16-bit colours Pillow gives the upper bytes, which are at most 1 below those of other files.
    """
    tags = (ExifTags.Base.Orientation, ExifTags.Base.PhotometricInterpretation)
    orientation, photometric = (image.tag_v2.get(tag, 1) for tag in tags)
    deep = image.mode.startswith("I;16")
    if image.n_frames > 1:
        raise ImageError(f"is a TIFF file of {image.n_frames} pages; save each as a file of its own")
    if orientation != 1:
        raise ImageError("is a TIFF file that is to be turned when it is shown; save it upright")
    if image.mode not in TIFF_MODES or (deep and photometric == 0):  # 0: white is 0, which Pillow forgets there
        raise ImageError(f"is a TIFF file of the kind {image.mode}, which is not read; save it as PNG")
    image.load()
    if deep:
        return np.rint(np.asarray(image) / 257.0).astype(np.uint8)[..., None].repeat(3, axis=2)
    return np.array(image.convert("RGB"))


def stored_bytes(data: bytes, image: np.ndarray) -> bytes:
    """An image file as `decode_rgb` takes it: its own content, a TIFF file as PNG.

    Args:
        data (bytes): the file's content.
        image (np.ndarray): (h, w, 3) uint8 RGB, what `checked_rgb` made of it.
    """
    if not data.startswith((b"II*\0", b"MM\0*")):
        return data
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def read_rgb(path: str | Path) -> np.ndarray:
    """Read an image file.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.

    Raises:
        ImageError: the file cannot be read or is not a complete image; names the file.
    """
    return checked_rgb_of(path, read_bytes(path))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; ImageError, naming it, when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def checked_rgb_of(path: str | Path, data: bytes) -> np.ndarray:
    """`checked_rgb` whose errors name the file."""
    try:
        return checked_rgb(data)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error

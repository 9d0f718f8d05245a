"""Reading and preparing images in C++: the numbers of src/data/transforms.py, and its refusals."""

import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data.image_files import read_rgb
from src.data.transforms import Canvas, evaluation_input

CANVASES = (Canvas(320, 256), Canvas(256, 320), Canvas(256, 256), Canvas(320, 256, keep_ratio=False))


def noise(*shape, dtype=np.uint8):
    """Random pixels: every rounding of the resize shows."""
    return np.random.default_rng(sum(shape)).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def palette():
    return Image.fromarray(noise(90, 120, 3)).quantize(64)


IMAGES = {
    "wide": noise(300, 900, 3),
    "tall, resized twice": noise(900, 300, 3),
    "one pixel": noise(1, 1, 3),
    "very long": noise(20, 20000, 3),
    "very high": noise(20000, 20, 3),
    "the canvas's size": noise(256, 320, 3),
    "twice the canvas's size": noise(512, 640, 3),
    "enlarged": noise(97, 131, 3),
    "grey": noise(123, 77),
    "RGBA": noise(200, 333, 4),
    "16 bits": noise(211, 207, 3, dtype=np.uint16),
    "16 bits grey": noise(61, 50, dtype=np.uint16),
    "palette": palette(),
    "1 bit": Image.fromarray(noise(90, 120)).convert("1"),
    "grey with alpha": Image.fromarray(noise(90, 120, 2), "LA"),
}


def save(path, image):
    if isinstance(image, Image.Image):
        image.save(path)
    else:
        assert cv2.imwrite(str(path), image)


def run_tool(tools, *arguments):
    return subprocess.run(
        [tools / "preprocess_tool", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def prepared(tools, image, canvas, out):
    """Image (3, H, W) and metadata (4,) of the C++ code."""
    result = run_tool(tools, image, out, canvas.width, canvas.height, str(canvas.keep_ratio).lower())
    assert result.returncode == 0, result.stderr
    numbers = np.fromfile(out, np.float32)
    return numbers[4:].reshape(3, canvas.height, canvas.width), numbers[:4]


def test_the_unit_tests_in_cpp_hold(image_tools):
    result = subprocess.run(
        ["ctest", "--output-on-failure"], cwd=image_tools, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    assert "1 tests passed" in result.stdout or "100% tests passed" in result.stdout


@pytest.mark.parametrize("kind", IMAGES)
def test_same_numbers_as_in_python(image_tools, tmp_path, kind):
    path = tmp_path / "an image.png"
    save(path, IMAGES[kind])
    for canvas in CANVASES:
        image, metadata = prepared(image_tools, path, canvas, tmp_path / "out.bin")
        expected_image, expected_metadata = evaluation_input(read_rgb(path), canvas)
        np.testing.assert_allclose(image, expected_image, rtol=0, atol=1e-4, err_msg=str(canvas))
        np.testing.assert_array_equal(metadata, expected_metadata, err_msg=str(canvas))


def test_published_canvas(image_tools, tmp_path):
    path = tmp_path / "a.png"
    save(path, noise(480, 640, 3))
    image, metadata = prepared(image_tools, path, Canvas(1280, 768), tmp_path / "out.bin")
    assert metadata.tolist() == pytest.approx([480, 640, 1.6, 1.6])
    # 768 = 480 * 1.6 rows, 1024 = 640 * 1.6 columns; to the right of them normalised black, red first
    assert image[:, 0, 1024:].max(axis=1).tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-4)
    assert image[:, :, 1023].max() > 1


def test_channels_are_red_green_blue(image_tools, tmp_path):
    Image.new("RGB", (128, 64), (255, 128, 0)).save(tmp_path / "orange.png")
    image, _ = prepared(image_tools, tmp_path / "orange.png", Canvas(128, 64), tmp_path / "out.bin")
    expected = (np.array([255, 128, 0]) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(image[:, 30, 60], expected, atol=1e-5)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp"])
def test_other_formats(image_tools, tmp_path, suffix):
    """Two decoders of a lossy format may differ by a few grey levels, so smooth images and a wide tolerance."""
    path = tmp_path / f"a.{suffix}"
    save(path, cv2.resize(noise(4, 5, 3), (320, 256)))
    canvas = Canvas(320, 256)
    image, _ = prepared(image_tools, path, canvas, tmp_path / "out.bin")
    np.testing.assert_allclose(image, evaluation_input(read_rgb(path), canvas)[0], atol=4 / 57)


def test_stored_pixels_are_not_turned(image_tools, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees for viewing
    Image.new("RGB", (40, 20), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    _, metadata = prepared(image_tools, tmp_path / "turned.jpg", Canvas(320, 256), tmp_path / "out.bin")
    assert metadata[:2].tolist() == [20, 40]


def png_bytes():
    return cv2.imencode(".png", noise(60, 80, 3))[1].tobytes()


def jpeg_bytes():
    return cv2.imencode(".jpg", noise(60, 80, 3))[1].tobytes()


def bomb():
    """A PNG of a few bytes that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is not an image (JPEG, PNG, BMP or WEBP)"),
        (b"GIF89a" + bytes(100), "is not an image"),
        (b"BM", "is cut off"),
        (b"RIFF\x10\0\0\0WEBP", "is cut off"),
        (png_bytes()[:20], "is cut off"),
        (png_bytes()[:-2000], "is damaged or cut off"),
        (jpeg_bytes()[:-2], "is cut off"),
        (jpeg_bytes()[:300], "is cut off"),
        (jpeg_bytes()[: len(jpeg_bytes()) // 2], "is cut off"),
        (b"\xff\xd8\xff" + bytes(500), "is damaged"),
        (bomb(), "is too large (50000 x 50000 pixels"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_bad_images_are_named(image_tools, tmp_path, content, words):
    path = tmp_path / "bad one.png"
    path.write_bytes(content)
    result = run_tool(image_tools, path, tmp_path / "out.bin", 320, 256, "true")
    assert result.returncode == 1, result.stderr
    assert f"ERROR: {path}: {words}" in result.stderr
    assert not (tmp_path / "out.bin").exists()


def test_missing_files_and_folders_are_named(image_tools, tmp_path):
    for path, words in ((tmp_path / "none.png", "cannot be read"), (tmp_path, "is a folder")):
        result = run_tool(image_tools, path, tmp_path / "out.bin", 320, 256, "true")
        assert (result.returncode, f"{path}: {words}" in result.stderr) == (1, True), result.stderr


@pytest.mark.parametrize("arguments", [[], ["a", "b", "0", "256", "true"], ["a", "b", "320", "256", "maybe"]])
def test_wrong_use_shows_the_usage(image_tools, arguments):
    result = run_tool(image_tools, *arguments)
    assert result.returncode == 2
    assert "Usage: preprocess_tool IMAGE OUT.bin WIDTH HEIGHT KEEP_RATIO" in result.stderr

"""Image files of every kind: their pixels as RGB, and refusals of what is damaged or not read."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data import image_files
from src.data.image_files import ImageError
from tests.unit.image_sets import smooth_image


def file_of(image, kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def as_array(data):
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_images_arrive_as_rgb(kind):
    image = smooth_image(20, 30)
    assert np.array_equal(image_files.checked_rgb(file_of(image, kind)), image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_png_modes_become_three_channels(mode):
    image = smooth_image(20, 30)
    decoded = image_files.checked_rgb(file_of(image, "PNG", mode))
    expected = np.asarray(Image.fromarray(image).convert(mode).convert("RGB"))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_modes_become_three_channels_in_rgb_order(mode):
    red = np.full((16, 16, 3), (250, 20, 30), np.uint8)
    decoded = image_files.checked_rgb(file_of(red, "JPEG", mode, quality=95))
    expected = np.asarray(Image.fromarray(red).convert(mode).convert("RGB")).astype(int)
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded - expected).max() <= 4


def test_sixteen_bit_values_are_divided_by_257():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    png = cv2.imencode(".png", values)[1]
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 32768 / 257 = 127.5019
    assert image_files.decode_rgb(png.reshape(-1))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x112] = 6
    assert image_files.checked_rgb(file_of(smooth_image(20, 30), "JPEG", exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("keep", [lambda n: n - 2, lambda n: n - 100, lambda n: n // 2, lambda n: 300, lambda n: 4])
def test_a_cut_jpeg_is_refused(options, keep, capfd):
    data = file_of(smooth_image(120, 160), "JPEG", **options)
    with pytest.raises(ImageError, match=r"cut off|damaged|not an image"):
        image_files.checked_rgb(data[: keep(len(data))])


def test_a_jpeg_with_restart_marks_cut_before_its_end_mark_is_refused():
    image = cv2.imencode(".jpg", smooth_image(120, 160), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()
    with pytest.raises(ImageError, match=r"cut off"):
        image_files.checked_rgb(image[:-2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "not an image"),
        (file_of(smooth_image(8, 8), "GIF"), "GIF"),
        (file_of(smooth_image(64, 64), "PNG")[:-40], "damaged"),
        (file_of(smooth_image(64, 64), "BMP")[:-40], "damaged|not an image"),
    ],
)
def test_files_that_are_not_a_whole_image_are_refused(data, message, capfd):
    with pytest.raises(ImageError, match=message):
        image_files.checked_rgb(data)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    # a PNG header that claims 50000 x 50000 pixels
    png = bytearray(file_of(np.zeros((4, 4, 3), np.uint8), "PNG"))
    png[16:24] = (50000).to_bytes(4, "big") * 2
    png[29:33] = np.uint32(zlib.crc32(png[12:29])).byteswap().tobytes()
    with pytest.raises(ImageError, match="too large"):
        image_files.checked_rgb(bytes(png))


def test_read_rgb_names_the_file(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"text")
    with pytest.raises(ImageError, match=r"bad\.jpg: is not an image"):
        image_files.read_rgb(bad)
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read \(No such file"):
        image_files.read_rgb(tmp_path / "none.jpg")


# ---- TIFF

TIFF_COMPRESSIONS = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1"])
def test_tiff_images_arrive_as_they_are_stored(mode, compression):
    """A plain colour is the same in every mode, and alpha is dropped, not multiplied."""
    colour = (255, 255, 255) if mode == "1" else (90, 90, 90)
    image = Image.new("RGB", (30, 20), colour)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(10)
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    decoded = image_files.checked_rgb(stream.getvalue())
    assert decoded.shape == (20, 30, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
def test_tiff_pixels_have_their_places_and_the_order_rgb(compression):
    image = smooth_image(37, 53)
    assert np.array_equal(image_files.checked_rgb(file_of(image, "TIFF", compression=compression)), image)
    assert np.array_equal(image_files.checked_rgb(cv2.imencode(".tif", image[..., ::-1])[1].tobytes()), image)


def test_sixteen_bit_grey_tiff_values_are_divided_by_257():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = image_files.checked_rgb(file_of_16_bits(values))
    assert decoded.tolist() == [[[value] * 3 for value in (0, 0, 1, 1, 128, 255)]]


def test_sixteen_bit_colours_of_a_tiff_are_their_upper_bytes():
    values = np.array([[[0, 257, 65535], [32768, 255, 256]]], np.uint16)
    data = cv2.imencode(".tif", values[..., ::-1])[1].tobytes()
    assert image_files.checked_rgb(data).tolist() == [[[0, 1, 255], [128, 0, 1]]]


def file_of_16_bits(values, **options):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF", **options)
    return stream.getvalue()


def with_tag(data, tag, value):
    """A little-endian TIFF file whose tag of one 16-bit number has another value."""
    entry = data.index(struct.pack("<HHI", tag, 3, 1))
    return data[: entry + 8] + struct.pack("<H", value) + data[entry + 10 :]


def pages(number):
    stream = io.BytesIO()
    first, *rest = [Image.new("RGB", (9, 9)) for _ in range(number)]
    first.save(stream, "TIFF", save_all=True, append_images=rest)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data, message",
    [
        (pages(3), "3 pages; save each as a file of its own"),
        (file_of_16_bits(np.ones((9, 9), np.float32)), "of the kind F, which is not read; save it as PNG"),
        (file_of_16_bits(np.ones((9, 9), np.int32)), "of the kind I, which"),
        (with_tag(file_of_16_bits(np.ones((9, 9), np.uint16)), 262, 0), "of the kind I;16, which is not read"),
        (file_of(smooth_image(9, 9), "TIFF", tiffinfo={274: 6}), "to be turned when it is shown; save it upright"),
    ],
    ids=["pages", "float", "32 bits", "white is 0", "turned"],
)
def test_other_tiff_files_are_refused_by_name(data, message):
    with pytest.raises(ImageError, match=message):
        image_files.checked_rgb(data)


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_tiff_is_refused(compression, share):
    data = file_of(smooth_image(97, 131), "TIFF", compression=compression)
    with pytest.raises(ImageError):
        image_files.checked_rgb(data[: int(share * len(data))])


def test_records_hold_a_tiff_as_png_and_other_files_as_they_are():
    image = smooth_image(20, 30)
    for kind in ("TIFF", "PNG", "JPEG"):
        data = file_of(image, kind)
        decoded = image_files.checked_rgb(data)
        stored = image_files.stored_bytes(data, decoded)
        assert (stored == data) == (kind != "TIFF")
        assert np.array_equal(image_files.decode_rgb(as_array(stored)), decoded)

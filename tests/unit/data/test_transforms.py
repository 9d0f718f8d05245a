"""Images and boxes on their way to the network; expected numbers are worked out here by hand or with OpenCV."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from src.data import transforms
from src.data.transforms import Canvas, ImageError

CANVAS = Canvas(width=1280, height=768)
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


def smooth_image(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def file_of(image, kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def as_array(data):
    return np.frombuffer(data, np.uint8)


# ---- reading


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_images_arrive_as_rgb(kind):
    image = smooth_image(20, 30)
    assert np.array_equal(transforms.checked_rgb(file_of(image, kind)), image)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_other_png_modes_become_three_channels(mode):
    image = smooth_image(20, 30)
    decoded = transforms.checked_rgb(file_of(image, "PNG", mode))
    expected = np.asarray(Image.fromarray(image).convert(mode).convert("RGB"))
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_modes_become_three_channels_in_rgb_order(mode):
    red = np.full((16, 16, 3), (250, 20, 30), np.uint8)
    decoded = transforms.checked_rgb(file_of(red, "JPEG", mode, quality=95))
    expected = np.asarray(Image.fromarray(red).convert(mode).convert("RGB")).astype(int)
    assert decoded.shape == (16, 16, 3)
    assert np.abs(decoded - expected).max() <= 4


def test_sixteen_bit_values_are_divided_by_257():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    png = cv2.imencode(".png", values)[1]
    # 128 / 257 = 0.498, 129 / 257 = 0.502, 32768 / 257 = 127.5019
    assert transforms.decode_rgb(png.reshape(-1))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x112] = 6
    assert transforms.checked_rgb(file_of(smooth_image(20, 30), "JPEG", exif=exif)).shape == (20, 30, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("keep", [lambda n: n - 2, lambda n: n - 100, lambda n: n // 2, lambda n: 300, lambda n: 4])
def test_a_cut_jpeg_is_refused(options, keep, capfd):
    data = file_of(smooth_image(120, 160), "JPEG", **options)
    with pytest.raises(ImageError, match=r"cut off|damaged|not an image"):
        transforms.checked_rgb(data[: keep(len(data))])


def test_a_jpeg_with_restart_marks_cut_before_its_end_mark_is_refused():
    image = cv2.imencode(".jpg", smooth_image(120, 160), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes()
    with pytest.raises(ImageError, match=r"cut off"):
        transforms.checked_rgb(image[:-2])


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
def test_files_that_are_no_whole_image_are_refused(data, message, capfd):
    with pytest.raises(ImageError, match=message):
        transforms.checked_rgb(data)


def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    # a PNG header that claims 50000 x 50000 pixels
    png = bytearray(file_of(np.zeros((4, 4, 3), np.uint8), "PNG"))
    png[16:24] = (50000).to_bytes(4, "big") * 2
    png[29:33] = np.uint32(zlib.crc32(png[12:29])).byteswap().tobytes()
    with pytest.raises(ImageError, match="too large"):
        transforms.checked_rgb(bytes(png))


def test_read_rgb_names_the_file(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"text")
    with pytest.raises(ImageError, match=r"bad\.jpg: is not an image"):
        transforms.read_rgb(bad)
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read \(No such file"):
        transforms.read_rgb(tmp_path / "none.jpg")


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
    decoded = transforms.checked_rgb(stream.getvalue())
    assert decoded.shape == (20, 30, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
def test_tiff_pixels_have_their_places_and_the_order_rgb(compression):
    image = smooth_image(37, 53)
    assert np.array_equal(transforms.checked_rgb(file_of(image, "TIFF", compression=compression)), image)
    assert np.array_equal(transforms.checked_rgb(cv2.imencode(".tif", image[..., ::-1])[1].tobytes()), image)


def test_sixteen_bit_grey_tiff_values_are_divided_by_257():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = transforms.checked_rgb(file_of_16_bits(values))
    assert decoded.tolist() == [[[value] * 3 for value in (0, 0, 1, 1, 128, 255)]]


def test_sixteen_bit_colours_of_a_tiff_are_their_upper_bytes():
    values = np.array([[[0, 257, 65535], [32768, 255, 256]]], np.uint16)
    data = cv2.imencode(".tif", values[..., ::-1])[1].tobytes()
    assert transforms.checked_rgb(data).tolist() == [[[0, 1, 255], [128, 0, 1]]]


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
        transforms.checked_rgb(data)


@pytest.mark.parametrize("compression", TIFF_COMPRESSIONS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_tiff_is_refused(compression, share):
    data = file_of(smooth_image(97, 131), "TIFF", compression=compression)
    with pytest.raises(ImageError):
        transforms.checked_rgb(data[: int(share * len(data))])


def test_records_hold_a_tiff_as_png_and_other_files_as_they_are():
    image = smooth_image(20, 30)
    for kind in ("TIFF", "PNG", "JPEG"):
        data = file_of(image, kind)
        decoded = transforms.checked_rgb(data)
        stored = transforms.stored_bytes(data, decoded)
        assert (stored == data) == (kind != "TIFF")
        assert np.array_equal(transforms.decode_rgb(as_array(stored)), decoded)


# ---- resizing


@pytest.mark.parametrize(
    ("width", "height", "canvas", "new_width", "new_height", "scale"),
    [
        (640, 480, CANVAS, 1024, 768, 1.6),  # min(1280/640, 768/480)
        (1280, 400, CANVAS, 1280, 400, 1.0),  # min(1280/1280, 768/400)
        (500, 333, CANVAS, 1153, 768, 768 / 333),  # 500 * 2.3063 + 0.5 = 1153.65
        (480, 640, CANVAS, 576, 768, 1.6 * 0.75),  # 768 x 1024 first, then 768 / 1024
        (300, 600, CANVAS, 384, 768, 1280 / 600 * 768 / 1280),  # 640 x 1280 first
        (512, 512, CANVAS, 768, 768, 1.5),
        (640, 480, Canvas(768, 1280), 768, 576, 1.2),  # W < H: min(768/640, 1280/480) at once
        (480, 640, Canvas(768, 1280), 768, 1024, 1.6),
        (20000, 20, CANVAS, 1280, 1, 0.064),  # 20 * 0.064 + 0.5 = 1.78
        (30000, 10, CANVAS, 1280, 1, 1280 / 30000),  # 10 * 0.0427 + 0.5 < 1: held at 1
        (1, 1, CANVAS, 768, 768, 768.0),
    ],
)
def test_keep_ratio_sizes(width, height, canvas, new_width, new_height, scale):
    resized, scale_h, scale_w = transforms.resize(np.zeros((height, width, 3), np.uint8), canvas)
    assert resized.shape == (new_height, new_width, 3)
    assert scale_h == scale_w == pytest.approx(scale, rel=1e-12)


def test_a_portrait_is_resized_from_the_first_result():
    image = smooth_image(640, 480)
    first = cv2.resize(image, (768, 1024), interpolation=cv2.INTER_LINEAR)
    expected = cv2.resize(first, (576, 768), interpolation=cv2.INTER_LINEAR)
    resized, _, _ = transforms.resize(image, CANVAS)
    assert np.array_equal(resized, expected)
    assert not np.array_equal(resized, cv2.resize(image, (576, 768)))


def test_without_keep_ratio_the_image_fills_the_canvas():
    resized, scale_h, scale_w = transforms.resize(smooth_image(480, 640), Canvas(1280, 768, keep_ratio=False))
    assert resized.shape == (768, 1280, 3)
    assert (scale_h, scale_w) == (1.6, 2.0)


# ---- normalisation


@pytest.mark.parametrize("flip", [False, True])
def test_padding_comes_before_normalisation_and_flip_mirrors_the_canvas(flip):
    image = smooth_image(5, 7)
    padded = np.zeros((8, 10, 3))
    padded[:5, :7] = image
    expected = ((padded - MEAN) / STD).transpose(2, 0, 1)
    if flip:
        expected = expected[:, :, ::-1]
    out = transforms.normalize_to_canvas(image, Canvas(10, 8), flip=flip)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_an_image_of_the_canvas_size_has_no_padding():
    image = smooth_image(8, 10)
    out = transforms.normalize_to_canvas(image, Canvas(10, 8))
    np.testing.assert_allclose(out.transpose(1, 2, 0) * STD + MEAN, image, atol=1e-4)


# ---- boxes


def test_boxes_are_scaled_then_clipped_to_the_last_pixel():
    boxes = np.array([[-4, 1, 5, 2.5], [10.25, 20.5, 40, 30]], np.float32)
    # y by 3, x by 2; the resized image is 50 high and 70 wide: limits 49 and 69
    expected = [[0, 3, 10, 7.5], [20.5, 49, 69, 49]]
    assert transforms.scale_and_clip(boxes, 3.0, 2.0, 50, 70).tolist() == expected


def test_flipped_boxes():
    boxes = np.array([[0, 3, 10, 7], [20.5, 1, 99, 2]], np.float32)
    assert transforms.flip_boxes(boxes, 100).tolist() == [[89, 3, 99, 7], [0, 1, 78.5, 2]]
    assert boxes[0].tolist() == [0, 3, 10, 7]


def test_expand_pastes_the_image_where_the_boxes_say():
    image = smooth_image(30, 40) | 1  # no black pixel
    boxes = np.array([[0, 0, 40, 30], [5, 6, 7, 8]], np.float32)
    sizes = set()
    for seed in range(20):
        expanded, moved = transforms.expand(image, boxes, np.random.default_rng(seed))
        height, width = expanded.shape[:2]
        assert 30 <= height <= 120
        assert 40 <= width <= 160
        x1, y1, x2, y2 = moved[0].astype(int)
        assert np.array_equal(expanded[y1:y2, x1:x2], image)
        assert np.count_nonzero(expanded) == image.size  # black everywhere else
        np.testing.assert_array_equal(moved[1] - moved[0][[0, 1, 0, 1]], boxes[1])
        sizes.add((height, width))
    assert len(sizes) > 15


def test_ground_truth_is_padded_and_crowds_are_invalid():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    padded, labels, valid = transforms.pad_ground_truth(
        boxes, np.array([3, 1, 2], np.int32), np.array([False, True, False]), 5, np.random.default_rng(0)
    )
    assert padded.tolist() == [*boxes.tolist(), [0] * 4, [0] * 4]
    assert labels.tolist() == [3, 1, 2, -1, -1]
    assert valid.tolist() == [True, False, True, False, False]
    assert (padded.dtype, labels.dtype, valid.dtype) == (np.float32, np.int32, bool)


def test_an_image_without_boxes_has_only_padding():
    padded, labels, valid = transforms.pad_ground_truth(
        np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), 4, np.random.default_rng(0)
    )
    assert padded.shape == (4, 4)
    assert not padded.any()
    assert labels.tolist() == [-1] * 4
    assert not valid.any()


@pytest.mark.parametrize("num_boxes", [129, 500])
def test_of_too_many_boxes_a_random_choice_stays_in_order(num_boxes):
    boxes = np.repeat(np.arange(num_boxes, dtype=np.float32)[:, None], 4, axis=1)
    labels = np.arange(1, num_boxes + 1, dtype=np.int32)
    seen = set()
    for epoch in range(40):
        rng = np.random.default_rng([1, epoch])
        padded, chosen, valid = transforms.pad_ground_truth(boxes, labels, np.zeros(num_boxes, bool), 128, rng)
        assert valid.all()
        assert (np.diff(chosen) > 0).all()
        assert np.array_equal(padded[:, 0], chosen - 1)
        seen.update(chosen.tolist())
    assert len(seen) == num_boxes  # none is left out for ever


def test_crowds_leave_first_when_there_are_too_many_boxes():
    is_crowd = np.arange(6) % 2 == 0
    _, labels, valid = transforms.pad_ground_truth(
        np.zeros((6, 4), np.float32), np.arange(6, dtype=np.int32), is_crowd, 4, np.random.default_rng(0)
    )
    assert labels.tolist() == [1, 3, 5, -1]
    assert valid.tolist() == [True, True, True, False]


# ---- whole images


def train(image, boxes, seed, **options):
    return transforms.training_input(image, boxes, CANVAS, rng=np.random.default_rng(seed), **options)


def test_training_input_without_augmentation():
    pixels = smooth_image(480, 640)
    boxes = np.array([[10, 20, 640, 480]], np.float32)
    image, image_shape, moved = train(pixels, boxes, 0, expand_ratio=0.0, flip_ratio=0.0)
    padded = np.zeros((768, 1280, 3))
    padded[:, :1024] = cv2.resize(pixels, (1024, 768), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(image, ((padded - MEAN) / STD).transpose(2, 0, 1), atol=1e-6)
    assert image_shape.tolist() == [768, 1280, 1]
    np.testing.assert_allclose(moved, [[16, 32, 1023, 767]], rtol=1e-6)


def test_training_input_flipped():
    image = smooth_image(480, 640)
    boxes = np.array([[10, 20, 100, 200]], np.float32)
    plain, _, _ = train(image, boxes, 0, expand_ratio=0.0, flip_ratio=0.0)
    flipped, _, moved = train(image, boxes, 0, expand_ratio=0.0, flip_ratio=1.0)
    assert np.array_equal(flipped, plain[:, :, ::-1])
    np.testing.assert_allclose(moved, [[1279 - 160, 32, 1279 - 16, 320]], rtol=1e-6)


@pytest.mark.parametrize(("expand_ratio", "flip_ratio"), [(1.0, 0.5), (0.5, 0.0), (0.0, 1.0)])
def test_share_of_expanded_and_flipped_images(expand_ratio, flip_ratio):
    """A white image fills its canvas of the same size; black pixels mean that it was expanded.

    The box is its left half: on the right it means a flip.
    """
    pixels, canvas = np.full((64, 64, 3), 255, np.uint8), Canvas(64, 64)
    boxes = np.array([[0, 0, 10, 63]], np.float32)
    black = ((0 - MEAN) / STD)[:, None, None]
    num_expanded = num_flipped = 0
    for seed in range(600):
        image, _, moved = transforms.training_input(
            pixels, boxes, canvas, rng=np.random.default_rng(seed), expand_ratio=expand_ratio, flip_ratio=flip_ratio
        )
        expanded = bool((np.abs(image - black) < 0.5).any())
        num_expanded += expanded
        num_flipped += not expanded and moved[0, 0] > 32
    # the standard deviation of a share of 600 is at most 0.0204: four of them
    assert num_expanded / 600 == pytest.approx(0.5 * expand_ratio, abs=0.082)
    assert num_flipped / 600 == pytest.approx((1 - 0.5 * expand_ratio) * flip_ratio, abs=0.082)


def test_evaluation_input_keeps_the_original_size_and_scale():
    image, image_shape = transforms.evaluation_input(smooth_image(640, 480), CANVAS)
    assert image.shape == (3, 768, 1280)
    np.testing.assert_allclose(image_shape, [640, 480, 1.2, 1.2], rtol=1e-6)
    stretched = transforms.evaluation_input(smooth_image(640, 480), Canvas(1280, 768, keep_ratio=False))[1]
    np.testing.assert_allclose(stretched, [640, 480, 1.2, 1280 / 480], rtol=1e-6)

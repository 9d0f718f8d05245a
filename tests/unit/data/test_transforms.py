"""Images and boxes on their way to the network; expected numbers are worked out here by hand or with OpenCV."""

import colorsys

import cv2
import numpy as np
import pytest

from src.data import transforms
from src.data.transforms import Canvas
from tests.unit.image_sets import smooth_image

CANVAS = Canvas(width=1280, height=768)
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])


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


GREYS = (60, 120)
COLOURS = ((140, 90, 90), (90, 110, 140))


def distorted_patches(seed):
    """What becomes of two greys and two colours, each a stripe: (2,) and (2, 3) float."""
    image = np.zeros((8, 16, 3), np.uint8)
    for stripe, colour in enumerate((*GREYS, *COLOURS)):
        image[:, 4 * stripe : 4 * stripe + 4] = colour
    before = image.copy()
    result = transforms.distort_colours(image, np.random.default_rng(seed))
    assert np.array_equal(image, before)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    assert all(np.ptp(result[:, 4 * stripe : 4 * stripe + 4], axis=(0, 1)).max() == 0 for stripe in range(4))
    assert np.ptp(result[:, :8], axis=2).max() <= 1  # grey stays grey
    return result[0, (0, 4), 1].astype(float), result[0, (8, 12)].astype(float)


def test_brightness_and_contrast_have_their_ranges_and_change_half_of_the_images():
    """Of two greys a and b, (a + d) * c and (b + d) * c remain: c and d follow, hue and saturation touch neither."""
    found = []
    for seed in range(600):
        (first, second), _ = distorted_patches(seed)
        contrast = (second - first) / (GREYS[1] - GREYS[0])
        found.append((contrast, first / contrast - GREYS[0]))
    contrasts, shifts = np.array(found).T
    # two bytes are rounded twice, which moves c by up to 0.03 and d by up to 3
    assert 0.47 < contrasts.min() < 0.55
    assert 1.45 < contrasts.max() < 1.53
    assert -35 < shifts.min() < -28
    assert 28 < shifts.max() < 35
    # four standard deviations of a share of 600 are 0.082; a draw inside the rounding counts as none
    assert np.mean(np.abs(contrasts - 1) > 0.035) == pytest.approx(0.5 * (1 - 0.07), abs=0.082)
    assert np.mean(np.abs(shifts) > 3) == pytest.approx(0.5 * (1 - 3 / 32), abs=0.082)


def test_hue_and_saturation_have_their_ranges_and_change_half_of_the_images():
    """Where greys stay, colours have the same value (the largest channel), and both are changed alike."""
    found = []
    for seed in range(2400):
        greys, colours = distorted_patches(seed)
        if greys.tolist() != list(GREYS):
            continue
        before, after = (np.array([colorsys.rgb_to_hsv(*colour) for colour in some]) for some in (COLOURS, colours))
        np.testing.assert_allclose(after[:, 2], before[:, 2], atol=1)
        turned = (360 * (after[:, 0] - before[:, 0]) + 180) % 360 - 180
        factor = after[:, 1] / before[:, 1]
        assert abs(turned[0] - turned[1]) < 6  # a byte of 140 is 1.2 to 3 degrees here
        assert abs(factor[0] - factor[1]) < 0.06
        found.append((turned.mean(), factor.mean()))
    turns, factors = np.array(found).T
    assert len(found) / 2400 == pytest.approx(0.25, abs=0.04)  # neither brightness nor contrast
    assert -21 < turns.min() < -15
    assert 15 < turns.max() < 21
    assert 0.47 < factors.min() < 0.55
    assert 1.45 < factors.max() < 1.53
    assert np.mean(np.abs(turns) > 2.5) == pytest.approx(0.5 * (1 - 2.5 / 18), abs=0.085)
    assert np.mean(np.abs(factors - 1) > 0.04) == pytest.approx(0.5 * (1 - 0.08), abs=0.085)


def tiled_image(number, height, width):
    """An image of 4 x 4 tiles, each a box with the label 1 + 16 number + tile, and its label as its colour."""
    labels = np.arange(1 + 16 * number, 17 + 16 * number, dtype=np.int32)
    across, down = width // 4, height // 4
    boxes = np.array(
        [
            [column * across, row * down, (column + 1) * across, (row + 1) * down]
            for row in range(4)
            for column in range(4)
        ],
        np.float32,
    )
    plane = labels.reshape(4, 4).astype(np.uint8).repeat(down, axis=0).repeat(across, axis=1)
    return np.dstack([plane] * 3), boxes, labels, labels % 3 == 0


@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_mosaic_against_its_definition(keep_ratio, seed):
    """The tile at the inner corner is always seen whole: it tells centre and scale, and these every other tile."""
    canvas = Canvas(256, 192, keep_ratio)
    sizes = [(60, 80), (120, 80), (40, 120), (200, 200)]
    parts = [tiled_image(number, *size) for number, size in enumerate(sizes)]
    image, boxes, labels, is_crowd = transforms.mosaic(parts, canvas, np.random.default_rng(seed))
    assert (image.shape, image.dtype) == ((192, 256, 3), np.uint8)
    assert (boxes.dtype, labels.dtype, is_crowd.dtype) == (np.float32, np.int32, bool)
    assert is_crowd.tolist() == [label % 3 == 0 for label in labels]
    assert (np.diff(labels) > 0).all()
    seen = dict(zip(labels.tolist(), boxes.astype(float), strict=True))
    centres = []
    for number, (height, width) in enumerate(sizes):
        on_left, on_top = number % 2 == 0, number < 2
        inner = 1 + 16 * number + (12 if on_top else 0) + (3 if on_left else 0)
        x1, y1, x2, y2 = seen[inner]
        centres.append((x2 if on_left else x1, y2 if on_top else y1))
        fit = min(256 / max(height, width), 192 / min(height, width))
        if height * fit > 192:
            fit = 192 / height
        scales = ((x2 - x1) * 4 / width, (y2 - y1) * 4 / height)
        for scale, usual in zip(scales, (fit, fit) if keep_ratio else (256 / width, 192 / height), strict=True):
            assert 0.49 * usual < scale < 1.01 * usual
        left = centres[0][0] - (width * scales[0] if on_left else 0)
        top = centres[0][1] - (height * scales[1] if on_top else 0)
        for _, tile, label, _ in zip(range(16), *parts[number][1:], strict=True):
            whole = np.array([left, top] * 2) + tile * np.array(scales * 2)
            visible = np.clip(whole, 0, [256, 192, 256, 192])
            share = np.prod(visible[2:] - visible[:2]) / np.prod(whole[2:] - whole[:2])
            if abs(share - 0.25) > 0.03:
                assert (int(label) in seen) == (share > 0.25)
            if int(label) in seen:
                np.testing.assert_allclose(seen[int(label)], visible, atol=1.5)
                column, row = ((visible[:2] + visible[2:]) / 2).astype(int)
                assert image[row, column].tolist() == [label] * 3
    np.testing.assert_allclose(centres, [centres[0]] * 4, atol=1.5)  # a rounded image is half a pixel off
    assert 64 <= centres[0][0] <= 192
    assert 48 <= centres[0][1] <= 144


def test_mosaics_differ_in_centre_and_scale():
    parts = [tiled_image(number, 60, 80) for number in range(4)]
    found = []
    for seed in range(300):
        _, boxes, labels, _ = transforms.mosaic(parts, Canvas(256, 192), np.random.default_rng(seed))
        x1, y1, x2, y2 = boxes[labels == 16][0]
        found.append((x2 / 256, y2 / 192, (x2 - x1) / 64))  # a tile is 20 wide, 80 fits 256 by 3.2
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    np.testing.assert_allclose(low, [0.25, 0.25, 0.5], atol=0.02)
    np.testing.assert_allclose(high, [0.75, 0.75, 1.0], atol=0.02)
    np.testing.assert_allclose(np.mean(found, axis=0), [0.5, 0.5, 0.75], atol=4 * 0.5 / np.sqrt(12 * 300))


def test_a_mosaic_of_images_without_boxes_has_none():
    empty = smooth_image(30, 40), np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    image, boxes, labels, is_crowd = transforms.mosaic([empty] * 4, Canvas(128, 64), np.random.default_rng(0))
    assert image.shape == (64, 128, 3)
    assert (boxes.shape, labels.shape, is_crowd.shape) == ((0, 4), (0,), (0,))


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


@pytest.mark.parametrize("keep_ratio", [True, False])
def test_min_scale_shrinks_the_image_in_its_corner_and_the_boxes_follow(keep_ratio):
    pixels, canvas = np.full((32, 64, 3), 255, np.uint8), Canvas(128, 64, keep_ratio)
    boxes = np.array([[0, 0, 64, 32], [16, 8, 32, 24]], np.float32)
    shares = []
    for seed in range(300):
        image, image_shape, moved = transforms.training_input(
            pixels, boxes, canvas, expand_ratio=0.0, flip_ratio=0.0, min_scale=0.4, rng=np.random.default_rng(seed)
        )
        assert image_shape.tolist() == [64, 128, 1]
        white = image.max(axis=0) > 2  # 255 normalised is 2.2 or more, black is below -1.7
        width, height = int(white[0].sum()), int(white[:, 0].sum())
        assert white.sum() == width * height == white[:height, :width].sum()
        assert abs(width - 2 * height) <= 2  # pixels
        np.testing.assert_allclose(moved[0], [0, 0, width - 1, height - 1])
        np.testing.assert_allclose(moved[1] / [width, height, width, height], [0.25, 0.25, 0.5, 0.75], atol=0.03)
        shares.append(width / 128)
    assert min(shares) == pytest.approx(0.4, abs=0.02)
    assert max(shares) == pytest.approx(1.0, abs=0.02)
    assert np.mean(shares) == pytest.approx(0.7, abs=4 * 0.6 / np.sqrt(12 * 300))


def test_colours_change_before_the_image_is_expanded_and_boxes_stay():
    """Black around an expanded image stays black, however bright the image becomes."""
    pixels, canvas = np.full((64, 64, 3), 128, np.uint8), Canvas(64, 64)
    boxes = np.array([[4, 5, 60, 50]], np.float32)
    changed = 0
    for seed in range(60):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        image, _, moved = transforms.training_input(
            pixels, boxes, canvas, expand_ratio=1.0, flip_ratio=0.0, photometric_ratio=1.0, rng=rngs[0]
        )
        grey = np.rint(image[0] * STD[0] + MEAN[0]).min()  # of the image at least (128 - 32) * 0.5
        expanded = moved[0, 2] - moved[0, 0] < 55
        assert (grey == 0) == expanded
        changed += not expanded and grey != 128
        still, _, stayed = transforms.training_input(
            pixels, boxes, canvas, expand_ratio=0.0, flip_ratio=0.0, photometric_ratio=1.0, rng=rngs[1]
        )
        assert stayed.tolist() == boxes.tolist()
        assert still.shape == (3, 64, 64)
    assert changed > 10


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_share_of_images_with_changed_colours(ratio):
    """Of those drawn 1 in 16 changes nothing, by brightness, contrast, saturation or hue; rounding hides few more."""
    pixels, canvas = smooth_image(16, 16), Canvas(64, 64)
    plain, _, _ = transforms.training_input(
        pixels, np.zeros((0, 4)), canvas, expand_ratio=0.0, flip_ratio=0.0, rng=np.random.default_rng(0)
    )
    num_changed = 0
    for seed in range(600):
        image, _, _ = transforms.training_input(
            pixels,
            np.zeros((0, 4)),
            canvas,
            expand_ratio=0.0,
            flip_ratio=0.0,
            photometric_ratio=ratio,
            rng=np.random.default_rng(seed),
        )
        num_changed += not np.array_equal(image, plain)
    assert num_changed / 600 == pytest.approx(ratio * 15 / 16, abs=0.082 if ratio else 0)


@pytest.mark.parametrize(("expand_ratio", "flip_ratio"), [(1.0, 0.5), (0.5, 0.0), (0.2, 0.0), (0.0, 1.0)])
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

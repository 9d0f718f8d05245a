"""Images and boxes on their way to the network; expected numbers are worked out here by hand or with OpenCV."""

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

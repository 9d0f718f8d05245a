"""Drawing: what is inked, where, and that nothing leaves the image."""

import cv2
import numpy as np
import pytest

from src.model_utils.errors import UserError
from src.predict.draw import class_colour, draw_detections, draw_results, write_image
from src.util import CocoEvaluator

NAMES = ["disc", "square", "star"]


def grey(height=700, width=900):
    return np.full((height, width, 3), 100, np.uint8)


def count_colour(image, colour):
    return int((image == np.array(colour, np.uint8)).all(axis=-1).sum())


def test_frame_in_the_colour_of_the_class_at_the_box():
    image = grey()
    drawn = draw_detections(image, np.array([[200, 300, 400, 500]]), [1], [0.9], NAMES)
    assert drawn.shape == image.shape
    assert (image == 100).all()  # the given image is left alone
    for x, y in ((200, 400), (400, 400), (300, 300), (300, 500)):  # middles of the four sides
        assert tuple(drawn[y, x]) == class_colour(1)
    assert (drawn[320:480, 220:380] == 100).all()  # inside
    assert (drawn[520:] == 100).all()  # below


def test_weak_detections_are_not_drawn():
    image = grey()
    drawn = draw_detections(image, np.array([[200, 300, 400, 500]] * 2), [0, 1], [0.49, 0.3], NAMES)
    np.testing.assert_array_equal(drawn, image)
    drawn = draw_detections(image, np.array([[9, 9, 99, 99]]), [0], [0.3], NAMES, score_thr=0.3)
    assert count_colour(drawn, class_colour(0)) > 0


def test_ground_truth_is_dashed_white():
    drawn = draw_detections(grey(), np.zeros((0, 4)), [], [], NAMES, gt_boxes=[[100, 200, 300, 400]])
    side = drawn[200, 110:290]
    assert count_colour(side, (255, 255, 255)) > 0
    assert not (side == 255).all()


@pytest.mark.parametrize("height, width", [(1, 1), (8, 10), (60, 80), (1, 300), (300, 1), (640, 20)])
def test_small_images_are_enlarged_by_one_factor(height, width):
    drawn = draw_detections(grey(height, width), np.array([[0, 0, width, height]]), [2], [1.0], NAMES)
    assert max(drawn.shape[:2]) == 640
    factor = 640 / max(height, width)
    assert drawn.shape == (max(1, round(height * factor)), max(1, round(width * factor)), 3)


@pytest.mark.parametrize("box", [(-50, -50, 5, 5), (890, 690, 950, 750), (0, 0, 900, 700), (5, 695, 9, 699)])
def test_label_stays_inside_the_image(box):
    # a label beyond the border would cover less than one in the middle
    drawn = draw_detections(grey(), np.array([box]), [0], [0.75], NAMES)
    middle = draw_detections(grey(), np.array([[400, 300, 401, 301]]), [0], [0.75], NAMES)
    assert count_colour(drawn, class_colour(0)) > 0.75 * count_colour(middle, class_colour(0))


def test_labels_of_equal_boxes_do_not_cover_each_other():
    boxes = np.array([[100, 100, 300, 300]] * 3)
    drawn = draw_detections(grey(), boxes, [0, 1, 2], [0.9, 0.8, 0.7], NAMES)
    counts = [count_colour(drawn, class_colour(label)) for label in range(3)]
    assert min(counts) > 500  # each label's background shows


def test_colours_of_80_classes_are_fixed_and_differ():
    colours = [class_colour(label) for label in range(80)]
    assert colours == [class_colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    neighbours = np.abs(np.diff(np.array(colours, int), axis=0)).sum(axis=1)
    assert neighbours.min() > 100


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_written_image_can_be_read(tmp_path, suffix):
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200  # red
    path = write_image(tmp_path / "new" / f"image{suffix}", image)
    blue_green_red = cv2.imread(str(path))
    np.testing.assert_allclose(blue_green_red[10, 15], [0, 0, 200], atol=4)


def test_images_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.png"):
        write_image(tmp_path / "file" / "a.png", grey(4, 4))
    for name in ("a.nope", "a"):
        with pytest.raises(UserError, match="suffix"):
            write_image(tmp_path / name, grey(4, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_results_of_the_first_images_are_drawn(tmp_path):
    truth = {
        "images": [
            {"id": 5, "file_name": "sub/a.png"},
            {"id": 3, "file_name": "../b.jpg"},
            {"id": 9, "file_name": "c.jpg"},
        ],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 44, "bbox": [50, 60, 200, 300]}],
        "categories": [{"id": 44, "name": "disc"}],
    }
    evaluator = CocoEvaluator(truth, [44], "test")
    boxes = np.array([[[400, 60, 600, 300, 0.9]]] * 3)
    evaluator.add([3, 5, 9], boxes, np.zeros((3, 1)), np.ones((3, 1)))
    paths = draw_results(evaluator, lambda image: grey(), tmp_path / "detections", 2)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["detections/5_a.png", "detections/3_b.png"]
    first, second = (cv2.imread(str(path)).astype(int) for path in paths)
    assert np.abs(first[60:360, 50] - second[60:360, 50]).max() > 100  # only the first has a true box
    assert np.abs(second[180, 400] - class_colour(0)[::-1]).max() < 60  # both have the detection

"""Situations that users of detectors have reported, each as a small data set with the value that is right.

A detector of random weights finds boxes in generated images. They are taken as the ground truth, so that its AP is 1
by definition wherever the program scores these images with the settings of these weights: but for some boxes without
area among hundreds, which nothing can match.
"""

import json
import logging
import shutil

import cv2
import numpy as np
import pytest

from src.convert_checkpoint import write_checkpoint
from src.data.image_files import read_rgb
from src.deploy.model_file import load_model
from src.evaluation.scoring import Evaluation
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.predict.prediction import detect
from src.weights.detector_notes import notes_of
from tests.unit.FasterRcnn.small_detector import CLASSES, SETTINGS, config_of, randomise

pytestmark = pytest.mark.usefixtures("graph_mode")
NUM_IMAGES = 4
RIGHT_AP = pytest.approx(1, abs=0.02)


def paint(path, number):
    """Rectangles of plain colours on noise."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (60, 100, 3), np.uint8)
    for _ in range(4):
        x, y = rng.integers(0, 70), rng.integers(0, 40)
        image[y : y + 20, x : x + 30] = rng.integers(0, 256, 3)
    cv2.imwrite(str(path), image)


def truth_of(model, folder):
    """What the model finds in the images of a folder, as a COCO file."""
    images, rows = [], []
    for number, path in enumerate(sorted(folder.iterdir()), start=1):
        image = read_rgb(path)
        images.append({"id": number, "file_name": path.name, "width": image.shape[1], "height": image.shape[0]})
        (found,) = detect(model, [image])
        for (x1, y1, x2, y2), label in zip(found.boxes_xyxy.tolist(), found.labels.tolist(), strict=True):
            if x2 <= x1 or y2 <= y1:
                continue
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": number,
                    "category_id": 10 * (label + 1),
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    categories = [{"id": 10 * number, "name": name} for number, name in enumerate(CLASSES[1:], start=1)]
    return {"images": images, "annotations": rows, "categories": categories}


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A checkpoint of unusual settings, images in val2017, and the model loaded with no flag about either."""
    root = tmp_path_factory.mktemp("cases")
    config = config_of("--stem_pool_pad=symmetric", "--anchor_scales=[6]", **SETTINGS)
    network = randomise(build_detector(config), 49)
    write_checkpoint(network.parameters_dict(), root / "detector.ckpt", notes_of(config))
    (root / "val2017").mkdir()
    for number in range(NUM_IMAGES):
        paint(root / "val2017" / f"{number}.png", number)
    model = load_model(root / "detector.ckpt", load_config(["--device_target=CPU", "--compile_cache_path="]))
    truth = truth_of(model, root / "val2017")
    assert len(truth["annotations"]) > 10 * NUM_IMAGES
    return root, model, truth


def score(detector, tmp_path, change=lambda truth: None, flags=()):
    """The metrics of a changed copy of the ground truth."""
    root, model, truth = detector
    truth = json.loads(json.dumps(truth))
    change(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    config = load_config(
        [
            f"--coco_root={root}",
            f"--anno_path={tmp_path / 'truth.json'}",
            "--device_target=CPU",
            f"--mindrecord_dir={tmp_path / 'records'}",
            f"--eval_output_path={tmp_path}",
            *flags,
        ]
    )
    Evaluation(model.info.configuration(config)).score(model)
    return json.loads((tmp_path / "metrics.json").read_text())


def for_each(truth, **fields):
    for row in truth["annotations"]:
        row |= fields


def test_a_checkpoint_scores_with_the_settings_of_its_training(detector, tmp_path):
    """Canvas, anchors and stem pooling come from the file: with the defaults this detector finds other things."""
    assert score(detector, tmp_path)["AP"] == RIGHT_AP


@pytest.mark.parametrize(
    "flag",
    [
        "--coco_classes=['background','nut','cell','leaf']",
        "--anchor_scales=[8]",
        "--stem_pool_pad=same",
        "--keep_ratio=False",
        "--rcnn_target_stds=[1,1,1,1]",
    ],
)
def test_a_flag_that_would_shift_classes_or_boxes_is_refused(detector, flag):
    with pytest.raises(UserError, match=f"{flag.partition('=')[0]} is .*, but checkpoint .* was trained with"):
        load_model(detector[0] / "detector.ckpt", load_config(["--device_target=CPU", flag]))


def test_the_images_named_are_the_images_scored(detector, tmp_path):
    root = detector[0]
    black = root / "val_black"
    shutil.copytree(root / "val2017", black, dirs_exist_ok=True)
    for path in black.iterdir():
        cv2.imwrite(str(path), np.zeros((60, 100, 3), np.uint8))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    expected = score(detector, fresh, flags=["--val_data_type=val_black"])["AP"]
    assert expected < 0.9
    assert score(detector, tmp_path)["AP"] == RIGHT_AP
    assert score(detector, tmp_path, flags=["--val_data_type=val_black"])["AP"] == expected
    with pytest.raises(UserError, match="val_no_such_folder does not exist"):
        score(detector, tmp_path, flags=["--val_data_type=val_no_such_folder"])


@pytest.mark.parametrize("fields", [{"iscrowd": None}, {"iscrowd": False}, {"area": None}, {"ignore": 0}])
def test_null_stands_for_nothing(detector, tmp_path, fields):
    metrics = score(detector, tmp_path, lambda truth: for_each(truth, **fields))
    assert metrics["AP"] == RIGHT_AP
    assert sum(row["num_ground_truths"] for row in metrics["per_class"]) == len(detector[2]["annotations"])


@pytest.mark.parametrize("fields", [{"iscrowd": "0"}, {"area": "218"}])
def test_a_string_in_place_of_a_number_is_refused_before_the_evaluation(detector, tmp_path, fields):
    with pytest.raises(UserError, match=r"truth\.json: annotation 1 has"):
        score(detector, tmp_path, lambda truth: for_each(truth, **fields))
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("name", ["cell", "background", "shapes"])
def test_a_category_without_boxes_is_not_an_obstacle(detector, tmp_path, caplog, name):
    """Roboflow's id 0: a group, whose name may be a class's own."""
    group = {"id": 0, "name": name, "supercategory": "none"}
    with caplog.at_level(logging.WARNING):
        metrics = score(detector, tmp_path, lambda truth: truth["categories"].insert(0, group))
    assert metrics["AP"] == RIGHT_AP
    assert "1 category that no annotation uses left out" in caplog.text


def test_boxes_marked_ignore_do_not_count(detector, tmp_path, caplog):
    def mark(truth):
        for row in truth["annotations"][::2]:
            row["ignore"] = 1

    with caplog.at_level(logging.WARNING):
        metrics = score(detector, tmp_path, mark)
    assert sum(row["num_ground_truths"] for row in metrics["per_class"]) == len(detector[2]["annotations"]) // 2
    assert metrics["AP"] == RIGHT_AP  # what is found there is no false positive either
    assert 'marked "ignore"' in caplog.text


def test_rotated_rectangles_are_counted(detector, tmp_path, caplog):
    """CVAT keeps the upright box and puts the angle into the attributes."""
    with caplog.at_level(logging.WARNING):
        metrics = score(detector, tmp_path, lambda truth: for_each(truth, attributes={"rotation": 60.0}))
    assert metrics["AP"] == RIGHT_AP
    assert f"{len(detector[2]['annotations'])} boxes with a rotation" in caplog.text


def test_corners_in_the_place_of_width_and_height_are_guessed(detector, tmp_path, caplog):
    def as_corners(truth):
        for row in truth["annotations"]:
            x, y, width, height = row["bbox"]
            row["bbox"] = [x, y, x + width, y + height]

    with caplog.at_level(logging.WARNING):
        score(detector, tmp_path, as_corners)
    assert "are they corners, x1, y1, x2, y2?" in caplog.text


def test_an_evaluation_set_without_boxes_says_so_at_the_start(detector, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = score(detector, tmp_path, lambda truth: truth["annotations"].clear())
    assert metrics["AP"] == -1
    assert "nothing can be scored" in caplog.text

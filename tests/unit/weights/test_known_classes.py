"""Fine-tuning to other classes: small predictors with two hidden units, whose columns were moved by hand."""

import numpy as np
import pytest
from mindspore import Tensor

from src.convert_checkpoint import load_pretrained, write_checkpoint
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.weights.detector_notes import notes_of
from src.weights.known_classes import keep_known_classes
from tests.unit.FasterRcnn.small_detector import config_of

KNOWN = ("background", "cat", "dog")
WANTED = "--coco_classes=['background','dog','bird','cat']"
NEW = -1.0  # every number of the new layers
SCORES = {"rcnn.cls_scores.weight": [[0, 1, 2], [10, 11, 12]], "rcnn.cls_scores.bias": [20, 21, 22]}
# Background, dog, bird, cat.
MOVED_SCORES = {
    "rcnn.cls_scores.weight": [[0, 2, NEW, 1], [10, 12, NEW, 11]],
    "rcnn.cls_scores.bias": [20, 22, NEW, 21],
}
CAT, DOG, BACKGROUND, BIRD = [1, 2, 3, 4], [5, 6, 7, 8], [50, 60, 70, 80], [NEW] * 4


def predictors(scores, boxes):
    """The four arrays: class scores, and boxes whose second hidden unit weighs 100 times the first."""
    columns = np.concatenate(boxes).astype(np.float32)
    boxes = {"rcnn.reg_scores.weight": np.stack([columns, 100 * columns]), "rcnn.reg_scores.bias": columns}
    return {name: np.asarray(value, np.float32) for name, value in {**scores, **boxes}.items()}


def new_predictors(num_classes, num_boxes):
    sizes = {"cls_scores": num_classes, "reg_scores": 4 * num_boxes}
    return {
        f"rcnn.{layer}.{part}": np.full(shape, NEW, np.float32)
        for layer, size in sizes.items()
        for part, shape in (("weight", (2, size)), ("bias", (size,)))
    }


def keep(boxes, num_boxes, *flags, noted=None):
    """The new predictors of dog, bird and cat, from a detector of cat and dog."""
    noted = {"coco_classes": KNOWN} if noted is None else noted
    config = load_config([WANTED, *flags])
    return keep_known_classes(predictors(SCORES, boxes), new_predictors(4, num_boxes), noted, config, "a.ckpt")


def assert_boxes(found, *expected):
    """Boxes in the order of the new classes; new ones are new in both hidden units."""
    expected = np.concatenate(expected).astype(np.float32)
    np.testing.assert_array_equal(found["rcnn.reg_scores.bias"], expected)
    second = np.where(expected == NEW, NEW, 100 * expected)
    np.testing.assert_array_equal(found["rcnn.reg_scores.weight"], [expected, second])


def test_columns_move_with_the_names_of_their_classes():
    found = keep([CAT, DOG], 3)
    for name, expected in MOVED_SCORES.items():
        np.testing.assert_array_equal(found[name], expected)
    assert_boxes(found, DOG, BIRD, CAT)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([BACKGROUND, CAT, DOG], [BACKGROUND, DOG, BIRD, CAT]),
        ([CAT, DOG], [BIRD, DOG, BIRD, CAT]),  # the background's is new
        ([BACKGROUND, CAT, DOG], [DOG, BIRD, CAT]),  # and here there is none
    ],
)
def test_boxes_of_the_background(boxes, expected):
    found = keep(boxes, len(expected), f"--without_bg_loss={len(expected) == 3}")
    assert_boxes(found, *expected)
    np.testing.assert_array_equal(found["rcnn.cls_scores.bias"], MOVED_SCORES["rcnn.cls_scores.bias"])


def test_boxes_of_other_units_stand_for_the_same_boxes(info):
    """A cat's dx of 1 * 0.5 + 0.25 is, in units of 0.25 around 0, a dx of 3; a background's stays."""
    noted = {
        "coco_classes": KNOWN,
        "rcnn_target_stds": (0.5, 0.5, 0.5, 0.5),
        "rcnn_target_means": (0.25, 0.0, 0.0, 0.0),
    }
    flags = ["--rcnn_target_stds=[0.25,0.5,1.0,0.5]", "--without_bg_loss=False"]
    found = keep([BACKGROUND, CAT, DOG], 4, *flags, noted=noted)
    background, dog, _, cat = found["rcnn.reg_scores.bias"].reshape(4, 4).tolist()
    assert cat == [2 * 1 + 1, 2, 3 / 2, 4]
    assert dog == [2 * 5 + 1, 6, 7 / 2, 8]
    assert background == BACKGROUND
    assert found["rcnn.reg_scores.weight"][0].reshape(4, 4)[3].tolist() == [2 * 1, 2, 3 / 2, 4]
    assert "converted from rcnn_target_stds [0.5, 0.5, 0.5, 0.5]" in info.text


def test_targets_that_are_not_noted_are_those_of_the_run():
    assert_boxes(keep([CAT, DOG], 3, "--rcnn_target_stds=[1.0,1.0,1.0,1.0]"), DOG, BIRD, CAT)


def test_the_log_names_every_class(info):
    keep([CAT, DOG], 3)
    assert (
        "2 classes and the background keep their weights of a.ckpt: dog, cat; 1 class from random weights: bird"
        in info.text
    )


@pytest.mark.parametrize(
    ("noted", "line"),
    [
        ({}, "all 3 classes from random weights: a.ckpt does not note its classes"),
        (
            {"coco_classes": ("background", "Cat", "DOG")},
            "all 3 classes from random weights: a.ckpt knows none of them",
        ),
    ],
)
def test_unknown_classes_are_new(noted, line, info):
    assert keep([CAT, DOG], 3, noted=noted) == {}
    assert [record.getMessage() for record in info.records] == [line]


def test_predictors_of_other_classes_than_noted_are_refused():
    noted = {"coco_classes": ("background", "cat", "dog", "cow")}
    with pytest.raises(UserError, match=r"a\.ckpt notes 4 classes .* rcnn\.cls_scores\.weight has shape \(2, 3\), exp"):
        keep([CAT, DOG], 3, noted=noted)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small detector of cats and dogs, and its parameters."""
    path = tmp_path_factory.mktemp("known") / "detector.ckpt"
    config = config_of(classes=KNOWN)
    parameters = build_detector(config).parameters_dict()
    write_checkpoint(parameters, path, notes_of(config))
    return path, {name: value.asnumpy() for name, value in parameters.items()}


def test_a_network_gets_the_columns(checkpoint, info):
    path, trained = checkpoint
    network = build_detector(config := config_of(classes=("background", "bird", "dog")))
    new = {name: value.asnumpy().copy() for name, value in network.parameters_dict().items()}
    assert load_pretrained(network, path, finetune=True, config=config) is network
    found = {name: value.asnumpy() for name, value in network.parameters_dict().items()}
    for name, value in found.items():
        if not name.startswith(("rcnn.cls_scores", "rcnn.reg_scores")):
            np.testing.assert_array_equal(value, trained[name], err_msg=name)
    scores, boxes = "rcnn.cls_scores.weight", "rcnn.reg_scores.weight"
    np.testing.assert_array_equal(found[scores][:, [0, 2]], trained[scores][:, [0, 2]])
    np.testing.assert_array_equal(found[scores][:, 1], new[scores][:, 1])
    np.testing.assert_array_equal(found[boxes][:, 4:], trained[boxes][:, 4:])
    np.testing.assert_array_equal(found[boxes][:, :4], new[boxes][:, :4])
    assert not np.array_equal(new[scores], trained[scores])
    assert f"loaded detector ({len(found)} parameters)" in info.text


def test_a_refused_file_leaves_the_network_alone(checkpoint, tmp_path):
    """Predictors for two classes, notes of three."""
    network = build_detector(config := config_of(classes=("background", "dog")))
    before = {name: value.asnumpy().copy() for name, value in network.parameters_dict().items()}
    parameters = {name: Tensor(value) for name, value in checkpoint[1].items()}
    write_checkpoint(parameters, tmp_path / "wrong.ckpt", notes_of(config_of(classes=(*KNOWN, "cow"))))
    with pytest.raises(UserError, match="notes 4 classes with the background"):
        load_pretrained(network, tmp_path / "wrong.ckpt", finetune=True, config=config)
    for name, value in network.parameters_dict().items():
        np.testing.assert_array_equal(value.asnumpy(), before[name], err_msg=name)

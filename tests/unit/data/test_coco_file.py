"""Annotation files mean what they say: each field is read in one sense or refused where the file is read."""

import logging

import numpy as np
import pytest

from src.data import annotations
from src.data.coco_file import load_coco_file
from src.model_utils.errors import UserError
from src.util import CocoEvaluator
from tests.unit.data.test_annotations import CLASSES, coco_config, coco_content, write

BOTH = pytest.mark.parametrize("training", [True, False])


def content_with(row=None, **content):
    """`coco_content` whose first annotation, id 5, has these fields too."""
    changed = coco_content() | content
    changed["annotations"][0] |= row or {}
    return changed


def load(tmp_path, content, **options):
    return load_coco_file(write(tmp_path / "anno.json", content), CLASSES, **options)


def refuse(tmp_path, content, message, **options):
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path, content, **options)
    assert "anno.json" in str(refused.value)


# ---- fields of an annotation


@BOTH
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value, expected", [(0, 0), (1, 1), (False, 0), (True, 1), (None, 0), (1.0, 1)])
def test_flags_are_read_in_every_plain_form(tmp_path, training, key, value, expected):
    found = load(tmp_path, content_with({"iscrowd": 0, key: value}), training=training)
    assert found.annotations[0]["iscrowd"] == expected


@BOTH
@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("value", ["0", "1", "false", 2, -1, 0.5, [], {}, float("nan")])
def test_other_flags_are_refused_by_annotation(tmp_path, training, key, value):
    """The string "0" is true to Python, so it would make every box a crowd."""
    refuse(tmp_path, content_with({key: value}), f"annotation 5 has {key} .*; expected 0 or 1", training=training)


@BOTH
@pytest.mark.parametrize("value", [None, 0, 3, 12.5])
def test_an_area_is_a_number_or_null(tmp_path, training, value):
    row = load(tmp_path, content_with({"area": value}), training=training).annotations[0]
    assert row.get("area") == value and ("area" in row) == (value is not None)


@BOTH
@pytest.mark.parametrize("value", ["218", True, [1], float("nan"), float("inf"), -1, -0.5])
def test_other_areas_are_refused_by_annotation(tmp_path, training, value):
    message = "annotation 5 has area .*; expected a number from 0"
    refuse(tmp_path, content_with({"area": value}), message, training=training)


def test_areas_of_0_that_the_boxes_do_not_have_are_counted(tmp_path):
    """Some tools write 0 for "unknown"; every box is small then."""
    (remark,) = load(tmp_path, content_with({"area": 0})).remarks
    assert remark.startswith("1 box with area 0, but not in width and height")
    assert load(tmp_path, content_with({"area": 0, "bbox": [5, 5, 0, 9]})).remarks == []


def test_an_area_of_null_is_width_times_height_when_scored(tmp_path):
    """By which a box counts as small, medium or large: 40 x 40 is medium, 10.9 x 20 is small."""
    content = content_with({"bbox": [10, 10, 40, 40], "area": None})
    config = coco_config(tmp_path, content)
    truth = annotations.coco_ground_truth(config)
    evaluator = CocoEvaluator(truth, annotations.category_ids(config, truth), "test")
    assert evaluator.ground_truth["annotations"][0]["area"] == 1600


@pytest.mark.parametrize("bbox", [None, [1, 2, 3], "1,2,3,4", [1, 2, 3, "4"], [1, 2, 3, True]])
def test_a_bbox_of_anything_else_is_refused_for_both(tmp_path, bbox):
    for training in (True, False):
        refuse(tmp_path, content_with({"bbox": bbox}), "annotation 5 has bbox", training=training)


# ---- what counts how


def test_ignored_boxes_are_neither_learnt_nor_scored(tmp_path, caplog):
    config = coco_config(tmp_path, content_with({"ignore": 1}))
    with caplog.at_level(logging.WARNING):
        first, _ = annotations.load_annotations(config, training=True)
        truth = annotations.coco_ground_truth(config)
    assert first.is_crowd.tolist() == [True, True]  # the other box is a crowd
    assert [row["iscrowd"] for row in truth["annotations"]] == [1, 1]
    assert '1 box marked "ignore" taken for crowd: neither learnt nor scored' in caplog.text


def test_a_crowd_that_is_ignored_too_is_not_counted_again(tmp_path):
    content = coco_content()
    content["annotations"][1]["ignore"] = 1
    assert load(tmp_path, content).remarks == []


@pytest.mark.parametrize(
    "attributes, rotated",
    [
        ({"occluded": False, "rotation": 60.0}, True),
        ({"rotation": 359.5}, True),
        ({"rotation": "45"}, True),
        ({"rotation": 0.0}, False),
        ({"rotation": 360}, False),
        ({"rotation": None}, False),
        ({}, False),
        (None, False),
        ("rotation", False),
        ({"rotation": "left"}, False),
    ],
)
def test_rotated_boxes_are_counted_in_a_warning(tmp_path, attributes, rotated):
    remarks = load(tmp_path, content_with({"attributes": attributes})).remarks
    assert [("1 box with a rotation" in remark) for remark in remarks] == [True] * rotated


# ---- categories


@BOTH
@pytest.mark.parametrize("name", ["background", "animals", "cat", None, 3])
def test_a_category_that_nothing_uses_is_no_obstacle(tmp_path, training, name):
    """What tools write at the top: a group, "background", the data set's name, even the name of a class."""
    content = coco_content()
    content["categories"].insert(0, {"id": 9, "name": name, "supercategory": "none"})
    found = load(tmp_path, content, training=training)
    assert [category["id"] for category in found.categories] == [44, 0] and found.label_of == {44: 1, 0: 2}
    (remark,) = found.remarks
    assert f"1 category that no annotation uses left out: {name!r} (id 9)" in remark


def test_a_class_without_annotations_keeps_its_category(tmp_path):
    content = coco_content()
    del content["annotations"][1]  # dog has no box any more
    found = load(tmp_path, content)
    assert found.label_of == {44: 1, 0: 2} and found.remarks == []


def test_of_two_categories_of_one_name_that_nothing_uses_the_first_goes(tmp_path):
    content = coco_content()
    content["categories"].insert(0, {"id": 9, "name": "dog"})
    del content["annotations"][1]
    assert load(tmp_path, content, training=False).label_of == {44: 1, 0: 2}


def test_a_category_that_is_used_and_not_a_class_is_refused_still(tmp_path):
    content = coco_content()
    content["categories"].append({"id": 9, "name": "background"})
    content["annotations"][0]["category_id"] = 9
    refuse(tmp_path, content, r"Only in the file: \['background'\]")


def test_two_categories_of_one_name_that_are_both_used_are_refused(tmp_path):
    content = coco_content()
    content["categories"][1]["name"] = "cat"
    refuse(tmp_path, content, "name 'cat' has the ids 44 and 0")


def test_an_evaluation_set_may_lack_classes_with_a_line(tmp_path):
    """As parts of COCO's validation set do."""
    content = coco_content()
    content["categories"] = content["categories"][:1]
    del content["annotations"][1]
    found = load(tmp_path, content, training=False)
    assert found.label_of == {44: 1} and found.remarks == ["no category for dog: these classes are not scored"]
    refuse(tmp_path, content, r"Only in coco_classes: \['dog'\]")
    config = coco_config(tmp_path, content)
    truth = annotations.coco_ground_truth(config)
    assert annotations.category_ids(config, truth) == (44, 45)


def test_a_misspelt_class_is_refused_in_an_evaluation_set_too(tmp_path):
    content = coco_content()
    content["categories"][0]["name"] = "Cat"
    refuse(tmp_path, content, "'Cat' is perhaps 'cat'", training=False)


def test_a_class_that_no_training_box_has_is_said(tmp_path, caplog):
    config = coco_config(tmp_path, coco_content())  # the only dog is a crowd
    with caplog.at_level(logging.WARNING):
        annotations.load_annotations(config, training=True)
    assert "no box of dog: nothing to learn these classes from" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        content_with({"iscrowd": 1}),
        coco_content() | {"annotations": []},
        coco_content() | {"annotations": [], "categories": []},
    ],
)
def test_an_evaluation_set_without_boxes_is_said_at_the_start(tmp_path, caplog, content):
    with caplog.at_level(logging.WARNING):
        annotations.coco_ground_truth(coco_config(tmp_path, content))
    assert "nothing can be scored, and every metric will be -1" in caplog.text


def test_remarks_can_be_collected_in_place_of_the_log(tmp_path, caplog):
    config, remarks = coco_config(tmp_path, content_with({"ignore": 1})), []
    annotations.load_annotations(config, training=False, remarks=remarks)
    annotations.coco_ground_truth(config, silent=True)
    assert len(remarks) == 1 and "ignore" in remarks[0]
    assert "ignore" not in caplog.text


def test_boxes_are_read_as_before(tmp_path):
    """The checks change nothing of a file that means what it says."""
    first, _ = annotations.read_coco(write(tmp_path / "anno.json", coco_content()), tmp_path, CLASSES)
    np.testing.assert_allclose(first.boxes_xyxy, [[1.5, 2.25, 12.4, 22.25], [0, 0, 5, 5]], rtol=1e-6)

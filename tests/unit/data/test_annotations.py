"""Annotation files: what is read from good ones, and what is said about bad ones."""

import json
import logging

import numpy as np
import pytest

from src.data import annotations, coco_file
from src.data.data_paths import image_path
from src.data.image_annotation import box_faults
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from tests.unit.image_sets import coco_80_root

CLASSES = ("cat", "dog")


def coco_content():
    """Two images; categories unsorted, with an id 0, and not in the order of CLASSES."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80},
            {"id": 3, "file_name": "b.jpg", "width": 60, "height": 40},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 44, "bbox": [1.5, 2.25, 10.9, 20], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 0, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 44, "name": "cat"}, {"id": 0, "name": "dog"}],
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read_coco(tmp_path, content, **options):
    return annotations.read_coco(write(tmp_path / "anno.json", content), tmp_path, CLASSES, **options)


def config_for(root, *flags, classes=("background", *CLASSES)):
    return load_config([f"--coco_root={root}", f"--coco_classes={list(classes)}", "--device_target=CPU", *flags])


def coco_config(tmp_path, content, *flags, **options):
    for subset in ("train2017", "val2017"):
        (tmp_path / subset).mkdir(exist_ok=True)
        write(tmp_path / "annotations" / f"instances_{subset}.json", content)
    return config_for(tmp_path, *flags, **options)


# ---- COCO


def test_coco_boxes_are_corners_with_labels_by_name(tmp_path):
    first, second = read_coco(tmp_path, coco_content())
    assert (first.image_id, first.file_name, first.size) == (7, "a.jpg", (100, 80))
    assert first.path == tmp_path.resolve() / "a.jpg"
    np.testing.assert_allclose(first.boxes_xyxy, [[1.5, 2.25, 12.4, 22.25], [0, 0, 5, 5]], rtol=1e-6)
    assert first.boxes_xyxy.dtype == np.float32
    assert first.labels.tolist() == [1, 2]  # cat is class 1 whatever its category id is
    assert first.is_crowd.tolist() == [False, True]
    assert first.box_name(1) == "a.jpg, annotation 2"
    assert second.boxes_xyxy.shape == (0, 4)
    assert len(second.labels) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].clear(), r"'images' is empty"),
        (lambda c: c.pop("annotations"), r"a COCO annotation file has the lists images, annotations, categories"),
        (lambda c: c.update(images={}), r"'images' is not a list"),
        (lambda c: c["images"][1].update(id=7), r"the id 7 occurs twice in 'images'"),
        (lambda c: c["annotations"][1].update(id=5), r"the id 5 occurs twice in 'annotations'"),
        (lambda c: c["categories"][1].update(id=44), r"the id 44 occurs twice in 'categories'"),
        (lambda c: c["categories"][1].update(name="cat"), r"'cat' has the ids 44 and 0"),
        (lambda c: c["images"][1].update(file_name="a.jpg"), r"'a\.jpg' has the ids 7 and 3"),
        (lambda c: c["images"][1].update(id="3"), r"images\[1\] has the id '3'"),
        (lambda c: c["images"][1].update(id=2**63), r"images\[1\] has the id 9223372036854775808"),
        (lambda c: c["annotations"].append(None), r"annotations\[2\] has the id None"),
        (lambda c: c["annotations"][0].update(image_id=99), r"annotation 5 has image_id 99"),
        (lambda c: c["annotations"][0].update(image_id=[]), r"annotation 5 has image_id \[\]"),
        (lambda c: c["annotations"][0].update(category_id=9), r"annotation 5 has category_id 9"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation 5 has bbox \[1, 2, 3\]; expected four numbers",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), r"annotation 5 has bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, True]), r"annotation 5 has bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 10**400]), r"annotation 5 has bbox"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotation 5 has bbox None"),
        (lambda c: c["images"][0].update(width=0), r"image 7 \(a\.jpg\) has width 0"),
        (lambda c: c["images"][0].pop("width"), r"has width None and height 80"),
        (lambda c: c["images"][0].update(file_name="../x.jpg"), r"outside the image folder"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), r"outside the image folder"),
        (lambda c: c["images"][0].update(file_name="a\0.jpg"), r"is not a usable file name"),
        (lambda c: c["images"][0].update(file_name=""), r"id 7 in 'images' has file_name ''"),
    ],
)
def test_faulty_coco_entries_are_named(tmp_path, change, message):
    content = coco_content()
    change(content)
    with pytest.raises(UserError, match=message) as raised:
        read_coco(tmp_path, content)
    assert "anno.json" in str(raised.value) or "image folder" in str(raised.value) or "file name" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{}", "keys"),
        (b"[]", "holds a list"),
        (b'{"images": [{"id"', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
    ],
)
def test_files_that_are_not_a_coco_file(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as raised:
        read_coco(tmp_path, content)
    assert str(tmp_path / "anno.json") in str(raised.value)


def test_too_large_a_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_file, "MAX_ANNOTATION_BYTES", 10)
    with pytest.raises(UserError, match=r"the limit is 10"):
        read_coco(tmp_path, coco_content())


def test_different_classes_are_an_error_that_lists_both(tmp_path):
    content = coco_content()
    content["categories"][1]["name"] = "Dog"
    with pytest.raises(
        UserError,
        match=r"Only in the file: \['Dog'\]. Only in coco_classes: \['dog'\]. "
        r"'Dog' is perhaps 'dog'",
    ) as raised:
        read_coco(tmp_path, content)
    assert "ignore_unknown" in str(raised.value)


def test_ignore_unknown_leaves_out_boxes_and_counts_them(tmp_path, caplog):
    content = coco_content()
    content["categories"][1]["name"] = "horse"
    with caplog.at_level(logging.WARNING):
        first, _ = read_coco(tmp_path, content, ignore_unknown=True)
    assert first.labels.tolist() == [1]
    assert "1 box of classes not in coco_classes left out: horse (1)" in caplog.text


def test_no_class_in_common_is_an_error_even_with_ignore_unknown(tmp_path):
    content = coco_content()
    content["categories"] = [{"id": 44, "name": "horse"}, {"id": 0, "name": "cow"}]
    with pytest.raises(UserError, match="no class in common"):
        read_coco(tmp_path, content, ignore_unknown=True)


def test_more_than_255_classes(tmp_path):
    names = [f"class {number}" for number in range(300)]
    content = coco_content() | {"categories": [{"id": index, "name": name} for index, name in enumerate(names)]}
    content["annotations"][0]["category_id"] = 299
    first, _ = annotations.read_coco(write(tmp_path / "anno.json", content), tmp_path, names)
    assert first.labels.tolist() == [300, 1]


def test_numbers_too_large_for_float32_are_not_finite(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [0, 0, 1e300, 5]
    faults, _ = box_faults(read_coco(tmp_path, content)[0].boxes_xyxy, (100, 80))
    assert faults.tolist() == ["not finite", ""]


# ---- ground truth of an evaluation


def test_coco_ground_truth_is_the_file(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [3, 3, 0, 0]  # other COCO evaluations count it, so this one does
    config = coco_config(tmp_path, content)
    ground_truth = annotations.coco_ground_truth(config)
    assert ground_truth == content
    assert annotations.category_ids(config, ground_truth) == (44, 0)


def test_boxes_with_nan_leave_the_ground_truth_by_name(tmp_path, caplog):
    content = coco_content()
    content["annotations"][0]["bbox"] = [float("nan"), 3, 1, 1]
    with caplog.at_level(logging.WARNING):
        ground_truth = annotations.coco_ground_truth(coco_config(tmp_path, content))
    assert [row["id"] for row in ground_truth["annotations"]] == [2]
    assert "1 box with NaN or infinity left out: annotation 5" in caplog.text


def test_classes_that_the_file_lacks_get_free_ids_with_ignore_unknown(tmp_path):
    config = coco_config(
        tmp_path, coco_content(), "--ignore_unknown=True", classes=("background", "horse", "dog", "cat")
    )
    ground_truth = annotations.coco_ground_truth(config)
    assert annotations.category_ids(config, ground_truth) == (45, 0, 44)
    assert ground_truth["categories"][2] == {"id": 45, "name": "horse"}


def test_category_ids_of_a_foreign_ground_truth(tmp_path):
    with pytest.raises(UserError, match=r"\['dog'\]"):
        annotations.category_ids(config_for(tmp_path), {"categories": [{"id": 1, "name": "cat"}]})


def test_txt_ground_truth_has_class_numbers_as_category_ids(tmp_path, caplog):
    path = write(tmp_path / "anno.txt", "b.jpg 1,2,4,6,2\na.jpg 0,0,10,10,1,1 5,5,5,9,1\n")
    config = config_for(tmp_path, "--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={path}")
    with caplog.at_level(logging.WARNING):
        ground_truth = annotations.coco_ground_truth(config)
    assert ground_truth["images"] == [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "a.jpg"}]
    assert ground_truth["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 1},
    ]
    assert ground_truth["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert annotations.category_ids(config, ground_truth) == (1, 2)
    assert "1 box left out of the ground truth: a.jpg, line 2, box 2 (no area)" in caplog.text
    assert image_path(config, "b.jpg") == tmp_path.resolve() / "b.jpg"


# ---- whole sets


def test_every_image_and_box_of_a_labelled_set_is_read(labelled):
    config = config_for(labelled.root, classes=("background", *labelled.classes))
    found = annotations.load_annotations(config, training=True)
    assert len(found) == labelled.num_train
    assert sum(len(item.labels) for item in found) == labelled.num_train_boxes
    bad = [
        item.box_name(row) for item in found for row in np.flatnonzero(box_faults(item.boxes_xyxy, item.size)[0] != "")
    ]
    assert bad == list(labelled.flat_boxes)


def test_coco_category_ids_are_not_contiguous(tmp_path):
    config = load_config([f"--coco_root={coco_80_root(tmp_path)}"])
    ground_truth = annotations.coco_ground_truth(config)
    ids = annotations.category_ids(config, ground_truth)
    assert len(ids) == 80
    assert ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)  # COCO has no category 12
    assert ids[-1] == 90
    found = annotations.load_annotations(config, training=False)
    label_of = {category: label for label, category in enumerate(ids, start=1)}
    expected = [
        label_of[row["category_id"]] for row in ground_truth["annotations"] if row["image_id"] == found[3].image_id
    ]
    assert found[3].labels.tolist() == expected

"""What reaches the records: every image once, boxes of use, and by name what is left out or looks odd."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from src.data.records import ensure_mindrecord
from src.model_utils.errors import UserError
from tests.unit.image_sets import config_for, image_ids, make_coco, names_in, rows_of, write_annotations

# ---- content


def test_eight_training_files_hold_every_image_once(coco_root):
    paths = ensure_mindrecord(config_for(coco_root), training=True)
    assert [Path(path).name for path in paths] == [f"FasterRcnn.mindrecord{index}" for index in range(8)]
    rows = {int(row["image_id"]): row for row in rows_of(paths)}
    assert sorted(rows) == list(range(91, 101))
    two_boxes = rows[98]  # image 2 of make_coco
    assert two_boxes["image"].tobytes() == (coco_root / "train2017" / "002.png").read_bytes()
    assert int(two_boxes["num_boxes"]) == 2
    assert two_boxes["box"].tolist() == [[1, 2.5, 9, 11.5], [2, 2.5, 10, 11.5]]
    assert two_boxes["label"].tolist() == [1, 2]
    assert int(rows[100]["num_boxes"]) == 0


def test_evaluation_records_keep_the_order_of_the_file(tmp_path):
    content = make_coco(tmp_path, "val2017", 7)
    paths = ensure_mindrecord(config_for(tmp_path), training=False)
    assert [Path(path).name for path in paths] == ["FasterRcnn_eval.mindrecord"]
    assert [int(row["image_id"]) for row in rows_of(paths)] == [image["id"] for image in content["images"]]


def test_one_image_over_eight_files(tmp_path):
    make_coco(tmp_path, "train2017", 1)
    assert image_ids(ensure_mindrecord(config_for(tmp_path), training=True)) == [100]


def test_txt_lists_become_the_same_records(coco_root):
    lines = ["000.png", "001.png 1,2.5,9,11.5,1", "002.png 1,2.5,9,11.5,1 2,2.5,10,11.5,2,1"]
    (coco_root / "list.txt").write_text("\n".join(lines))
    config = config_for(
        coco_root, "--dataset=other", f"--image_dir={coco_root / 'train2017'}", f"--anno_path={coco_root / 'list.txt'}"
    )
    rows = {int(row["image_id"]): row for row in rows_of(ensure_mindrecord(config, training=True))}
    assert sorted(rows) == [1, 2, 3]
    assert rows[3]["box"].tolist() == [[1, 2.5, 9, 11.5], [2, 2.5, 10, 11.5]]
    assert rows[3]["crowd"].tolist() == [0, 1]


def test_boxes_are_clipped_and_bad_ones_dropped_by_name(coco_root, caplog):
    content = make_coco(coco_root, "train2017", 3, boxes_of=lambda index: 0)
    content["annotations"] = [
        {"id": number, "image_id": 100, "category_id": 10, "bbox": bbox, "iscrowd": 0}
        for number, bbox in enumerate(
            [
                [5, 5, 0, 9],
                [-2, -2, 10, 10],
                [41, 0, 5, 5],
                [float("nan"), 0, 1, 1],
                [4, 4, -2, 3],
                [30, 20, 50.5, 50.25],
            ],
            start=1,
        )
    ]
    write_annotations(coco_root, "train2017", content)
    with caplog.at_level(logging.INFO):
        rows = rows_of(ensure_mindrecord(config_for(coco_root), training=True))
    boxes = {int(row["image_id"]): row["box"][: int(row["num_boxes"])].tolist() for row in rows}
    assert boxes == {100: [[0, 0, 8, 8], [30, 20, 40, 30]], 99: [], 98: []}
    assert "4 boxes that cannot be used" in caplog.text
    for text in (
        "000.png, annotation 1 (no area)",
        "annotation 3 (outside the image)",
        "annotation 4 (not finite)",
        "annotation 5 (no area)",
    ):
        assert text in caplog.text
    assert "3 images, 2 boxes, 0 crowd boxes, 2 boxes clipped" in caplog.text
    assert "2 images without boxes" in caplog.text


# ---- images that cannot be used


def test_damaged_images_are_listed_and_nothing_is_left(coco_root, capfd):
    png = coco_root / "train2017" / "003.png"
    png.write_bytes(png.read_bytes()[:-30])
    (coco_root / "train2017" / "004.png").write_text("<html>not found</html>")
    (coco_root / "train2017" / "005.png").write_bytes(b"")
    with pytest.raises(UserError, match="3 images cannot be used") as raised:
        ensure_mindrecord(config_for(coco_root), training=True)
    for text in ("003.png: is damaged", "004.png: is not an image", "005.png: is empty", "skip_bad_images"):
        assert text in str(raised.value)
    assert names_in(coco_root / "records") == []


def test_skip_bad_images_trains_on_the_others_and_counts(coco_root, caplog):
    (coco_root / "train2017" / "003.png").unlink()
    (coco_root / "train2017" / "004.png").write_text("text")
    tolerant = config_for(coco_root, "--skip_bad_images=True")
    with caplog.at_level(logging.WARNING):
        paths = ensure_mindrecord(tolerant, training=True)
    assert image_ids(paths) == [91, 92, 93, 94, 95, 98, 99, 100]
    assert "2 images skipped" in caplog.text
    assert "004.png: is not an image" in caplog.text
    with pytest.raises(UserError, match=r"003\.png"):  # strict again: the tolerant set does not pass
        ensure_mindrecord(config_for(coco_root), training=True)
    assert image_ids(ensure_mindrecord(tolerant, training=True)) == [91, 92, 93, 94, 95, 98, 99, 100]


def test_skip_bad_images_with_no_good_image(coco_root):
    for path in (coco_root / "train2017").iterdir():
        path.write_text("text")
    with pytest.raises(UserError, match="no image can be used"):
        ensure_mindrecord(config_for(coco_root, "--skip_bad_images=True"), training=True)


def test_evaluation_never_skips(tmp_path):
    make_coco(tmp_path, "val2017", 3)
    (tmp_path / "val2017" / "001.png").unlink()
    with pytest.raises(UserError, match=r"001\.png"):
        ensure_mindrecord(config_for(tmp_path, "--skip_bad_images=True"), training=False)


@pytest.mark.parametrize("flags", [[], ["--skip_bad_images=True"]])
def test_swapped_width_and_height_are_an_error(coco_root, flags):
    content = make_coco(coco_root, "train2017", 3)
    content["images"][1] |= {"width": 30, "height": 40}
    write_annotations(coco_root, "train2017", content)
    with pytest.raises(UserError, match=r"001\.png: is 40 x 30 pixels, its annotation says 30 x 40; EXIF"):
        ensure_mindrecord(config_for(coco_root, *flags), training=True)


def test_an_image_larger_than_a_page_of_mindrecord(tmp_path):
    content = make_coco(tmp_path, "train2017", 1)
    noise = np.random.default_rng(0).integers(0, 256, (3400, 3400, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "train2017" / "000.png"), noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    content["images"][0] |= {"width": 3400, "height": 3400}
    write_annotations(tmp_path, "train2017", content)
    (row,) = rows_of(ensure_mindrecord(config_for(tmp_path), training=True))
    assert row["image"].nbytes > 33 << 20  # the default page is 32 MB


# ---- boxes that look as if they were meant otherwise


def with_boxes(root, boxes):
    """A training set of one image, 40 x 30, with these boxes as the file has them."""
    content = make_coco(root, "train2017", 1)
    content["annotations"] = [
        {"id": number, "image_id": 100, "category_id": 10, "bbox": bbox} for number, bbox in enumerate(boxes, start=1)
    ]
    write_annotations(root, "train2017", content)
    return config_for(root)


def test_corners_in_place_of_width_and_height_are_guessed(tmp_path, caplog):
    config = with_boxes(tmp_path, [[20, 10, 35, 28], [10, 12, 38, 20], [2, 3, 9, 10]])
    ensure_mindrecord(config, training=True)
    assert "2 of 3 boxes reach over the edge of their image: are they corners, x1, y1, x2, y2?" in caplog.text


def test_boxes_over_the_edge_that_are_not_corners_are_only_counted(tmp_path, caplog):
    ensure_mindrecord(with_boxes(tmp_path, [[30, 20, 15, 15], [2, 3, 9, 10]]), training=True)
    assert "1 of 2 boxes reach over the edge of their image" in caplog.text and "corners" not in caplog.text


def test_fractions_in_place_of_pixels_are_guessed(tmp_path, caplog):
    ensure_mindrecord(with_boxes(tmp_path, [[0.2, 0.1, 0.5, 0.9], [0, 0, 1, 1]]), training=True)
    assert "are they fractions of the image's width and height?" in caplog.text


def test_width_and_height_in_a_list_of_corners_are_guessed(tmp_path, caplog):
    make_coco(tmp_path, "train2017", 1)
    (tmp_path / "list.txt").write_text("000.png 20,10,5,8,1 30,20,9,9,2 1,1,9,9,1")
    ensure_mindrecord(
        config_for(
            tmp_path, "--dataset=other", f"--image_dir={tmp_path / 'train2017'}", f"--anno_path={tmp_path / 'list.txt'}"
        ),
        training=True,
    )
    assert "2 of 3 boxes have no area: are they x, y, width, height in a list of corners" in caplog.text


def test_ordinary_boxes_raise_no_doubt(coco_root, caplog):
    ensure_mindrecord(config_for(coco_root), training=True)
    assert "reach over" not in caplog.text and "are they" not in caplog.text


# ---- a whole set


def test_boxes_without_area_of_a_labelled_set_are_named(labelled, tmp_path, caplog):
    config = config_for(labelled.root, mindrecord_dir=tmp_path, classes=labelled.classes)
    with caplog.at_level(logging.INFO):
        paths = ensure_mindrecord(config, training=True)
    assert len(rows_of(paths)) == labelled.num_train
    assert f"{labelled.num_train} images, {labelled.num_train_boxes - 2} boxes" in caplog.text
    assert "; ".join(f"{name} (no area)" for name in labelled.flat_boxes) in caplog.text

"""Pascal VOC folders to COCO layout."""
import json
import logging

import cv2
import numpy as np
import pytest

from src import voc_to_coco
from src.annotations import read_coco
from src.model_utils.errors import UserError

CLASSES = ("mask", "no mask")


def xml_object(name="mask", corners=(1, 2, 11, 22), difficult=0):
    x1, y1, x2, y2 = corners
    return (f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
            f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>")


def xml_of(file_name, *objects, width=40, height=30):
    return (f"<annotation><filename>{file_name}</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{''.join(objects)}</annotation>")


@pytest.fixture
def voc(tmp_path):
    """Ten pictures p0.png ... p9.png of 40 x 30, each with one box; picture 3 has three, picture 4 none."""
    root = tmp_path / "voc"
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number in range(10):
        objects = [xml_object("mask" if number % 2 else "no mask", (number, 2.5, 20, 25))]
        if number == 3:
            objects += [xml_object("no mask", difficult=1), xml_object("mask", (5, 5, 5, 9))]
        if number == 4:
            objects = []
        cv2.imwrite(str(root / "images" / f"p{number}.png"), np.full((30, 40, 3), number, np.uint8))
        (root / "annotations" / f"p{number}.xml").write_text(xml_of(f"p{number}.png", *objects))
    return root


def convert(voc, output, *flags):
    assert voc_to_coco.main([f"--images={voc / 'images'}", f"--annotations={voc / 'annotations'}",
                             f"--output={output}", *flags]) == 0
    return {subset: json.loads((output / "annotations" / f"instances_{subset}.json").read_text())
            for subset in ("train2017", "val2017")}


def names(content):
    return [image["file_name"] for image in content["images"]]


def boxes_of(contents, file_name):
    for content in contents.values():
        for image in content["images"]:
            if image["file_name"] == file_name:
                return [row for row in content["annotations"] if row["image_id"] == image["id"]]
    raise AssertionError(f"{file_name} is in neither file")


def test_layout_ids_and_boxes(voc, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        contents = convert(voc, tmp_path / "out", f"--classes={','.join(CLASSES)}")
    train, val = contents["train2017"], contents["val2017"]
    assert (len(train["images"]), len(val["images"])) == (8, 2)
    assert sorted(names(train) + names(val)) == [f"p{number}.png" for number in range(10)]
    for subset, content in contents.items():
        assert content["categories"] == [{"id": 1, "name": "mask"}, {"id": 2, "name": "no mask"}]
        assert [image["id"] for image in content["images"]] == list(range(1, len(content["images"]) + 1))
        assert [row["id"] for row in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert sorted(path.name for path in (tmp_path / "out" / subset).iterdir()) == sorted(names(content))
        # it is what the readers accept
        assert len(read_coco(tmp_path / "out" / "annotations" / f"instances_{subset}.json", tmp_path / "out" / subset,
                             CLASSES)) == len(content["images"])
    row, = boxes_of(contents, "p0.png")                       # xmin = 0 stays
    assert row["bbox"] == [0, 2.5, 20, 22.5]
    assert row["area"] == 450
    assert row["category_id"] == 2
    assert boxes_of(contents, "p4.png") == []
    assert train["images"][0] | {"id": 0, "file_name": ""} == {"id": 0, "file_name": "", "width": 40, "height": 30}
    assert "p3.xml object 3 (no area)" in caplog.text
    assert "['background', 'mask', 'no mask']" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "voc"]


def test_pictures_are_copied_byte_for_byte_or_linked(voc, tmp_path):
    contents = convert(voc, tmp_path / "copied")
    linked = convert(voc, tmp_path / "linked", "--hard_links")
    assert linked == contents
    name = names(contents["train2017"])[0]
    source = voc / "images" / name
    assert (tmp_path / "copied" / "train2017" / name).read_bytes() == source.read_bytes()
    assert not (tmp_path / "copied" / "train2017" / name).samefile(source)
    assert (tmp_path / "linked" / "train2017" / name).samefile(source)


def test_classes_default_to_all_names_in_alphabetical_order(voc, tmp_path):
    contents = convert(voc, tmp_path / "out")
    assert contents["val2017"]["categories"] == [{"id": 1, "name": "mask"}, {"id": 2, "name": "no mask"}]


def test_one_based_coordinates_include_the_last_pixel(voc, tmp_path):
    row, = boxes_of(convert(voc, tmp_path / "out", "--one_based"), "p1.png")
    assert row["bbox"] == [0, 1.5, 20, 23.5]                  # 1..20 are twenty pixels


@pytest.mark.parametrize(("choice", "crowd_flags"), [("crowd", [0, 1]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult_objects(voc, tmp_path, choice, crowd_flags):
    contents = convert(voc, tmp_path / "out", f"--difficult={choice}")
    assert [row["iscrowd"] for row in boxes_of(contents, "p3.png")] == crowd_flags


def test_the_seed_decides_the_division(voc, tmp_path):
    first = convert(voc, tmp_path / "first", "--val_fraction=0.5", "--seed=3")
    same = convert(voc, tmp_path / "same", "--val_fraction=0.5", "--seed=3")
    other = convert(voc, tmp_path / "other", "--val_fraction=0.5", "--seed=4")
    assert first == same
    assert len(first["val2017"]["images"]) == 5
    assert names(first["val2017"]) != names(other["val2017"])


@pytest.mark.parametrize(("fraction", "num_val"), [(0.01, 1), (0.25, 2), (0.99, 9)])
def test_both_sets_get_pictures(voc, fraction, num_val):
    images = voc_to_coco.read_voc(voc / "annotations", voc / "images")
    subsets = voc_to_coco.split_at_random(images, fraction, seed=1)
    assert len(subsets["val2017"]) == num_val
    assert len(subsets["train2017"]) == 10 - num_val


def test_lists_of_voc_decide_the_division(voc, tmp_path, caplog):
    (tmp_path / "train.txt").write_text("p5\np1  1\n\n")      # lists of one class have 1 or -1 behind the name
    (tmp_path / "val.txt").write_text("p0 -1\n")
    with caplog.at_level(logging.WARNING):
        contents = convert(voc, tmp_path / "out", f"--train_list={tmp_path / 'train.txt'}",
                           f"--val_list={tmp_path / 'val.txt'}")
    assert names(contents["train2017"]) == ["p5.png", "p1.png"]
    assert names(contents["val2017"]) == ["p0.png"]
    assert "7 pictures in neither list left out" in caplog.text


@pytest.mark.parametrize(("train", "val", "message"), [
    ("p1\np77\n", "p2\n", r"train\.txt line 2: there is no annotation file p77\.xml"),
    ("p1\n", "p2\np1\n", r"val\.txt line 2: p1 is already on .*train\.txt line 1"),
    ("p1\n", "\n", r"val\.txt: has no names"),
    ("p1\n", None, "give both or neither"),
])
def test_faulty_lists(voc, tmp_path, train, val, message):
    flags = []
    for key, text in (("train", train), ("val", val)):
        if text is not None:
            (tmp_path / f"{key}.txt").write_text(text)
            flags.append(f"--{key}_list={tmp_path / f'{key}.txt'}")
    with pytest.raises(UserError, match=message):
        convert(voc, tmp_path / "out", *flags)


BOMB = ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>'
        "<annotation><filename>&y;</filename></annotation>")


@pytest.mark.parametrize(("content", "message"), [
    ("<annotation>\n<filename>p1.png</filename>\n<object>", r"is not valid XML \(no element found: line 3, column 8\)"),
    ("", "is not valid XML"),
    (BOMB, "document type declaration"),
    (BOMB.encode("utf-16"), "document type declaration"),
    (xml_of("p1.png", "<object><name>mask</name></object>"), r"<bndbox> of object 1: <xmin> is None"),
    (xml_of("p1.png", xml_object(), xml_object(corners=("a", 1, 2, 3))), "object 2: <xmin> is 'a'; expected a number"),
    (xml_of("p1.png", xml_object(corners=("nan", 1, 2, 3))), "object 1: <xmin> is 'nan'"),
    (xml_of("p1.png", xml_object(name="")), "object 1 has no <name>"),
    (xml_of("p1.png", width=30, height=40), r"says 30 x 40 pixels, its picture .*p1\.png has 40 x 30"),
    (xml_of("p2.png"), r"already belongs to|its picture p2\.png"),
    (xml_of("../../secret.png"), "outside the picture folder"),
])
def test_faulty_xml_files_are_named(voc, tmp_path, content, message):
    path = voc / "annotations" / "p1.xml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        convert(voc, tmp_path / "out")
    assert "1 annotation file cannot be used" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_missing_and_broken_pictures_are_named(voc, tmp_path):
    (voc / "images" / "p1.png").unlink()
    (voc / "images" / "p2.png").write_text("text")
    with pytest.raises(UserError, match="2 annotation files cannot be used") as raised:
        convert(voc, tmp_path / "out")
    assert "p1.xml: its picture p1.png is not in" in str(raised.value)
    assert "p2.xml: its picture" in str(raised.value)


def test_the_picture_may_have_the_name_of_the_xml_file(voc):
    (voc / "annotations" / "p1.xml").write_text(xml_of("IMG_0815.JPG", xml_object(), width=0, height=0))
    images = voc_to_coco.read_voc(voc / "annotations", voc / "images")
    assert images[1].picture.name == "p1.png"
    assert images[1].size == (40, 30)


def test_unknown_classes_are_named_with_a_file(voc, tmp_path):
    with pytest.raises(UserError, match=r"lacks 'no mask' \(in .*p0\.xml\)"):
        convert(voc, tmp_path / "out", "--classes=mask")


@pytest.mark.parametrize(("flags", "message"), [
    (["--classes=mask,mask"], "different names"), (["--val_fraction=0"], "between 0 and 1"),
    (["--val_fraction=nan"], "between 0 and 1"), (["--seed=-1"], "expected 0 or more"),
])
def test_faulty_arguments(voc, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        convert(voc, tmp_path / "out", *flags)


def test_missing_folders(voc, tmp_path):
    with pytest.raises(UserError, match=r"--annotations=.*none: there is no such folder"):
        voc_to_coco.read_voc(tmp_path / "none", voc / "images")
    with pytest.raises(UserError, match=r"holds no \*\.xml files"):
        voc_to_coco.read_voc(voc / "images", voc / "images")


def test_an_output_that_holds_something_is_left_alone(voc, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(voc, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    convert(voc, output)                                      # an empty folder is taken


def test_two_pictures_of_one_name_leave_nothing_behind(voc, tmp_path):
    (voc / "images" / "sub").mkdir()
    cv2.imwrite(str(voc / "images" / "sub" / "p1.png"), np.zeros((30, 40, 3), np.uint8))
    (voc / "annotations" / "p2.xml").write_text(xml_of("sub/p1.png"))
    images = voc_to_coco.read_voc(voc / "annotations", voc / "images")
    with pytest.raises(UserError, match=r"two pictures are called p1\.png"):
        voc_to_coco.write_coco(tmp_path / "out", {"train2017": images}, voc_to_coco.Options(CLASSES))
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_help_is_complete(capsys):
    with pytest.raises(SystemExit, match="0"):
        voc_to_coco.main(["--help"])
    text = capsys.readouterr().out
    for flag in ("--images", "--val_list", "--one_based", "--difficult", "--hard_links", "--seed"):
        assert flag in text

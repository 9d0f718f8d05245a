"""Pascal VOC folders to COCO layout."""

import json
import logging
import re

import cv2
import numpy as np
import pytest

from src.data.annotations import read_coco
from src.data.voc_xml import read_voc
from src.model_utils.errors import UserError
from src.tools import voc_to_coco
from tests.unit.voc_sets import add_image, add_xml, xml_object, xml_of

CLASSES = ("mask", "no mask")


@pytest.fixture
def voc(tmp_path):
    """Ten images p0.png ... p9.png of 40 x 30, each with one box; image 3 has three, image 4 none."""
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
    assert (
        voc_to_coco.main(
            [f"--images={voc / 'images'}", f"--annotations={voc / 'annotations'}", f"--output={output}", *flags]
        )
        == 0
    )
    return {
        subset: json.loads((output / "annotations" / f"instances_{subset}.json").read_text())
        for subset in ("train2017", "val2017")
    }


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
        assert len(
            read_coco(tmp_path / "out" / "annotations" / f"instances_{subset}.json", tmp_path / "out" / subset, CLASSES)
        ) == len(content["images"])
    (row,) = boxes_of(contents, "p0.png")  # xmin = 0 stays
    assert row["bbox"] == [0, 2.5, 20, 22.5]
    assert row["area"] == 450
    assert row["category_id"] == 2
    assert boxes_of(contents, "p4.png") == []
    assert train["images"][0] | {"id": 0, "file_name": ""} == {"id": 0, "file_name": "", "width": 40, "height": 30}
    assert "p3.xml object 3 (no area)" in caplog.text
    assert "['background', 'mask', 'no mask']" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "voc"]


def test_images_are_copied_byte_for_byte_or_linked(voc, tmp_path):
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
    (row,) = boxes_of(convert(voc, tmp_path / "out", "--one_based"), "p1.png")
    assert row["bbox"] == [0, 1.5, 20, 23.5]  # 1..20 are twenty pixels


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
def test_both_sets_get_images(voc, fraction, num_val):
    images = read_voc(voc / "annotations", voc / "images").images
    subsets = voc_to_coco.split_at_random(images, fraction, seed=1)
    assert len(subsets["val2017"]) == num_val
    assert len(subsets["train2017"]) == 10 - num_val


def test_lists_of_voc_decide_the_division(voc, tmp_path, caplog):
    (tmp_path / "train.txt").write_text("p5\np1  1\n\n")  # lists of one class have 1 or -1 behind the name
    (tmp_path / "val.txt").write_text("p0 -1\n")
    with caplog.at_level(logging.WARNING):
        contents = convert(
            voc, tmp_path / "out", f"--train_list={tmp_path / 'train.txt'}", f"--val_list={tmp_path / 'val.txt'}"
        )
    assert names(contents["train2017"]) == ["p5.png", "p1.png"]
    assert names(contents["val2017"]) == ["p0.png"]
    assert "10 XML files: 3 used, 7 left out (in neither list)" in caplog.text


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("p1\np77\n", "p2\n", r"train\.txt line 2: there is no annotation file p77\.xml"),
        ("p1\n", "p2\np1\n", r"val\.txt line 2: p1 is already on .*train\.txt line 1"),
        ("p1\n", "\n", r"val\.txt: has no names"),
        ("p1 5\n", "p2\n", r"train\.txt line 1: there is no annotation file p1 5\.xml"),
        ("p1\n", None, "give both or neither"),
    ],
)
def test_faulty_lists(voc, tmp_path, train, val, message):
    flags = []
    for key, text in (("train", train), ("val", val)):
        if text is not None:
            (tmp_path / f"{key}.txt").write_text(text)
            flags.append(f"--{key}_list={tmp_path / f'{key}.txt'}")
    with pytest.raises(UserError, match=message):
        convert(voc, tmp_path / "out", *flags)


def test_unknown_classes_are_named_with_a_file(voc, tmp_path):
    with pytest.raises(UserError, match=r"lacks 'no mask' \(in .*p0\.xml\)"):
        convert(voc, tmp_path / "out", "--classes=mask")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--classes=mask,mask"], "different names"),
        (["--val_fraction=0"], "between 0 and 1"),
        (["--val_fraction=nan"], "between 0 and 1"),
        (["--seed=-1"], "expected 0 or more"),
    ],
)
def test_faulty_arguments(voc, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        convert(voc, tmp_path / "out", *flags)


def test_missing_folders(voc, tmp_path):
    with pytest.raises(UserError, match=r"--annotations=.*annotations: there is no such folder"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds no \*\.xml files"):
        read_voc(voc / "images", voc / "images")


def test_an_output_that_holds_something_is_left_alone(voc, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        convert(voc, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    convert(voc, output)  # an empty folder is taken


def test_a_failure_leaves_nothing_behind(voc, tmp_path):
    images = read_voc(voc / "annotations", voc / "images").images
    (voc / "images" / "p5.png").unlink()  # after it was read
    with pytest.raises(UserError, match=r"--output=.*out: cannot be written"):
        voc_to_coco.write_coco(tmp_path / "out", {"train2017": images}, voc_to_coco.Options(CLASSES))
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


# ---- sub-folders


@pytest.fixture
def nested(tmp_path):
    """Images 1 and 2 in the folder, 1 and 3 in a, 1 and 4 in a/b; the value of all pixels tells which it is."""
    root = tmp_path / "nested"
    for value, name in enumerate(("1", "2", "a/1", "a/3", "a/b/1", "a/b/4")):
        add_image(root / "images" / f"{name}.png", value)
        add_xml(root / "annotations" / f"{name}.xml", f"{name[-1]}.png", xml_object(corners=(value, 0, 9, 9)))
    return root


NESTED = ["1.png", "2.png", "a/1.png", "a/3.png", "a/b/1.png", "a/b/4.png"]


def test_sub_folders_stay_in_file_names(nested, tmp_path):
    contents = convert(nested, tmp_path / "out")
    assert sorted(names(contents["train2017"]) + names(contents["val2017"])) == NESTED
    for subset, content in contents.items():
        assert read_coco(
            tmp_path / "out" / "annotations" / f"instances_{subset}.json", tmp_path / "out" / subset, ["mask"]
        )
        for file_name in names(content):
            value = cv2.imread(str(tmp_path / "out" / subset / file_name))[0, 0, 0]
            assert NESTED[value] == file_name
            (row,) = boxes_of(contents, file_name)
            assert row["bbox"] == [value, 0, 9 - value, 9]


def write_lists(folder, train, val):
    (folder / "train.txt").write_text(train, encoding="utf-8")
    (folder / "val.txt").write_text(val, encoding="utf-8")
    return [f"--train_list={folder / 'train.txt'}", f"--val_list={folder / 'val.txt'}"]


def test_lists_name_files_in_sub_folders(nested, tmp_path):
    """By folder and name; by the name alone where only one has it, or where it is that of the folder itself."""
    contents = convert(nested, tmp_path / "out", *write_lists(tmp_path, "a/b/1\n4 1\n1\n", "\ufeffa\\3 -1\na/1\n"))
    assert names(contents["train2017"]) == ["a/b/1.png", "a/b/4.png", "1.png"]
    assert names(contents["val2017"]) == ["a/3.png", "a/1.png"]


def test_a_name_on_a_list_must_mean_one_image(nested, tmp_path):
    (nested / "annotations" / "1.xml").unlink()
    with pytest.raises(UserError, match=r"train\.txt line 1: 1 stands for a/1\.png; a/b/1\.png; write the folder too"):
        convert(nested, tmp_path / "out", *write_lists(tmp_path, "1\n", "2\n"))
    with pytest.raises(UserError, match=r"val\.txt line 2: a/b/4 is already on .*val\.txt line 1"):
        convert(nested, tmp_path / "out", *write_lists(tmp_path, "2\n", "4\na/b/4\n"))


def test_names_with_spaces_and_accents_on_lists(tmp_path):
    for stem in ("img", "img (2)", "cafe\u0301"):  # e and a separate accent on the disk
        add_image(tmp_path / "images" / f"{stem}.png")
        add_xml(tmp_path / "annotations" / f"{stem}.xml", f"{stem}.png", xml_object())
    contents = convert(tmp_path, tmp_path / "out", *write_lists(tmp_path, "img (2)\nimg 1\n", "caf\u00e9\n"))
    assert names(contents["train2017"]) == ["img (2).png", "img.png"]
    assert names(contents["val2017"]) == ["cafe\u0301.png"]


# ---- the account


def test_images_without_xml_files_are_left_out_by_name_or_kept(voc, tmp_path, caplog):
    add_image(voc / "images" / "sub" / "alone.jpg")
    add_image(voc / "images" / "more.TIF")
    (voc / "images" / "notes.txt").touch()
    with caplog.at_level(logging.INFO):
        contents = convert(voc, tmp_path / "out")
    assert sum(len(content["images"]) for content in contents.values()) == 10
    assert (
        "2 left out without one (more.TIF; sub/alone.jpg; --keep_unlabelled keeps them as background)"
        in caplog.records[-1].message
    )
    assert caplog.records[-1].levelname == "WARNING"
    caplog.clear()
    with caplog.at_level(logging.INFO):
        kept = convert(voc, tmp_path / "kept", "--keep_unlabelled")
    assert sum(len(content["images"]) for content in kept.values()) == 12
    assert boxes_of(kept, "more.TIF") == boxes_of(kept, "sub/alone.jpg") == []
    assert "10 used with their XML file, 2 kept without one, as background" in caplog.records[-1].message
    assert caplog.records[-1].levelname == "INFO"
    by_list = convert(voc, tmp_path / "lists", "--keep_unlabelled", *write_lists(tmp_path, "p1\nalone\n", "p2\n"))
    assert names(by_list["train2017"]) == ["p1.png", "sub/alone.jpg"]


def test_a_broken_image_is_named_where_it_is_kept(voc, tmp_path):
    (voc / "images" / "extra.png").write_text("text")
    convert(voc, tmp_path / "out")
    with pytest.raises(UserError, match=r"1 file cannot be used:\n.*extra\.png: the image .* cannot be read"):
        convert(voc, tmp_path / "kept", "--keep_unlabelled")


def numbers(text, pattern):
    """The sum of what stands before the pattern, brackets left aside."""
    return sum(int(number) for number in re.findall(rf"(\d+) {pattern}", re.sub(r" \([^)]*\)", "", text)))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("lists", [False, True])
def test_the_account_adds_up(voc, tmp_path, caplog, keep, lists):
    for name in ("a", "b", "c"):
        add_image(voc / "images" / f"{name}.jpg")
    add_image(voc / "images" / "d.jpg")
    add_xml(voc / "annotations" / "d.xml", "old.jpg")  # found by the stem, and without objects
    add_xml(voc / "annotations" / "p5.xml", "p6.png")  # two that contradict
    add_xml(voc / "annotations" / "p6.xml", "p5.png")
    flags = ["--keep_unlabelled"] * keep + ["--match=stem"]
    if lists:
        flags += write_lists(tmp_path, "p1\nd\np5\n" + "a\n" * keep, "p2\n")
    with caplog.at_level(logging.INFO):
        contents = convert(voc, tmp_path / "out", *flags)
    xml_text, image_text = caplog.records[-1].message.split("; ", 1)
    num_written = sum(len(content["images"]) for content in contents.values())
    num_xml, num_images = 10 + 1, 10 + 4
    assert xml_text.startswith(f"{num_xml} XML files: ")
    assert image_text.startswith(f"{num_images} images: ")
    assert numbers(xml_text, "(?:used|left)") == num_xml
    assert numbers(image_text, "(?:used|left|kept)") == num_images
    assert numbers(image_text, "(?:used|kept)") == num_written == (4 + keep if lists else 11 + 3 * keep)
    assert numbers(xml_text, "used") == numbers(image_text, "used")
    empty, decided = (2, 1) if lists else (4, 2)  # p4, p5, p6 and d have no objects
    assert (
        f"({empty} without objects, 1 found their image by their own name, as <filename> found none, "
        f"{decided} decided by --match=stem)"
    ) in xml_text


def test_the_account_counts_files_of_the_given_encoding(voc, tmp_path, caplog):
    path = voc / "annotations" / "p1.xml"
    path.write_bytes(xml_of("p1.png", xml_object("口罩")).encode("gbk"))
    with caplog.at_level(logging.INFO):
        contents = convert(voc, tmp_path / "out", "--encoding=gbk")
    # none of these files declares its encoding; those in ASCII are the same in both
    assert "10 XML files: 10 used (1 without objects, 10 read as --encoding=gbk)" in caplog.records[-1].message
    assert "口罩" in [category["name"] for category in contents["train2017"]["categories"]]


def test_help_is_complete(capsys):
    with pytest.raises(SystemExit, match="0"):
        voc_to_coco.main(["--help"])
    text = capsys.readouterr().out
    for flag in (
        "--images",
        "--val_list",
        "--one_based",
        "--difficult",
        "--hard_links",
        "--seed",
        "--match",
        "--encoding",
        "--keep_unlabelled",
    ):
        assert flag in text


def test_a_turned_rectangle_keeps_its_angle_for_the_warning_of_those_who_read_it(voc, tmp_path):
    """CVAT's Pascal VOC export: an upright box, and the angle among the attributes."""
    turned = xml_object().replace(
        "</object>", "<attributes><attribute><name>rotation</name><value>60.0</value></attribute></attributes></object>"
    )
    add_xml(voc / "annotations" / "p1.xml", "p1.png", turned)
    contents = convert(voc, tmp_path / "out")
    rows = [row for content in contents.values() for row in content["annotations"] if "attributes" in row]
    assert [row["attributes"] for row in rows] == [{"rotation": "60.0"}]


@pytest.mark.parametrize(("text", "is_crowd"), [("0", 0), ("1", 1), ("True", 1), ("false", 0), ("", 0)])
def test_difficult_is_read_in_every_plain_form(voc, tmp_path, text, is_crowd):
    add_xml(voc / "annotations" / "p1.xml", "p1.png", xml_object(difficult=text))
    (row,) = boxes_of(convert(voc, tmp_path / "out"), "p1.png")
    assert row["iscrowd"] == is_crowd


def test_another_difficult_is_refused_by_file(voc, tmp_path):
    add_xml(voc / "annotations" / "p1.xml", "p1.png", xml_object(difficult="maybe"))
    with pytest.raises(UserError, match=r"p1\.xml: <difficult> of object 1 is 'maybe'; expected 0 or 1"):
        convert(voc, tmp_path / "out")


def test_objects_marked_ignore_keep_the_mark(voc, tmp_path):
    add_xml(voc / "annotations" / "p1.xml", "p1.png", xml_object().replace("<bndbox>", "<ignore>1</ignore><bndbox>"))
    (row,) = boxes_of(convert(voc, tmp_path / "out"), "p1.png")
    assert row["ignore"] == 1  # whoever reads the file counts it as crowd


def test_files_of_other_kinds_are_named_in_the_account(voc, tmp_path, caplog):
    (voc / "images" / "clip.gif").write_bytes(b"GIF89a")
    with caplog.at_level(logging.INFO):
        convert(voc, tmp_path / "out")
    assert "; files: 1 of other kinds, left out: clip.gif" in caplog.text


def test_an_output_among_the_images_is_refused(voc):
    with pytest.raises(UserError, match="lies in the folder of the images"):
        convert(voc, voc / "images" / "out")

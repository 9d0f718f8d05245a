"""Where annotation files and images are looked for, and what is said when they are not there."""

import unicodedata

import pytest

from src.data import data_paths
from src.data.annotations import load_annotations, read_coco
from src.data.txt_file import read_txt
from src.model_utils.errors import UserError
from tests.unit.data.test_annotations import CLASSES, coco_config, coco_content, config_for, write
from tests.unit.image_sets import make_coco


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="outside the image folder"):
        data_paths.path_below((tmp_path / "images").resolve(), "a.jpg")
    # the folder itself may be a link
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert data_paths.path_below((tmp_path / "link").resolve(), "b.jpg") == tmp_path.resolve() / "images" / "b.jpg"


def test_the_spelling_instance_is_tried(tmp_path):
    make_coco(tmp_path, "train2017", 2)
    known = tmp_path / "annotations" / "instances_train2017.json"
    known.rename(known.with_name("instance_train2017.json"))
    config = config_for(tmp_path)
    assert data_paths.annotation_file(config, training=True).name == "instance_train2017.json"
    make_coco(tmp_path, "train2017", 2)
    assert data_paths.annotation_file(config, training=True).name == "instances_train2017.json"
    assert len(load_annotations(config, training=True)) == 2


def test_anno_path_replaces_the_evaluation_file_only(tmp_path):
    own = tmp_path / "own.json"
    own.write_text("{}")
    make_coco(tmp_path, "train2017", 2)
    config = config_for(tmp_path, f"--anno_path={own}")
    assert data_paths.annotation_file(config, training=False) == own
    assert data_paths.annotation_file(config, training=True).name == "instances_train2017.json"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], r"instances_val2017\.json does not exist; check coco_root, instance_set and val_data_type"),
        (["--anno_path=none.json"], r"none\.json does not exist; check anno_path"),
        (["--dataset=other", "--image_dir=x"], "needs anno_path"),
        (["--dataset=other", "--image_dir=x", "--anno_path=."], "is not a file; check anno_path"),
    ],
)
def test_missing_annotation_files_are_named(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        data_paths.annotation_file(config_for(tmp_path, *flags), training=False)


def test_missing_image_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train2017 does not exist; check coco_root and train_data_type"):
        data_paths.image_folder(config_for(tmp_path), training=True)
    with pytest.raises(UserError, match=r"check image_dir"):
        data_paths.image_folder(config_for(tmp_path, "--dataset=other", "--image_dir=nowhere"), training=True)
    with pytest.raises(UserError, match=r"needs image_dir"):
        data_paths.image_folder(config_for(tmp_path, "--dataset=other"), training=True)


# ---- names of files

COMPOSED, SPLIT = (unicodedata.normalize(form, "Größe é.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    "on_disk, in_file",
    [
        (COMPOSED, SPLIT),
        (SPLIT, COMPOSED),
        ("sub/a.jpg", "sub\\a.jpg"),
        (f"sub/{SPLIT}", f"sub\\{COMPOSED}"),
        ("a\\b.jpg", "a\\b.jpg"),
    ],
)
def test_names_that_look_the_same_find_the_image(tmp_path, on_disk, in_file):
    (tmp_path / "sub").mkdir()
    (tmp_path / on_disk).touch()
    content = coco_content()
    content["images"][0]["file_name"] = in_file
    first, _ = read_coco(write(tmp_path / "anno.json", content), tmp_path, CLASSES)
    assert first.path == tmp_path.resolve() / on_disk and first.file_name == in_file
    (listed,) = read_txt(write(tmp_path / "anno.txt", f'"{in_file}" 1,2,3,4,1\n'), tmp_path, 2)
    assert listed.path == tmp_path.resolve() / on_disk


@pytest.mark.parametrize("other", ["./a.jpg", "sub/../a.jpg", ".\\a.jpg"])
def test_one_image_under_two_names_is_refused(tmp_path, other):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").touch()
    content = coco_content()
    content["images"][1]["file_name"] = other
    with pytest.raises(UserError, match=r"\(id 3\) are the same file"):
        read_coco(write(tmp_path / "anno.json", content), tmp_path, CLASSES)


def test_the_name_as_written_takes_precedence(tmp_path):
    for name in (COMPOSED, SPLIT):
        (tmp_path / name).write_text(name)
    for name in (COMPOSED, SPLIT):
        assert data_paths.find_below(tmp_path.resolve(), name).read_text() == name


@pytest.mark.parametrize("name", ["..\\secret.jpg", "sub\\..\\..\\secret.jpg"])
def test_backslashes_do_not_lead_out_of_the_folder(tmp_path, name):
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    with pytest.raises(UserError, match="outside the image folder"):
        data_paths.find_below((tmp_path / "images").resolve(), name)


# ---- the evaluation list


def txt_config(tmp_path, *flags):
    write(tmp_path / "train.txt", "a.jpg 1,2,3,4,1\n")
    write(tmp_path / "val.txt", "b.jpg 1,2,3,4,2\n")
    return config_for(
        tmp_path, "--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={tmp_path / 'train.txt'}", *flags
    )


def test_a_txt_training_is_not_evaluated_on_its_own_list(tmp_path, caplog):
    with pytest.raises(UserError, match="--val_anno_path=val.txt"):
        data_paths.check_training_lists(txt_config(tmp_path, "--run_eval=True"))
    config = txt_config(tmp_path, f"--val_anno_path={tmp_path / 'val.txt'}", "--run_eval=True")
    data_paths.check_training_lists(config)
    assert data_paths.annotation_file(config, training=True).name == "train.txt"
    assert data_paths.annotation_file(config, training=False).name == "val.txt"
    assert load_annotations(config, training=False)[0].file_name == "b.jpg"
    assert not caplog.text


def test_the_training_list_as_evaluation_list_is_taken_with_a_warning(tmp_path, caplog):
    config = txt_config(tmp_path, f"--val_anno_path={tmp_path / 'train.txt'}", "--run_eval=True")
    data_paths.check_training_lists(config)
    assert "scores the images that are trained on" in caplog.text


def test_a_training_that_does_not_evaluate_refuses_an_evaluation_list(tmp_path):
    with pytest.raises(UserError, match="--val_anno_path names what is evaluated, and run_eval is False"):
        data_paths.check_training_lists(txt_config(tmp_path, f"--val_anno_path={tmp_path / 'val.txt'}"))
    with pytest.raises(UserError, match="--anno_path names what is evaluated.* training reads .*instances_train2017"):
        data_paths.check_training_lists(coco_config(tmp_path, coco_content(), "--anno_path=mine.json"))
    data_paths.check_training_lists(txt_config(tmp_path))
    data_paths.check_training_lists(coco_config(tmp_path, coco_content()))


def test_a_txt_evaluation_alone_takes_either_key(tmp_path):
    assert data_paths.annotation_file(txt_config(tmp_path), training=False).name == "train.txt"
    only = config_for(tmp_path, "--dataset=other", f"--image_dir={tmp_path}", f"--val_anno_path={tmp_path / 'val.txt'}")
    assert data_paths.annotation_file(only, training=False).name == "val.txt"
    with pytest.raises(UserError, match="needs anno_path"):
        data_paths.annotation_file(only, training=True)


def test_two_names_for_one_evaluation_file_are_refused(tmp_path):
    config = coco_config(tmp_path, coco_content(), "--anno_path=a.json", "--val_anno_path=b.json")
    with pytest.raises(UserError, match="anno_path and val_anno_path both name"):
        data_paths.annotation_file(config, training=False)

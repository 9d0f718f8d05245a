"""Class names that come from annotation files: which, in which order, what is said, what is refused."""

import dataclasses
import logging

import pytest

from src.data import records
from src.data.annotations import load_annotations
from src.data.class_names import with_classes
from src.model_utils.config import load_config
from src.model_utils.errors import ConfigError, UserError
from src.model_utils.keys import AUTO_CLASSES, graph_settings
from tests.unit.data.test_annotations import coco_content, write


def auto_config(tmp_path, train=None, val=None, *flags):
    """A data set with these annotation files, and its configuration with coco_classes=auto."""
    for subset, content in (("train2017", train), ("val2017", val)):
        (tmp_path / subset).mkdir(exist_ok=True)
        if content is not None:
            write(tmp_path / "annotations" / f"instances_{subset}.json", content)
    return load_config([f"--coco_root={tmp_path}", "--coco_classes=auto", "--device_target=CPU", *flags])


def with_categories(*categories):
    return coco_content() | {"categories": list(categories)}


def messages(caplog):
    return [record.getMessage() for record in caplog.records]


def test_the_names_are_those_of_the_training_file_in_its_order(tmp_path, caplog):
    """Category ids 44 and 0 are in no order, nor are the names."""
    content = with_categories({"id": 44, "name": "zebra"}, {"id": 0, "name": "dog"})
    config = auto_config(tmp_path, content, with_categories({"id": 1, "name": "of the evaluation"}))
    with caplog.at_level(logging.INFO):
        found = with_classes(config, training=True)
    assert (found.coco_classes, found.num_classes) == (("background", "zebra", "dog"), 3)
    assert (found.class_names, found.num_fg_classes) == (("zebra", "dog"), 2)
    (line,) = messages(caplog)
    path = tmp_path / "annotations" / "instances_train2017.json"
    assert line == f"2 classes from {path}, in its order: coco_classes = ['background', 'zebra', 'dog']"
    assert caplog.records[0].levelno == logging.INFO


def test_the_line_of_the_log_may_be_pasted(tmp_path, caplog):
    content = with_categories({"id": 44, "name": "cat's eye"}, {"id": 0, "name": "Blutkörper, rot"})
    with caplog.at_level(logging.INFO):
        found = with_classes(auto_config(tmp_path, content), training=True)
    names = messages(caplog)[0].partition("coco_classes = ")[2]
    assert load_config([f"--coco_classes={names}"]).coco_classes == found.coco_classes
    (tmp_path / "own.yaml").write_text(f"coco_classes: {names}\n", encoding="utf-8")
    assert load_config([f"--config_path={tmp_path / 'own.yaml'}"]).coco_classes == found.coco_classes


def test_a_category_without_a_box_is_kept_and_named(tmp_path, caplog):
    content = with_categories({"id": 9, "name": "bird"}, {"id": 44, "name": "cat"}, {"id": 0, "name": "dog"})
    config = auto_config(tmp_path, content)
    with caplog.at_level(logging.INFO):
        found = with_classes(config, training=True)
    assert found.class_names == ("bird", "cat", "dog")
    assert messages(caplog)[0].endswith("; without a box there, but kept: bird")
    first, _ = load_annotations(found, training=True)
    assert first.labels.tolist() == [2, 3]  # the boxes are of cat and dog


def test_names_that_are_written_stay(tmp_path, caplog):
    """No file is looked at."""
    config = load_config([f"--coco_root={tmp_path}", "--coco_classes=['background','cat']"])
    with caplog.at_level(logging.INFO):
        assert with_classes(config, training=True) is config
    assert messages(caplog) == []


def test_the_configuration_is_that_with_the_names_written(tmp_path):
    """But for where they come from; so records and graphs are those of written names."""
    found = with_classes(auto_config(tmp_path, coco_content()), training=True)
    written = load_config(
        [f"--coco_root={tmp_path}", "--coco_classes=['background','cat','dog']", "--device_target=CPU"]
    )
    assert dataclasses.replace(written, command_line=written.command_line - {"coco_classes"}) == found
    assert records._source(found, training=True) == records._source(written, training=True)
    assert graph_settings(found) == graph_settings(written)


def test_a_flag_num_classes_is_still_checked(tmp_path):
    assert with_classes(auto_config(tmp_path, coco_content(), None, "--num_classes=3"), training=True).num_classes == 3
    with pytest.raises(ConfigError, match="num_classes is 5 .from the command line.: expected 3"):
        with_classes(auto_config(tmp_path, coco_content(), None, "--num_classes=5"), training=True)


def test_the_evaluation_file_gives_the_names_with_a_warning(tmp_path, caplog):
    config = auto_config(tmp_path, with_categories({"id": 1, "name": "of the training"}), coco_content())
    with caplog.at_level(logging.INFO):
        found = with_classes(config, training=False)
    assert found.class_names == ("cat", "dog")
    (line,) = messages(caplog)
    assert f"from {tmp_path / 'annotations' / 'instances_val2017.json'}, in its order, which must be that of" in line
    assert caplog.records[0].levelno == logging.WARNING


def test_without_evaluation_annotations_the_names_must_be_written(tmp_path):
    with pytest.raises(UserError, match=r"instances_val2017.json does not exist.*--coco_classes=\"\['background',"):
        with_classes(auto_config(tmp_path, coco_content()), training=False)


def test_without_training_annotations_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"instances_train2017.json does not exist; check coco_root"):
        with_classes(auto_config(tmp_path), training=True)


@pytest.mark.parametrize("training", [True, False])
def test_a_txt_file_knows_no_names(tmp_path, training):
    (tmp_path / "list.txt").write_text("a.jpg 0,0,5,5,1\n")
    config = load_config(
        ["--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={tmp_path / 'list.txt'}", "--coco_classes=auto"]
    )
    with pytest.raises(UserError, match=r"TXT file .*write --coco_classes=\"\['background','cat','dog'\]\""):
        with_classes(config, training=training)


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([], ["'categories' is empty", '{"id": 1, "name": "cat"}']),
        ([{"id": 44, "name": "cat"}, {"id": 0}], ["the category with id 0 has name None"]),
        ([{"id": 44, "name": "cat"}, {"id": 0, "name": " "}], ["the category with id 0 has name ' '"]),
        ([{"id": 44, "name": "cat"}, {"name": "dog"}], ["categories[1] has the id None"]),
        (
            [{"id": 44, "name": "cat"}, {"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
            ["'cat' is the name of more than one category", "--coco_classes=\"['background', 'cat', 'dog']\""],
        ),
        (
            [{"id": 0, "name": "background"}, {"id": 44, "name": "cat"}],
            ["'background', which stands for what is no object", "--coco_classes=\"['background', 'cat']\""],
        ),
    ],
)
def test_names_that_cannot_be_classes(tmp_path, categories, words):
    config = auto_config(tmp_path, with_categories(*categories))
    with pytest.raises(UserError) as refused:
        with_classes(config, training=True)
    message = str(refused.value)
    assert message.startswith(str(tmp_path / "annotations" / "instances_train2017.json"))
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 0, "name": "cat"}, {"id": 44, "name": "cat"}],  # the first is a group that no box has
        [{"id": 0, "name": "background"}, {"id": 44, "name": "cat"}],
    ],
)
def test_the_names_that_a_refusal_proposes_are_accepted(tmp_path, categories):
    content = with_categories(*categories)
    content["annotations"] = content["annotations"][:1]  # of category 44
    config = auto_config(tmp_path, content)
    with pytest.raises(UserError) as refused:
        with_classes(config, training=True)
    names = str(refused.value).partition('--coco_classes="')[2].rstrip('"')
    written = load_config([f"--coco_root={tmp_path}", f"--coco_classes={names}"])
    assert load_annotations(written, training=True)[0].labels.tolist() == [1]


def test_a_file_that_is_not_coco_is_refused_as_ever(tmp_path):
    with pytest.raises(UserError, match="a COCO annotation file has the lists images, annotations, categories"):
        with_classes(auto_config(tmp_path, {"images": []}), training=True)
    assert auto_config(tmp_path).coco_classes == AUTO_CLASSES

"""A checkpoint is a whole detector: what it notes, and how that meets what the user has set."""

import dataclasses
import json
import logging

import pytest

from src import __version__
from src.convert_checkpoint import load_pretrained, main, noted_config, pretrained_config, read_checkpoint
from src.deploy.model_file import load_model
from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.network_define import Checkpoints
from src.runtime import Device
from src.weights.detector_notes import META_DETECTOR, NOTED_KEYS, noted_settings, notes_of, with_notes
from tests.unit.FasterRcnn.small_detector import config_of

CLASSES = ("background", "disc", 'square, "quoted"', "星")
# Every kind of setting at something else than its default.
TRAINED = (
    "--img_width=192",
    "--img_height=128",
    "--keep_ratio=False",
    "--stem_pool_pad=symmetric",
    "--anchor_scales=[4]",
    "--anchor_ratios=[0.5,1.0,1.5]",
    "--rcnn_target_stds=[0.2,0.2,0.3,0.3]",
    "--roi_layer={type: RoIAlign, out_size: 5, sample_num: 1}",
    "--without_bg_loss=False",
    "--backbone=resnet_v1_50",
    "--test_score_thr=0.2",
    "--rpn_max_num=300",
    f"--coco_classes={list(CLASSES)}",
)


@pytest.fixture
def config_file(tmp_path):
    """A function that writes a user's own configuration file and gives the flag that names it."""

    def write(text):
        (tmp_path / "own.yaml").write_text(text)
        return f"--config_path={tmp_path / 'own.yaml'}"

    return write


def trained_notes(*flags):
    return notes_of(load_config([*TRAINED, *flags]))


# --- inference --------------------------------------------------------------------------------------------------------


def test_everything_that_the_weights_depend_on_is_taken_from_the_checkpoint():
    found = with_notes(load_config([]), trained_notes(), "a.ckpt")
    assert (found.img_width, found.img_height, found.keep_ratio) == (192, 128, False)
    assert (found.backbone, found.stem_pool_pad, found.without_bg_loss) == ("resnet_v1_50", "symmetric", False)
    assert (found.anchor_scales, found.anchor_ratios, found.num_anchors) == ((4.0,), (0.5, 1.0, 1.5), 3)
    assert found.rcnn_target_stds == (0.2, 0.2, 0.3, 0.3)
    assert (found.roi_layer.out_size, found.roi_layer.sample_num) == (5, 1)
    assert (found.coco_classes, found.num_classes) == (CLASSES, 4)
    assert (found.test_score_thr, found.rpn_max_num) == (0.2, 300)


def test_what_is_no_matter_of_the_detector_stays():
    found = with_notes(load_config(["--test_batch_size=7", "--coco_root=here"]), trained_notes("--base_lr=3"), "a.ckpt")
    assert (found.test_batch_size, found.coco_root, found.base_lr) == (7, "here", 0.04)


def test_the_notes_say_how_images_are_normalised_and_who_wrote_them():
    notes = json.loads(trained_notes()[META_DETECTOR])
    assert notes["version"] == __version__ and notes["mindspore"]
    assert notes["normalisation"] == {
        "colour_order": "RGB",
        "pixel_mean": [123.675, 116.28, 103.53],
        "pixel_std": [58.395, 57.12, 57.375],
    }
    assert notes["stage_stride_on"] == "first 1x1 convolution"


@pytest.mark.parametrize(
    "flag, noted",
    [
        ("--coco_classes=['background','星','disc','square']", "['background', 'disc', 'square, \"quoted\"', '星']"),
        ("--anchor_scales=[8]", "[4.0]"),
        ("--stem_pool_pad=same", "symmetric"),
        ("--keep_ratio=True", "False"),
        ("--rcnn_target_stds=[0.1,0.1,0.2,0.2]", "[0.2, 0.2, 0.3, 0.3]"),
        ("--backbone=resnet_v1.5_50", "resnet_v1_50"),
        ("--without_bg_loss=True", "False"),
        ("--num_classes=81", "4"),
    ],
)
def test_a_flag_that_contradicts_the_weights_is_refused_with_both_values(flag, noted):
    with pytest.raises(UserError) as refused:
        with_notes(load_config([flag]), trained_notes(), "a.ckpt")
    key, value = flag.removeprefix("--").split("=", 1)
    assert f"--{key} is " in str(refused.value) and "checkpoint a.ckpt was trained with" in str(refused.value)
    assert noted in str(refused.value) and f"leave --{key} out" in str(refused.value)
    assert value.strip("[]").split(",")[0] in str(refused.value)


def test_a_flag_that_repeats_the_notes_is_no_contradiction():
    assert with_notes(load_config(list(TRAINED)), trained_notes(), "a.ckpt").img_width == 192


def test_canvas_and_thresholds_may_be_changed_by_flags_and_are_said(caplog):
    flags = ["--img_width=256", "--test_score_thr=0.05", "--rpn_max_num=500"]
    with caplog.at_level(logging.WARNING):
        found = with_notes(load_config(flags), trained_notes(), "a.ckpt")
    assert (found.img_width, found.img_height, found.test_score_thr, found.rpn_max_num) == (256, 128, 0.05, 500)
    assert "img_width is 256, as you set it; checkpoint a.ckpt was trained with 192" in caplog.text
    assert "test_score_thr is 0.05, as you set it; checkpoint a.ckpt was trained with 0.2" in caplog.text


def test_defaults_of_a_configuration_file_never_contradict(caplog):
    """The launchers and the published commands name the shipped file, which states every key."""
    with caplog.at_level(logging.WARNING):
        found = with_notes(load_config(["--config_path=default_config.yaml"]), trained_notes(), "a.ckpt")
    assert (found.img_width, found.anchor_scales) == (192, (4.0,))
    assert not caplog.text


def test_a_users_file_chooses_thresholds_but_not_what_the_weights_depend_on(config_file, caplog):
    config = load_config([config_file("test_score_thr: 0.3\nimg_width: 640\nanchor_scales: [6]\n")])
    with caplog.at_level(logging.WARNING):
        found = with_notes(config, trained_notes(), "a.ckpt")
    assert (found.test_score_thr, found.img_width, found.anchor_scales) == (0.3, 192, (4.0,))
    assert "test_score_thr is 0.3, as you set it" in caplog.text
    assert "own.yaml is 640, but checkpoint a.ckpt was trained with 192: that is taken" in caplog.text
    assert "anchor_scales in " in caplog.text


def test_what_comes_from_the_checkpoint_is_said_in_one_line(caplog):
    with caplog.at_level(logging.INFO):
        with_notes(load_config([]), trained_notes(), "a.ckpt")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "img_width 192" in line and "stem_pool_pad symmetric" in line and "rpn_nms_pre" not in line


@pytest.mark.parametrize("num_classes", ["", "num_classes: 80\n"])
def test_classes_that_are_auto_are_those_of_the_checkpoint(config_file, caplog, num_classes):
    """As if nobody had set them: no contradiction, no warning, no look at the data."""
    for flag in ("--coco_classes=auto", config_file("coco_classes: auto\n" + num_classes)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            found = with_notes(load_config([flag]), trained_notes(), "a.ckpt")
        assert (found.coco_classes, found.num_classes) == (CLASSES, 4)
        (record,) = caplog.records
        assert record.levelno == logging.INFO and f"coco_classes {list(CLASSES)}" in record.getMessage()
    with pytest.raises(UserError, match="--num_classes is 7, but checkpoint a.ckpt was trained with 4"):
        with_notes(load_config(["--coco_classes=auto", "--num_classes=7"]), trained_notes(), "a.ckpt")


def test_a_txt_data_set_takes_them_from_the_checkpoint_too():
    found = with_notes(load_config(["--coco_classes=auto", "--dataset=other"]), trained_notes(), "a.ckpt")
    assert found.coco_classes == CLASSES


# --- other files ------------------------------------------------------------------------------------------------------


def test_a_published_checkpoint_loads_with_one_line_that_names_the_settings_of_the_configuration(caplog):
    with caplog.at_level(logging.INFO):
        found = with_notes(load_config(["--img_width=640"]), {}, "zoo.ckpt")
    assert found.img_width == 640
    (line,) = [record.getMessage() for record in caplog.records]
    for part in (
        "zoo.ckpt",
        "img_width 640",
        "img_height 768",
        "anchor_scales [8.0]",
        "keep_ratio True",
        "coco_classes",
        "backbone resnet_v1.5_50",
        "rcnn_target_stds [0.1, 0.1, 0.2, 0.2]",
    ):
        assert part in line


def test_notes_of_the_first_release_give_backbone_and_classes(caplog):
    entries = {"meta_backbone": "resnet_v1_101", "meta_classes": "background,cat"}
    with caplog.at_level(logging.WARNING):
        found = with_notes(load_config([]), entries, "old.ckpt")
    assert (found.backbone, found.resnet_block) == ("resnet_v1_101", (3, 4, 23, 3))
    assert found.coco_classes == ("background", "cat") and found.num_classes == 2
    assert "img_width 1280" in caplog.text and "coco_classes" not in caplog.text


def test_a_checkpoint_without_notes_takes_classes_that_are_auto_from_the_evaluation(tmp_path, caplog):
    (tmp_path / "annotations").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    flags = ["--coco_classes=auto", f"--coco_root={tmp_path}"]
    with caplog.at_level(logging.WARNING):
        found = with_notes(load_config(flags), {}, "zoo.ckpt")
    assert (found.coco_classes, found.num_classes) == (("background", "dog", "cat"), 3)
    first, second = caplog.records
    assert "instances_val2017.json, in its order" in first.getMessage()
    assert "coco_classes ['background', 'dog', 'cat']" in second.getMessage()
    with pytest.raises(UserError, match="neither does the model's file note its classes nor are there evaluation"):
        with_notes(load_config(["--coco_classes=auto", f"--coco_root={tmp_path / 'none'}"]), {}, "zoo.ckpt")


@pytest.mark.parametrize(
    "entries",
    [
        *({META_DETECTOR: text} for text in ("{", "[]", "{}", '{"version": "1", "settings": {}}', "null")),
        {"meta_backbone": "resnet99"},
        {"meta_classes": "[broken"},
        {"meta_classes": 3},
    ],
)
def test_damaged_notes_are_refused_by_file(entries):
    with pytest.raises(UserError, match=r"a\.ckpt: its notes are damaged"):
        noted_settings(entries, "a.ckpt")


def test_values_that_do_not_go_together_name_the_file_they_come_from():
    with pytest.raises(UserError, match="test_nms_candidates.*Other values come from the model: checkpoint a.ckpt was"):
        with_notes(load_config(["--test_nms_candidates=200"]), trained_notes("--test_max_per_img=300"), "a.ckpt")


def changed_notes(change):
    notes = json.loads(trained_notes()[META_DETECTOR])
    change(notes)
    return {META_DETECTOR: json.dumps(notes)}


def test_weights_for_other_normalisation_are_refused():
    entries = changed_notes(lambda notes: notes["normalisation"].update(colour_order="BGR"))
    with pytest.raises(UserError, match=r"a\.ckpt was trained with normalisation .*BGR"):
        noted_settings(entries, "a.ckpt")


def test_notes_of_a_newer_version_are_refused():
    entries = changed_notes(lambda notes: notes.update(version="9.1", settings=notes["settings"] | {"warp": 1}))
    with pytest.raises(UserError, match=r"version 9\.1 and notes warp"):
        noted_settings(entries, "a.ckpt")


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small detector of an unusual kind, as training writes it."""
    folder = tmp_path_factory.mktemp("trained")
    config = config_of("--stem_pool_pad=symmetric", "--anchor_scales=[4]", save_checkpoint_path=str(folder))
    Checkpoints(config, Device("CPU")).save(build_detector(config), config.epoch_size, 1)
    (path,) = folder.rglob("*.ckpt")
    return path


def test_training_notes_every_setting_in_its_checkpoints(checkpoint):
    noted = noted_settings(read_checkpoint(checkpoint), checkpoint)
    assert set(noted) == set(NOTED_KEYS)
    assert (noted["img_width"], noted["anchor_scales"], noted["resnet_block"]) == (128, (4.0,), (1, 1, 1, 1))


@pytest.mark.usefixtures("graph_mode")
def test_a_checkpoint_needs_no_flags(checkpoint):
    """Not even the sizes of its small network, which the defaults do not have."""
    model = load_model(checkpoint, load_config(["--device_target=CPU"]))
    assert (model.info.canvas.width, model.info.canvas.height) == (128, 64)
    assert model.config.anchor_scales == (4.0,)


def test_finetuning_takes_the_network_and_leaves_classes_to_the_user(checkpoint):
    flags = [
        "--finetune=True",
        f"--pre_trained={checkpoint}",
        "--coco_classes=['background','new']",
        "--img_width=256",
        "--rcnn_target_stds=[0.3,0.3,0.3,0.3]",
    ]
    config = pretrained_config(load_config(flags))
    assert (config.stem_pool_pad, config.anchor_scales, config.resnet_block) == ("symmetric", (4.0,), (1, 1, 1, 1))
    assert (config.img_width, config.img_height) == (256, 64)
    assert config.rcnn_target_stds == (0.3, 0.3, 0.3, 0.3)
    assert config.coco_classes == ("background", "new")
    load_pretrained(build_detector(config), checkpoint, finetune=True)
    with pytest.raises(UserError, match="--anchor_scales is"):
        pretrained_config(load_config([*flags, "--anchor_scales=[16]"]))


def test_a_backbone_brings_only_its_own_settings(checkpoint, tmp_path):
    main([f"--ckpt_file={checkpoint}", f"--output={tmp_path / 'backbone.ckpt'}"])
    for path in (checkpoint, tmp_path / "backbone.ckpt"):
        config = pretrained_config(load_config([f"--pre_trained={path}"]))
        assert (config.stem_pool_pad, config.resnet_block) == ("symmetric", (1, 1, 1, 1))
        assert (config.img_width, config.anchor_scales, config.fpn_out_channels) == (1280, (8.0,), 256)
        with pytest.raises(UserError, match="--stem_pool_pad is same"):
            pretrained_config(load_config([f"--pre_trained={path}", "--stem_pool_pad=same"]))


def test_no_checkpoint_leaves_the_configuration_alone():
    config = load_config(["--pre_trained="])
    assert pretrained_config(config) is config


def test_without_a_checkpoint_both_ways_to_start_are_named(config_file):
    """The published default is a path of another machine."""
    for flags in ([], [config_file("batch_size: 1")]):
        with pytest.raises(UserError, match="/cache/train.*does not exist.*--pre_trained=.*--recipe=scratch"):
            pretrained_config(load_config(flags))
    with pytest.raises(UserError, match="own.ckpt does not exist; expected"):
        pretrained_config(load_config([config_file("pre_trained: own.ckpt")]))


@pytest.mark.parametrize(
    "text, key",
    [
        ("backbone: resnet_v1_101", "backbone"),
        ("backbone: resnet_v1_50", "backbone"),
        ("anchor_scales: [8]", "anchor_scales"),
    ],
)
@pytest.mark.parametrize("finetune", [True, False])
def test_a_recipe_that_contradicts_is_not_trained_as_something_else(checkpoint, config_file, text, key, finetune):
    """Also where it states what happens to be the default; a backbone alone knows no anchors."""
    config = load_config([config_file(text), f"--pre_trained={checkpoint}", f"--finetune={finetune}"])
    if key == "anchor_scales" and not finetune:
        assert pretrained_config(config).anchor_scales == (8.0,)
        return
    with pytest.raises(UserError, match=rf"{key} in .*own\.yaml is .*, but checkpoint .* was trained with"):
        pretrained_config(config)


def test_the_shipped_file_of_another_depth_is_not_trained_as_this_one(checkpoint):
    with pytest.raises(UserError, match="backbone in .*default_config_101.yaml is resnet_v1_101"):
        pretrained_config(load_config(["--config_path=default_config_101.yaml", f"--pre_trained={checkpoint}"]))


def test_a_recipe_gives_the_whole_canvas_of_a_finetuning(checkpoint, config_file):
    """1344 x 768 is that of the file, whose height is the default, and not 1344 x 64."""
    for text in ("img_width: 1344\nimg_height: 768\n", "img_width: 1344\n"):
        config = pretrained_config(load_config([config_file(text), f"--pre_trained={checkpoint}", "--finetune=True"]))
        assert (config.img_width, config.img_height) == (1344, 768)
    config = pretrained_config(load_config([f"--pre_trained={checkpoint}", "--finetune=True"]))
    assert (config.img_width, config.img_height) == (128, 64)


def test_a_missing_checkpoint_is_named():
    with pytest.raises(UserError, match=r"nowhere\.ckpt does not exist"):
        noted_config(dataclasses.replace(load_config([])), "nowhere.ckpt")

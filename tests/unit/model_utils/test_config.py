"""The configuration: what the files hold, what is accepted, what is refused and with which words."""

import dataclasses
import json
import pickle
import subprocess
import sys
import textwrap

import pytest
import yaml

from src.model_utils import config as config_module
from src.model_utils import config_checks
from src.model_utils.config import Config, describe, load_config
from src.model_utils.errors import ConfigError, UserError
from src.model_utils.keys import AUTO_CLASSES, GROUPS, RoiLayer, graph_settings, key_types
from tests.helpers import REPO_ROOT, SHARED

PUBLISHED = SHARED / "config-defaults.json"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"the published defaults are not at {PUBLISHED}")
OWN_KEYS = {
    "frozen_stages": 1,
    "norm_eval": True,
    "stem_pool_pad": "same",
    "seed": 1,
    "milestones": [8, 11],
    "grad_clip_norm": 1.0,
    "test_nms_candidates": 2000,
    "log_interval": 1,
    "keep_old_run": False,
    "onnx_precision": "float32",
    "calibration_images": 64,
    "ignore_unknown": False,
    "val_anno_path": "",
    "skip_bad_images": False,
    "eval_output_path": "./",
    "draw_images": 0,
    "thaw_epoch": 0,
    "rcnn_loss_beta": 1.0,
    "backbone_lr_factor": 1.0,
    "ema_decay": 0.0,
    "dynamic_loss_scale": False,
    "accumulate_steps": 1,
    "best_metric": "AP",
    "patience": 0,
    "compile_cache_path": "~/.cache/mindspore_faster_rcnn",
    "min_scale": 1.0,
    "photometric_ratio": 0.0,
    "mosaic_ratio": 0.0,
    "repeat_thr": 0.0,
    "recipe": "",
}
# What --recipe=scratch sets.
SCRATCH = {
    "pre_trained": "",
    "frozen_stages": -1,
    "norm_eval": False,
    "opt_type": "adam",
    "base_lr": 0.0016,
    "warmup_step": 100,
    "expand_ratio": 0.0,
    "rcnn_loss_beta": 0.1111,
    "ema_decay": 0.99,
}


@pytest.fixture
def config_file(tmp_path):
    """Write a configuration file and give its path."""

    def write(text, name="own.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def load_error(*argv):
    with pytest.raises(ConfigError) as caught:
        load_config([str(argument) for argument in argv])
    message = str(caught.value)
    assert "\n" not in message
    return message


def as_plain(value):
    """Tuples as lists, the RoI layer as a dict: what JSON and YAML hold."""
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, RoiLayer) else value


# ---- shipped files -----------------------------------------------------------------------------------------


def documents(name):
    return list(yaml.safe_load_all((REPO_ROOT / name).read_text(encoding="utf-8")))


@needs_published
@pytest.mark.parametrize(
    "name",
    [
        "default_config.yaml",
        "default_config_101.yaml",
        "default_config_152.yaml",
        "fasterrcnn_facemask_config_cpu.yaml",
    ],
)
def test_shipped_files_hold_the_published_keys_and_values(name):
    published = json.loads(PUBLISHED.read_text())[name]
    own = OWN_KEYS if name == "default_config.yaml" else {}
    assert documents(name)[0] == published | own


@needs_published
def test_without_flags_the_configuration_is_the_published_one():
    config = load_config([])
    published = json.loads(PUBLISHED.read_text())["default_config.yaml"] | OWN_KEYS
    assert {key: as_plain(getattr(config, key)) for key in published} == published


def test_fields_and_yaml_keys_are_the_same_in_the_same_order():
    values, help_texts, choices = documents("default_config.yaml")
    assert list(values) == list(key_types())
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields == set(values) | {"config_path", "command_line", "file_keys", "recipe_keys", "auto_keys"}
    assert list(help_texts) == list(values)
    assert set(choices) <= set(values)


def test_every_help_text_is_a_sentence():
    help_texts = documents("default_config.yaml")[1]
    for key, text in help_texts.items():
        assert text.endswith(".") and text[0].isupper() and len(text.split()) >= 2, key


def test_every_group_has_a_heading_and_the_yaml_names_it():
    text = (REPO_ROOT / "default_config.yaml").read_text(encoding="utf-8")
    for group in GROUPS:
        assert f"# ---- {group.__doc__} " in text


def test_fixed_values_and_tables_fit_the_shipped_file():
    values = documents("default_config.yaml")[0]
    for key, (only_value, _) in config_checks.FIXED_KEYS.items():
        assert as_plain(only_value) == values[key], key
    for key, (default, decider) in config_checks.ECHO_KEYS.items():
        assert default == values[key] == values[decider]
    for _, _, keys in config_checks.RANGES:
        assert set(keys) <= set(values)
    assert set(documents("default_config.yaml")[2]["backbone"]) == set(config_checks.BACKBONE_BLOCKS)


@pytest.mark.parametrize(
    "backbone, blocks, base_lr",
    [
        ("resnet_v1.5_50", (3, 4, 6, 3), 0.04),
        ("resnet_v1_50", (3, 4, 6, 3), 0.04),
        ("resnet_v1_101", (3, 4, 23, 3), 0.02),
        ("resnet_v1_152", (3, 8, 36, 3), 0.02),
        ("resnet_caffe_101", (3, 4, 23, 3), 0.02),
        ("resnet_caffe_152", (3, 8, 36, 3), 0.02),
    ],
)
def test_backbone_picks_the_file(backbone, blocks, base_lr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # found below the repository, wherever the program is started
    config = load_config([f"--backbone={backbone}"])
    assert (config.backbone, config.resnet_block, config.base_lr) == (backbone, blocks, base_lr)


def test_facemask_example():
    config = load_config(["--config_path=fasterrcnn_facemask_config_cpu.yaml", "--coco_root=/faces"])
    assert config.class_names == ("with_mask", "without_mask", "mask_worn_incorrectly")
    assert (config.num_classes, config.device_target, config.base_lr) == (4, "CPU", 0.005)
    assert config.mindrecord_dir == "/faces/MindRecord_COCO_TRAIN"


# ---- derived values ----------------------------------------------------------------------------------------


def test_sizes_of_the_default_canvas():
    config = load_config([])
    assert config.feature_shapes == ((192, 320), (96, 160), (48, 80), (24, 40), (12, 20))
    assert config.num_bboxes == 3 * (192 * 320 + 96 * 160 + 48 * 80 + 24 * 40 + 12 * 20) == 245520
    assert config.num_fg_classes == 80
    assert config.class_names[0] == "person" and config.class_names[-1] == "toothbrush"


def test_num_classes_follows_the_names_given_as_a_flag():
    config = load_config(["--coco_classes=['background','cat']"])
    assert (config.num_classes, config.num_fg_classes, config.class_names) == (2, 1, ("cat",))


def test_num_classes_in_a_file_is_derived(config_file):
    path = config_file("coco_classes: [background, cat, dog]\nnum_classes: 81\n")
    assert load_config([f"--config_path={path}"]).num_classes == 3


def test_num_classes_as_a_flag_is_checked():
    assert load_config(["--num_classes=81"]).num_classes == 81
    message = load_error("--num_classes=4")
    assert "num_classes is 4" in message and "81" in message and "coco_classes" in message


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], "/disk2/dataset/COCO2017/MindRecord_COCO_TRAIN"),
        (["--coco_root=/data/coco"], "/data/coco/MindRecord_COCO_TRAIN"),
        (["--coco_root=/data/coco", "--mindrecord_dir=/fast/records"], "/fast/records"),
        (["--coco_root=/d", "--mindrecord_dir=/data/MindRecord_COCO_TRAIN"], "/data/MindRecord_COCO_TRAIN"),
        (["--dataset=other", "--image_dir=/images"], "/images/MindRecord_COCO_TRAIN"),
        (["--dataset=other", "--image_dir=/images", "--coco_root=/d"], "/d/MindRecord_COCO_TRAIN"),
    ],
)
def test_mindrecord_dir_follows_the_data_unless_given(flags, expected):
    assert load_config(flags).mindrecord_dir == expected


def test_mindrecord_dir_of_a_users_own_file_counts_as_given(config_file):
    path = config_file("mindrecord_dir: /fast/records\n")
    assert load_config([f"--config_path={path}", "--coco_root=/d"]).mindrecord_dir == "/fast/records"


# ---- the value itself --------------------------------------------------------------------------------------


def test_config_is_frozen_hashable_and_picklable():
    config = load_config([])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.img_width = 64
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.roi_layer.out_size = 14
    assert pickle.loads(pickle.dumps(config)) == config
    assert len({config, load_config([])}) == 1


def test_roi_layer_is_read_like_the_mapping_of_the_yaml():
    layer = load_config([]).roi_layer
    assert layer["out_size"] == layer.out_size == 7
    assert layer == {"type": "RoIAlign", "out_size": 7, "sample_num": 2}
    with pytest.raises(KeyError):
        layer["keys"]


def test_replace_checks_again():
    config = load_config([])
    assert dataclasses.replace(config, img_width=320).feature_shapes[0] == (192, 80)
    with pytest.raises(ConfigError, match="img_width is 300.*256 and 320"):
        dataclasses.replace(config, img_width=300)
    with pytest.raises(ConfigError, match="num_classes is 81.*expected 2"):
        dataclasses.replace(config, coco_classes=("background", "cat"))


def test_replace_may_build_a_smaller_network():
    assert dataclasses.replace(load_config([]), resnet_block=(1, 1, 1, 1)).resnet_block == (1, 1, 1, 1)


def test_config_error_is_a_users_mistake():
    assert issubclass(ConfigError, UserError)


# ---- command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, key, value",
    [
        ("--base_lr=0.02", "base_lr", 0.02),
        ("--weight_decay=1e-4", "weight_decay", 1e-4),
        ("--loss_scale=1", "loss_scale", 1.0),
        ("--batch_size=4", "batch_size", 4),
        ("--frozen_stages=-1", "frozen_stages", -1),
        ("--finetune=True", "finetune", True),
        ("--finetune=true", "finetune", True),
        ("--keep_ratio=False", "keep_ratio", False),
        ("--keep_ratio=false", "keep_ratio", False),
        ("--prefix=", "prefix", ""),
        ("--val_data_type=2017", "val_data_type", "2017"),
        ("--coco_root=/a b/c=d", "coco_root", "/a b/c=d"),
        ("--milestones=[3, 5]", "milestones", (3, 5)),
        ("--milestones=(3,5)", "milestones", (3, 5)),
        ("--milestones=[]", "milestones", ()),
        ("--rcnn_target_stds=[1, 1, 2, 2]", "rcnn_target_stds", (1.0, 1.0, 2.0, 2.0)),
        (
            "--roi_layer={'type': 'RoIAlign', 'out_size': 14, 'sample_num': 2}",
            "roi_layer",
            {"type": "RoIAlign", "out_size": 14, "sample_num": 2},
        ),
        ("--distribute=True", "run_distribute", True),
        ("--checkpoint=a.ckpt", "checkpoint_path", "a.ckpt"),
    ],
)
def test_flags(flag, key, value):
    config = load_config([flag])
    assert getattr(config, key) == value
    assert isinstance(getattr(config, key), bool) == isinstance(value, bool)  # 1 == True
    assert config.command_line == {key}


def test_flag_and_value_may_be_two_arguments():
    config = load_config(["--base_lr", "0.01", "--coco_classes", "['background', 'cat']"])
    assert (config.base_lr, config.coco_classes) == (0.01, ("background", "cat"))
    assert config.command_line == {"base_lr", "coco_classes"}


def test_flags_win_over_the_file(config_file):
    path = config_file("base_lr: 0.5\nbatch_size: 3\n")
    config = load_config([f"--config_path={path}", "--base_lr=0.25"])
    assert (config.base_lr, config.batch_size) == (0.25, 3)
    assert config.config_path == str(path)


def test_argv_none_is_the_programs_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epoch_size=7"])
    assert load_config().epoch_size == 7


def test_import_ignores_the_command_line_and_leaves_mindspore_alone():
    code = "import sys, src.model_utils.config, src.model_utils.device_adapter; print('mindspore' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code, "--nope", "--config_path=missing.yaml"],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (ended.stdout.strip(), ended.stderr) == ("False", "")


def test_help_lists_groups_keys_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        load_config(["--help", "--backbone=resnet_v1_101"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for group in GROUPS:
        assert f"{group.__doc__}:" in text
    for key in key_types():
        assert f"--{key} " in text
    assert "(default: 0.02)" in text


def test_loading_prints_nothing(capsys):
    load_config(["--backbone=resnet_v1_152"])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--bse_lr=1"], ["unknown flag --bse_lr", "base_lr"]),
        (["--checkpont", "a.ckpt"], ["unknown flag --checkpont", "Did you mean checkpoint"]),
        (["--zzzqqq=1"], ["unknown flag --zzzqqq"]),
        (["--base_l=1"], ["unknown flag --base_l"]),  # no abbreviations
        (["stray"], ["unexpected argument 'stray'"]),
        (["--base_lr"], ["--base_lr", "expected one argument"]),
        (["--base_lr=1", "--base_lr=2"], ["--base_lr", "twice"]),
        (["--distribute=True", "--run_distribute=False"], ["--run_distribute", "twice"]),
        (["--num_bboxes=245520"], ["num_bboxes", "derived"]),
    ],
)
def test_refused_flags(argv, words):
    message = load_error(*argv)
    assert all(word in message for word in words), message


# ---- types -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--base_lr=fast", ["'fast'", "expected a number, or auto."]),
        ("--base_lr=Auto", ["'Auto'", "expected a number, or auto."]),
        ("--weight_decay=auto", ["'auto'", "expected a number."]),
        ("--milestones=auto", ["'auto'", "expected a list of integers"]),
        ("--base_lr=nan", ["'nan'", "a number"]),
        ("--base_lr=inf", ["'inf'", "a number"]),
        ("--batch_size=2.0", ["'2.0'", "an integer"]),
        ("--batch_size=True", ["'True'", "an integer"]),
        ("--batch_size=" + "9" * 5000, ["999", "an integer"]),  # longer than Python converts
        ("--finetune=yes", ["'yes'", "True or False"]),
        ("--finetune=1", ["'1'", "True or False"]),
        ("--finetune=TRUE", ["'TRUE'", "True or False"]),
        ("--milestones=8", ["8", "a list of integers"]),
        ("--milestones=[8, 11.5]", ["11.5", "a list of integers"]),
        ("--anchor_scales=['a']", ["'a'", "a list of numbers"]),
        ("--coco_classes=background,cat", ["'background,cat'", "['background', 'cat']"]),
        ("--coco_classes=['background'", ["a list of strings", ", or auto."]),
        ("--coco_classes=['background', 1]", ["a list of strings"]),
        ("--roi_layer={type: RoIAlign}", ["mapping with the keys type, out_size, sample_num"]),
        ("--roi_layer={type: RoIAlign, out_size: big, sample_num: 2}", ["roi_layer.out_size", "an integer"]),
    ],
)
def test_wrong_types_as_flags(flag, words):
    message = load_error(flag)
    assert flag.split("=")[0] in message and "command line" in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "line, words",
    [
        ("base_lr: fast", ["base_lr is 'fast'", "a number"]),
        ("base_lr: True", ["base_lr is True", "a number"]),
        ("base_lr: .nan", ["base_lr is nan", "a number"]),
        ("base_lr: [0.1]", ["base_lr is [0.1]", "a number"]),
        ("base_lr:", ["base_lr is None", "a number"]),
        ("epoch_size: '3'", ["epoch_size is '3'", "an integer"]),
        ("epoch_size: 3.0", ["epoch_size is 3.0", "an integer"]),
        ("keep_ratio: 'True'", ["keep_ratio is 'True'", "True or False"]),
        ("keep_ratio: yes", ["keep_ratio is 'yes'", "True or False"]),
        ("keep_ratio: 1", ["keep_ratio is 1", "True or False"]),
        ("val_data_type: 2017", ["val_data_type is 2017", "a string"]),
        ("coco_classes: [background, 1]", ["coco_classes is ['background', 1]", "a list of strings"]),
        ("rcnn_target_stds: 0.1", ["rcnn_target_stds is 0.1", "a list of numbers"]),
    ],
)
def test_wrong_types_in_a_file(config_file, line, words):
    path = config_file(line + "\n")
    message = load_error(f"--config_path={path}")
    assert str(path) in message
    assert all(word in message for word in words), message


def test_exponent_without_a_point_is_a_number(config_file):
    assert yaml.safe_load("1e-4") == "1e-4"  # the reason: YAML 1.1 takes it for a string
    path = config_file("weight_decay: 1e-4\nrcnn_target_stds: [1e-1, 0.1, 2e-1, 0.2]\n")
    config = load_config([f"--config_path={path}"])
    assert config.weight_decay == 1e-4
    assert config.rcnn_target_stds == (0.1, 0.1, 0.2, 0.2)


def test_a_class_may_be_called_no(config_file):
    path = config_file("coco_classes: [background, yes, no, off]\n")
    assert load_config([f"--config_path={path}"]).class_names == ("yes", "no", "off")


# ---- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--img_width=800", ["800", "multiple of 64", "768 and 832"]),
        ("--img_height=10", ["multiple of 64", "are 64."]),
        ("--img_height=0", ["greater than 0"]),
        ("--img_width=-64", ["greater than 0"]),
        ("--epoch_size=-1", ["greater than 0"]),
        ("--epoch_size=0", ["greater than 0"]),
        ("--batch_size=0", ["greater than 0"]),
        ("--base_lr=-0.1", ["greater than 0"]),
        ("--interval=0", ["greater than 0"]),
        ("--keep_checkpoint_max=0", ["greater than 0"]),
        ("--save_checkpoint_epochs=0", ["greater than 0"]),
        ("--loss_scale=0", ["greater than 0"]),
        ("--warmup_step=-1", ["0 or more"]),
        ("--weight_decay=-0.1", ["0 or more"]),
        ("--device_id=-1", ["0 or more"]),
        ("--momentum=1", ["from 0 up to"]),
        ("--flip_ratio=1.5", ["from 0 to 1"]),
        ("--expand_ratio=-0.5", ["from 0 to 1"]),
        ("--min_scale=0", ["greater than 0, up to 1"]),
        ("--min_scale=1.1", ["greater than 0, up to 1"]),
        ("--photometric_ratio=1.1", ["from 0 to 1"]),
        ("--mosaic_ratio=-0.1", ["from 0 to 1"]),
        ("--repeat_thr=2", ["from 0 to 1"]),
        ("--test_score_thr=2", ["from 0 to 1"]),
        ("--rpn_nms_thr=-1", ["from 0 to 1"]),
        ("--frozen_stages=5", ["-1"]),
        ("--seed=-1", ["from 0"]),
        ("--anchor_scales=[]", ["at least one value"]),
        ("--anchor_ratios=[0.5, 0, 2]", ["greater than 0"]),
        ("--anchor_ratios=[0.5, -1, 2]", ["greater than 0"]),
        ("--anchor_ratios=[1]", ["num_anchors is 3", "expected 1"]),
        ("--num_anchors=4", ["expected 3"]),
        ("--anchor_strides=[4, 8, 16, 32]", ["[4, 8, 16, 32, 64]"]),
        ("--anchor_strides=[]", ["[4, 8, 16, 32, 64]"]),
        ("--fpn_num_outs=6", ["anchor_strides", "[4, 8, 16, 32, 64, 128]"]),
        ("--fpn_num_outs=3", ["at least 4"]),
        ("--roi_align_featmap_strides=[8, 16]", ["first values of anchor_strides"]),
        ("--rcnn_target_stds=[0.1, 0.2]", ["four values"]),
        ("--rcnn_target_stds=[0.1, 0.1, 0, 0.2]", ["greater than 0"]),
        ("--rcnn_target_means=[]", ["four values"]),
        ("--resnet_block=[1, 1, 1, 1]", ["[3, 4, 6, 3]", "resnet_v1.5_50"]),
        ("--resnet_in_channels=[64, 64, 64, 64]", ["[64, 256, 512, 1024]"]),
        ("--fpn_in_channels=[1, 2, 3, 4]", ["resnet_out_channels"]),
        ("--rpn_in_channels=128", ["fpn_out_channels, 256"]),
        ("--roi_align_out_channels=128", ["fpn_out_channels, 256"]),
        ("--rcnn_in_channels=128", ["fpn_out_channels, 256"]),
        ("--num_bboxes_stage2=1000", ["rpn_proposal_max_num, 2000"]),
        ("--roi_sample_num=512", ["expected 640"]),
        ("--neg_iou_thr=0.8", ["pos_iou_thr"]),
        ("--neg_iou_thr_stage2=0.8", ["pos_iou_thr_stage2"]),
        ("--num_expected_pos=300", ["num_expected_neg"]),
        ("--test_max_per_img=3000", ["test_nms_candidates"]),
        ("--roi_layer={type: RoIPool, out_size: 7, sample_num: 2}", ["RoIAlign"]),
        ("--roi_layer={type: RoIAlign, out_size: 0, sample_num: 2}", ["out_size greater than 0"]),
        ("--coco_classes=['cat','dog']", ["background"]),
        ("--coco_classes=['background']", ["at least one class"]),
        ("--coco_classes=['background','cat','cat']", ["repeated: cat"]),
        ("--coco_classes=['background',' ']", ["not empty"]),
        ("--instance_set=annotations/{name}.json", ["one {}"]),
        ("--instance_set=annotations/{}{}.json", ["one {}"]),
        ("--instance_set=annotations/{.json", ["one {}"]),
        ("--milestones=[11, 8]", ["above the one before"]),
        ("--milestones=[0, 8]", ["greater than 0"]),
    ],
)
def test_refused_values(flag, words):
    message = load_error(flag)
    key = flag[2:].split("=")[0]
    assert key in message or words[0] in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "flag, words",
    [
        ("--lr_type=cosine", ["dynamic", "multistep"]),
        ("--opt_type=SGD", ["sgd", "adam"]),
        ("--dataset=voc", ["coco", "other"]),
        ("--device_target=gpu", ["Ascend", "GPU", "CPU"]),
        ("--file_format=MINDRI", ["Did you mean MINDIR"]),
        ("--stem_pool_pad=valid", ["same", "symmetric"]),
        ("--backbone=resnet_v1.5_5", ["Did you mean resnet_v1.5_50"]),
    ],
)
def test_refused_choices(flag, words):
    message = load_error(flag)
    assert all(word in message for word in [flag.split("=")[1], "expected one of", *words]), message


def test_a_users_file_may_narrow_the_choices(config_file):
    path = config_file("---\nbase_lr: 0.1\n---\nbase_lr: 'How fast to learn.'\n---\nbatch_size: [1, 2]\n")
    assert load_config([f"--config_path={path}"]).base_lr == 0.1
    assert "expected one of 1, 2" in load_error(f"--config_path={path}", "--batch_size=4")


@pytest.mark.parametrize(
    "lr_type, epoch_size, refused", [("multistep", 12, False), ("multistep", 11, True), ("dynamic", 1, False)]
)
def test_milestones_beyond_the_end(lr_type, epoch_size, refused):
    argv = [f"--lr_type={lr_type}", f"--epoch_size={epoch_size}"]
    if refused:
        assert "milestones is [8, 11]" in load_error(*argv)
    else:
        assert load_config(argv).milestones == (8, 11)


@pytest.mark.parametrize(
    "flag",
    [
        "--prefix=my",
        "--rpn_cls_out_channels=2",
        "--rpn_head_use_sigmoid=False",
        "--rpn_head_weight=2",
        "--activate_num_classes=3",
        "--use_sigmoid_cls=False",
        "--rcnn_num_layers=3",
        "--rpn_proposal_nms_across_levels=True",
        "--rpn_nms_across_levels=True",
        "--rpn_proposal_min_bbox_size=2",
        "--rpn_min_bbox_min_size=2",
        "--sgd_step=[3, 5]",
        "--sgd_momentum=0.8",
    ],
)
def test_keys_without_effect_are_accepted_at_their_default_only(flag):
    key = flag[2:].split("=")[0]
    default = as_plain(getattr(load_config([]), key))
    assert as_plain(getattr(load_config([f"--{key}={default}"]), key)) == default
    message = load_error(flag)
    assert message.startswith(f"{key} is ") and "its default" in message and len(message.split(";")[1]) > 10


@pytest.mark.parametrize(("key", "value", "only"), [("rank_id", 1, 0), ("device_num", 8, 1)])
def test_a_run_of_one_process_takes_no_other_place(config_file, key, value, only):
    message = load_error(f"--{key}={value}")
    assert message.startswith(f"{key} is {value} (from the command line): expected {only}, because this run is one pro")
    assert "scripts/run_distribute_train_*.sh" in message
    assert getattr(load_config([f"--{key}={only}"]), key) == only
    assert getattr(load_config([f"--config_path={config_file(f'{key}: {value}')}"]), key) == value
    for several in ("--run_distribute=True", "--enable_modelarts=True"):
        assert getattr(load_config([several, f"--{key}={value}"]), key) == value


@pytest.mark.parametrize(
    "key, decider",
    [
        ("rpn_proposal_nms_post", "rpn_proposal_max_num"),
        ("rpn_nms_post", "rpn_max_num"),
        ("num_expected_total_stage2", "num_expected_neg_stage2"),
    ],
)
def test_keys_that_may_only_repeat_another(key, decider):
    equations = {
        "rpn_proposal_max_num": ["--num_bboxes_stage2=300"],
        "rpn_max_num": [],
        "num_expected_neg_stage2": ["--roi_sample_num=428"],
    }[decider]
    assert decider in load_error(f"--{key}=300")
    changed = [f"--{decider}=300", *equations]
    assert getattr(load_config(changed), decider) == 300
    assert getattr(load_config([*changed, f"--{key}=300"]), key) == 300


@pytest.mark.parametrize(
    "flags",
    [
        ["--test_max_per_img=50"],
        ["--grad_clip=True", "--grad_clip_norm=5"],
        ["--rank_id=0"],
        ["--warmup_step=0"],
        ["--rpn_target_stds=[0.5, 0.5, 1, 1]"],
        ["--warmup_ratio=1"],
        ["--img_width=640", "--img_height=640"],
        ["--anchor_ratios=[1]", "--num_anchors=1"],
        ["--anchor_scales=[4, 8]", "--num_anchors=6"],
        ["--fpn_num_outs=4", "--anchor_strides=[4, 8, 16, 32]"],
    ],
)
def test_accepted_values(flags):
    assert load_config(flags).command_line == {flag[2:].split("=")[0] for flag in flags}


def test_a_sixth_level_needs_a_canvas_of_its_stride():
    argv = ["--fpn_num_outs=6", "--anchor_strides=[4,8,16,32,64,128]", "--img_height=768"]
    assert load_config(argv).feature_shapes[-1] == (6, 10)
    assert "multiple of 128; the next are 640 and 768" in load_error(*argv[:2], "--img_height=704")


# ---- files -------------------------------------------------------------------------------------------------


def test_a_users_file_needs_only_what_it_changes(config_file):
    path = config_file("batch_size: 1\n")
    config = load_config([f"--config_path={path}"])
    assert config.batch_size == 1
    assert config.file_keys == {"batch_size"}
    assert dataclasses.replace(config, batch_size=2, config_path="", file_keys=frozenset()) == dataclasses.replace(
        load_config([]), config_path=""
    )


def test_a_users_file_is_read_on_top_of_its_backbones_file(config_file):
    path = config_file("backbone: resnet_v1_152\nbatch_size: 1\n")
    config = load_config([f"--config_path={path}"])
    assert (config.resnet_block, config.base_lr, config.batch_size) == ((3, 8, 36, 3), 0.02, 1)


def test_a_full_file_of_the_users_own_is_read_as_it_is(config_file):
    values, help_texts, choices = documents("default_config.yaml")
    values = {key: value for key, value in values.items() if key not in OWN_KEYS}
    values |= {"base_lr": 0.1, "backbone": "resnet_v1_101", "resnet_block": [3, 4, 23, 3]}
    # published files carry leftovers of other projects in their help texts and choices
    help_texts, choices = {"parameter_server": "Run parameter server train"}, {"dataset_name": ["cifar10"]}
    path = config_file(yaml.safe_dump_all([values, help_texts, choices]))
    config = load_config([f"--config_path={path}"])
    assert (config.base_lr, config.backbone, config.resnet_block) == (0.1, "resnet_v1_101", (3, 4, 23, 3))
    assert config.milestones == (8, 11)


def test_relative_paths_go_from_the_current_folder_then_the_repository(config_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(["--config_path=default_config_101.yaml"]).backbone == "resnet_v1_101"
    config_file("backbone: resnet_v1_101\nbase_lr: 0.7\n", "default_config_101.yaml")
    assert load_config(["--config_path=default_config_101.yaml"]).base_lr == 0.7
    assert load_config(["--config_path", "./default_config_101.yaml"]).base_lr == 0.7


def test_default_config_50_is_a_name_of_the_first_file(config_file):
    assert load_config(["--config_path=default_config_50.yaml"]).resnet_block == (3, 4, 6, 3)
    assert load_config([f"--config_path={REPO_ROOT}/default_config_50.yaml"]).resnet_block == (3, 4, 6, 3)
    path = config_file("base_lr: 0.7\n", "default_config_50.yaml")  # unless there is a file of that name
    assert load_config([f"--config_path={path}"]).base_lr == 0.7


def test_aliases_in_a_file_win_over_the_key(config_file):
    path = config_file("run_distribute: False\ndistribute: True\ncheckpoint: a.ckpt\n")
    config = load_config([f"--config_path={path}"])
    assert config.run_distribute is True
    assert config.checkpoint_path == "a.ckpt"


@pytest.mark.parametrize(
    "file, backbone, right_file",
    [
        ("default_config.yaml", "resnet_v1_101", "default_config_101.yaml"),
        ("default_config_101.yaml", "resnet_v1_152", "default_config_152.yaml"),
        ("default_config_152.yaml", "resnet_v1.5_50", "default_config.yaml"),
    ],
)
def test_file_and_backbone_of_different_depth(file, backbone, right_file):
    message = load_error(f"--config_path={file}", f"--backbone={backbone}")
    assert backbone in message and file in message and f"--config_path={right_file}" in message


def test_both_50_layer_backbones_share_a_file():
    config = load_config(["--config_path=default_config.yaml", "--backbone=resnet_v1_50"])
    assert config.backbone == "resnet_v1_50"


def test_file_with_the_blocks_of_another_backbone(config_file):
    path = config_file("resnet_block: [3, 4, 23, 3]\n")
    message = load_error(f"--config_path={path}")
    assert "resnet_block is [3, 4, 23, 3]" in message and "resnet_v1.5_50" in message
    assert load_config([f"--config_path={path}", "--backbone=resnet_v1_101"]).resnet_block == (3, 4, 23, 3)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["empty"]),
        ("# only a comment\n", ["empty"]),
        ("{}\n", ["empty"]),
        ("- base_lr\n- 0.1\n", ["first YAML document", "mapping"]),
        ("just words\n", ["first YAML document", "mapping"]),
        ("1: 2\n", ["first YAML document", "mapping"]),
        ("bse_lr: 0.1\n", ["unknown key bse_lr", "Did you mean base_lr"]),
        ("base_lr: 0.1\nbatch_size: 2\nbase_lr: 0.2\n", ["line 3", "base_lr is given twice"]),
        ("roi_layer: {type: RoIAlign, out_size: 7, out_size: 8, sample_num: 2}\n", ["out_size is given twice"]),
        ("base_lr: 0.1\n---\nbatch_size: 4\n", ["second YAML document", "batch_size is 4"]),
        ("base_lr: 0.1\n---\n- a\n", ["second YAML document", "mapping"]),
        ("base_lr: 0.1\n---\n---\nlr_type: dynamic\n", ["third YAML document", "lr_type is 'dynamic'"]),
        ("base_lr: 0.1\n---\n---\n---\n{}\n", ["4 YAML documents"]),
        ("base_lr: [1\n", ["line"]),
        ("base_lr:\t0.1\n\tbatch_size: 2\n", ["line"]),
        ("train_data_type: 2017-99-99\n", ["not valid YAML"]),
        ("[a]: 1\n", ["line 1"]),
        ("coco_root: !!python/name:os.system\n", ["line 1", "python/name"]),
        ("coco_root: !!python/object/apply:os.getcwd []\n", ["line 1", "python/object"]),
    ],
)
def test_unusable_files(config_file, text, words):
    path = config_file(text)
    message = load_error(f"--config_path={path}")
    assert str(path) in message
    assert all(word in message for word in words), message


def test_missing_file_folder_and_binary(tmp_path):
    assert "nope.yaml" in load_error("--config_path=nope.yaml")
    assert str(tmp_path) in load_error(f"--config_path={tmp_path}")
    binary = tmp_path / "weights.ckpt"
    binary.write_bytes(b"\xff\xfe\x00\x01" * 100)
    assert "is this a configuration file?" in load_error(f"--config_path={binary}")
    binary.write_bytes(bytes(2 << 20))
    assert "larger than" in load_error(f"--config_path={binary}")


def test_python_tags_on_the_command_line_build_nothing():
    assert "a list of strings" in load_error("--coco_classes=!!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    "text, refused",
    [
        ("num_bboxes: 245520\nfeature_shapes: [[192, 320], [96, 160], [48, 80], [24, 40], [12, 20]]\n", False),
        ("num_bboxes: 1000\n", True),
        ("feature_shapes: [[192, 320]]\n", True),
    ],
)
def test_derived_keys_of_older_files_must_agree(config_file, text, refused):
    path = config_file(text)
    if refused:
        assert "leave" in load_error(f"--config_path={path}")
    else:
        assert load_config([f"--config_path={path}"]).num_bboxes == 245520


def test_a_damaged_default_file_names_the_keys_it_lacks(tmp_path, monkeypatch):
    values = {key: value for key, value in documents("default_config.yaml")[0].items() if key != "momentum"}
    (tmp_path / "default_config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setattr(config_module, "REPO_ROOT", tmp_path)
    assert "lacks the keys momentum" in load_error()


# ---- recipes -----------------------------------------------------------------------------------------------


def values_of(config):
    """Every key with its value."""
    return {key: getattr(config, key) for key in key_types()}


def test_the_recipe_for_random_weights():
    plain, config = load_config(["--coco_root=/d"]), load_config(["--coco_root=/d", "--recipe=scratch"])
    assert values_of(config) == values_of(plain) | SCRATCH | {"recipe": "scratch"}
    assert config.recipe_keys == set(SCRATCH)
    assert plain.recipe_keys == plain.auto_keys == frozenset()
    assert config.config_path == plain.config_path == str(REPO_ROOT / "default_config.yaml")
    assert config.file_keys == frozenset()


def test_a_recipe_is_the_same_as_its_values_for_what_graphs_are_named_by():
    written = load_config([f"--{key}={value}" for key, value in SCRATCH.items()])
    assert graph_settings(load_config(["--recipe=scratch"])) == graph_settings(written)


@pytest.mark.parametrize("path", sorted((REPO_ROOT / "configs").glob("recipe_*")), ids=lambda path: path.name)
def test_every_recipe_loads_and_leaves_the_choice_of_files_to_the_user(path):
    assert path.suffix == ".yaml"
    name = path.stem.removeprefix("recipe_")
    assert load_config([f"--recipe={name}"]).recipe == name
    assert not {"recipe", "backbone"} & set(yaml.safe_load(path.read_text()))


def test_what_the_user_sets_takes_precedence_over_the_recipe(config_file):
    path = config_file("recipe: scratch\nopt_type: sgd\nwarmup_step: 500\n")
    config = load_config([f"--config_path={path}", "--expand_ratio=0.5"])
    assert (config.opt_type, config.warmup_step, config.expand_ratio) == ("sgd", 500, 0.5)
    assert config.recipe_keys == set(SCRATCH) - {"opt_type", "warmup_step", "expand_ratio"}
    assert config.file_keys == {"recipe", "opt_type", "warmup_step"}
    assert config.config_path == str(path)
    assert config.base_lr == 0.02  # of sgd


def test_a_flag_chooses_another_recipe_than_the_file_or_none(config_file):
    path = config_file("recipe: scratch\nbatch_size: 1\n")
    assert load_config([f"--config_path={path}"]).opt_type == "adam"
    config = load_config([f"--config_path={path}", "--recipe="])
    assert (config.opt_type, config.recipe, config.batch_size) == ("sgd", "", 1)


@pytest.mark.parametrize("name", ["default_config.yaml", "default_config_101.yaml", "default_config_50.yaml"])
def test_a_shipped_file_that_is_named_does_not_undo_the_recipe(name):
    config = load_config([f"--config_path={name}", "--recipe=scratch"])
    assert {key: getattr(config, key) for key in SCRATCH} == SCRATCH


def test_a_copy_of_a_shipped_file_undoes_only_what_it_changes(config_file):
    text = (REPO_ROOT / "default_config.yaml").read_text().replace("warmup_step: 500", "warmup_step: 7")
    config = load_config([f"--config_path={config_file(text)}", "--recipe=scratch"])
    assert {key: getattr(config, key) for key in SCRATCH} == SCRATCH | {"warmup_step": 7}


def test_the_recipe_comes_after_the_backbones_file():
    config = load_config(["--backbone=resnet_v1_101", "--recipe=scratch"])
    assert (config.resnet_block, config.base_lr) == ((3, 4, 23, 3), 0.0016)  # that file says 0.02


def test_an_unknown_recipe_is_refused_with_those_there_are(config_file):
    message = load_error("--recipe=scrach")
    assert "recipe is 'scrach' (from the command line): expected one of scratch" in message
    assert "configs/recipe_NAME.yaml" in message and message.endswith("Did you mean scratch?")
    path = config_file("recipe: ../configs/recipe_scratch\n")
    assert f"(from {path}): expected one of scratch" in load_error(f"--config_path={path}")
    assert "recipe is 3" in load_error(f"--config_path={config_file('recipe: 3')}")


def test_a_checkpoint_contradicts_a_recipe_for_random_weights(config_file):
    message = load_error("--recipe=scratch", "--pre_trained=a.pth")
    assert message == (
        "--recipe=scratch trains from random weights, which contradicts --pre_trained=a.pth: leave one of the two out."
    )
    path = config_file("recipe: scratch\npre_trained: b.ckpt\n")
    message = load_error(f"--config_path={path}")
    assert f"recipe: scratch in {path} trains from random weights" in message
    assert f"contradicts pre_trained: b.ckpt in {path}" in message
    assert load_config(["--recipe=scratch", "--pre_trained="]).pre_trained == ""
    assert load_config([f"--config_path={path}", "--recipe="]).pre_trained == "b.ckpt"


def test_a_refusal_names_the_recipe_as_the_source(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "recipe_bad.yaml").write_text("warmup_step: -1\n")
    (tmp_path / "default_config.yaml").write_text((REPO_ROOT / "default_config.yaml").read_text())
    monkeypatch.setattr(config_module, "REPO_ROOT", tmp_path)
    assert load_error("--recipe=bad").startswith("warmup_step is -1 (from the recipe bad): expected 0 or more")


@pytest.mark.parametrize("name", ["quick_start_config.yaml", "configs/bccd_from_scratch.yaml"])
def test_shipped_files_of_small_trainings_follow_the_recipe(name):
    """Only what they state themselves differs."""
    config = load_config([f"--config_path={name}"])
    assert config.recipe == "scratch" and not config.pre_trained
    own = yaml.safe_load((REPO_ROOT / name).read_text(encoding="utf-8"))
    assert {key: getattr(config, key) for key in SCRATCH.keys() - own.keys()} == {
        key: value for key, value in SCRATCH.items() if key not in own
    }


# ---- auto --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opt_type, pre_trained, rate",
    [("sgd", "a.pth", 0.02), ("sgd", "", 0.02), ("adam", "a.pth", 0.0008), ("adam", "", 0.0016)],
)
def test_the_rate_follows_the_optimiser_and_the_weights(config_file, opt_type, pre_trained, rate):
    chosen = [f"--opt_type={opt_type}", f"--pre_trained={pre_trained}"]
    path = config_file("base_lr: auto\n")
    for argv in ([*chosen, "--base_lr=auto"], [*chosen, f"--config_path={path}"]):
        config = load_config(argv)
        assert config.base_lr == rate and isinstance(config.base_lr, float)
        assert config.auto_keys == {"base_lr"}
    assert load_config([*chosen, f"--config_path={path}", "--base_lr=0.3"]).base_lr == 0.3


def test_variants_of_adam_have_the_rates_of_adam():
    assert config_module._auto_base_lr("adamw", "")[0] == 0.0016
    assert config_module._auto_base_lr("adamw", "a.pth")[0] == 0.0008


@pytest.mark.parametrize("text", ["coco_classes: auto\n", "coco_classes: auto\nnum_classes: 4\n"])
def test_class_names_stay_open_until_the_data_are_there(config_file, text):
    path = config_file(text)
    for argv in ([f"--config_path={path}"], ["--coco_classes=auto"]):
        config = load_config(argv)
        assert config.coco_classes == AUTO_CLASSES
        with pytest.raises(ConfigError, match="src.data.class_names.with_classes"):
            _ = config.class_names
        with pytest.raises(ConfigError, match="src.data.class_names.with_classes"):
            _ = config.num_fg_classes
    named = load_config([f"--config_path={path}", "--coco_classes=['background','cat']"])
    assert (named.class_names, named.num_classes) == (("cat",), 2)


# ---- description for the log -------------------------------------------------------------------------------


def test_describe_names_the_file_and_what_differs():
    lines = describe(load_config(["--backbone=resnet_v1_101", "--batch_size=2", "--coco_root=/d"]))
    assert lines[0] == f"configuration: {REPO_ROOT / 'default_config_101.yaml'}"
    assert sorted(lines[1:]) == [
        "backbone = 'resnet_v1_101' (from the command line; default 'resnet_v1.5_50')",
        "base_lr = 0.02 (default 0.04)",
        "batch_size = 2 (from the command line; default 2)",
        "coco_root = '/d' (from the command line; default '/disk2/dataset/COCO2017')",
        "mindrecord_dir = '/d/MindRecord_COCO_TRAIN' (default '/disk2/dataset/COCO2017/MindRecord_COCO_TRAIN')",
        "resnet_block = [3, 4, 23, 3] (default [3, 4, 6, 3])",
    ]


def test_a_users_file_sets_what_it_states_and_a_copy_what_it_changes(config_file):
    short = config_file("img_width: 1280\nbatch_size: 1\n")
    assert load_config([f"--config_path={short}"]).file_keys == {"img_width", "batch_size"}
    copy = config_file((REPO_ROOT / "default_config.yaml").read_text().replace("img_width: 1280", "img_width: 640"))
    assert load_config([f"--config_path={copy}"]).file_keys == {"img_width"}
    assert load_config(["--config_path=default_config.yaml"]).file_keys == frozenset()
    assert load_config(["--img_width=640"]).file_keys == frozenset()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--thaw_epoch=2", "--frozen_stages=-1"], ("thaw_epoch is 2", "frozen_stages is -1")),
        (["--thaw_epoch=3", "--epoch_size=3"], ("thaw_epoch is 3", "epoch_size=3")),
        (["--patience=2"], ("patience is 2", "--run_eval=True")),
        (["--best_metric=AP50"], ("best_metric is 'AP50'", "--run_eval=True")),
        (["--best_metric=AP75", "--run_eval=True"], ("best_metric", "AP, AP50")),
        (["--dynamic_loss_scale=True", "--device_target=CPU"], ("dynamic_loss_scale is True", "CPU")),
        (
            ["--dynamic_loss_scale=True", "--device_target=Ascend", "--loss_scale=0.5"],
            ("loss_scale is 0.5", "1 or more with dynamic_loss_scale"),
        ),
        (["--ema_decay=1.0"], ("ema_decay is 1.0", "not including, 1")),
        (["--accumulate_steps=0"], ("accumulate_steps is 0", "greater than 0")),
        (["--backbone_lr_factor=0"], ("backbone_lr_factor is 0", "greater than 0")),
        (["--rcnn_loss_beta=0"], ("rcnn_loss_beta is 0", "greater than 0")),
        (["--lr_type=multistep_warmup", "--epoch_size=5"], ("milestones is [8, 11]", "epoch_size=5")),
    ],
)
def test_training_options_that_would_have_no_effect_are_refused(flags, words):
    message = load_error(*flags)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "flags",
    [
        ["--thaw_epoch=2", "--frozen_stages=1"],
        ["--patience=2", "--run_eval=True", "--best_metric=AP50"],
        ["--dynamic_loss_scale=True", "--device_target=Ascend"],
        ["--ema_decay=0.999", "--accumulate_steps=4", "--backbone_lr_factor=0.1", "--rcnn_loss_beta=0.1"],
    ],
)
def test_training_options_in_their_ranges_load(flags):
    config = load_config(flags)
    for flag in flags:
        key, text = flag.removeprefix("--").split("=")
        assert str(getattr(config, key)) == text


def test_describe_tells_what_the_recipe_sets_from_what_the_user_sets():
    lines = describe(load_config(["--recipe=scratch", "--warmup_step=500", "--coco_classes=auto"]))
    assert sorted(lines[1:]) == [
        "base_lr = 0.0016 (from the recipe scratch; auto: adam from random weights, 2e-4 at a batch of 2, as measured "
        "on blood cells; default 0.04)",
        "coco_classes = 'auto' (from the command line; default ['background', 'person', 'bicycle', 'car ... , "
        "'toothbrush'])",
        "ema_decay = 0.99 (from the recipe scratch; default 0.0)",
        "expand_ratio = 0.0 (from the recipe scratch; default 1.0)",
        "frozen_stages = -1 (from the recipe scratch; default 1)",
        "norm_eval = False (from the recipe scratch; default True)",
        "opt_type = 'adam' (from the recipe scratch; default 'sgd')",
        "pre_trained = '' (from the recipe scratch; default '/cache/train/fasterrcnn/faster_rcnn-12_7393.ckpt')",
        "rcnn_loss_beta = 0.1111 (from the recipe scratch; default 1.0)",
        "recipe = 'scratch' (from the command line; default '')",
        "warmup_step = 500 (from the command line; default 500)",
    ]


def test_describe_says_why_a_rate_was_chosen():
    (line,) = [line for line in describe(load_config(["--base_lr=auto"])) if line.startswith("base_lr")]
    assert line == (
        "base_lr = 0.02 (from the command line; auto: sgd from given weights, for 16 images a step as in Goyal et al. "
        "2017 and Lin et al. 2017; default 0.04)"
    )

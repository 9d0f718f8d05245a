"""What a configuration must satisfy beyond the type of each value: ranges, equations, keys with one value.

Tables say most of it: ``FIXED_KEYS``, ``ECHO_KEYS``, ``RANGES``, ``EQUAL_KEYS`` and ``ORDERED_KEYS``.
``check_config`` goes through them and through the few rules that need a sentence of their own. Every refusal
is one ``ConfigError`` that names the key, its value, where the value came from and what was expected.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from src.model_utils.errors import ConfigError
from src.model_utils.keys import AUTO, AUTO_CLASSES, Keys

COMMAND_LINE = "the command line"  # the source of a value, in messages

# Blocks per ResNet stage. The depth in the name is 2 + 3 x their sum: a 7x7 and a fully connected layer
# besides three convolutions per block.
BACKBONE_BLOCKS = {
    "resnet_v1.5_50": (3, 4, 6, 3),
    "resnet_v1_50": (3, 4, 6, 3),
    "resnet_v1_101": (3, 4, 23, 3),
    "resnet_v1_152": (3, 8, 36, 3),
    "resnet_caffe_101": (3, 4, 23, 3),
    "resnet_caffe_152": (3, 8, 36, 3),
}
# A stage's stride sits on the first 1x1 convolution of its first block here, on the 3x3 one in the others. Published
# resnet_v1_101 and _152 are of the second kind in spite of their name, hence names of our own.
STRIDE_ON_FIRST = ("resnet_v1_50", "resnet_caffe_101", "resnet_caffe_152")
BACKBONE_FILES = {
    "resnet_v1.5_50": "default_config.yaml",
    "resnet_v1_50": "default_config.yaml",
    "resnet_v1_101": "default_config_101.yaml",
    "resnet_v1_152": "default_config_152.yaml",
    "resnet_caffe_101": "default_config_101.yaml",
    "resnet_caffe_152": "default_config_152.yaml",
}

STEM_CHANNELS = 64  # width of the ResNet's 7x7 convolution
FINEST_STRIDE = 4  # stride of C2 and P2; every further level doubles it
CANVAS_MULTIPLE = 64  # stride of P6: a canvas that it divides gives whole feature maps on every level

# Keys that have no effect in the published system, or whose other values were never built:
# key -> (value, why). They are refused at any other value: a key that is read and ignored misleads.
FIXED_KEYS: dict[str, tuple[Any, str]] = {
    "prefix": ("", "record files are always named FasterRcnn.mindrecord and FasterRcnn_eval.mindrecord"),
    "rpn_cls_out_channels": (1, "an anchor has one objectness score, turned into a probability by a sigmoid"),
    "rpn_head_use_sigmoid": (True, "nothing reads it; the RPN always uses a sigmoid"),
    "rpn_head_weight": (1.0, "nothing reads it; set rpn_loss_cls_weight and rpn_loss_reg_weight instead"),
    "activate_num_classes": (2, "the RPN tells objects from background, two classes"),
    "use_sigmoid_cls": (True, "objectness is one sigmoid per anchor; a softmax over two scores is not built"),
    "rcnn_num_layers": (2, "the box head has two shared fully connected layers"),
    "rpn_proposal_nms_across_levels": (False, "NMS runs on each pyramid level by itself"),
    "rpn_nms_across_levels": (False, "NMS runs on each pyramid level by itself"),
    "rpn_proposal_min_bbox_size": (0.0, "proposals are not filtered by size"),
    "rpn_min_bbox_min_size": (0.0, "proposals are not filtered by size"),
    "sgd_step": ((8, 11), "nothing reads it; set milestones together with lr_type=multistep instead"),
    "sgd_momentum": (0.9, "nothing reads it; set momentum instead"),
}

# Keys with no effect of their own: they may stay at their default or state the value of the key that decides.
ECHO_KEYS: dict[str, tuple[int, str]] = {
    "rpn_proposal_nms_post": (2000, "rpn_proposal_max_num"),
    "rpn_nms_post": (1000, "rpn_max_num"),
    "num_expected_total_stage2": (512, "num_expected_neg_stage2"),
}

# (what is expected, the test, the keys)
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a number greater than 0",
        lambda value: value > 0,
        (
            "img_width",
            "img_height",
            "num_gts",
            "num_parallel_workers",
            "fpn_out_channels",
            "rpn_feat_channels",
            "num_expected_neg",
            "num_expected_pos",
            "num_expected_neg_stage2",
            "num_expected_pos_stage2",
            "rpn_proposal_nms_pre",
            "rpn_proposal_max_num",
            "rpn_nms_pre",
            "rpn_max_num",
            "roi_align_finest_scale",
            "rcnn_fc_out_channels",
            "test_max_per_img",
            "test_nms_candidates",
            "test_batch_size",
            "base_lr",
            "backbone_lr_factor",
            "rcnn_loss_beta",
            "accumulate_steps",
            "loss_scale",
            "grad_clip_norm",
            "batch_size",
            "epoch_size",
            "save_checkpoint_epochs",
            "keep_checkpoint_max",
            "log_interval",
            "interval",
            "device_num",
            "calibration_images",
        ),
    ),
    (
        "0 or more",
        lambda value: value >= 0,
        (
            "rpn_loss_cls_weight",
            "rpn_loss_reg_weight",
            "rcnn_loss_cls_weight",
            "rcnn_loss_reg_weight",
            "warmup_step",
            "weight_decay",
            "thaw_epoch",
            "patience",
            "draw_images",
            "device_id",
            "rank_id",
        ),
    ),
    (
        "a number from 0 to 1",
        lambda value: 0 <= value <= 1,
        (
            "flip_ratio",
            "expand_ratio",
            "photometric_ratio",
            "mosaic_ratio",
            "repeat_thr",
            "warmup_ratio",
            "test_score_thr",
            "test_iou_thr",
            "neg_iou_thr",
            "neg_iou_thr_stage2",
            "rpn_proposal_nms_thr",
            "rpn_nms_thr",
        ),
    ),
    # IoUs of 0 would make positives of boxes that overlap nothing
    (
        "a number greater than 0, up to 1",
        lambda value: 0 < value <= 1,
        ("min_scale", "pos_iou_thr", "min_pos_iou", "pos_iou_thr_stage2", "min_pos_iou_stage2"),
    ),
    ("a number from 0 up to, but not including, 1", lambda value: 0 <= value < 1, ("momentum", "ema_decay")),
    # numpy and MindSpore both take 32 bits
    ("a number from 0 to 4294967295", lambda value: 0 <= value < 2**32, ("seed",)),
    (
        "-1 (nothing fixed), 0 (stem) or 1 to 4 (the stem and that many stages)",
        lambda value: -1 <= value <= 4,
        ("frozen_stages",),
    ),
    (
        "at least one value, all greater than 0",
        lambda values: len(values) > 0 and min(values) > 0,
        ("anchor_scales", "anchor_ratios"),
    ),
    (
        "four values, all greater than 0",
        lambda values: len(values) == 4 and min(values) > 0,
        ("resnet_block", "resnet_in_channels", "resnet_out_channels", "rpn_target_stds", "rcnn_target_stds"),
    ),
    ("four values", lambda values: len(values) == 4, ("rpn_target_means", "rcnn_target_means")),
    ("at least 4 levels, one for each stage of the backbone", lambda value: value >= 4, ("fpn_num_outs",)),
    (
        "epochs greater than 0, each above the one before",
        lambda values: all(low < high for low, high in zip((0, *values), values, strict=False)),
        ("milestones",),
    ),
)

# (key, the key it must equal, what both are)
EQUAL_KEYS = (
    ("fpn_in_channels", "resnet_out_channels", "the channels of the backbone's maps"),
    ("rpn_in_channels", "fpn_out_channels", "the channels of a pyramid level"),
    ("roi_align_out_channels", "fpn_out_channels", "the channels of a pyramid level"),
    ("rcnn_in_channels", "fpn_out_channels", "the channels of a pyramid level"),
    ("num_bboxes_stage2", "rpn_proposal_max_num", "the proposals per image in training"),
)

# (key, the key it must not exceed, why)
ORDERED_KEYS = (
    ("neg_iou_thr", "pos_iou_thr", "an anchor cannot be negative and positive"),
    ("neg_iou_thr_stage2", "pos_iou_thr_stage2", "a proposal cannot be background and foreground"),
    ("num_expected_pos", "num_expected_neg", "the second counts all samples"),
    ("num_expected_pos_stage2", "num_expected_neg_stage2", "the second counts all samples"),
    ("test_max_per_img", "test_nms_candidates", "detections are chosen among the candidates"),
)


def check_config(keys: Keys) -> None:
    """Refuse a configuration whose values are out of range or contradict each other.

    Args:
        keys (Keys): every value already has the type of its field.

    Raises:
        ConfigError: at the first value that breaks a rule.
    """
    _check_fixed(keys)
    _check_ranges(keys)
    _check_pairs(keys)
    for find_problems in (
        _class_problems,
        _level_problems,
        _canvas_problems,
        _sample_problems,
        _milestone_problems,
        _training_problems,
        _path_problems,
        _rank_problems,
    ):
        for key, expected in find_problems(keys):
            raise refusal(keys, key, expected)


def check_backbone(keys: Keys) -> None:
    """Refuse a ``resnet_block`` that belongs to another ``backbone``.

    Applied to what files and flags say, and not to ``dataclasses.replace``: code may build a smaller network.

    Raises:
        ConfigError: naming the configuration file that fits the backbone.
    """
    blocks = BACKBONE_BLOCKS.get(keys.backbone)
    if blocks is None:
        raise refusal(keys, "backbone", f"one of {', '.join(BACKBONE_BLOCKS)}")
    if keys.resnet_block != blocks:
        raise refusal(
            keys,
            "resnet_block",
            f"{list(blocks)}, the blocks of {keys.backbone}: choose the "
            f"backbone that fits, or use --config_path={BACKBONE_FILES[keys.backbone]}",
        )


# Keys that name a model, and the program that reads each.
MODEL_KEYS = {
    "checkpoint_path": "eval.py",
    "ckpt_file": "export.py",
    "file_name": "eval_onnx.py",
    "pre_trained": "train.py",
}


def check_model_flags(keys: Keys, name: str, *own: str) -> None:
    """Refuse a flag that names a model for another program: it would be read and ignored.

    Args:
        keys (Keys): of the run.
        name (str): how this program is given its model, such as "--checkpoint_path".
        own (str): those of MODEL_KEYS that it reads.

    Raises:
        ConfigError: naming both flags.
    """
    for key in sorted((MODEL_KEYS.keys() - set(own)) & keys.command_line):
        raise ConfigError(f"--{key} names a model for {MODEL_KEYS[key]}; here it is given by {name}.")


def refusal(keys: Keys, key: str, expected: str) -> ConfigError:
    """Build the error for one key: its value, where that came from, and what was expected."""
    value = getattr(keys, key)
    source = f"{keys.config_path} or its defaults"
    if key in keys.command_line:
        source = COMMAND_LINE
    elif key in keys.recipe_keys:
        source = f"the recipe {keys.recipe}"
    return ConfigError(f"{key} is {as_yaml(value)} (from {source}): expected {expected}.")


def as_yaml(value: Any) -> str:
    """The value as a YAML file would have it: lists in brackets, mappings in braces."""
    if isinstance(value, Mapping):
        value = dict(value)
    elif value == AUTO_CLASSES:
        value = AUTO
    return repr(list(value) if isinstance(value, tuple) else value)


def shorten(value: Any) -> str:
    """`as_yaml`, long lists cut in the middle."""
    text = as_yaml(value)
    return text if len(text) <= 60 else f"{text[:40]} ... {text[-15:]}"


def _check_fixed(keys: Keys) -> None:
    for key, (only_value, reason) in FIXED_KEYS.items():
        if getattr(keys, key) != only_value:
            raise refusal(keys, key, f"its default {as_yaml(only_value)}; {reason}")
    for key, (default, decider) in ECHO_KEYS.items():
        decided = getattr(keys, decider)
        if getattr(keys, key) not in (default, decided):
            raise refusal(
                keys,
                key,
                f"its default {default} or the value of {decider}, {decided}; "
                f"{key} has no effect of its own, set {decider} instead",
            )


def _check_ranges(keys: Keys) -> None:
    for expected, is_valid, ranged in RANGES:
        for key in ranged:
            if not is_valid(getattr(keys, key)):
                raise refusal(keys, key, expected)
    for key in ("out_size", "sample_num"):
        if getattr(keys.roi_layer, key) <= 0:
            raise refusal(keys, "roi_layer", f"{key} greater than 0")
    if keys.roi_layer.type != "RoIAlign":
        raise refusal(keys, "roi_layer", "type RoIAlign, the only pooling that is built")


def _check_pairs(keys: Keys) -> None:
    for key, other, meaning in EQUAL_KEYS:
        if getattr(keys, key) != getattr(keys, other):
            value = as_yaml(getattr(keys, other))
            raise refusal(keys, key, f"the value of {other}, {value}: both are {meaning}")
    for key, limit, reason in ORDERED_KEYS:
        if getattr(keys, key) > getattr(keys, limit):
            raise refusal(keys, key, f"at most {limit}, which is {getattr(keys, limit)}: {reason}")


def _class_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    names = keys.coco_classes
    if names == AUTO_CLASSES:
        return
    if len(names) < 2 or names[0] != "background":
        yield "coco_classes", "'background' first and then at least one class name"
    if any(not name.strip() for name in names):
        yield "coco_classes", "names that are not empty"
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        yield "coco_classes", f"every name once; repeated: {', '.join(repeated)}"
    if keys.num_classes != len(names):
        yield (
            "num_classes",
            (
                f"{len(names)}, the number of names in coco_classes with background: "
                "give the names in coco_classes and leave num_classes out"
            ),
        )


def _canvas_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    multiple = max(CANVAS_MULTIPLE, *keys.anchor_strides)
    for key in ("img_width", "img_height"):
        side = getattr(keys, key)
        if side % multiple:
            above = math.ceil(side / multiple) * multiple
            below = above - multiple
            yield key, f"a multiple of {multiple}; the next are {f'{below} and {above}' if below else above}"


def _level_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    handed_on = (STEM_CHANNELS, *keys.resnet_out_channels[:-1])
    if keys.resnet_in_channels != handed_on:
        yield (
            "resnet_in_channels",
            (f"{list(handed_on)}: the stem's channels, then what each stage of resnet_out_channels hands to the next"),
        )
    strides = tuple(FINEST_STRIDE * 2**level for level in range(keys.fpn_num_outs))
    if keys.anchor_strides != strides:
        yield "anchor_strides", f"{list(strides)}, the strides of {keys.fpn_num_outs} levels (fpn_num_outs)"
    pooled = keys.roi_align_featmap_strides
    if not pooled or pooled != strides[: len(pooled)]:
        yield "roi_align_featmap_strides", f"the first values of anchor_strides {list(strides)}"
    num_anchors = len(keys.anchor_scales) * len(keys.anchor_ratios)
    if keys.num_anchors != num_anchors:
        yield (
            "num_anchors",
            (f"{num_anchors}: {len(keys.anchor_scales)} anchor_scales times {len(keys.anchor_ratios)} anchor_ratios"),
        )


def _sample_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    rows = keys.num_expected_pos_stage2 + keys.num_expected_neg_stage2
    if keys.roi_sample_num != rows:
        yield "roi_sample_num", f"{rows}, the sum of num_expected_pos_stage2 and num_expected_neg_stage2"


def _milestone_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    # With the dynamic schedule milestones are not used, so their default may exceed a short training.
    if keys.lr_type != "dynamic" and keys.milestones and keys.milestones[-1] >= keys.epoch_size:
        yield (
            "milestones",
            (
                f"epochs below epoch_size={keys.epoch_size}, counted from 0, "
                "or the drop would never come: set milestones or epoch_size"
            ),
        )


def _training_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    if keys.thaw_epoch and keys.frozen_stages < 0:
        yield "thaw_epoch", "0, because frozen_stages is -1 and all stages are trained from the start"
    if keys.thaw_epoch >= keys.epoch_size:
        yield "thaw_epoch", f"an epoch before the last of epoch_size={keys.epoch_size}, or nothing would be thawed"
    if keys.patience and not keys.run_eval:
        yield "patience", "0, or --run_eval=True: without evaluations there is nothing to wait for"
    if "best_metric" in keys.command_line and not keys.run_eval:
        yield "best_metric", "no such flag, or --run_eval=True: without evaluations there is no best checkpoint"
    if keys.dynamic_loss_scale and keys.device_target == "CPU":
        yield "dynamic_loss_scale", "False on a CPU, which computes in float32 and does not scale the loss"
    if keys.dynamic_loss_scale and keys.loss_scale < 1:
        yield "loss_scale", "1 or more with dynamic_loss_scale, which starts there"


def _path_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    try:
        pieces = string.Formatter().parse(keys.instance_set)
        fields = [field for _, field, _, _ in pieces if field is not None]
    except ValueError:
        fields = ["unbalanced"]
    if any(fields) or len(fields) > 1:
        yield "instance_set", "a path with one {} in place of train_data_type or val_data_type"


def _rank_problems(keys: Keys) -> Iterator[tuple[str, str]]:
    # A file may have them: published ones serve runs on one device and on several.
    if keys.run_distribute or keys.enable_modelarts:
        return
    for key, only_value in (("rank_id", 0), ("device_num", 1)):
        if key in keys.command_line and getattr(keys, key) != only_value:
            yield (
                key,
                (
                    f"{only_value}, because this run is one process and nothing else reads it. Several devices are "
                    "for scripts/run_distribute_train_*.sh, which take their number"
                ),
            )

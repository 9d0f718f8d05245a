"""The keys of a configuration, group by group: names and types, nothing else.

The docstrings of the groups are the headings of ``--help``. Meaning and default of each key stand in
``default_config.yaml``.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

T = typing.TypeVar("T")

# What a file or a flag may say instead of a value: the rate is then chosen by `load_config`, the names are read by
# `src.data.class_names` from the data.
AUTO = "auto"
AUTO_KEYS = ("coco_classes", "base_lr")
# The value of coco_classes until then; no list of names, because those begin with the background.
AUTO_CLASSES = (AUTO,)


@dataclass(frozen=True, eq=False)
class RoiLayer(Mapping):
    """RoI pooling: its kind, the side of the pooled grid, the samples per bin along each axis.

    An immutable mapping, as in the YAML (``config.roi_layer["out_size"]``), with attributes besides.
    """

    type: str
    out_size: int
    sample_num: int

    def __getitem__(self, key: str) -> str | int:
        return vars(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __hash__(self) -> int:
        return hash((self.type, self.out_size, self.sample_num))


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def _keys(group: type[T]) -> type[T]:
    """A frozen dataclass without methods: `Config` has them, and making them for every group takes 30 ms."""
    return dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)(group)


@_keys
class _Data:
    """Data: images, annotations, record files"""

    dataset: str
    coco_root: str
    train_data_type: str
    val_data_type: str
    instance_set: str
    image_dir: str
    anno_path: str
    val_anno_path: str
    mindrecord_dir: str
    prefix: str
    coco_classes: tuple[str, ...]
    num_classes: int
    num_gts: int
    ignore_unknown: bool
    skip_bad_images: bool
    num_parallel_workers: int
    python_multiprocessing: bool


@_keys
class _Canvas:
    """Canvas"""

    img_width: int
    img_height: int
    keep_ratio: bool


@_keys
class _TrainingImages:
    """Training images"""

    flip_ratio: float
    expand_ratio: float
    min_scale: float
    photometric_ratio: float
    mosaic_ratio: float
    repeat_thr: float


@_keys
class _Backbone:
    """Backbone"""

    backbone: str
    resnet_block: tuple[int, ...]
    resnet_in_channels: tuple[int, ...]
    resnet_out_channels: tuple[int, ...]
    frozen_stages: int
    norm_eval: bool
    thaw_epoch: int
    stem_pool_pad: str


@_keys
class _FeaturePyramid:
    """Feature pyramid (FPN)"""

    fpn_in_channels: tuple[int, ...]
    fpn_out_channels: int
    fpn_num_outs: int


@_keys
class _Anchors:
    """Anchors"""

    anchor_scales: tuple[float, ...]
    anchor_ratios: tuple[float, ...]
    anchor_strides: tuple[int, ...]
    num_anchors: int


@_keys
class _RegionProposalNetwork:
    """Region proposal network (RPN)"""

    rpn_in_channels: int
    rpn_feat_channels: int
    rpn_cls_out_channels: int
    rpn_loss_cls_weight: float
    rpn_loss_reg_weight: float
    rpn_target_means: tuple[float, ...]
    rpn_target_stds: tuple[float, ...]
    rpn_head_use_sigmoid: bool
    rpn_head_weight: float
    activate_num_classes: int
    use_sigmoid_cls: bool


@_keys
class _AnchorTargets:
    """Anchor targets: which anchors the RPN learns from"""

    neg_iou_thr: float
    pos_iou_thr: float
    min_pos_iou: float
    num_expected_neg: int
    num_expected_pos: int


@_keys
class _TrainingProposals:
    """Proposals in training"""

    rpn_proposal_nms_across_levels: bool
    rpn_proposal_nms_pre: int
    rpn_proposal_nms_post: int
    rpn_proposal_max_num: int
    rpn_proposal_nms_thr: float
    rpn_proposal_min_bbox_size: float


@_keys
class _EvaluationProposals:
    """Proposals in evaluation and inference"""

    rpn_nms_across_levels: bool
    rpn_nms_pre: int
    rpn_nms_post: int
    rpn_max_num: int
    rpn_nms_thr: float
    rpn_min_bbox_min_size: float


@_keys
class _BoxTargets:
    """Box targets: which proposals the box head learns from"""

    neg_iou_thr_stage2: float
    pos_iou_thr_stage2: float
    min_pos_iou_stage2: float
    num_bboxes_stage2: int
    num_expected_pos_stage2: int
    num_expected_neg_stage2: int
    num_expected_total_stage2: int


@_keys
class _RoiAlign:
    """RoIAlign"""

    roi_layer: RoiLayer
    roi_align_out_channels: int
    roi_align_featmap_strides: tuple[int, ...]
    roi_align_finest_scale: int
    roi_sample_num: int


@_keys
class _BoxHead:
    """Box head"""

    rcnn_num_layers: int
    rcnn_in_channels: int
    rcnn_fc_out_channels: int
    rcnn_loss_cls_weight: float
    rcnn_loss_reg_weight: float
    rcnn_loss_beta: float
    rcnn_target_means: tuple[float, ...]
    rcnn_target_stds: tuple[float, ...]
    without_bg_loss: bool


@_keys
class _Detections:
    """Detections: thresholds and limits of evaluation and inference"""

    test_score_thr: float
    test_iou_thr: float
    test_max_per_img: int
    test_nms_candidates: int
    test_batch_size: int


@_keys
class _Optimiser:
    """Optimiser and schedule"""

    opt_type: str
    base_lr: float
    lr_type: str
    warmup_step: int
    warmup_ratio: float
    milestones: tuple[int, ...]
    sgd_step: tuple[int, ...]
    momentum: float
    sgd_momentum: float
    weight_decay: float
    backbone_lr_factor: float
    ema_decay: float
    epoch_size: int


@_keys
class _Gradients:
    """Batches, gradients, seed"""

    loss_scale: float
    dynamic_loss_scale: bool
    grad_clip: bool
    grad_clip_norm: float
    batch_size: int
    accumulate_steps: int
    seed: int


@_keys
class _Checkpoints:
    """Weights to start from, checkpoints, logs"""

    recipe: str
    pre_trained: str
    finetune: bool
    save_checkpoint: bool
    save_checkpoint_epochs: int
    keep_checkpoint_max: int
    save_checkpoint_path: str
    keep_old_run: bool
    log_interval: int
    log_summary: bool


@_keys
class _Evaluation:
    """Evaluation"""

    run_eval: bool
    interval: int
    best_metric: str
    patience: int
    checkpoint_path: str
    result_path: str
    eval_output_path: str
    draw_images: int


@_keys
class _Export:
    """Export"""

    file_name: str
    file_format: str
    ckpt_file: str
    onnx_precision: str
    calibration_images: int


@_keys
class _Device:
    """Device"""

    device_target: str
    device_id: int
    run_distribute: bool
    device_num: int
    rank_id: int
    enable_profiling: bool
    compile_cache_path: str


@_keys
class _ModelArts:
    """ModelArts"""

    enable_modelarts: bool
    data_url: str
    train_url: str
    checkpoint_url: str
    data_path: str
    output_path: str
    load_path: str


@_keys
class Keys(
    _Data,
    _Canvas,
    _TrainingImages,
    _Backbone,
    _FeaturePyramid,
    _Anchors,
    _RegionProposalNetwork,
    _AnchorTargets,
    _TrainingProposals,
    _EvaluationProposals,
    _BoxTargets,
    _RoiAlign,
    _BoxHead,
    _Detections,
    _Optimiser,
    _Gradients,
    _Checkpoints,
    _Evaluation,
    _Export,
    _Device,
    _ModelArts,
):
    """Every key with its value, and where the values come from; `Config` is made of it.

    Attributes:
        config_path (str): the file that the values come from.
        command_line (frozenset[str]): the keys given as flags; all others come from files.
        file_keys (frozenset[str]): the keys that the user's own file sets: all that stand in a file which holds only
            what it changes; in a copy of a shipped file those with another value than there.
        recipe_keys (frozenset[str]): the keys whose values come from the recipe.
        auto_keys (frozenset[str]): the keys that were "auto" and have been given a value.
    """

    config_path: str
    command_line: frozenset[str]
    file_keys: frozenset[str] = frozenset()
    recipe_keys: frozenset[str] = frozenset()
    auto_keys: frozenset[str] = frozenset()


GROUPS = Keys.__bases__


@functools.cache
def key_types() -> Mapping[str, Any]:
    """The type of every key, in the order of ``default_config.yaml``."""
    hints = typing.get_type_hints(Keys)
    return {key: hints[key] for group in GROUPS for key in group.__annotations__}


def graph_settings(keys: Keys) -> dict[str, Any]:
    """Keys and values that the compiled network depends on; paths, data, updates and results are left out."""
    others = (_Data, _TrainingImages, _Optimiser, _Checkpoints, _Evaluation, _Export, _Device, _ModelArts)
    return {key: getattr(keys, key) for group in GROUPS if group not in others for key in group.__annotations__}

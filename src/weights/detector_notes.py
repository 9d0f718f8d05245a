"""What a checkpoint notes of its detector, and how these settings enter a run.

A detector's weights mean something only together with settings that the shapes of its parameters do not show: canvas,
anchors, classes in their order. Training writes them into every checkpoint as one JSON string, and whoever loads the
file takes them from there. What the user has set takes precedence where it may differ, and is refused where it may not.
A default, of this program or of a configuration file, never contradicts.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from src import __version__
from src.data.class_names import as_not_set, with_classes
from src.data.transforms import PIXEL_MEAN, PIXEL_STD
from src.model_utils.config import Config
from src.model_utils.config_checks import BACKBONE_BLOCKS, STRIDE_ON_FIRST, shorten
from src.model_utils.config_file import convert
from src.model_utils.errors import ConfigError, UserError
from src.model_utils.keys import RoiLayer, key_types

LOGGER = logging.getLogger(__name__)

META_DETECTOR = "meta_detector"
# Notes of the first release: these two alone.
META_BACKBONE = "meta_backbone"
META_CLASSES = "meta_classes"

BACKBONE_KEYS = (
    "backbone",
    "resnet_block",
    "resnet_in_channels",
    "resnet_out_channels",
    "fpn_in_channels",
    "stem_pool_pad",
)
CANVAS_KEYS = ("img_width", "img_height")
# Of the two layers that fine-tuning makes anew.
PREDICTOR_KEYS = ("rcnn_target_means", "rcnn_target_stds", "without_bg_loss")
CLASS_KEYS = ("coco_classes", "num_classes")
# What may be chosen anew for every use of a trained detector.
DETECTION_KEYS = (
    "rpn_nms_pre",
    "rpn_nms_post",
    "rpn_max_num",
    "rpn_nms_thr",
    "test_score_thr",
    "test_iou_thr",
    "test_max_per_img",
    "test_nms_candidates",
)
NETWORK_KEYS = (
    *BACKBONE_KEYS,
    "fpn_out_channels",
    "fpn_num_outs",
    "anchor_scales",
    "anchor_ratios",
    "anchor_strides",
    "num_anchors",
    "rpn_in_channels",
    "rpn_feat_channels",
    "rpn_target_means",
    "rpn_target_stds",
    "roi_layer",
    "roi_align_out_channels",
    "roi_align_featmap_strides",
    "roi_align_finest_scale",
    "rcnn_in_channels",
    "rcnn_fc_out_channels",
)
# A checkpoint that does not fit these is refused anyway.
_SHOWN_BY_SHAPES = frozenset(
    (
        "resnet_block",
        "resnet_in_channels",
        "resnet_out_channels",
        "fpn_in_channels",
        "fpn_out_channels",
        "fpn_num_outs",
        "anchor_strides",
        "num_anchors",
        "rpn_in_channels",
        "rpn_feat_channels",
        "roi_align_out_channels",
        "roi_align_featmap_strides",
        "rcnn_in_channels",
        "rcnn_fc_out_channels",
        "without_bg_loss",
        "num_classes",
    )
)
NOTED_KEYS = (*NETWORK_KEYS, *PREDICTOR_KEYS, *CANVAS_KEYS, "keep_ratio", *CLASS_KEYS, *DETECTION_KEYS)


@dataclass(frozen=True)
class Use:
    """What a checkpoint is loaded for.

    Attributes:
        keys (tuple[str, ...]): settings taken from its notes.
        by_flag (tuple[str, ...]): of these, those that a flag may change.
        by_file (tuple[str, ...]): of these, those that the user's configuration file may change.
        strict (bool): a file that contradicts in the others is refused; else the notes take precedence, with a warning.
    """

    keys: tuple[str, ...]
    by_flag: tuple[str, ...] = ()
    by_file: tuple[str, ...] = ()
    strict: bool = False


INFERENCE = Use(NOTED_KEYS, by_flag=(*CANVAS_KEYS, *DETECTION_KEYS), by_file=DETECTION_KEYS)
EXPORTED = Use(NOTED_KEYS)
_CHOSEN_IN_TRAINING = (*CANVAS_KEYS, "keep_ratio", *PREDICTOR_KEYS)
# A training follows its recipe or does not start: what it learns would be something else than the file says.
FINETUNING = Use(
    (*NETWORK_KEYS, *_CHOSEN_IN_TRAINING), by_flag=_CHOSEN_IN_TRAINING, by_file=_CHOSEN_IN_TRAINING, strict=True
)
BACKBONE = Use(BACKBONE_KEYS, strict=True)


def notes_of(
    config: Config, keys: Sequence[str] = NOTED_KEYS, source: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The notes of the detector that a configuration builds, as `write_checkpoint` takes them.

    Args:
        config (Config): its settings.
        keys (Sequence[str]): those that are noted, default all that a detector depends on.
        source (Mapping | None): what to note of the file that the weights were converted from.
    """
    notes = {
        "version": __version__,
        "mindspore": version("mindspore"),
        **_facts(config.backbone),
        "settings": {key: _plain(getattr(config, key)) for key in keys},
    }
    return {META_DETECTOR: json.dumps(notes | ({"source": source} if source else {}), ensure_ascii=False)}


def noted_settings(entries: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The settings that a checkpoint notes.

    Args:
        entries (Mapping): content of the checkpoint, see `read_checkpoint`.
        path (str | Path): its file, for messages.

    Returns:
        dict: key to value, in the types of `Config`. Empty for published files, backbone and classes at most for
        files of the first release.

    Raises:
        UserError: the notes are damaged, of a newer version, or of images that are normalised otherwise.
    """
    try:
        if META_DETECTOR not in entries:
            return _first_release(entries)
        notes = json.loads(entries[META_DETECTOR])
        settings, writer = dict(notes["settings"]), notes["version"]
        facts = {key: notes[key] for key in _facts(settings["backbone"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint {path}: its notes are damaged ({error!r}); copy or download it again") from error
    kinds = key_types()
    unknown = [key for key in settings if key not in kinds]
    if unknown:
        raise UserError(
            f"checkpoint {path} was written by version {writer} and notes {', '.join(unknown)}, which this "
            f"version {__version__} does not know; use that version"
        )
    for key, expected in _facts(settings["backbone"]).items():
        if facts[key] != expected:
            raise UserError(
                f"checkpoint {path} was trained with {key} {facts[key]}, this program has {expected}; it "
                "cannot run this detector"
            )
    return {key: convert(key, value, kinds[key], str(path)) for key, value in settings.items()}


def with_notes(config: Config, entries: Mapping[str, Any], path: str | Path, use: Use = INFERENCE) -> Config:
    """The configuration with the settings that a checkpoint notes; says in the log what comes from where.

    Args:
        config (Config): of the run.
        entries (Mapping): content of the checkpoint, see `read_checkpoint`.
        path (str | Path): its file, for messages.
        use (Use): what it is loaded for, default inference.

    Returns:
        Config: build the network from it.

    Raises:
        UserError: what the user has set contradicts the notes; see also `noted_settings`.
    """
    settings = noted_settings(entries, path)
    if "coco_classes" in use.keys and "coco_classes" not in settings:
        config = with_classes(config, training=False)
    noted = {key: value for key, value in settings.items() if key in use.keys}
    if noted.get("backbone", config.backbone) != config.backbone and "resnet_block" not in noted:
        noted["resnet_block"] = BACKBONE_BLOCKS[noted["backbone"]]
    missing = [key for key in use.keys if key not in {*noted, *DETECTION_KEYS, *_SHOWN_BY_SHAPES}]
    if say_source(entries, path):  # other projects train on many sizes
        missing = [key for key in missing if key not in CANVAS_KEYS]
    if missing:
        LOGGER.warning(
            "%s does not note all settings of its training; these come from the configuration, and must be those: %s",
            path,
            ", ".join(f"{key} {_shown(getattr(config, key))}" for key in missing),
        )
    return settled(config, noted, f"checkpoint {path} was trained with", use)


def say_source(entries: Mapping[str, Any], path: str | Path) -> bool:
    """Say in the log whose weights a file holds and what they are, if they are of another project.

    Args:
        entries (Mapping): content of the file, see `read_checkpoint`.
        path (str | Path): the file.

    Returns:
        bool: whether they are.
    """
    source = json.loads(entries.get(META_DETECTOR, "{}")).get("source")
    if not source:
        return False
    settings = noted_settings(entries, path)
    classes = f" for {settings['num_classes'] - 1} classes" if "num_classes" in settings else ""
    LOGGER.info(
        "%s holds weights of %s: %s%s%s, stride of its stages on the %s%s",
        path,
        source["format"],
        "detector with backbone " if "anchor_scales" in settings else "backbone ",
        settings["backbone"],
        classes,
        _facts(settings["backbone"])["stage_stride_on"],
        f"; taken from the file: {source['taken']}" if "taken" in source else "",
    )
    return True


def settled(config: Config, noted: Mapping[str, Any], source: str, use: Use) -> Config:
    """Bring together what a model's file notes and what the user has set.

    Args:
        config (Config): of the run.
        noted (Mapping): key to value.
        source (str): for messages, such as "detector.ckpt was trained with".
        use (Use): says which values the user may change.

    Returns:
        Config: the noted values, and those of the user where they may differ.

    Raises:
        UserError: a flag or a strict file contradicts a value that may not be changed; names both.
    """
    if "coco_classes" in noted:
        config = as_not_set(config)
    chosen, lines = dict(noted), []
    by_file = config.file_keys & set(use.by_file)
    if by_file & set(CANVAS_KEYS):  # one canvas, not the width of one and the height of another
        by_file |= set(CANVAS_KEYS)
    for key, value in noted.items():
        own = getattr(config, key)
        if own == value:
            continue
        if key in config.command_line and key not in use.by_flag:
            raise UserError(
                f"--{key} is {_shown(own)}, but {source} {_shown(value)}; leave --{key} out or use another model"
            )
        if key in config.file_keys and key not in by_file and use.strict:
            raise UserError(
                f"{key} in {config.config_path} is {_shown(own)}, but {source} {_shown(value)}; change the "
                "file or use another model"
            )
        if key in config.command_line or key in by_file:
            chosen[key] = own
            lines.append(f"{key} is {_shown(own)}, as you set it; {source} {_shown(value)}")
        elif key in config.file_keys:
            lines.append(f"{key} in {config.config_path} is {_shown(own)}, but {source} {_shown(value)}: that is taken")
    if "rpn_nms_post" in noted and chosen["rpn_nms_post"] == noted["rpn_nms_post"]:
        chosen["rpn_nms_post"] = chosen["rpn_max_num"]  # it may only repeat the other
    for line in lines:
        LOGGER.warning(line)
    quiet = [
        f"{key} {_shown(value)}"
        for key, value in chosen.items()
        if getattr(config, key) != value and key not in config.file_keys | {"num_classes", "rpn_nms_post"}
    ]
    if quiet:
        LOGGER.info("%s %s: taken from there", source, ", ".join(quiet))
    try:
        return dataclasses.replace(config, **chosen)
    except ConfigError as error:
        raise UserError(
            f"{error} Other values come from the model: {source} "
            + ", ".join(f"{key} {_shown(value)}" for key, value in noted.items())
        ) from error


def _facts(backbone: str) -> dict[str, Any]:
    """What is the same in all runs of this program, and would have to be in one that uses the weights."""
    return {
        "normalisation": {"colour_order": "RGB", "pixel_mean": list(PIXEL_MEAN), "pixel_std": list(PIXEL_STD)},
        "stage_stride_on": "first 1x1 convolution" if backbone in STRIDE_ON_FIRST else "3x3 convolution",
    }


def _first_release(entries: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if backbone := entries.get(META_BACKBONE):
        BACKBONE_BLOCKS[backbone]  # a KeyError for a name that nobody has given
        settings["backbone"] = backbone
    if noted := entries.get(META_CLASSES):
        # The very first files hold the names between commas.
        classes = tuple(json.loads(noted) if noted.startswith("[") else noted.split(","))
        settings |= {"coco_classes": classes, "num_classes": len(classes)}
    return settings


def _plain(value: Any) -> Any:
    """A value of the configuration as JSON takes it."""
    return dict(value) if isinstance(value, RoiLayer) else value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else shorten(value)

"""The configuration: one frozen value that holds every setting of a run.

``load_config(argv)`` puts four layers on top of each other, later ones take precedence:

1. ``default_config.yaml``,
2. the file of the backbone (``default_config_101.yaml``, ``default_config_152.yaml``): differences only,
3. the file given by ``--config_path``: the keys it lacks keep the values of the layers below, so it may
   hold everything or only what it changes,
4. the flags of the command line.

Files and flags are checked when they are loaded: unknown keys, wrong types, values out of range and values
that contradict each other raise ``ConfigError``. What is derived (number of classes, shapes of the feature
maps) is computed here and nowhere else.
"""

from __future__ import annotations

import argparse
import functools
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.model_utils.config_checks import (
    BACKBONE_BLOCKS,
    BACKBONE_FILES,
    COMMAND_LINE,
    STRIDE_ON_FIRST,
    as_yaml,
    check_backbone,
    check_config,
    shorten,
)
from src.model_utils.config_file import ConfigFile, convert, nearest, parse_flag, read_config_file
from src.model_utils.errors import ConfigError
from src.model_utils.keys import GROUPS, Keys, RoiLayer, key_types

__all__ = ["Config", "ConfigError", "RoiLayer", "describe", "load_config"]

REPO_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FILE = "default_config.yaml"
FILE_ALIASES = {"default_config_50.yaml": DEFAULT_FILE}
# Names that the published ModelArts instructions use. In a file they win over the key they stand for, because
# these instructions add them to a file that has both.
KEY_ALIASES = {"distribute": "run_distribute", "checkpoint": "checkpoint_path"}
# Published files of older versions state these; they follow from the canvas, so they may only confirm it.
DERIVED_KEYS = ("feature_shapes", "num_bboxes")
# Values that published files carry without meaning a folder of this machine.
PLACEHOLDER_COCO_ROOT = "/disk2/dataset/COCO2017"
MINDRECORD_FOLDER = "MindRecord_COCO_TRAIN"
PLACEHOLDER_MINDRECORD_DIRS = (f"{PLACEHOLDER_COCO_ROOT}/{MINDRECORD_FOLDER}", f"/data/{MINDRECORD_FOLDER}")


@dataclass(frozen=True, kw_only=True)
class Config(Keys):
    """Every setting of a run, one attribute per key of ``default_config.yaml``.

    Immutable and hashable: lists of the YAML are tuples, ``roi_layer`` is a ``RoiLayer``. A changed copy is
    ``dataclasses.replace(config, img_width=640)``, which checks ranges and equations again. Only that
    ``resnet_block`` fits ``backbone`` is checked for files and flags alone: code may build a smaller network.

    Args: see ``Keys``.

    Raises:
        ConfigError: a value is out of range or contradicts another one.

    Example:
        >>> config = load_config(["--backbone=resnet_v1_101", "--img_width=640", "--img_height=640"])
        >>> config.resnet_block, config.feature_shapes[-1], config.num_fg_classes
        ((3, 4, 23, 3), (10, 10), 80)
    """

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the foreground classes; detection label k is ``class_names[k]``."""
        return self.coco_classes[1:]

    @property
    def num_fg_classes(self) -> int:
        """Number of classes without the background."""
        return len(self.coco_classes) - 1

    @property
    def stride_on_first(self) -> bool:
        """Whether a stage's stride sits on the first 1x1 convolution of its blocks, not on the 3x3 one."""
        return self.backbone in STRIDE_ON_FIRST

    @property
    def feature_shapes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the feature map of each pyramid level, finest first."""
        return tuple((self.img_height // stride, self.img_width // stride) for stride in self.anchor_strides)

    @property
    def num_bboxes(self) -> int:
        """Number of anchors of the whole canvas, all levels together."""
        return self.num_anchors * sum(height * width for height, width in self.feature_shapes)


def load_config(argv: Sequence[str] | None = None) -> Config:
    """Read the configuration from the YAML files and the command line.

    Args:
        argv (Sequence[str] | None): flags, ``--key=value`` or ``--key value``; None means ``sys.argv[1:]``.
            ``--config_path`` is looked for below the current folder, then below the repository's root.

    Returns:
        Config: checked and frozen.

    Raises:
        ConfigError: for every mistake in a file or a flag.
        SystemExit: with code 0 after ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    config_path, backbone = _parse_file_choice(argv)
    layers = _read_layers(config_path, backbone)
    flags = _parse_flags(argv, layers)

    values: dict[str, Any] = {}
    for layer in layers:
        own, shipped = _convert_layer(layer), values
        values = values | own
    is_copy = len(own) > len(values) / 2
    file_keys = {key for key, value in own.items() if not is_copy or value != shipped.get(key)} if config_path else ()
    missing = [key for key in key_types() if key not in values]
    if missing:
        raise ConfigError(f"{layers[0].path}: lacks the keys {', '.join(missing)}; restore them from the repository.")
    for key, text in flags.items():
        values[key] = parse_flag(f"--{key}", text, key_types()[key], COMMAND_LINE)
    _check_choices(values, layers, flags)
    _derive(values, flags)

    config = Config(
        **values, config_path=str(layers[-1].path), command_line=frozenset(flags), file_keys=frozenset(file_keys)
    )
    check_backbone(config)
    _check_derived(config, layers)
    return config


def describe(config: Config) -> list[str]:
    """Say, line by line for the log, which file was used and what differs from ``default_config.yaml``.

    Args:
        config (Config): the configuration of the run.

    Returns:
        list[str]: "configuration: FILE", then "key = value (default ...)" in the order of the file. Flags are
        always listed, and marked.
    """
    defaults = _convert_layer(_read_shipped(REPO_ROOT / DEFAULT_FILE))
    lines = [f"configuration: {config.config_path}"]
    for key, default in defaults.items():
        value = getattr(config, key)
        if key in config.command_line:
            lines.append(f"{key} = {as_yaml(value)} (from {COMMAND_LINE}; default {shorten(default)})")
        elif value != default:
            lines.append(f"{key} = {as_yaml(value)} (default {shorten(default)})")
    return lines


# ---- files -------------------------------------------------------------------------------------------------


@functools.cache
def _read_shipped(path: Path) -> ConfigFile:
    """A file of ours, read once: the defaults take 40 ms."""
    return read_config_file(path)


def _read_layers(config_path: str | None, backbone: str | None) -> list[ConfigFile]:
    """The files to put on top of each other, lowest first: the defaults, the backbone's, the user's own."""
    layers = [_read_shipped(REPO_ROOT / DEFAULT_FILE)]
    own = read_config_file(_find_config_file(config_path)) if config_path is not None else None
    if own is not None:
        _check_depth(own, backbone)
        backbone = backbone or own.values.get("backbone")
    # An unknown or ill-typed backbone has no file here and is refused when its value is converted.
    file_name = BACKBONE_FILES.get(backbone, DEFAULT_FILE) if isinstance(backbone, str) else DEFAULT_FILE
    if file_name != DEFAULT_FILE:
        layers.append(_read_shipped(REPO_ROOT / file_name))
    if own is not None:
        layers.append(own)
    return layers


def _find_config_file(config_path: str) -> Path:
    """The file below the current folder or else the repository, as named or as its alias stands for."""
    given = Path(config_path)
    candidates = [given, REPO_ROOT / given]
    if given.name in FILE_ALIASES:
        candidates += [candidate.with_name(FILE_ALIASES[given.name]) for candidate in candidates]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ConfigError(f"--config_path={config_path}: no such file below {Path.cwd()} or {REPO_ROOT}.")


def _check_depth(own: ConfigFile, backbone: str | None) -> None:
    """Refuse a file written for one depth of the backbone and a flag that asks for another."""
    written = own.values.get("backbone")
    if backbone not in BACKBONE_BLOCKS or not isinstance(written, str) or written not in BACKBONE_BLOCKS:
        return
    if BACKBONE_BLOCKS[written] != BACKBONE_BLOCKS[backbone]:
        raise ConfigError(
            f"--backbone={backbone} contradicts {own.path}, which is for {written}: "
            f"use --config_path={BACKBONE_FILES[backbone]} or leave --backbone out."
        )


def _convert_layer(layer: ConfigFile) -> dict[str, Any]:
    """The values of one file as their types; unknown keys are refused."""
    kinds, values, source = key_types(), dict(layer.values), str(layer.path)
    for alias, key in KEY_ALIASES.items():
        if alias in values:
            values[key] = values.pop(alias)
    for key in DERIVED_KEYS:
        values.pop(key, None)  # compared with what follows from the canvas by _check_derived
    for key in values:
        if key not in kinds:
            raise ConfigError(f"{source}: unknown key {key}.{nearest(key, kinds)}")
    return {key: convert(key, value, kinds[key], source) for key, value in values.items()}


def _check_choices(values: Mapping[str, Any], layers: Sequence[ConfigFile], flags: Mapping[str, str]) -> None:
    """Hold every value to the choices that any of the files states for its key."""
    for layer in layers:
        for key, allowed in layer.choices.items():
            if key in values and values[key] not in allowed:
                source = COMMAND_LINE if key in flags else layers[-1].path
                names = [str(choice) for choice in allowed]
                raise ConfigError(
                    f"{key} is {values[key]!r} (from {source}): expected one of "
                    f"{', '.join(names)}.{nearest(str(values[key]), names)}"
                )


def _derive(values: dict[str, Any], flags: Mapping[str, str]) -> None:
    """Fill in what follows from other values: the number of classes, the folder of the record files."""
    if "num_classes" not in flags:
        values["num_classes"] = len(values["coco_classes"])
    if "mindrecord_dir" not in flags and values["mindrecord_dir"] in PLACEHOLDER_MINDRECORD_DIRS:
        root = values["coco_root"]
        if values["dataset"] == "other" and root == PLACEHOLDER_COCO_ROOT and values["image_dir"]:
            root = values["image_dir"]  # no COCO folder was named: the records go beside the images
        values["mindrecord_dir"] = str(Path(root) / MINDRECORD_FOLDER)


def _check_derived(config: Config, layers: Iterable[ConfigFile]) -> None:
    """Refuse a file that states feature shapes or an anchor count other than those of its canvas."""
    for layer in layers:
        for key in DERIVED_KEYS:
            derived, stated = getattr(config, key), layer.values.get(key)
            if stated is not None and _as_tuples(stated) != derived:
                raise ConfigError(
                    f"{layer.path}: {key} is {stated!r}, but a canvas of {config.img_width} x "
                    f"{config.img_height} gives {shorten(derived)}; leave {key} out."
                )


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


# ---- command line ------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ConfigErrors."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{COMMAND_LINE}: {message}.")


class _StoreOnce(argparse.Action):
    """Keep the value of a flag; refuse a second one, under its own name or its alias."""

    def __call__(self, parser, namespace, values, option_string=None):
        if hasattr(namespace, self.dest):
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def _parse_file_choice(argv: Sequence[str]) -> tuple[str | None, str | None]:
    """The two flags that choose the files, before any file is read."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_path")
    parser.add_argument("--backbone")
    chosen, _ = parser.parse_known_args(argv)
    return chosen.config_path, chosen.backbone


def _parse_flags(argv: Sequence[str], layers: Sequence[ConfigFile]) -> dict[str, str]:
    """The values of the flags given, as strings by key; ``--help`` prints the groups of keys and ends the program."""
    given, rest = _build_parser(layers).parse_known_args(argv)
    if rest:
        raise _unknown_argument(rest[0])
    flags = vars(given)
    flags.pop("config_path", None)
    return flags


def _build_parser(layers: Sequence[ConfigFile]) -> argparse.ArgumentParser:
    values: dict[str, Any] = {}
    help_texts: dict[str, str] = {}
    for layer in layers:
        values |= layer.values
        help_texts |= layer.help
    parser = _Parser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [--config_path=FILE] [--KEY=VALUE ...] | --version",
        description=f"Flags take precedence over the values in {layers[-1].path}.",
    )
    parser.add_argument(
        "--config_path",
        action=_StoreOnce,
        metavar="FILE",
        help="Configuration file, read on top of default_config.yaml and the backbone's.",
    )
    aliases = {key: alias for alias, key in KEY_ALIASES.items()}
    for group in GROUPS:
        section = parser.add_argument_group(group.__doc__)
        for key in group.__annotations__:
            names = [f"--{key}"] + ([f"--{aliases[key]}"] if key in aliases else [])
            section.add_argument(
                *names,
                dest=key,
                action=_StoreOnce,
                metavar="VALUE",
                help=_help_text(key, values, help_texts, layers[0].choices),
            )
    return parser


def _help_text(key: str, values: Mapping[str, Any], help_texts: Mapping[str, str], choices: Mapping[str, list]) -> str:
    options = f" One of {', '.join(map(str, choices[key]))}." if key in choices else ""
    text = f"{help_texts.get(key, '')}{options} (default: {shorten(values.get(key))})"
    return text.replace("%", "%%")  # argparse would take a percent sign for a format


def _unknown_argument(argument: str) -> ConfigError:
    if not argument.startswith("-"):
        return ConfigError(f"{COMMAND_LINE}: unexpected argument {argument!r}; expected flags --KEY=VALUE.")
    key = argument.lstrip("-").split("=")[0]
    if key in DERIVED_KEYS:
        return ConfigError(f"{COMMAND_LINE}: --{key} is derived from img_width and img_height; leave it out.")
    return ConfigError(
        f"{COMMAND_LINE}: unknown flag --{key}.{nearest(key, [*key_types(), *KEY_ALIASES])} --help lists all."
    )

"""The configuration: one frozen value that holds every setting of a run.

``load_config(argv)`` puts five layers on top of each other, later ones take precedence:

1. ``default_config.yaml``,
2. the file of the backbone (``default_config_101.yaml``, ``default_config_152.yaml``): differences only,
3. the recipe, if ``--recipe`` or the user's file names one: ``configs/recipe_NAME.yaml``, differences too,
4. the file given by ``--config_path``: the keys it lacks keep the values of the layers below, so it may
   hold everything or only what it changes,
5. the flags of the command line.

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
from src.model_utils.keys import AUTO, AUTO_CLASSES, GROUPS, Keys, RoiLayer, key_types

__all__ = ["Config", "ConfigError", "RoiLayer", "describe", "load_config"]

REPO_ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FILE = "default_config.yaml"
FILE_ALIASES = {"default_config_50.yaml": DEFAULT_FILE}
# What base_lr=auto stands for, and why: (whether opt_type is sgd, whether weights are given) -> rate for 16 images a
# step. Adam divides gradients by their size, so its rates are others, and alike with its variants.
AUTO_BASE_LR = {
    (True, True): (0.02, "for 16 images a step as in Goyal et al. 2017 and Lin et al. 2017"),
    (True, False): (0.02, "for 16 images a step as in Goyal et al. 2017 and Lin et al. 2017"),
    (False, True): (0.0008, "half of that from random weights, because given ones need to change less"),
    (False, False): (0.0016, "2e-4 at a batch of 2, as measured on blood cells"),
}
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
        """Names of the foreground classes; detection label k is ``class_names[k]``. ConfigError while still "auto"."""
        if self.coco_classes == AUTO_CLASSES:
            raise ConfigError("coco_classes is still 'auto': src.data.class_names.with_classes gives the names.")
        return self.coco_classes[1:]

    @property
    def num_fg_classes(self) -> int:
        """Number of classes without the background."""
        return len(self.class_names)

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
    files = _read_files(*_parse_file_choice(argv))
    flags = _parse_flags(argv, files)
    values, file_keys, recipe_keys = _merge(files)
    missing = [key for key in key_types() if key not in values]
    if missing:
        raise ConfigError(
            f"{files.shipped[0].path}: lacks the keys {', '.join(missing)}; restore them from the repository."
        )
    for key, text in flags.items():
        values[key] = parse_flag(f"--{key}", text, key_types()[key], COMMAND_LINE)
    _check_choices(values, files, flags)
    _check_recipe(values, files, flags)
    auto_keys = _choose_auto(values)
    _derive(values, flags)

    config = Config(
        **values,
        config_path=str(files.path),
        command_line=frozenset(flags),
        file_keys=file_keys,
        recipe_keys=recipe_keys.difference(flags),
        auto_keys=auto_keys,
    )
    check_backbone(config)
    _check_derived(config, files.layers)
    return config


def describe(config: Config) -> list[str]:
    """Say, line by line for the log, which file was used and what differs from ``default_config.yaml``.

    Args:
        config (Config): the configuration of the run.

    Returns:
        list[str]: "configuration: FILE", then "key = value (default ...)" in the order of the file. Flags, what the
        recipe sets and what was chosen for "auto" are always listed, and marked.
    """
    defaults = _convert_layer(_read_shipped(REPO_ROOT / DEFAULT_FILE))
    lines = [f"configuration: {config.config_path}"]
    for key, default in defaults.items():
        if key == "num_classes" and config.coco_classes == AUTO_CLASSES:
            continue  # it follows with them
        value, origins = getattr(config, key), []
        if key in config.command_line:
            origins.append(f"from {COMMAND_LINE}")
        elif key in config.recipe_keys:
            origins.append(f"from the recipe {config.recipe}")
        if key in config.auto_keys:
            origins.append(f"{AUTO}: {_auto_base_lr(config.opt_type, config.pre_trained)[1]}")
        if origins or value != default:
            lines.append(f"{key} = {as_yaml(value)} ({'; '.join([*origins, f'default {shorten(default)}'])})")
    return lines


# ---- files -------------------------------------------------------------------------------------------------


@functools.cache
def _read_shipped(path: Path) -> ConfigFile:
    """A file of ours, read once: the defaults take 40 ms."""
    return read_config_file(path)


@dataclass(frozen=True)
class _Files:
    """The files of a configuration: ours with the defaults first, the recipe, the user's own."""

    shipped: list[ConfigFile]
    recipe: ConfigFile | None
    own: ConfigFile | None

    @property
    def layers(self) -> list[ConfigFile]:
        """All of them, lowest first."""
        return [*self.shipped, *filter(None, (self.recipe, self.own))]

    @property
    def path(self) -> Path:
        """The file that messages name."""
        return (self.own or self.shipped[-1]).path


def _read_files(config_path: str | None, backbone: str | None, recipe: str | None) -> _Files:
    """Read the files that the command line and the user's own file choose."""
    shipped = [_read_shipped(REPO_ROOT / DEFAULT_FILE)]
    own = read_config_file(_find_config_file(config_path)) if config_path is not None else None
    recipe_source = COMMAND_LINE
    if own is not None:
        _check_depth(own, backbone)
        backbone = backbone or own.values.get("backbone")
        if recipe is None:
            recipe, recipe_source = own.values.get("recipe"), str(own.path)
    # An unknown or ill-typed backbone has no file here and is refused when its value is converted.
    file_name = BACKBONE_FILES.get(backbone, DEFAULT_FILE) if isinstance(backbone, str) else DEFAULT_FILE
    if file_name != DEFAULT_FILE:
        shipped.append(_read_shipped(REPO_ROOT / file_name))
    # So is an ill-typed recipe.
    found = _read_recipe(recipe, recipe_source) if recipe and isinstance(recipe, str) else None
    return _Files(shipped, found, own)


def _read_recipe(name: str, source: str) -> ConfigFile:
    files = sorted((REPO_ROOT / "configs").glob("recipe_*.yaml"))
    known = {path.stem.removeprefix("recipe_"): path for path in files}
    if name not in known:
        raise ConfigError(
            f"recipe is {name!r} (from {source}): expected one of {', '.join(known)}, as in configs/recipe_NAME.yaml, "
            f"or nothing.{nearest(name, known)}"
        )
    return _read_shipped(known[name])


def _merge(files: _Files) -> tuple[dict[str, Any], frozenset[str], frozenset[str]]:
    """The values of all files, the keys that the user's own file sets, and those that the recipe sets."""
    shipped: dict[str, Any] = {}
    for layer in files.shipped:
        shipped |= _convert_layer(layer)
    recipe = _convert_layer(files.recipe) if files.recipe else {}
    own = _convert_layer(files.own) if files.own else {}
    is_copy = len(own) > len(shipped) / 2
    file_keys = {key for key, value in own.items() if not is_copy or value != shipped.get(key)}
    # A copy of a shipped file, and a shipped file that is named, repeat defaults; they do not choose them.
    is_shipped = files.own is not None and files.own.path.resolve() in [layer.path for layer in files.shipped]
    chosen = {} if is_shipped else {key: own[key] for key in file_keys}
    return shipped | own | recipe | chosen, frozenset(file_keys), frozenset(recipe.keys() - chosen.keys())


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


def _check_choices(values: Mapping[str, Any], files: _Files, flags: Mapping[str, str]) -> None:
    """Hold every value to the choices that any of the files states for its key."""
    for layer in files.layers:
        for key, allowed in layer.choices.items():
            if key in values and values[key] not in allowed:
                source = COMMAND_LINE if key in flags else files.path
                names = [str(choice) for choice in allowed]
                raise ConfigError(
                    f"{key} is {values[key]!r} (from {source}): expected one of "
                    f"{', '.join(names)}.{nearest(str(values[key]), names)}"
                )


def _check_recipe(values: Mapping[str, Any], files: _Files, flags: Mapping[str, str]) -> None:
    """Refuse a checkpoint beside a recipe that trains from random weights."""
    if files.recipe is None or files.recipe.values.get("pre_trained") != "" or not values["pre_trained"]:
        return
    recipe, weights = (
        f"--{key}={values[key]}" if key in flags else f"{key}: {values[key]} in {files.path}"
        for key in ("recipe", "pre_trained")
    )
    raise ConfigError(f"{recipe} trains from random weights, which contradicts {weights}: leave one of the two out.")


def _choose_auto(values: dict[str, Any]) -> frozenset[str]:
    """Give the keys that are "auto" a value, and tell which have one now; class names follow with the data."""
    if values["coco_classes"] == AUTO:
        values["coco_classes"] = AUTO_CLASSES
    if values["base_lr"] != AUTO:
        return frozenset()
    values["base_lr"], _ = _auto_base_lr(values["opt_type"], values["pre_trained"])
    return frozenset({"base_lr"})


def _auto_base_lr(opt_type: str, pre_trained: str) -> tuple[float, str]:
    """The rate that base_lr=auto stands for, and what it is chosen by."""
    rate, reason = AUTO_BASE_LR[opt_type == "sgd", bool(pre_trained)]
    return rate, f"{opt_type} from {'given' if pre_trained else 'random'} weights, {reason}"


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


def _parse_file_choice(argv: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The three flags that choose the files, before any file is read."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config_path")
    parser.add_argument("--backbone")
    parser.add_argument("--recipe")
    chosen, _ = parser.parse_known_args(argv)
    return chosen.config_path, chosen.backbone, chosen.recipe


def _parse_flags(argv: Sequence[str], files: _Files) -> dict[str, str]:
    """The values of the flags given, as strings by key; ``--help`` prints the groups of keys and ends the program."""
    given, rest = _build_parser(files).parse_known_args(argv)
    if rest:
        raise _unknown_argument(rest[0])
    flags = vars(given)
    flags.pop("config_path", None)
    return flags


def _build_parser(files: _Files) -> argparse.ArgumentParser:
    values: dict[str, Any] = {}
    help_texts: dict[str, str] = {}
    for layer in files.layers:
        values |= layer.values
        help_texts |= layer.help
    parser = _Parser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [--config_path=FILE] [--recipe=NAME] [--KEY=VALUE ...] | --version",
        description=f"Flags take precedence over the values in {files.path}. What you set, as a flag or in a file of "
        "your own, takes precedence over a recipe, and that over the defaults.",
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
                help=_help_text(key, values, help_texts, files.shipped[0].choices),
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

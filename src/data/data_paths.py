"""Where the data of a run lies: annotation files, image folders, and images by the names that annotations give."""

import logging
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)


def annotation_file(config: Config, *, training: bool) -> Path:
    """The annotation file of training or evaluation.

    COCO: `instance_set` with `train_data_type` or `val_data_type` below `coco_root`, or with `instance_` for
    `instances_` where only that exists; `val_anno_path` or `anno_path`, if given, takes the place of the evaluation
    file. TXT: `anno_path`, and `val_anno_path` for evaluation if it is given.

    Raises:
        UserError: there is no such file; names the path.
    """
    if config.dataset == "coco" and config.anno_path and config.val_anno_path:
        raise UserError("anno_path and val_anno_path both name the evaluation file of a COCO data set; give one")
    if config.dataset == "other" and not (config.anno_path or (config.val_anno_path and not training)):
        raise UserError("dataset 'other' needs anno_path: the TXT file that lists images and boxes")
    if config.val_anno_path and not training:
        keys, path = "val_anno_path", Path(config.val_anno_path)
    elif config.anno_path and (config.dataset == "other" or not training):
        keys, path = "anno_path", Path(config.anno_path)
    else:
        subset_key = "train_data_type" if training else "val_data_type"
        keys = f"coco_root, instance_set and {subset_key}"
        path = Path(config.coco_root) / config.instance_set.replace("{}", getattr(config, subset_key))
        other = path.with_name(path.name.replace("instances_", "instance_", 1))
        if not path.exists() and other.is_file():
            path = other
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"the annotation file {path} {problem}; check {keys}")
    return path


def check_training_lists(config: Config) -> None:
    """Refuse to evaluate a training on the images that it learns from, unless these are named for it.

    Args:
        config (Config): of a training.

    Raises:
        UserError: `run_eval` for a TXT data set without `val_anno_path`; a flag that only evaluation reads, without
            `run_eval`.
    """
    if not config.run_eval:
        unread = {"val_anno_path", *(["anno_path"] if config.dataset == "coco" else [])} & config.command_line
        if unread:
            raise UserError(
                f"--{min(unread)} names what is evaluated, and run_eval is False: training reads "
                f"{annotation_file(config, training=True)}. Leave it out, or add --run_eval=True"
            )
        return
    if config.dataset == "other" and not config.val_anno_path:
        raise UserError(
            "run_eval needs a list of its own for dataset 'other', because anno_path is what is trained "
            "on. Give the TXT file of the evaluation images, --val_anno_path=val.txt, or leave run_eval "
            "out"
        )
    training, evaluation = (annotation_file(config, training=training) for training in (True, False))
    if training.resolve() == evaluation.resolve():
        LOGGER.warning(
            "the evaluation during training scores the images that are trained on, those of %s: the best "
            "checkpoint is then the one that knows them best",
            training,
        )


def image_folder(config: Config, *, training: bool) -> Path:
    """The folder that file names of the annotations start from; UserError when it does not exist."""
    if config.dataset == "other":
        key, folder = "image_dir", Path(config.image_dir)
        if not config.image_dir:
            raise UserError("dataset 'other' needs image_dir: the folder of the images")
    else:
        key = "train_data_type" if training else "val_data_type"
        folder = Path(config.coco_root) / getattr(config, key)
        key = f"coco_root and {key}"
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist; check {key}")
    return folder


def image_path(config: Config, file_name: str) -> Path:
    """Where an evaluation image lies; UserError when its name leads out of the image folder."""
    return find_below(image_folder(config, training=False).resolve(), file_name)


def find_below(root: Path, file_name: str) -> Path:
    """`path_below` for an image: where there is none of this very name, the one whose name looks the same is taken.

    Windows writes folders with backslashes, and macOS splits accents from their letters (Unicode's form NFD).

    Args:
        root (Path): the folder, resolved.
        file_name (str): relative path.

    Returns:
        Path: of an existing file, or of what `file_name` says.

    Raises:
        UserError: see `path_below`.
    """
    for name in _spellings(file_name):
        path = path_below(root, name)
        if os.path.isfile(path):  # noqa: PTH113 - unlike Path's, False for a name that is too long
            return path
    return path_below(root, file_name)


def _spellings(file_name: str) -> Iterator[str]:
    yield file_name
    for name in dict.fromkeys((file_name, file_name.replace("\\", "/"))):
        for form in ("NFC", "NFD"):
            spelling = unicodedata.normalize(form, name)
            if spelling != file_name:
                yield spelling


def path_below(root: Path, file_name: str) -> Path:
    """Join a name from an annotation file to its folder, and hold it there.

    Args:
        root (Path): the folder, resolved.
        file_name (str): relative path; anything that ends elsewhere, also by a link, is refused.

    Returns:
        Path: the resolved path; whether it exists is not looked at.

    Raises:
        UserError: names the file and the folder.
    """
    try:
        path = (root / file_name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, or a null byte in the name
        raise UserError(f"{file_name!r} is not a usable file name ({error})") from error
    if root not in path.parents:
        raise UserError(
            f"{file_name!r} leads to {path}, outside the image folder {root}; images must lie below that folder"
        )
    return path

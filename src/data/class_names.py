"""Class names that nobody has written: `coco_classes: auto` takes them from a COCO annotation file."""

import dataclasses
import logging

from src.common.wording import count_of, listed
from src.data.coco_file import read_category_names
from src.data.data_paths import annotation_file
from src.model_utils.config import Config
from src.model_utils.config_checks import as_yaml
from src.model_utils.errors import UserError
from src.model_utils.keys import AUTO_CLASSES

LOGGER = logging.getLogger(__name__)

BY_HAND = "--coco_classes=\"['background','cat','dog']\""


def with_classes(config: Config, *, training: bool) -> Config:
    """The configuration with class names: where `coco_classes` is "auto", those of the annotation file, in its order.

    The file is parsed once more when records are made of it, which happens once and reads every image besides.

    Args:
        config (Config): `coco_classes`; it is returned as it is when that holds names.
        training (bool): the names are those of the training file. Otherwise of the evaluation file: for a model whose
            own file does not know its classes.

    Returns:
        Config: `coco_classes` begins with the background, `num_classes` follows unless a flag states it.

    Raises:
        UserError: the data set has no file with names, or its names cannot be used.
        ConfigError: a flag num_classes states another number.
    """
    if config.coco_classes != AUTO_CLASSES:
        return config
    if config.dataset == "other":
        raise UserError(
            f"coco_classes is 'auto', but a TXT file (dataset: other) knows no names, only numbers: write {BY_HAND}, "
            "with your names in the order of the numbers"
        )
    try:
        path = annotation_file(config, training=training)
    except UserError as error:
        if training:
            raise
        raise UserError(
            f"coco_classes is 'auto', but neither does the model's file note its classes nor are there evaluation "
            f"annotations to take them from ({error}); write those of its training: {BY_HAND}"
        ) from error
    names, without_box = read_category_names(path)
    classes = ("background", *names)
    LOGGER.log(
        logging.INFO if training else logging.WARNING,
        "%s from %s, in its order%s: coco_classes = %s%s",
        count_of(len(names), "class", "classes"),
        path,
        "" if training else ", which must be that of the training",
        as_yaml(classes),
        f"; without a box there, but kept: {listed(without_box)}" if without_box else "",
    )
    return dataclasses.replace(
        as_not_set(config),
        coco_classes=classes,
        num_classes=config.num_classes if "num_classes" in config.command_line else len(classes),
    )


def as_not_set(config: Config) -> Config:
    """The configuration with a `coco_classes` of "auto" as if nobody had set it; others stay as they are."""
    if config.coco_classes != AUTO_CLASSES:
        return config
    return dataclasses.replace(
        config,
        command_line=config.command_line - {"coco_classes"},
        # A file's number of classes is always that of its names.
        file_keys=config.file_keys - {"coco_classes", "num_classes"},
    )

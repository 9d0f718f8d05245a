"""Fine-tuning to another list of classes: what the two predictors keep of the classes that a detector knows already.

Classes are joined by name, never by position. A class is a column of the class predictor and four of the box predictor,
which has four for the background too where `without_bg_loss` is False.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.common.wording import count_of
from src.model_utils.config import Config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]

_SCORES, _BOXES = "rcnn.cls_scores.", "rcnn.reg_scores."
_PARTS = ("weight", "bias")


def keep_known_classes(
    trained: Arrays, fresh: Arrays, noted: Mapping[str, Any], config: Config, path: str | Path
) -> dict[str, np.ndarray]:
    """Put what a checkpoint knows of the run's classes into two new predictors, and name it in the log.

    The background is kept with them. Deltas of boxes are in units of `rcnn_target_stds` around `rcnn_target_means`;
    where the run has others than the checkpoint, they are converted, and stand for the same boxes as before.

    Args:
        trained (Mapping): parameters of the checkpoint, the predictors' are (hidden, columns) and (columns,).
        fresh (Mapping): predictors of the new network.
        noted (Mapping): settings that the checkpoint notes, see `src.weights.detector_notes.noted_settings`; targets
            that it does not note are taken to be those of the run.
        config (Config): of the run.
        path (str | Path): the checkpoint, for messages.

    Returns:
        dict: the four arrays of the new predictors. Empty where no class is known: both layers start anew then, as in
            the published system.

    Raises:
        UserError: the predictors of the checkpoint are not those of the classes that it notes.
    """
    known = tuple(noted.get("coco_classes", ()))
    kept = [name for name in config.class_names if name in known[1:]]
    if not kept or any(layer + part not in trained for layer in (_SCORES, _BOXES) for part in _PARTS):
        reason = "knows none of them" if known else "does not note its classes"
        LOGGER.info(
            "all %s from random weights: %s %s", count_of(config.num_fg_classes, "class", "classes"), path, reason
        )
        return {}
    _check_columns(trained, fresh, len(known), path)
    there, here = ([0, *(names.index(name) for name in kept)] for names in (known, config.coco_classes))
    scale, shift = _to_own_units(noted, config, path)
    result: dict[str, np.ndarray] = {}
    for part in _PARTS:
        scores = fresh[_SCORES + part].copy()
        scores[..., here] = trained[_SCORES + part][..., there]
        boxes, old = (_by_box(arrays[_BOXES + part]).copy() for arrays in (fresh, trained))
        own_first, first = 1 - _has_background_box(fresh), 1 - _has_background_box(trained)
        if first == own_first == 0:
            boxes[..., 0, :] = old[..., 0, :]  # learns to be 0, in any unit
        moved = old[..., np.subtract(there[1:], first), :] * scale
        boxes[..., np.subtract(here[1:], own_first), :] = moved + shift if part == "bias" else moved
        result |= {_SCORES + part: scores, _BOXES + part: boxes.reshape(fresh[_BOXES + part].shape)}
    _say_which(config.class_names, kept, path)
    return result


def _say_which(names: Sequence[str], kept: Sequence[str], path: str | Path) -> None:
    new = [name for name in names if name not in kept]
    LOGGER.info(
        "%s and the background keep their weights of %s: %s; %s from random weights%s",
        count_of(len(kept), "class", "classes"),
        path,
        ", ".join(kept),
        count_of(len(new), "class", "classes"),
        ": " + ", ".join(new) if new else "",
    )


def _by_box(deltas: np.ndarray) -> np.ndarray:
    """(..., 4 * boxes) as (..., boxes, 4)."""
    return deltas.reshape(*deltas.shape[:-1], -1, 4)


def _has_background_box(arrays: Arrays) -> int:
    return int(len(arrays[_BOXES + "bias"]) == 4 * len(arrays[_SCORES + "bias"]))


def _check_columns(trained: Arrays, fresh: Arrays, num_classes: int, path: str | Path) -> None:
    num_boxes = num_classes - 1 + _has_background_box(trained)
    for layer, columns in ((_SCORES, num_classes), (_BOXES, 4 * num_boxes)):
        for part in _PARTS:
            shape, expected = trained[layer + part].shape, (*fresh[layer + part].shape[:-1], columns)
            if shape != expected:
                raise UserError(
                    f"checkpoint {path} notes {num_classes} classes with the background, but {layer + part} has shape "
                    f"{shape}, expected {expected}; copy or convert the file again"
                )


def _to_own_units(noted: Mapping[str, Any], config: Config, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand (4,) that keep delta * std + mean what it was."""
    stds, means = config.rcnn_target_stds, config.rcnn_target_means
    old_stds, old_means = noted.get("rcnn_target_stds", stds), noted.get("rcnn_target_means", means)
    if (old_stds, old_means) != (stds, means):
        LOGGER.info(
            "the box predictor of %s is converted from rcnn_target_stds %s, rcnn_target_means %s to %s, %s",
            path,
            *(list(values) for values in (old_stds, old_means, stds, means)),
        )
    return np.divide(old_stds, stds), np.subtract(old_means, means) / np.asarray(stds)

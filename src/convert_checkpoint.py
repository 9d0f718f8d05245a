"""Checkpoints in: one reader, all key renames, and the two ways weights enter a network.

``python -m src.convert_checkpoint --ckpt_file=RESNET.ckpt`` writes ``backbone.ckpt``, a published ResNet checkpoint
under the detector's names. Training and evaluation do the same on the fly, so the file is a convenience.
"""
import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

BACKBONE_PREFIX = "backbone."
DETECTOR_PREFIXES = (BACKBONE_PREFIX, "fpn_neck.", "rpn_with_loss.", "rcnn.")
PREDICTOR_PREFIXES = ("rcnn.cls_scores.", "rcnn.reg_scores.")
# Left by optimisers and training wrappers; never part of a network.
OPTIMISER_PREFIXES = ("accum.", "stat.", "moments.", "moment1.", "moment2.")
OPTIMISER_NAMES = ("learning_rate", "global_step", "beta1_power", "beta2_power", "momentum")
# The classifier of an image-classification checkpoint.
CLASSIFIER_PREFIXES = ("end_point.", "fc.", "head.")
# Spellings of older releases: part of a name, and what it is now.
RENAMES = (("fpn_ncek.", "fpn_neck."), ("down_sample_layer.0.", "conv_down_sample."),
           ("down_sample_layer.1.", "bn_down_sample."))
# What we write beside the weights.
META_BACKBONE = "meta_backbone"
META_CLASSES = "meta_classes"
NAMES_SHOWN = 10


def read_checkpoint(path: str | Path) -> dict[str, Parameter]:
    """Read every entry of a MindSpore checkpoint.

    Args:
        path (str | Path): a ``.ckpt`` file.

    Returns:
        dict: name to Parameter (or to a number or text stored beside the weights), as in the file.

    Raises:
        UserError: no such file, or it is damaged. Damage to single bytes is seen in checkpoints written by this
            program, which carry a checksum.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {kind}; expected a .ckpt file")
    try:
        return ms.load_checkpoint(str(path), crc_check=_has_checksum(path))
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"checkpoint {path} is damaged or no MindSpore checkpoint ({path.stat().st_size} bytes); copy "
                        f"or download it again. MindSpore says: {str(error).splitlines()[0]}") from error


def _has_checksum(path: Path) -> bool:
    """MindSpore ends a file with a checksum with this word and a number."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return b"crc_num" in file.read()


def network_parameters(entries: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The weights of a checkpoint under the detector's names.

    Args:
        entries (Mapping): as read from a file of this program, of the published detector (old spellings too) or of the
            published ResNet classifiers.

    Returns:
        dict: name to Parameter, without optimiser state, classifier and notes; names of a backbone start with
            ``backbone.``.
    """
    found = {}
    for name, value in entries.items():
        if not isinstance(value, Tensor) or name.startswith(OPTIMISER_PREFIXES) or name in OPTIMISER_NAMES:
            continue
        for old, new in RENAMES:
            name = name.replace(old, new)
        found[name] = value
    if any(name.startswith(DETECTOR_PREFIXES) for name in found):
        return {name: value for name, value in found.items() if name.startswith(DETECTOR_PREFIXES)}
    return {BACKBONE_PREFIX + name: value for name, value in found.items()
            if not name.startswith(CLASSIFIER_PREFIXES)}


def load_pretrained(network: nn.Cell, path: str | Path, finetune: bool = False) -> nn.Cell:
    """Load the weights that training starts from.

    Args:
        network (Cell): a detector.
        path (str | Path): a backbone checkpoint (published ResNet names are mapped), or a whole detector, of which
            the backbone is taken. Empty: the network keeps its random weights.
        finetune (bool): the file is a whole detector; all of it is taken but the two predictor layers, which depend
            on the classes and start anew.

    Returns:
        Cell: the network.

    Raises:
        UserError: the file is missing or damaged, or does not fit.
    """
    if not path:
        return network
    entries = read_checkpoint(path)
    _check_backbone(network, entries, path)
    if finetune:
        wanted = [p for p in network.get_parameters() if not p.name.startswith(PREDICTOR_PREFIXES)]
        what = "detector without its class and box predictors"
    else:
        wanted = [p for p in network.get_parameters() if p.name.startswith(BACKBONE_PREFIX)]
        what = "backbone"
    _assign(wanted, network_parameters(entries), path)
    LOGGER.info("loaded %s (%d parameters) from %s; the rest starts from random weights", what, len(wanted), path)
    return network


def load_detector(network: nn.Cell, path: str | Path) -> nn.Cell:
    """Load a whole detector, as evaluation and export need it.

    Args:
        network (Cell): a detector.
        path (str | Path): a checkpoint that holds every one of its parameters.

    Returns:
        Cell: the network.

    Raises:
        UserError: the file is missing or damaged, or does not fit.
    """
    entries = read_checkpoint(path)
    _check_backbone(network, entries, path)
    wanted = list(network.get_parameters())
    _assign(wanted, network_parameters(entries), path)
    LOGGER.info("loaded detector (%d parameters) from %s", len(wanted), path)
    return network


def _check_backbone(network: nn.Cell, entries: Mapping, path: str | Path) -> None:
    """Two ResNet-50 kinds have equal names and shapes; files of ours say which one they hold."""
    stored, expected = entries.get(META_BACKBONE), getattr(network, "backbone_name", None)
    if stored and expected and stored != expected:
        raise UserError(f"checkpoint {path} holds backbone {stored}, but the configuration says {expected}; "
                        f"use --backbone={stored}")


def _assign(wanted: Sequence[Parameter], found: Mapping[str, Parameter], path: str | Path) -> None:
    """Copy values into parameters; all or none, so that a refusal leaves the network as it was."""
    problems = []
    for param in wanted:
        if param.name not in found:
            problems.append(f"{param.name} is missing")
        elif tuple(found[param.name].shape) != tuple(param.shape):
            problems.append(f"{param.name} has shape {tuple(found[param.name].shape)}, expected {tuple(param.shape)}")
        elif not np.isfinite(found[param.name].asnumpy()).all():
            problems.append(f"{param.name} holds NaN or infinite values")
    if problems:
        shown = "\n  ".join(problems[:NAMES_SHOWN])
        more = f"\n  and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
        raise UserError(f"checkpoint {path} does not fit the network: {len(problems)} of {len(wanted)} parameters "
                        f"differ.\n  {shown}{more}\n"
                        f"Check --backbone and coco_classes; weights of another set of classes load for training with "
                        f"--finetune=True, which leaves the two predictors out.")
    for param in wanted:
        param.set_data(Tensor(found[param.name].asnumpy(), param.dtype))


def main(argv: Sequence[str] | None = None) -> int:
    """Write a published ResNet checkpoint under the detector's names."""
    parser = argparse.ArgumentParser(prog="python -m src.convert_checkpoint", description=main.__doc__)
    parser.add_argument("--ckpt_file", required=True, help="ResNet checkpoint of the model zoo, or a detector's.")
    parser.add_argument("--output", default="backbone.ckpt", help="File to write (default: %(default)s).")
    args = parser.parse_args(argv)
    params = {name: value for name, value in network_parameters(read_checkpoint(args.ckpt_file)).items()
              if name.startswith(BACKBONE_PREFIX)}
    if not params:
        raise UserError(f"checkpoint {args.ckpt_file} holds no parameter of a backbone")
    write_checkpoint([{"name": name, "data": value} for name, value in params.items()], args.output)
    LOGGER.info("wrote %d parameters to %s", len(params), args.output)
    return 0


def write_checkpoint(parameters, path: str | Path, notes: Mapping[str, str | int] | None = None) -> None:
    """Write a checkpoint so that at any moment the file is either the old one or the whole new one.

    Args:
        parameters (Cell | list[dict]): what ``mindspore.save_checkpoint`` takes.
        path (str | Path): target; its folder is made.
        notes (Mapping | None): numbers and texts stored beside the weights.

    Raises:
        UserError: the file cannot be written; an older file of that name stays.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial.ckpt")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ms.save_checkpoint(parameters, str(partial), append_dict=dict(notes or {}), crc_check=True)
        partial.chmod(0o644)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot write checkpoint {path}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    from src.runtime import run
    sys.exit(run(main))

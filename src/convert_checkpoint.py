"""Checkpoints in: one reader, all key renames, and the two ways weights enter a network.

    python -m src.convert_checkpoint --ckpt_file=RESNET.ckpt
    python -m src.convert_checkpoint --ckpt_file=fasterrcnn_resnet50_fpn_coco-258fb6c6.pth
    python -m src.convert_checkpoint --ckpt_file=detector.ckpt --to=torchvision

The first two write ``backbone.ckpt`` and ``detector.ckpt``, weights of the model zoo or of another project under this
detector's names. Training and evaluation do the same on the fly, so the files are a convenience.
"""

import argparse
import dataclasses
import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import Parameter, Tensor, nn

from src.common.files import open_to_others, write_whole
from src.common.wording import listed_below
from src.model_utils.config import Config, load_config
from src.model_utils.errors import UserError, first_line
from src.weights.detector_notes import (
    BACKBONE,
    FINETUNING,
    INFERENCE,
    Use,
    noted_settings,
    notes_of,
    say_source,
    with_notes,
)
from src.weights.foreign import SUFFIXES, is_foreign, read_foreign, to_torchvision
from src.weights.known_classes import keep_known_classes
from src.weights.torch_file import looks_like

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
RENAMES = (
    ("fpn_ncek.", "fpn_neck."),
    ("down_sample_layer.0.", "conv_down_sample."),
    ("down_sample_layer.1.", "bn_down_sample."),
)
# What we write beside the weights; src.weights.detector_notes has the rest of it.
META_PREFIX = "meta_"
META_COUNT = "meta_num_entries"
# MindSpore puts this word and a number behind the content when it writes a checksum.
CHECKSUM_MARK = b"crc_num"
# Bytes per value of the types that checkpoints of this detector hold.
ITEM_SIZES = {"Float32": 4, "Float16": 2, "Float64": 8, "BFloat16": 2, "Int32": 4, "Int64": 8}
NAMES_SHOWN = 10


def read_checkpoint(path: str | Path) -> dict[str, Parameter]:
    """Read every entry of a checkpoint.

    Args:
        path (str | Path): a ``.ckpt`` file of MindSpore, or a file of another project, see `src.weights.foreign`.

    Returns:
        dict: name to Parameter (or to a number or string stored beside the weights), as in the file; of other projects'
            files under the detector's names.

    Raises:
        UserError: no such file, or it is damaged. Damage to single bytes is seen in checkpoints written by this
            program, which carry a checksum.
    """
    path = Path(path)
    if is_foreign(path):
        return _foreign_entries(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint {path} {kind}; expected a .ckpt file, or one of PyTorch ({', '.join(SUFFIXES)})")
    try:
        content, mark, _ = path.read_bytes().rpartition(CHECKSUM_MARK)
        _check_sizes(content if mark else path.read_bytes())
        entries = ms.load_checkpoint(str(path), crc_check=bool(mark))
        _check_whole(entries, has_checksum=bool(mark))
    except (ValueError, RuntimeError, TypeError, OSError) as error:
        raise UserError(
            f"checkpoint {path} is damaged or not a MindSpore checkpoint ({path.stat().st_size} bytes)"
            f"{looks_like(path)}; copy or download it again. Reading it says: {first_line(error)}"
        ) from error
    return entries


def _foreign_entries(path: Path, show: bool = False) -> dict[str, Parameter]:
    """Weights of another project, and what they depend on as notes; `show` says in the log what became what."""
    converted = read_foreign(path)
    for old, new, shape in converted.table if show else ():
        LOGGER.info("%s -> %s %s", old, new, shape)
    backbone = converted.settings["backbone"]
    config = dataclasses.replace(load_config([f"--backbone={backbone}"]), **converted.settings)
    entries = {name: Parameter(Tensor(value), name=name) for name, value in converted.arrays.items()}
    return entries | notes_of(config, converted.noted_keys, converted.source)


def _check_sizes(data: bytes) -> None:
    """MindSpore's reader trusts shapes and reads beyond the content of a file that lies; so look first."""
    from mindspore.train.checkpoint_pb2 import Checkpoint

    content = Checkpoint()
    try:
        content.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("the content cannot be parsed") from error
    stored: Counter[str] = Counter()
    expected: dict[str, int] = {}
    for entry in content.value:
        stored[entry.tag] += len(entry.tensor.tensor_content)
        # Large parameters are cut into several entries of the same name and shape.
        if entry.tensor.tensor_type in ITEM_SIZES:
            expected[entry.tag] = math.prod(entry.tensor.dims) * ITEM_SIZES[entry.tensor.tensor_type]
    for name, size in expected.items():
        if stored[name] != size:
            raise ValueError(f"{name} holds {stored[name]} bytes, its shape needs {size}")


def _check_whole(entries: Mapping, has_checksum: bool) -> None:
    """A file of ours begins with the number of entries that follow and ends with a checksum, so a cut shows."""
    if META_COUNT not in entries:
        return
    expected = int(entries[META_COUNT].asnumpy())
    if len(entries) - 1 != expected or not has_checksum:
        raise ValueError(
            f"{len(entries) - 1} of {expected} entries are there, and the checksum {'is' if has_checksum else 'is not'}"
        )


def network_parameters(entries: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The weights of a checkpoint under the detector's names.

    Args:
        entries (Mapping): as read from a file of this program, of the published detector (old spellings too) or of the
            published ResNet classifiers.

    Returns:
        dict: name to Parameter, without optimiser state, classifier and notes; names of a backbone start with
            ``backbone.``.
    """
    found: dict[str, Parameter] = {}
    renamed: Counter[str] = Counter()
    for name, value in entries.items():
        if not isinstance(value, Tensor) or name.startswith(OPTIMISER_PREFIXES) or name in OPTIMISER_NAMES:
            continue
        if name.startswith(META_PREFIX):
            continue
        for old, new in RENAMES:
            renamed[f"{old} -> {new}"] += old in name
            name = name.replace(old, new)
        found[name] = value
    for rename, count in renamed.items():
        if count:
            LOGGER.info("renamed %d parameters of an older release: %s", count, rename)
    if any(name.startswith(DETECTOR_PREFIXES) for name in found):
        return {name: value for name, value in found.items() if name.startswith(DETECTOR_PREFIXES)}
    return {BACKBONE_PREFIX + name: value for name, value in found.items() if not name.startswith(CLASSIFIER_PREFIXES)}


def noted_config(config: Config, path: str | Path, use: Use = INFERENCE) -> Config:
    """The configuration with the settings that a checkpoint notes, to build its network from.

    Args:
        config (Config): of the run.
        path (str | Path): the checkpoint.
        use (Use): what it is loaded for, default inference.

    Raises:
        UserError: the file is missing or damaged, or what the user has set contradicts it.
    """
    return with_notes(config, read_checkpoint(path), path, use)


def pretrained_config(config: Config) -> Config:
    """The configuration with what the checkpoint that training starts from notes about the part that is loaded.

    Args:
        config (Config): `pre_trained` names the checkpoint, empty for none; `finetune` says what is loaded of it.

    Raises:
        UserError: nobody has named a checkpoint, and the default is not there; see also `noted_config`.
    """
    if not config.pre_trained:
        return config
    if "pre_trained" not in config.command_line | config.file_keys and not Path(config.pre_trained).exists():
        raise UserError(
            f"no weights to start from: pre_trained is at its default {config.pre_trained}, which does not exist. Name "
            "a checkpoint, --pre_trained=RESNET50.pth, or train from random weights with --recipe=scratch"
        )
    return noted_config(config, config.pre_trained, FINETUNING if config.finetune else BACKBONE)


def load_pretrained(
    network: nn.Cell, path: str | Path, finetune: bool = False, config: Config | None = None
) -> nn.Cell:
    """Load the weights that training starts from.

    Args:
        network (Cell): a detector.
        path (str | Path): a backbone checkpoint (published ResNet names are mapped), or a whole detector, of which
            the backbone is taken. Empty: the network keeps its random weights.
        finetune (bool): the file is a whole detector; all of it is taken but the two predictor layers, which depend
            on the classes. Of these, classes that the file knows by name keep their weights, the others start anew.
        config (Config | None): of the run, names its classes. None: both predictor layers start anew.

    Returns:
        Cell: the network.

    Raises:
        UserError: the file is missing or damaged, or does not fit.
    """
    if not path:
        return network
    entries = read_checkpoint(path)
    _check_backbone(network, entries, path)
    found = network_parameters(entries)
    wanted = [p for p in network.get_parameters() if p.name.startswith(BACKBONE_PREFIX)]
    what = "backbone"
    if finetune:
        kept = _kept_predictors(network, entries, found, config, path) if config else {}
        found |= kept
        wanted = [p for p in network.get_parameters() if p.name in kept or not p.name.startswith(PREDICTOR_PREFIXES)]
        what = "detector" if kept else "detector without its class and box predictors"
    _assign(wanted, found, path)
    LOGGER.info("loaded %s (%d parameters) from %s; the rest starts from random weights", what, len(wanted), path)
    return network


def _kept_predictors(
    network: nn.Cell, entries: Mapping, found: Mapping[str, Parameter], config: Config, path: str | Path
) -> dict[str, Parameter]:
    """The two predictors of the run's classes, with what the checkpoint knows of them."""
    trained, fresh = (
        {name: value.asnumpy() for name, value in parameters.items() if name.startswith(PREDICTOR_PREFIXES)}
        for parameters in (found, network.parameters_dict())
    )
    kept = keep_known_classes(trained, fresh, noted_settings(entries, path), config, path)
    return {name: Parameter(Tensor(value.astype(np.float32)), name=name) for name, value in kept.items()}


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
    stored, expected = noted_settings(entries, path).get("backbone"), getattr(network, "backbone_name", None)
    if stored and expected and stored != expected:
        raise UserError(
            f"checkpoint {path} holds backbone {stored}, but the configuration says {expected}; use --backbone={stored}"
        )


def _assign(wanted: Sequence[Parameter], found: Mapping[str, Parameter], path: str | Path) -> None:
    """Copy values into parameters; all or none, so that a refusal leaves the network as it was."""
    known = {param.name for param in wanted}
    problems = [
        f"{name} is not in the network: another depth?"
        for name in sorted(set(found) - known)
        if name.startswith(BACKBONE_PREFIX)
    ]
    for param in wanted:
        if param.name not in found:
            problems.append(f"{param.name} is missing")
        elif tuple(found[param.name].shape) != tuple(param.shape):
            problems.append(f"{param.name} has shape {tuple(found[param.name].shape)}, expected {tuple(param.shape)}")
        elif not np.isfinite(found[param.name].asnumpy()).all():
            problems.append(f"{param.name} holds NaN or infinite values")
    if problems:
        raise UserError(
            f"checkpoint {path} does not fit the network: {len(problems)} differences to its "
            f"{len(wanted)} parameters.{listed_below(problems, NAMES_SHOWN)}\n"
            f"Check --backbone and coco_classes; weights of another set of classes load for training with "
            f"--finetune=True, which makes predictors of your classes."
        )
    for param in wanted:
        param.set_data(Tensor(found[param.name].asnumpy(), param.dtype))


def main(argv: Sequence[str] | None = None) -> int:
    """Write weights under this detector's names, or a detector of this program under torchvision's."""
    parser = argparse.ArgumentParser(prog="python -m src.convert_checkpoint", description=main.__doc__)
    parser.add_argument(
        "--ckpt_file",
        required=True,
        help="Checkpoint of the model zoo or of this program (.ckpt), of which the backbone is taken; "
        "or weights of torchvision, timm, mmdetection or detectron2 (.pth, .pt, .pkl, .safetensors), of which all is.",
    )
    parser.add_argument(
        "--output", help="File to write. (default: backbone.ckpt, detector.ckpt or torchvision.safetensors)"
    )
    parser.add_argument(
        "--to",
        choices=("mindspore", "torchvision"),
        default="mindspore",
        help="torchvision: write a detector of this program as a state_dict for torchvision's fasterrcnn_resnet50_fpn, "
        "as .safetensors. (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    path = Path(args.ckpt_file)
    entries = _foreign_entries(path, show=True) if is_foreign(path) else read_checkpoint(path)
    say_source(entries, path)
    if args.to == "torchvision":
        return _write_torchvision(network_parameters(entries), path, args.output or "torchvision.safetensors")
    params = network_parameters(entries)
    if not is_foreign(path):
        params = {name: value for name, value in params.items() if name.startswith(BACKBONE_PREFIX)}
    if not params:
        raise UserError(f"checkpoint {path} holds no parameter of a backbone")
    is_detector = any(name.startswith(PREDICTOR_PREFIXES) for name in params)
    output = args.output or ("detector.ckpt" if is_detector else "backbone.ckpt")
    notes = {key: value for key, value in entries.items() if key.startswith(META_PREFIX) and key != META_COUNT}
    write_checkpoint(params, output, notes)
    LOGGER.info("wrote %d parameters to %s", len(params), output)
    return 0


def _write_torchvision(parameters: Mapping[str, Parameter], path: Path, output: str) -> int:
    from safetensors.numpy import save_file

    if not output.endswith(".safetensors"):
        raise UserError(f"--output is {output}; expected a file that ends in .safetensors")
    if not any(name.startswith(PREDICTOR_PREFIXES) for name in parameters):
        raise UserError(f"checkpoint {path} holds no detector; torchvision's backbones are not written")
    arrays = to_torchvision({name: value.asnumpy() for name, value in parameters.items()})
    write_whole(output, lambda partial: save_file(arrays, partial))
    LOGGER.info("wrote %d parameters to %s", len(arrays), output)
    return 0


def write_checkpoint(
    parameters: Mapping[str, Tensor], path: str | Path, notes: Mapping[str, str | int] | None = None
) -> None:
    """Write a checkpoint so that at any moment the file is either the old one or the whole new one.

    Args:
        parameters (Mapping): name to value.
        path (str | Path): target; its folder is made.
        notes (Mapping | None): numbers and strings stored beside the weights.

    Raises:
        UserError: a value is not finite, or the file cannot be written; an older file of that name stays.
    """
    for name, value in parameters.items():
        if not np.isfinite(value.asnumpy()).all():
            raise UserError(
                f"{name} is not finite any more, so {path} is not written; older checkpoints stay as they "
                f"are. Try a lower --base_lr, or --grad_clip=True"
            )
    notes = dict(notes or {})
    entries = [
        {"name": META_COUNT, "data": Tensor(len(parameters) + len(notes), ms.int64)},
        *({"name": name, "data": value} for name, value in parameters.items()),
    ]

    def write(partial: Path) -> None:
        ms.save_checkpoint(entries, str(partial), append_dict=notes, crc_check=True)
        open_to_others(partial)

    write_whole(path, write)


if __name__ == "__main__":
    from src.runtime import run

    sys.exit(run(main))

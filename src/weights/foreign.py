"""Weights of other projects under this detector's names: which file is whose, and what has to change in it.

Projects are known by the names in their files: the ResNet classifiers of torchvision and timm, and the Faster R-CNN
with ResNet and FPN of torchvision, mmdetection (1, and 2 or 3) and detectron2. Names alone are not enough:

- Fully connected layers are stored (out, in) there and (in, out) here.
- Anchors of all but mmdetection 1 are centred on a cell's corner, those here half a stride further to the right and
  below. The RPN's bias takes that back: dx -= sqrt(r) / (2 * scale), dy -= 1 / (2 * scale * sqrt(r)) at aspect ratio r.
- mmdetection from 2 on and detectron2 have the background as their last class, here it is the first.
- torchvision predicts 91 category ids of COCO, of which 11 have no category.
- detectron2's images are BGR, less a mean, not divided by a deviation: its first convolution is changed so that it
  gives the same for images as they are normalised here.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.common.wording import listed, listed_below
from src.data.transforms import PIXEL_STD
from src.model_utils.config import load_config
from src.model_utils.config_checks import BACKBONE_BLOCKS, STRIDE_ON_FIRST
from src.model_utils.errors import UserError
from src.weights.detector_notes import BACKBONE_KEYS, CLASS_KEYS, NETWORK_KEYS, PREDICTOR_KEYS
from src.weights.torch_file import looks_like, read_torch_file

Arrays = dict[str, np.ndarray]

SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")
# Category ids from 0, the background, to 90 that COCO never gave a category.
COCO_GAPS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
# torchvision's detector for COCO is used with batch norms of eps 0. Its file carries the digest's begin in its name.
EPS_0_DIGESTS = ("258fb6c6",)
BATCH_NORM_EPS = 1e-5  # here
ANCHOR_SCALE = 8
ANCHOR_RATIOS = (0.5, 1.0, 2.0)

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_NORM_PART = "(weight|bias|running_mean|running_var)"
_PART = "(weight|bias)"
_HEAD = "rpn_with_loss.rpn_convs_list.0."
# What no network of ours has. Names in ema_ are mmdetection's copies; those beside them are the averaged ones.
_DROPPED = r".*\.num_batches_tracked|fc\..*|pixel_(mean|std)|.*anchor_generator.*|ema_.*"
# Where training programs keep the weights, averaged ones first: these are what they evaluate.
_STATE_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "model_state_dict")
# DataParallel and averaging, Lightning, torch.compile; one inside another.
_WRAPPERS = r"(?:module\.|model\.|_orig_mod\.)*"
_SAFE_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}


def _resnet_rules(prefix: str) -> tuple[tuple[str, str], ...]:
    """Names of PyTorch's ResNets: of torchvision, timm and mmdetection."""
    block = rf"{prefix}layer(\d)\.(\d+)\."
    return (
        (rf"{prefix}conv1\.weight", "backbone.conv1.weight"),
        (rf"{prefix}bn1\.{_NORM_PART}", r"backbone.bn1.<\1>"),
        (rf"{block}conv(\d)\.weight", r"backbone.layer\1.\2.conv\3.weight"),
        (rf"{block}bn(\d)\.{_NORM_PART}", r"backbone.layer\1.\2.bn\3.<\4>"),
        (rf"{block}downsample\.0\.weight", r"backbone.layer\1.\2.conv_down_sample.weight"),
        (rf"{block}downsample\.1\.{_NORM_PART}", r"backbone.layer\1.\2.bn_down_sample.<\3>"),
    )


_TORCHVISION_RULES = (
    *_resnet_rules(r"backbone\.body\."),
    (rf"backbone\.fpn\.inner_blocks\.(\d)\.(?:0\.)?{_PART}", r"fpn_neck.lateral_convs_list.\1.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d)\.(?:0\.)?{_PART}", r"fpn_neck.fpn_convs_list.\1.\2"),
    (rf"rpn\.head\.conv\.(?:0\.0\.)?{_PART}", rf"{_HEAD}rpn_conv.\1"),
    (rf"rpn\.head\.cls_logits\.{_PART}", rf"{_HEAD}rpn_cls.\1"),
    (rf"rpn\.head\.bbox_pred\.{_PART}", rf"{_HEAD}rpn_reg.\1"),
    (rf"roi_heads\.box_head\.fc6\.{_PART}", r"rcnn.shared_fc_0.\1"),
    (rf"roi_heads\.box_head\.fc7\.{_PART}", r"rcnn.shared_fc_1.\1"),
    (rf"roi_heads\.box_predictor\.cls_score\.{_PART}", r"rcnn.cls_scores.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{_PART}", r"rcnn.reg_scores.\1"),
)
_MMDETECTION_RULES = (
    *_resnet_rules(r"backbone\."),
    (rf"neck\.lateral_convs\.(\d)\.conv\.{_PART}", r"fpn_neck.lateral_convs_list.\1.\2"),
    (rf"neck\.fpn_convs\.(\d)\.conv\.{_PART}", r"fpn_neck.fpn_convs_list.\1.\2"),
    (rf"rpn_head\.(rpn_conv|rpn_cls|rpn_reg)\.{_PART}", rf"{_HEAD}\1.\2"),
    (rf"(?:roi_head\.)?bbox_head\.shared_fcs\.(\d)\.{_PART}", r"rcnn.shared_fc_\1.\2"),
    (rf"(?:roi_head\.)?bbox_head\.fc_cls\.{_PART}", r"rcnn.cls_scores.\1"),
    (rf"(?:roi_head\.)?bbox_head\.fc_reg\.{_PART}", r"rcnn.reg_scores.\1"),
)
# Stages count from 2 there.
_DETECTRON2_RULES = (
    (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.conv1.weight"),
    (rf"backbone\.bottom_up\.stem\.conv1\.norm\.{_NORM_PART}", r"backbone.bn1.<\1>"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.weight", r"backbone.layer{\1}.\2.conv\3.weight"),
    (rf"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.{_NORM_PART}", r"backbone.layer{\1}.\2.bn\3.<\4>"),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.weight", r"backbone.layer{\1}.\2.conv_down_sample.weight"),
    (
        rf"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.{_NORM_PART}",
        r"backbone.layer{\1}.\2.bn_down_sample.<\3>",
    ),
    (rf"backbone\.fpn_lateral(\d)\.{_PART}", r"fpn_neck.lateral_convs_list.{{\1}}.\2"),
    (rf"backbone\.fpn_output(\d)\.{_PART}", r"fpn_neck.fpn_convs_list.{{\1}}.\2"),
    (rf"proposal_generator\.rpn_head\.conv\.{_PART}", rf"{_HEAD}rpn_conv.\1"),
    (rf"proposal_generator\.rpn_head\.objectness_logits\.{_PART}", rf"{_HEAD}rpn_cls.\1"),
    (rf"proposal_generator\.rpn_head\.anchor_deltas\.{_PART}", rf"{_HEAD}rpn_reg.\1"),
    (rf"roi_heads\.box_head\.fc1\.{_PART}", r"rcnn.shared_fc_0.\1"),
    (rf"roi_heads\.box_head\.fc2\.{_PART}", r"rcnn.shared_fc_1.\1"),
    (rf"roi_heads\.box_predictor\.cls_score\.{_PART}", r"rcnn.cls_scores.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{_PART}", r"rcnn.reg_scores.\1"),
)


@dataclass(frozen=True)
class Source:
    """A project whose files are known.

    Attributes:
        name (str): for messages and notes.
        mark (str): a name that its files hold and those of the others do not.
        rules (tuple): pattern of a name there, and the name here, in which <x> is a part of a batch norm, {x} is x - 1
            and {{x}} is x - 2.
        corner_anchors (bool): anchors lie on a cell's corner.
        background_last (bool): the last class is the background, not the first.
        caffe (bool): images are BGR and not divided by a deviation, and strides sit on the first convolution of blocks.
    """

    name: str
    mark: str
    rules: tuple[tuple[str, str], ...]
    corner_anchors: bool = False
    background_last: bool = False
    caffe: bool = False


SOURCES = (
    Source("torchvision Faster R-CNN", "backbone.body.conv1.weight", _TORCHVISION_RULES, corner_anchors=True),
    Source("mmdetection 1 Faster R-CNN", "bbox_head.fc_cls.weight", _MMDETECTION_RULES),
    Source(
        "mmdetection 2 or 3 Faster R-CNN",
        "roi_head.bbox_head.fc_cls.weight",
        _MMDETECTION_RULES,
        corner_anchors=True,
        background_last=True,
    ),
    Source(
        "detectron2 Faster R-CNN",
        "backbone.bottom_up.stem.conv1.weight",
        _DETECTRON2_RULES,
        corner_anchors=True,
        background_last=True,
        caffe=True,
    ),
    Source("torchvision or timm ResNet", "conv1.weight", _resnet_rules("")),
)


@dataclass(frozen=True)
class Converted:
    """Foreign weights as this detector has them.

    Attributes:
        arrays (dict): name here to float32 array.
        settings (dict): configuration keys that are not at their defaults for these weights.
        noted_keys (tuple): the keys that the weights depend on.
        source (dict): what to note of the file: name, digest, project, what of it was taken.
        table (list): (name there, name here, shape here) of every parameter.
    """

    arrays: Arrays
    settings: dict[str, Any]
    noted_keys: tuple[str, ...]
    source: dict[str, str]
    table: list[tuple[str, str, tuple[int, ...]]]


def is_foreign(path: str | Path) -> bool:
    """Whether a file's suffix is one of those of other projects."""
    return Path(path).suffix.lower() in SUFFIXES


def read_foreign(path: str | Path) -> Converted:
    """Read a file of another project and convert it.

    Args:
        path (str | Path): a ``.pth`` or ``.pt`` of PyTorch, a ``.pkl`` of detectron2, or a ``.safetensors``.

    Returns:
        Converted: a whole detector, or a backbone alone.

    Raises:
        UserError: the file cannot be read, is of no known project, holds parameters whose names are not known, or a
            network that this detector is not.
    """
    path = Path(path)
    content = _read(path)
    arrays, taken = _state_dict(content, path)
    source = _source_of(arrays, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _check_deviation(arrays, source, path)
    caffe = source.caffe or "style='caffe'" in str(_meta(content).get("config", ""))
    found, names = _renamed(arrays, source, path)
    _check_depth(found, path)
    if digest.startswith(EPS_0_DIGESTS):
        _fold_eps(found, 0.0)
    if caffe:
        _take_rgb(found)
    settings = {"backbone": _backbone(found, caffe), "stem_pool_pad": "symmetric"}
    keys: tuple[str, ...] = BACKBONE_KEYS
    if "rcnn.cls_scores.weight" in found:
        settings |= _fit_heads(found, source, _classes(content), path)
        keys = (*NETWORK_KEYS, *PREDICTOR_KEYS, "keep_ratio", *(key for key in CLASS_KEYS if key in settings))
    found = {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}
    table = [(old, new, found[new].shape) for old, new in names.items()]
    notes = {"file": path.name, "sha256": digest, "format": source.name} | ({"taken": taken} if taken else {})
    return Converted(found, settings, keys, notes, table)


# ---- what is in the file ----------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    if path.suffix.lower() != ".safetensors":
        return read_torch_file(path)
    from safetensors import SafetensorError, deserialize

    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file of weights")
    try:
        return {name: _safe_array(**view) for name, view in sorted(deserialize(path.read_bytes()))}
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or not a .safetensors file{looks_like(path)}; download it again ({error})"
        ) from error


def _safe_array(dtype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """A tensor of a .safetensors file; numpy knows no bfloat16, which is the upper half of a float32."""
    if dtype not in _SAFE_TYPES:
        raise ValueError(f"numbers of the type {dtype} are not read")
    numbers = np.frombuffer(data, _SAFE_TYPES[dtype])
    return ((numbers.astype("<u4") << 16).view("<f4") if dtype == "BF16" else numbers).reshape(shape)


def _state_dict(content: Any, path: Path) -> tuple[Arrays, str]:
    """The arrays, which training programs save beside other things, and which part was taken, if not all was."""
    taken = []
    while isinstance(content, Mapping):
        key = next((key for key in _STATE_KEYS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        others = [str(other) for other in content if other != key]
        taken += [f"{key}, without {listed(others, separator=', ')}"] if others else []
        content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} holds a {type(content).__name__}; expected a state_dict of PyTorch, names with tensors"
        )
    arrays = {
        str(name): np.asarray(value) for name, value in content.items() if isinstance(value, np.ndarray | np.generic)
    }
    strange = [f"{name} of {value.dtype}" for name, value in arrays.items() if value.dtype.kind not in "fiub"]
    if strange:
        raise UserError(f"{path} holds tensors that are not of plain numbers:{listed_below(strange)}")
    return _without_wrappers(arrays), "; ".join(taken)


def _without_wrappers(arrays: Arrays) -> Arrays:
    """The arrays without the prefixes that wrappers of a whole network give to every name."""
    if any(source.mark in arrays for source in SOURCES):
        return arrays
    bare = {name: value for name, value in arrays.items() if name != "n_averaged"}
    wrappers = re.match(_WRAPPERS, next(iter(bare), ""))
    prefix = wrappers[0] if wrappers else ""
    bare = {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)}
    if len(bare) < len(arrays) - ("n_averaged" in arrays) or not any(source.mark in bare for source in SOURCES):
        return arrays  # then its own names are those for the message
    return bare


def _meta(content: Any) -> Mapping[str, Any]:
    """What mmdetection notes beside the weights."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def _classes(content: Any) -> tuple[str, ...]:
    """Foreground classes that the file names, none if it does not."""
    meta = _meta(content)
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) else {}
    names = meta.get("CLASSES") or dataset.get("classes") or dataset.get("CLASSES") or ()
    return tuple(map(str, names))


def _source_of(arrays: Mapping[str, np.ndarray], path: Path) -> Source:
    for source in SOURCES:
        if source.mark in arrays:
            return source
    known = ", ".join(source.name for source in SOURCES)
    raise UserError(
        f"{path} is of no project that is known here ({known}); it begins with "
        f"{', '.join(list(arrays)[:3]) or 'no tensor at all'}"
    )


def _check_deviation(arrays: Mapping[str, np.ndarray], source: Source, path: Path) -> None:
    """detectron2 can also train on RGB images that are divided by a deviation, with the stride elsewhere."""
    deviation = arrays.get("pixel_std", np.ones(3)).reshape(-1)
    if source.caffe and not np.allclose(deviation, 1):
        raise UserError(
            f"{path} is of {source.name} with pixel_std {deviation.tolist()}; only those with 1, of BGR images and "
            "with the stride on the first convolution of blocks, can be converted"
        )


def _renamed(arrays: Mapping[str, np.ndarray], source: Source, path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays under our names, and the names there to those here."""
    names, unknown = {}, []
    for name in arrays:
        new = next((_our_name(match, here) for there, here in source.rules if (match := re.fullmatch(there, name))), "")
        if new:
            names[name] = new
        elif not re.fullmatch(_DROPPED, name):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{path} looks like {source.name}, but holds {len(unknown)} parameters that this detector does not have:"
            f"{listed_below(unknown)}\nIt is another network; only a Faster R-CNN with ResNet-50, 101 or 152 and FPN, "
            "or such a ResNet, can be converted"
        )
    return {new: arrays[name] for name, new in names.items()}, names


def _our_name(match: re.Match, template: str) -> str:
    name = re.sub(r"\{\{(\d)\}\}", lambda number: str(int(number[1]) - 2), match.expand(template))
    name = re.sub(r"\{(\d)\}", lambda number: str(int(number[1]) - 1), name)
    return re.sub(r"<(\w+)>", lambda part: _NORM[part[1]], name)


# ---- the backbone -----------------------------------------------------------------------------------------


def _blocks(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Residual blocks of each stage."""
    blocks = {match.groups() for name in arrays if (match := re.match(r"backbone\.layer(\d)\.(\d+)\.", name))}
    return tuple(sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4))


def _check_depth(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    blocks = _blocks(arrays)
    shape = arrays.get("backbone.layer1.0.conv2.weight", np.empty(0)).shape
    if (
        blocks not in BACKBONE_BLOCKS.values()
        or "backbone.layer1.0.conv3.weight" not in arrays
        or shape[:2] != (64, 64)
    ):
        raise UserError(
            f"{path} holds a ResNet with {blocks} blocks and a 3x3 convolution {shape}; expected ResNet-50, 101 or "
            "152, with (3, 4, 6, 3), (3, 4, 23, 3) or (3, 8, 36, 3) blocks and 64 channels"
        )


def _backbone(arrays: Mapping[str, np.ndarray], caffe: bool) -> str:
    """The configuration's name of the backbone, which says where the stride is."""
    blocks = _blocks(arrays)
    return next(
        name for name, known in BACKBONE_BLOCKS.items() if known == blocks and (name in STRIDE_ON_FIRST) == caffe
    )


def _fold_eps(arrays: Arrays, eps: float) -> None:
    """Scale gammas, so that norms with our eps multiply by what they did with theirs."""
    for name in [name for name in arrays if name.endswith(".gamma")]:
        variance = arrays[name.replace(".gamma", ".moving_variance")].astype(np.float64)
        arrays[name] = arrays[name] * np.sqrt((variance + BATCH_NORM_EPS) / (variance + eps))


def _take_rgb(arrays: Arrays) -> None:
    """Let the first convolution see RGB divided by the deviation."""
    weight = arrays["backbone.conv1.weight"][:, ::-1].astype(np.float64)
    arrays["backbone.conv1.weight"] = weight * np.asarray(PIXEL_STD)[:, None, None]


# ---- the heads --------------------------------------------------------------------------------------------


def _fit_heads(arrays: Arrays, source: Source, classes: Sequence[str], path: Path) -> dict[str, Any]:
    """Bring RPN and box head into this detector's form; returns settings that go with them."""
    if source.corner_anchors:
        arrays[f"{_HEAD}rpn_reg.bias"] = _moved_anchors(arrays[f"{_HEAD}rpn_reg.bias"], -1)
    num_classes = len(arrays["rcnn.cls_scores.weight"])
    kept = list(range(1, num_classes))
    if source.background_last:
        kept = list(range(num_classes - 1))
    coco = load_config([]).class_names
    if "torchvision" in source.name and num_classes == 91:
        kept = [row for row in kept if row not in COCO_GAPS]
    if not classes and len(kept) == len(coco):
        classes = coco
    if classes and len(classes) != len(kept):
        raise UserError(f"{path} names {len(classes)} classes, but its class predictor has {len(kept)} and background")
    _pick_rows(arrays, kept, num_classes, source)
    for name in ("shared_fc_0", "shared_fc_1", "cls_scores", "reg_scores"):
        arrays[f"rcnn.{name}.weight"] = arrays[f"rcnn.{name}.weight"].T
    settings: dict[str, Any] = {"without_bg_loss": True}
    if classes:
        settings |= {"coco_classes": ("background", *classes), "num_classes": len(classes) + 1}
    return settings


def _moved_anchors(bias: np.ndarray, sign: int) -> np.ndarray:
    """The bias (4 * A,) of the RPN's boxes for anchors half a stride further (-1) or back (1)."""
    rows = bias.astype(np.float64).reshape(-1, 4)
    for row, ratio in zip(rows, ANCHOR_RATIOS, strict=True):
        row[0] += sign * math.sqrt(ratio) / (2 * ANCHOR_SCALE)
        row[1] += sign / (2 * ANCHOR_SCALE * math.sqrt(ratio))
    return rows.reshape(-1).astype(np.float32)


def _pick_rows(arrays: Arrays, kept: Sequence[int], num_classes: int, source: Source) -> None:
    """Class scores of the background, then of the kept classes; box deltas of the kept classes alone."""
    background, num_boxes = (num_classes - 1, num_classes - 1) if source.background_last else (0, num_classes)
    for part in ("weight", "bias"):
        scores, deltas = arrays[f"rcnn.cls_scores.{part}"], arrays[f"rcnn.reg_scores.{part}"]
        if len(deltas) != 4 * num_boxes:
            raise UserError(
                f"the box predictor has {len(deltas)} numbers per RoI; expected 4 for each of {num_boxes} classes (one "
                "box for all classes is not supported)"
            )
        deltas = deltas.reshape(-1, 4, *deltas.shape[1:])[kept]
        arrays[f"rcnn.cls_scores.{part}"] = scores[[background, *kept]]
        arrays[f"rcnn.reg_scores.{part}"] = deltas.reshape(-1, *deltas.shape[2:])


# ---- the way back -----------------------------------------------------------------------------------------

_TO_TORCHVISION = (
    (r"^backbone\.", "backbone.body."),
    (r"\.conv_down_sample\.", ".downsample.0."),
    (r"\.bn_down_sample\.", ".downsample.1."),
    (r"^fpn_neck\.lateral_convs_list\.(\d)", r"backbone.fpn.inner_blocks.\1.0"),
    (r"^fpn_neck\.fpn_convs_list\.(\d)", r"backbone.fpn.layer_blocks.\1.0"),
    (r"^rpn_with_loss\.rpn_convs_list\.0\.rpn_conv", "rpn.head.conv.0.0"),
    (r"^rpn_with_loss\.rpn_convs_list\.0\.rpn_cls", "rpn.head.cls_logits"),
    (r"^rpn_with_loss\.rpn_convs_list\.0\.rpn_reg", "rpn.head.bbox_pred"),
    (r"^rcnn\.shared_fc_0", "roi_heads.box_head.fc6"),
    (r"^rcnn\.shared_fc_1", "roi_heads.box_head.fc7"),
    (r"^rcnn\.cls_scores", "roi_heads.box_predictor.cls_score"),
    (r"^rcnn\.reg_scores", "roi_heads.box_predictor.bbox_pred"),
    *((rf"\.{here}$", f".{there}") for there, here in _NORM.items()),
)


def to_torchvision(parameters: Mapping[str, np.ndarray]) -> Arrays:
    """A detector of this program as a state_dict for ``torchvision.models.detection.fasterrcnn_resnet50_fpn``.

    Build that with ``num_classes`` as here, background included; its boxes reach one pixel further to the right and
    below, because widths there are x2 - x1. `read_foreign` takes the result back; only the bias of the RPN's boxes may
    then differ, by rounding.

    Args:
        parameters (Mapping): name here to float32 array.
    """
    arrays = {}
    for name, value in parameters.items():
        if name.startswith("rcnn.") and name.endswith(".weight"):
            value = value.T
        if name.startswith("rcnn.reg_scores") and len(value) < 4 * len(parameters["rcnn.cls_scores.bias"]):
            value = np.concatenate([np.zeros((4, *value.shape[1:]), value.dtype), value])
        if name == f"{_HEAD}rpn_reg.bias":
            value = _moved_anchors(value, 1)
        for here, there in _TO_TORCHVISION:
            name = re.sub(here, there, name)
        arrays[name] = np.ascontiguousarray(value)
    return arrays

"""A detector as a file, in any of its formats, behind one call: checkpoint, ONNX or MINDIR.

Exported files carry notes about themselves (:class:`ModelInfo`), so that whoever holds one needs no configuration.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from google.protobuf.message import DecodeError
from mindspore import nn

from src import __version__
from src.common.compile_cache import compile_once
from src.convert_checkpoint import load_detector, noted_config
from src.data.transforms import PIXEL_MEAN, PIXEL_STD, Canvas
from src.FasterRcnn import build_detector
from src.model_utils.config import Config
from src.model_utils.errors import UserError, first_line
from src.weights.detector_notes import EXPORTED, noted_settings, settled
from src.weights.foreign import SUFFIXES

LOGGER = logging.getLogger(__name__)

# ONNX Runtime's name of each kind of device.
PROVIDERS = {"CPU": "CPUExecutionProvider", "GPU": "CUDAExecutionProvider", "Ascend": "CANNExecutionProvider"}
# What is the same in every file, for programs of others that read one.
CONVENTIONS = {
    "colour_order": "RGB",
    "layout": "NCHW",
    "pixel_mean": list(PIXEL_MEAN),
    "pixel_std": list(PIXEL_STD),
    "padding": "0 at the right and bottom, before normalisation",
    "image_shape": "height and width of the image, scale_h, scale_w",
    "boxes": "x1 y1 x2 y2 in pixels of the image, score",
    "labels": "0 is the first of class_names",
}


@dataclass(frozen=True)
class ModelInfo:
    """What a detector's file says of itself.

    Attributes:
        class_names (tuple[str, ...]): foreground classes; label k is ``class_names[k]``.
        canvas (Canvas): the network's input size and how images are brought to it.
        backbone (str): as in the configuration.
        score_thr, iou_thr (float): thresholds of the detections inside.
        max_per_img (int): rows of the outputs, D.
        precision (str): of the weights: float32, float16 or int8.
    """

    class_names: tuple[str, ...]
    canvas: Canvas
    backbone: str
    score_thr: float
    iou_thr: float
    max_per_img: int
    precision: str = "float32"

    @classmethod
    def from_config(cls, config: Config, precision: str = "float32") -> "ModelInfo":
        """The description of the detector that a configuration builds."""
        return cls(
            config.class_names,
            Canvas(config.img_width, config.img_height, config.keep_ratio),
            config.backbone,
            config.test_score_thr,
            config.test_iou_thr,
            config.test_max_per_img,
            precision,
        )

    def notes(self) -> dict[str, str]:
        """Keys and JSON strings as exported files carry them; versions and conventions besides."""
        versions = {"faster-rcnn-mindspore": __version__} | {
            package: version(package) for package in ("mindspore", "onnx")
        }
        values = dataclasses.asdict(self) | CONVENTIONS | {"versions": versions}
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], path: Path) -> "ModelInfo":
        """Read the notes of an exported file.

        Raises:
            UserError: a note is missing or cannot be read.
        """
        try:
            values = {field.name: json.loads(notes[field.name]) for field in dataclasses.fields(cls)}
            values["canvas"] = Canvas(**values["canvas"])
            return cls(**values | {"class_names": tuple(values["class_names"])})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: its notes about classes and sizes are missing or damaged ({error!r}); export the "
                "checkpoint again with export.py"
            ) from error

    def configuration(self, config: Config, settings: Mapping[str, Any] | None = None) -> Config:
        """The configuration with the classes and sizes of an exported file; says in the log what comes from there.

        Args:
            config (Config): of the run; what its command line states must agree with the file.
            settings (Mapping | None): further settings that the file notes, see `noted_settings`.

        Raises:
            UserError: a flag contradicts the file.
        """
        stated = {
            "coco_classes": ("background", *self.class_names),
            "num_classes": len(self.class_names) + 1,
            "img_width": self.canvas.width,
            "img_height": self.canvas.height,
            "keep_ratio": self.canvas.keep_ratio,
            "backbone": self.backbone,
            "test_score_thr": self.score_thr,
            "test_iou_thr": self.iou_thr,
            "test_max_per_img": self.max_per_img,
        }
        return settled(config, {**(settings or {}), **stated}, "the model was exported with", EXPORTED)


@dataclass(frozen=True)
class Model:
    """A detector that is ready to run.

    Attributes:
        path (Path): its file.
        info (ModelInfo): classes, sizes, thresholds.
        batch_size (int | None): images per call; fewer are filled up. None: any number.
        run (Callable): images and metadata, as in ``__call__``, to the outputs.
        config (Config): of the run, with the settings that the file notes.
    """

    path: Path
    info: ModelInfo
    batch_size: int | None
    run: Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
    config: Config

    def __call__(self, images: np.ndarray, metas: np.ndarray) -> list[np.ndarray]:
        """Detect.

        Args:
            images (np.ndarray): (B, 3, H, W) float32, normalised canvases (`src.data.transforms.evaluation_input`).
            metas (np.ndarray): (B, 4) float32: height and width of the image, scale_h, scale_w.

        Returns:
            list of arrays: boxes (B, D, 5) float32 xyxy in pixels of the image and score, labels (B, D, 1) int32,
            mask (B, D, 1) bool; a checkpoint adds truncated (B,) bool, see ``src.FasterRcnn.rcnn.BoxPredictor``.

        Raises:
            UserError: shape or type of an input is not the model's.
        """
        canvas = self.info.canvas
        self._check_input("image", images, (3, canvas.height, canvas.width))
        self._check_input("image metadata", metas, (4,))
        num_images = len(images)
        if len(metas) != num_images or num_images > (self.batch_size or num_images):
            raise UserError(
                f"{self.path}: {num_images} images with {len(metas)} rows of metadata; expected as many of "
                f"both, {f'up to {self.batch_size}' if self.batch_size else 'any number'}"
            )
        if self.batch_size and num_images < self.batch_size:
            images, metas = _filled_up(images, self.batch_size), _filled_up(metas, self.batch_size)
        return [output[:num_images] for output in self.run(images, metas)]

    def _check_input(self, what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
        if array.shape[1:] != shape or array.dtype != np.float32 or array.ndim != len(shape) + 1:
            raise UserError(
                f"{self.path}: the {what} is {array.dtype} {array.shape}; expected float32 "
                f"(B, {', '.join(map(str, shape))})"
            )


def _filled_up(array: np.ndarray, batch_size: int) -> np.ndarray:
    """Repeat the last row until there are `batch_size` rows."""
    return np.concatenate([array, np.repeat(array[-1:], batch_size - len(array), axis=0)])


def load_model(path: str | Path, config: Config) -> Model:
    """Load a detector for inference.

    Args:
        path (str | Path): a checkpoint (.ckpt), what export.py has written (.onnx, .mindir), or a detector of
            another project, see `src.weights.foreign`.
        config (Config): says what the file leaves open, such as `test_batch_size` and the device. What the file notes
            takes precedence over it, see `src.weights.detector_notes`.

    Returns:
        Model: call it with images.

    Raises:
        UserError: no such file, another kind of file, damaged, or contradicting the command line.
    """
    model = open_model(Path(path), config)
    info = model.info
    LOGGER.info(
        "loaded %s: %s weights, %d classes, canvas %d x %d, %s",
        path,
        info.precision,
        len(info.class_names),
        info.canvas.width,
        info.canvas.height,
        f"batches of {model.batch_size}" if model.batch_size else "batches of any size",
    )
    return model


def open_model(path: Path, config: Config) -> Model:
    """`load_model` without a line in the log."""
    loaders = {".ckpt": _load_checkpoint, ".onnx": _load_onnx, ".mindir": _load_mindir}
    loaders |= dict.fromkeys(SUFFIXES, _load_checkpoint)
    if path.suffix.lower() not in loaders:
        raise UserError(f"model {path}: expected a file that ends in {', '.join(loaders)}")
    if not path.is_file():
        raise UserError(
            f"model {path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a file that "
            f"ends in {', '.join(loaders)}"
        )
    return loaders[path.suffix.lower()](path, config)


class DetectionCell(nn.Cell):
    """The network as inference calls it: `network.detect` where there is one, else the network itself.

    It leaves the parameters' names alone.

    Args:
        network (nn.Cell): returns boxes (B, D, 5), labels (B, D, 1), mask (B, D, 1) for images
            (B, 3, H, W) and image metadata (B, 4); `detect` adds truncated (B,).
    """

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        self.network = network
        self.has_detect = hasattr(network, "detect")

    def construct(self, img_data, img_metas):
        if self.has_detect:
            return self.network.detect(img_data, img_metas)
        return self.network(img_data, img_metas)


def network_model(network: nn.Cell, config: Config, path: Path = Path("network")) -> Model:
    """A network in memory as a model. It may be in training: evaluation mode holds during each call only.

    Build it once where the network is evaluated again and again: a graph is compiled for every model.

    Args:
        network (Cell): a detector, built from this configuration.
        config (Config): its settings, and `test_batch_size`.
        path (Path): its file, for messages.

    Returns:
        Model
    """
    cell = DetectionCell(network)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        inputs = [ms.Tensor(array) for array in arrays]
        was_training = network.training
        cell.set_train(False)
        try:
            compile_once(cell, inputs, config)
            return [output.asnumpy() for output in cell(*inputs)]
        finally:
            network.set_train(was_training)

    return Model(path, ModelInfo.from_config(config), config.test_batch_size, run, config)


def _load_checkpoint(path: Path, config: Config) -> Model:
    config = noted_config(config, path)
    return network_model(load_detector(build_detector(config), path), config, path)


def _exported(
    notes: Mapping[str, str], path: Path, config: Config, seen: dict[str, Any] | None = None
) -> tuple[ModelInfo, Config]:
    """What an exported file says of itself and what is seen in its graph, and the configuration with it."""
    info = ModelInfo.from_notes(notes, path)
    return info, info.configuration(config, noted_settings(notes, path) | (seen or {}))


# ---- ONNX ----------------------------------------------------------------------------------------------------


def _load_onnx(path: Path, config: Config) -> Model:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    providers = _onnx_providers(config)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise UserError(
            f"{path} is damaged or not an ONNX file that ONNX Runtime {onnxruntime.__version__} can run: "
            f"{first_line(error)}"
        ) from error
    _check_onnx_device(session.get_providers()[0], config)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 2 or len(outputs) != 3:
        raise UserError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs; expected image and image "
            "metadata in, boxes, labels and mask out. Is it a detector?"
        )
    info, config = _exported(session.get_modelmeta().custom_metadata_map, path, config)
    names = [value.name for value in inputs]
    batch_size = inputs[0].shape[0]
    return Model(
        path,
        info,
        batch_size if isinstance(batch_size, int) else None,
        lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True))),
        config,
    )


def _onnx_providers(config: Config) -> list[str]:
    """ONNX Runtime's names of the devices to try: that of a flag `device_target`, else all that are installed."""
    import onnxruntime

    asked, available = PROVIDERS[config.device_target], onnxruntime.get_available_providers()
    if "device_target" not in config.command_line:
        best_first = dict.fromkeys((asked, PROVIDERS["GPU"], PROVIDERS["Ascend"], PROVIDERS["CPU"]))
        return [provider for provider in best_first if provider in available]
    if asked not in available:
        raise UserError(
            f"device_target is {config.device_target}, but this ONNX Runtime {onnxruntime.__version__} has "
            f"only {', '.join(available)}. Use --device_target=CPU, or install the ONNX Runtime package "
            f"for {config.device_target}"
        )
    return [asked]


def _check_onnx_device(used: str, config: Config) -> None:
    """ONNX Runtime goes on with the CPU where it cannot start a device: refused where a flag asked for the device."""
    if used == PROVIDERS[config.device_target]:
        return
    if "device_target" in config.command_line:
        raise UserError(
            f"device_target is {config.device_target}, but ONNX Runtime cannot start it here; its message "
            "is above. Use --device_target=CPU, or install what the device needs"
        )
    LOGGER.info(
        "this ONNX Runtime has no %s, the device_target of the configuration: the model runs on %s",
        config.device_target,
        next(target for target, provider in PROVIDERS.items() if provider == used),
    )


# ---- MINDIR --------------------------------------------------------------------------------------------------


def _load_mindir(path: Path, config: Config) -> Model:
    from mindspore.train.mind_ir_pb2 import ModelProto

    content = ModelProto()
    try:
        content.ParseFromString(path.read_bytes())
        cell = nn.GraphCell(ms.load(str(path)))
    except (DecodeError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged or not a MINDIR file: {first_line(error)}") from error
    batch_size = content.graph.input[0].tensor[0].dims[0]
    info, config = _exported(content.user_info, path, config, {"test_batch_size": batch_size})
    return Model(
        path, info, batch_size, lambda *arrays: [output.asnumpy() for output in cell(*map(ms.Tensor, arrays))], config
    )

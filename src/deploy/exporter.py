"""Checkpoint in, MINDIR, AIR or ONNX file out, and the proof that the file detects what the network detects."""

import dataclasses
import logging
import shutil
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from src.common.files import open_to_others, write_whole
from src.convert_checkpoint import load_detector, noted_config
from src.data.transforms import evaluation_input
from src.deploy.model_file import Model, ModelInfo, network_model, open_model
from src.FasterRcnn import build_detector
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.runtime import with_available_device
from src.util import Detections, detections_from_outputs
from src.weights.detector_notes import notes_of

LOGGER = logging.getLogger(__name__)

SUFFIXES = {"MINDIR": ".mindir", "AIR": ".air", "ONNX": ".onnx"}
# A detection of one model is also the other's when label and place agree to this.
SAME_PIXELS = 1.0
SAME_SCORE = 0.02
# Rounding may swap the last of many equally weak candidates; a wrong graph loses most of them.
MIN_AGREEMENT = 0.9
GENERATED, BLACK = "generated image", "black image"


def with_export_device(config: Config) -> Config:
    """The configuration with the device that a file is written and checked on: for ONNX the CPU, which is always there.

    An ONNX graph is the same for every device; MINDIR and AIR files hold the operators of one.

    Args:
        config (Config): `file_format`, and `device_target` for MINDIR and AIR, see `with_available_device`.

    Returns:
        Config
    """
    if config.file_format != "ONNX":
        return with_available_device(config)
    if config.device_target != "CPU":
        LOGGER.info("an ONNX file is the same for every device: this one is written and checked on the CPU")
    return dataclasses.replace(config, device_target="CPU")


def export_detector(config: Config) -> Path:
    """Export a checkpoint and check the file against the network.

    Args:
        config (Config): `ckpt_file`, `file_format`, `file_name`, the sizes of the network, for ONNX files
            `onnx_precision` and its `calibration_images`, for the others `test_batch_size`.

    Returns:
        Path: `file_name` with the suffix of the format. It is there whole and checked, or not at all.

    Raises:
        UserError: the checkpoint does not fit, the device cannot write the format, the file cannot be written, or
            detects something else than the network.
    """
    if config.file_format == "AIR" and config.device_target != "Ascend":
        raise UserError(
            f"file_format AIR can only be written on Ascend, device_target is {config.device_target}; use "
            "--file_format=MINDIR or ONNX here, or export on a machine with an Ascend device"
        )
    if config.file_format != "ONNX" and config.onnx_precision != "float32":
        raise UserError(
            f"onnx_precision {config.onnx_precision} is for file_format ONNX, but file_format is {config.file_format}"
        )
    suffix = SUFFIXES[config.file_format]
    path = Path(config.file_name if config.file_name.endswith(suffix) else config.file_name + suffix)
    config = noted_config(config, config.ckpt_file)
    network = load_detector(build_detector(config), config.ckpt_file)
    reference = network_model(network, config, Path(config.ckpt_file))
    write = _write_onnx if config.file_format == "ONNX" else _write_mindspore
    precision = config.onnx_precision

    def write_and_check(partial: Path) -> None:
        write(network, config, partial)
        if config.file_format != "AIR":  # nothing but an Ascend device reads it
            _check(open_model(partial, config), reference, exact=precision != "int8")

    LOGGER.info("writing %s (%s weights)", path, precision)
    write_whole(path, write_and_check)
    LOGGER.info("wrote %s, %.0f MB", path, path.stat().st_size / 1e6)
    return path


def _write_mindspore(network: nn.Cell, config: Config, path: Path) -> None:
    """Write MINDIR or AIR with a fixed batch of `test_batch_size`."""
    batch = config.test_batch_size
    inputs = (
        ms.Tensor(np.zeros((batch, 3, config.img_height, config.img_width), np.float32)),
        ms.Tensor(np.ones((batch, 4), np.float32)),
    )
    options = {}
    if config.file_format == "MINDIR":
        options["custom_func"] = lambda content: content.user_info.update(_notes(config))
    # MindSpore's export takes no path with spaces and makes files that only their owner can read.
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"detector{path.suffix}"
        ms.export(network, *inputs, file_name=str(written), file_format=config.file_format, **options)
        open_to_others(written)
        shutil.move(written, path)


def _write_onnx(network: nn.Cell, config: Config, path: Path) -> None:
    import onnx

    from src.deploy.onnx_graph import build_onnx, store_weights_as_float16

    parameters = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    model = build_onnx(parameters, config)
    if config.onnx_precision == "float16":
        store_weights_as_float16(model)
    elif config.onnx_precision == "int8":
        from src.deploy.onnx_quantize import quantize

        model = quantize(model, config)
    for key, value in _notes(config).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _notes(config: Config) -> dict[str, str]:
    return ModelInfo.from_config(config, config.onnx_precision).notes() | notes_of(config)


# ---- the check -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Difference:
    """How the detections of two models for one image differ.

    Attributes:
        num_expected, num_found (int): detections of the first model and of the second.
        num_same (int): detections of the first that the second has too: same label, box within a pixel, score
            within 0.02.
        box, score (float): largest differences among these, in pixels and in [0, 1].
    """

    num_expected: int
    num_found: int
    num_same: int
    box: float
    score: float

    @property
    def agreement(self) -> float:
        """Share of detections that both have, of those that the richer one has; 1 when neither has any."""
        richer = max(self.num_expected, self.num_found)
        return self.num_same / richer if richer else 1.0


def compare_detections(expected: Detections, found: Detections) -> Difference:
    """Pair the detections of two models, each of the first with the nearest unpaired one of its label.

    Args:
        expected, found (Detections): of the same image.

    Returns:
        Difference
    """
    free = np.ones(len(found.labels), bool)
    boxes, scores = [0.0], [0.0]
    num_same = 0
    for box, score, label in zip(expected.boxes_xyxy, expected.scores, expected.labels, strict=True):
        distance = np.abs(found.boxes_xyxy - box).max(axis=1, initial=0.0)
        score_distance = np.abs(found.scores - score)
        same = free & (found.labels == label) & (distance <= SAME_PIXELS) & (score_distance <= SAME_SCORE)
        if not same.any():
            continue
        nearest = int(np.argmin(np.where(same, distance + score_distance, np.inf)))
        free[nearest] = False
        num_same += 1
        boxes.append(float(distance[nearest]))
        scores.append(float(score_distance[nearest]))
    return Difference(len(expected.labels), len(found.labels), num_same, max(boxes), max(scores))


def sample_images(canvas_height: int, canvas_width: int) -> dict[str, np.ndarray]:
    """Two images (h, w, 3) uint8 to try a model on: coloured shapes on faint noise, and a black one."""
    rng = np.random.default_rng(0)
    height, width = canvas_height * 3 // 4, canvas_width
    generated = rng.integers(90, 130, (height, width, 3), np.uint8)
    for _ in range(12):
        x1, y1 = rng.integers(0, width * 3 // 4), rng.integers(0, height * 3 // 4)
        w, h = rng.integers(width // 20, width // 4), rng.integers(height // 20, height // 4)
        generated[y1 : y1 + h, x1 : x1 + w] = rng.integers(0, 256, 3, np.uint8)
    return {GENERATED: generated, BLACK: np.zeros((height, width, 3), np.uint8)}


def _all_detections(model: Model, image: np.ndarray, meta: np.ndarray) -> Detections:
    boxes, labels, mask = (output[0] for output in model(image[None], meta[None])[:3])
    return detections_from_outputs(boxes, labels, mask, max_detections=None)


def _check(model: Model, reference: Model, exact: bool) -> None:
    """Run the file and the network on the sample images and say how they differ."""
    canvas = reference.info.canvas
    for name, pixels in sample_images(canvas.height, canvas.width).items():
        image, meta = evaluation_input(pixels, canvas)
        expected, found = (_all_detections(run, image, meta) for run in (reference, model))
        difference = compare_detections(expected, found)
        LOGGER.info(
            "%s: network %d detections, file %d, %d in common; largest difference among these: box %.2g px, score %.2g",
            name,
            difference.num_expected,
            difference.num_found,
            difference.num_same,
            difference.box,
            difference.score,
        )
        # Where the black image has detections, thousands of places score exactly alike: rounding decides among them.
        has_ties = name == BLACK and difference.num_expected > 0
        if exact and not has_ties and difference.agreement < MIN_AGREEMENT:
            raise UserError(
                f"nothing is written: the {model.path.suffix} file detects something else than the "
                f"network; on the {name} only {difference.num_same} of {difference.num_expected} "
                "detections agree. Weights that have not learnt yet have many equal scores; train first, "
                "or report this as a bug"
            )

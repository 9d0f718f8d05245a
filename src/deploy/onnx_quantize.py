"""Static int8 quantisation of the detector's ONNX graph, calibrated on training images."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from src.common.progress import with_progress
from src.data.annotations import load_annotations
from src.data.image_files import read_rgb
from src.data.transforms import Canvas, evaluation_input
from src.deploy.onnx_graph import INPUT_NAMES
from src.model_utils.config import Config

LOGGER = logging.getLogger(__name__)

# Nearly all arithmetic is in these; what turns their results into boxes stays in float.
QUANTIZED_OPERATORS = ["Conv", "Relu", "Add", "MaxPool", "Resize", "Gemm"]
QUANTIZED_STAGES = ("backbone/", "fpn/", "rpn/", "box_head/")


class CalibrationImages:
    """Training images as the network sees them, one after another.

    Args:
        config (Config): names the training set, the canvas and how many of its images, evenly spread.
    """

    def __init__(self, config: Config):
        annotations = load_annotations(config, training=True)
        step = max(1, len(annotations) // config.calibration_images)
        self.paths = [annotation.path for annotation in annotations[::step]][: config.calibration_images]
        self.canvas = Canvas(config.img_width, config.img_height, config.keep_ratio)
        self.images = self._inputs()

    def _inputs(self) -> Iterator[dict[str, np.ndarray]]:
        for path in with_progress(self.paths, len(self.paths), "calibrating", "images"):
            image, meta = evaluation_input(read_rgb(path), self.canvas)
            yield dict(zip(INPUT_NAMES, (image[None], meta[None]), strict=True))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image's inputs, or None after the last."""
        return next(self.images, None)


def quantize(model: onnx.ModelProto, config: Config) -> onnx.ModelProto:
    """Turn the convolutions and shared fully connected layers into int8 (QDQ format).

    Weights are symmetric per output channel, activations asymmetric uint8 with ranges from the calibration images.
    The predictors of both stages stay in float.

    Args:
        model (ModelProto): from `src.deploy.onnx_graph.build_onnx`.
        config (Config): names the training set and `calibration_images`.

    Returns:
        ModelProto: the quantised graph.

    Raises:
        UserError: there are no training images, or one cannot be read.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    reader = CalibrationImages(config)
    LOGGER.info("calibrating on %d training images", len(reader.paths))
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / name) for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared, load_external_data=False).graph.node
        quantize_static(
            prepared,
            target,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED_OPERATORS,
            nodes_to_exclude=[node.name for node in nodes if not node.name.startswith(QUANTIZED_STAGES)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(target)

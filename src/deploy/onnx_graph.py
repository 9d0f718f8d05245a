"""The detector as an ONNX graph, built from its parameters with standard operators.

MindSpore's own exporter would unroll the suppression of every image and class and pool every RoI on every level. Built
by hand the graph is small: each RoI is pooled once, from its own level; one ``NonMaxSuppression`` serves all images and
levels, another all images and classes; batch norms are folded into convolutions; the batch size stays open. The second
suppression sees every (box, class) pair above the threshold, so detections are exact where
``src.FasterRcnn.rcnn.BoxPredictor`` has to stop at ``test_nms_candidates`` pairs.

Size letters as in ``src.FasterRcnn``: B images, A anchors per cell, M anchors that enter suppression, R proposals, K
classes with background, D detections.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from src.FasterRcnn.anchor_generator import pyramid_anchors
from src.FasterRcnn.box_ops import WH_RATIO_CLIP
from src.model_utils.config import Config

INPUT_NAMES = ("image", "image_shape")
OUTPUT_NAMES = ("boxes", "labels", "mask")
OPSET = 17  # the newest that ONNX Runtime 1.12 and the compilers of most devices read
IR_VERSION = 8  # goes with it
BATCH_NORM_EPS = 1e-5
SUPPRESSED = -1e30  # below every logit
MIN_FLOAT16_SIZE = 1024


class Graph:
    """Nodes and constants of a graph under construction; what adds one returns its :class:`Value`.

    Attributes:
        stage (str): part of the detector being built; the first word of the names that follow.
        nodes (list[NodeProto]), initializers (list[TensorProto]): in the order they were added.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str) -> "Value":
        """The input of this name."""
        return Value(self, name)

    def add(self, op_type: str, *inputs: "Value | None", **attributes) -> "Value":
        """Add a node with one output; None leaves an optional input out."""
        name = self._node_name(op_type)
        self._add_node(op_type, inputs, [name], name, **attributes)
        return Value(self, name)

    def top_k(self, x: "Value", k: int) -> tuple["Value", "Value"]:
        """The k largest elements along the last axis, largest first, and their int64 indices."""
        inputs, name = (x, self.integers(k)), self._node_name("TopK")
        outputs = [f"{name}:0", f"{name}:1"]
        self._add_node("TopK", inputs, outputs, name)
        return Value(self, outputs[0]), Value(self, outputs[1])

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> "Value":
        """Add a constant."""
        name = f"{self.stage}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return Value(self, name)

    def integers(self, *values: int) -> "Value":
        """Add a vector of int64, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def concat(self, values: Iterable["Value"], axis: int) -> "Value":
        """Join values along an axis."""
        return self.add("Concat", *values, axis=axis)

    def _node_name(self, op_type: str) -> str:
        return f"{self.stage}/{op_type}_{len(self.nodes)}"

    def _add_node(
        self, op_type: str, inputs: Sequence["Value | None"], outputs: Sequence[str], name: str, **attributes
    ) -> None:
        names = ["" if value is None else value.name for value in inputs]
        self.nodes.append(helper.make_node(op_type, names, outputs, name=name, **attributes))


class Value:
    """An input, a constant or the output of a node; arithmetic and the methods add nodes to its graph.

    The other operand is a value, or numbers that become a float32 constant: ``box * [1, 1, 2, 2] + 0.5``.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: "Operand") -> "Value":
        return self._with("Add", other)

    def __sub__(self, other: "Operand") -> "Value":
        return self._with("Sub", other)

    def __mul__(self, other: "Operand") -> "Value":
        return self._with("Mul", other)

    def __truediv__(self, other: "Operand") -> "Value":
        return self._with("Div", other)

    def __gt__(self, other: "Operand") -> "Value":
        return self._with("Greater", other)

    def __ge__(self, other: "Operand") -> "Value":
        return self._with("GreaterOrEqual", other)

    def maximum(self, other: "Operand") -> "Value":
        """The larger of both, element by element."""
        return self._with("Max", other)

    def minimum(self, other: "Operand") -> "Value":
        """The smaller of both, element by element."""
        return self._with("Min", other)

    def where(self, mask: "Value", other: "Operand") -> "Value":
        """These elements where the mask is True, those of `other` elsewhere."""
        return self.graph.add("Where", mask, self, self._operand(other))

    def relu(self) -> "Value":
        """Negative elements become 0."""
        return self.graph.add("Relu", self)

    def cast(self, data_type: int) -> "Value":
        """Elements of another type, one of ``onnx.TensorProto``."""
        return self.graph.add("Cast", self, to=data_type)

    def reshape(self, *shape: int) -> "Value":
        """Reshape; 0 keeps an axis, -1 takes what is left."""
        return self.graph.add("Reshape", self, self.graph.integers(*shape))

    def transpose(self, *axes: int) -> "Value":
        """The axes in this order."""
        return self.graph.add("Transpose", self, perm=list(axes))

    def unsqueeze(self, axis: int) -> "Value":
        """A new axis of size 1."""
        return self.graph.add("Unsqueeze", self, self.graph.integers(axis))

    def columns(self, begin: int, end: int) -> "Value":
        """Elements begin .. end - 1 of the last axis."""
        return self.graph.add(
            "Slice", self, self.graph.integers(begin), self.graph.integers(end), self.graph.integers(-1)
        )

    def gather(self, index: "Value") -> "Value":
        """Elements of the first axis by their numbers."""
        return self.graph.add("Gather", self, index)

    def take_rows(self, index: "Value") -> "Value":
        """Rows (B, S, ...) of (B, N, ...) by numbers (B, S)."""
        return self.graph.add("GatherND", self, index.unsqueeze(-1), batch_dims=1)

    def _with(self, op_type: str, other: "Operand") -> "Value":
        return self.graph.add(op_type, self, self._operand(other))

    def _operand(self, other: "Operand") -> "Value":
        return other if isinstance(other, Value) else self.graph.constant(other)


Operand = Value | float | Sequence[float] | np.ndarray


def build_onnx(parameters: Mapping[str, np.ndarray], config: Config) -> onnx.ModelProto:
    """Build the detector's graph.

    Args:
        parameters (Mapping): the network's parameters by name, float32.
        config (Config): the configuration that the network was built with.

    Returns:
        ModelProto: inputs ``image`` (B, 3, H, W) float32, the normalised canvas, and ``image_shape`` (B, 4) float32:
        height, width, scale_h, scale_w; outputs ``boxes`` (B, D, 5) float32 xyxy in pixels of the image and score,
        best first, ``labels`` (B, D, 1) int32, 0 = first foreground class, ``mask`` (B, D, 1) bool. Padded rows are 0,
        0, False. B is open.
    """
    graph = Graph()
    image, image_shape = map(graph.input, INPUT_NAMES)
    features = _pyramid(graph, parameters, _backbone(graph, parameters, image, config), config.fpn_num_outs)
    proposals, proposal_mask = _proposals(graph, parameters, features, config)
    pooled, order = _pool(graph, proposals, features, config)
    logits, deltas = _box_head(graph, parameters, pooled, order)
    outputs = _detections(graph, logits, deltas, proposals, proposal_mask, image_shape, config)
    types = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL)
    for output, name in zip(outputs, OUTPUT_NAMES, strict=True):
        graph.nodes.append(helper.make_node("Identity", [output.name], [name], name=f"output/{name}"))
    num_rows = config.test_max_per_img
    shapes = (("B", num_rows, 5), ("B", num_rows, 1), ("B", num_rows, 1))
    canvas = ("B", 3, config.img_height, config.img_width)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "faster_rcnn",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in zip(INPUT_NAMES, (canvas, ("B", 4)), strict=True)
            ],
            [helper.make_tensor_value_info(*spec) for spec in zip(OUTPUT_NAMES, types, shapes, strict=True)],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def store_weights_as_float16(model: onnx.ModelProto) -> None:
    """Halve a file: large float32 constants become float16, widened again when the file is loaded.

    Computation stays in float32: processors rarely have float16 arithmetic, and only the rounding of the weights
    changes the results.

    Args:
        model (ModelProto): changed in place.
    """
    casts = []
    for number, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        # Anchors and other coordinates stay exact.
        if values.dtype != np.float32 or values.size < MIN_FLOAT16_SIZE or tensor.name.startswith("proposals/"):
            continue
        narrow = numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}:float16")
        casts.append(helper.make_node("Cast", [narrow.name], [tensor.name], to=TensorProto.FLOAT))
        model.graph.initializer[number].CopyFrom(narrow)
    for node in reversed(casts):
        model.graph.node.insert(0, node)


# ---- backbone and pyramid ------------------------------------------------------------------------------------


def _convolution(x: Value, weight: Value, bias: Value, size: int, stride: int = 1) -> Value:
    return x.graph.add(
        "Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4
    )


def _folded(parameters: Mapping, x: Value, conv: str, norm: str, stride: int = 1) -> Value:
    """A convolution and the batch norm behind it as one convolution with bias."""
    gamma, beta, mean, variance = (
        parameters[f"{norm}.{part}"].astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    factor = gamma / np.sqrt(variance + BATCH_NORM_EPS)
    weight = parameters[f"{conv}.weight"] * factor[:, None, None, None]
    bias = beta - mean * factor
    return _convolution(x, x.graph.constant(weight), x.graph.constant(bias), weight.shape[2], stride)


def _plain(graph: Graph, parameters: Mapping, name: str) -> tuple[Value, Value]:
    """Weight and bias of a layer as constants."""
    return graph.constant(parameters[f"{name}.weight"]), graph.constant(parameters[f"{name}.bias"])


def _backbone(graph: Graph, parameters: Mapping, image: Value, config: Config) -> list[Value]:
    """C2..C5, as ``src.FasterRcnn.resnet.ResNetFea``."""
    graph.stage = "backbone"
    x = _folded(parameters, image, "backbone.conv1", "backbone.bn1", 2).relu()
    before = 0 if config.stem_pool_pad == "same" else 1
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[before, before, 1, 1])
    stages = []
    for stage, num_blocks in enumerate(config.resnet_block, start=1):
        for block in range(num_blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _block(parameters, x, f"backbone.layer{stage}.{block}", stride, stride_on_first=config.stride_on_first)
        stages.append(x)
    return stages


def _block(parameters: Mapping, x: Value, name: str, stride: int, stride_on_first: bool) -> Value:
    first, second = (stride, 1) if stride_on_first else (1, stride)
    out = _folded(parameters, x, f"{name}.conv1", f"{name}.bn1", first).relu()
    out = _folded(parameters, out, f"{name}.conv2", f"{name}.bn2", second).relu()
    out = _folded(parameters, out, f"{name}.conv3", f"{name}.bn3")
    if f"{name}.conv_down_sample.weight" in parameters:
        x = _folded(parameters, x, f"{name}.conv_down_sample", f"{name}.bn_down_sample", stride)
    return (out + x).relu()


def _pyramid(graph: Graph, parameters: Mapping, stages: Sequence[Value], num_outs: int) -> list[Value]:
    """P2.., as ``src.FasterRcnn.fpn_neck.FeatPyramidNeck``."""
    graph.stage = "fpn"
    twice = graph.constant([1, 1, 2, 2])
    merged: Value | None = None
    outs: list[Value] = []
    for level in range(len(stages) - 1, -1, -1):
        lateral = _convolution(stages[level], *_plain(graph, parameters, f"fpn_neck.lateral_convs_list.{level}"), 1)
        if merged is not None:
            lateral += graph.add(
                "Resize",
                merged,
                None,
                twice,
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
        merged = lateral
        outs.insert(0, _convolution(merged, *_plain(graph, parameters, f"fpn_neck.fpn_convs_list.{level}"), 3))
    while len(outs) < num_outs:
        outs.append(graph.add("MaxPool", outs[-1], kernel_shape=[1, 1], strides=[2, 2]))
    return outs


# ---- boxes ---------------------------------------------------------------------------------------------------


def _decode(
    graph: Graph, anchors: Value, deltas: Value, means: Sequence[float], stds: Sequence[float], config: Config
) -> Value:
    """Boxes (..., 4) from anchors and deltas, clipped to the canvas, as ``src.FasterRcnn.box_ops.BoxCoder``."""
    deltas = deltas * stds + means
    low, high = anchors.columns(0, 2), anchors.columns(2, 4)
    size = high - low + 1.0
    half = graph.constant(0.5)
    shift = deltas.columns(0, 2) * size
    centre = (low + high) * half + shift
    limit = abs(math.log(WH_RATIO_CLIP))
    log_size = graph.add("Clip", deltas.columns(2, 4), graph.constant(-limit), graph.constant(limit))
    # A box includes its last pixel: its corners lie (size - 1) / 2 from the centre.
    reach = graph.add("Exp", log_size) * size * half - half
    boxes = graph.concat((centre - reach, centre + reach), axis=-1)
    canvas = graph.constant([config.img_width, config.img_height] * 2)
    return boxes.maximum(0.0).minimum(canvas)


def _suppress(graph: Graph, boxes: Value, scores: Value, max_num: int, iou_thr: float, score_thr: float) -> Value:
    """Greedy suppression of boxes (N, M, 4) by scores (N, classes, M): the pairs (n, m) that stay, (S, 2) int64.

    A box thinner than a pixel may end before it begins. It overlaps nothing; the operator would swap its corners.
    """
    low, high = boxes.columns(0, 2), boxes.columns(2, 4)
    boxes = graph.concat((low, low.maximum(high)), axis=-1)
    selected = graph.add(
        "NonMaxSuppression",
        boxes,
        scores,
        graph.integers(max_num),
        graph.constant([iou_thr]),
        graph.constant([score_thr]),
    )
    return graph.add("Gather", selected, graph.integers(0, 2), axis=1)


def _padded_rows(graph: Graph, x: Value, missing: int, rank: int, value: float = 0.0) -> Value:
    """(B, N, ...) with so many rows of ``value`` behind."""
    if missing <= 0:
        return x
    pads = [0] * (2 * rank)
    pads[rank + 1] = missing
    return graph.add("Pad", x, graph.integers(*pads), graph.constant(value))


def _kept_scores(graph: Graph, scores: Value, selected: Value, fill: float) -> Value:
    """Scores (B, N) with ``fill`` in place of those not selected; ``selected`` holds (row, column) pairs."""
    nothing = graph.add(
        "ConstantOfShape", graph.add("Shape", scores), value=helper.make_tensor("fill", TensorProto.FLOAT, [1], [fill])
    )
    return graph.add("ScatterND", nothing, selected, graph.add("GatherND", scores, selected))


# ---- proposals -----------------------------------------------------------------------------------------------


def _rpn_head(graph: Graph, parameters: Mapping, features: Sequence[Value]) -> list[tuple[Value, Value]]:
    """Logits (B, H, W, A) and deltas (B, H, W, 4A) of every level, as ``src.FasterRcnn.rpn.RpnRegClsBlock``."""
    graph.stage = "rpn_predictor"
    shared, logit, delta = (
        _plain(graph, parameters, f"rpn_with_loss.rpn_convs_list.0.{name}")
        for name in ("rpn_conv", "rpn_cls", "rpn_reg")
    )
    outs = []
    for feature in features:
        graph.stage = "rpn"
        x = _convolution(feature, *shared, 3).relu()
        graph.stage = "rpn_predictor"
        logits = _convolution(x, *logit, 1).transpose(0, 2, 3, 1)
        outs.append((logits, _convolution(x, *delta, 1).transpose(0, 2, 3, 1)))
    return outs


def _proposals(graph: Graph, parameters: Mapping, features: Sequence[Value], config: Config) -> tuple[Value, Value]:
    """Proposals (B, R, 4) and their mask (B, R), as ``src.FasterRcnn.proposal_generator.Proposal``."""
    heads = _rpn_head(graph, parameters, features)
    graph.stage = "proposals"
    level_anchors = pyramid_anchors(
        (config.img_height, config.img_width), config.anchor_strides, config.anchor_scales, config.anchor_ratios
    )
    counts, levels = [], []
    for (logit_map, delta_map), anchors_here in zip(heads, level_anchors, strict=True):
        counts.append(min(config.rpn_nms_pre, len(anchors_here)))
        best, index = graph.top_k(logit_map.reshape(0, -1), counts[-1])
        anchors = graph.constant(anchors_here).gather(index)
        levels.append((best, anchors, delta_map.reshape(0, -1, 4).take_rows(index)))
    scores, anchors, deltas = (graph.concat(column, axis=1) for column in zip(*levels, strict=True))
    boxes = _decode(graph, anchors, deltas, config.rpn_target_means, config.rpn_target_stds, config)
    # Levels are the "classes" of the suppression: a box takes part in its own level only.
    level = np.repeat(np.arange(len(counts)), counts)
    own_level = graph.constant(level == np.arange(len(counts))[:, None], bool)
    level_scores = scores.unsqueeze(1).where(own_level, SUPPRESSED)
    selected = _suppress(graph, boxes, level_scores, config.rpn_max_num, config.rpn_nms_thr, SUPPRESSED)
    return _best_proposals(graph, boxes, _kept_scores(graph, scores, selected, SUPPRESSED), sum(counts), config)


def _best_proposals(graph: Graph, boxes: Value, scores: Value, num_boxes: int, config: Config) -> tuple[Value, Value]:
    """The best rows of all levels; padded ones are 0 and masked."""
    available = min(config.rpn_max_num, num_boxes)
    best, index = graph.top_k(scores, available)
    boxes = _padded_rows(graph, boxes.take_rows(index), config.rpn_max_num - available, rank=3)
    best = _padded_rows(graph, best, config.rpn_max_num - available, rank=2, value=SUPPRESSED)
    mask = best > SUPPRESSED
    return boxes.where(mask.unsqueeze(-1), 0.0), mask


# ---- RoIAlign and box head -----------------------------------------------------------------------------------


def _roi_levels(graph: Graph, rois: Value, config: Config) -> Value:
    """Pyramid level of each RoI (B * R, 4) as int64 (B * R,), as ``src.FasterRcnn.roi_align.roi_levels``."""
    size = rois.columns(2, 4) - rois.columns(0, 2)
    size = (size + 1.0).maximum(0.0)
    area = size.columns(0, 1) * size.columns(1, 2)
    side = graph.add("Sqrt", area) / config.roi_align_finest_scale + 1e-6
    boundaries = 2.0 ** np.arange(1, len(config.roi_align_featmap_strides))
    reached = side >= boundaries
    return graph.add("ReduceSum", reached.cast(TensorProto.INT64), graph.integers(1), keepdims=0)


def _pool(graph: Graph, proposals: Value, features: Sequence[Value], config: Config) -> tuple[Value, Value]:
    """RoIAlign of every RoI on its own level.

    Returns pooled (B * R, C, bins, bins) in the order of the levels, and for every RoI its place there (B * R,) int64.
    """
    graph.stage = "roi_align"
    rois = proposals.reshape(-1, 4)
    levels = _roi_levels(graph, rois, config)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    number = graph.add("Range", zero, graph.add("Size", levels), one)
    image = number / graph.constant(config.rpn_max_num, np.int64)
    bins, positions, pooled = config.roi_layer.out_size, [], []
    for level, stride in enumerate(config.roi_align_featmap_strides):
        here = graph.add("Equal", levels, graph.constant(level, np.int64))
        position = graph.add("NonZero", here).reshape(-1)
        # The operator counts half-open pixels from their corners; ours include the last one and start at centres.
        half_open = rois.gather(position) + (np.array([0, 0, 1, 1]) + 0.5 * stride)
        positions.append(position)
        pooled.append(
            graph.add(
                "RoiAlign",
                features[level],
                half_open,
                image.gather(position),
                coordinate_transformation_mode="half_pixel",
                mode="avg",
                output_height=bins,
                output_width=bins,
                sampling_ratio=config.roi_layer.sample_num,
                spatial_scale=1.0 / stride,
            )
        )
    by_level = graph.concat(positions, axis=0).unsqueeze(-1)
    return graph.concat(pooled, axis=0), graph.add("ScatterND", number, by_level, number)


def _box_head(graph: Graph, parameters: Mapping, pooled: Value, order: Value) -> tuple[Value, Value]:
    """Logits (B * R, K) and deltas (B * R, 4 * classes), as ``src.FasterRcnn.rcnn.Rcnn``, in the proposals' order."""
    graph.stage = "box_head"
    x = graph.add("Flatten", pooled)
    for name in ("shared_fc_0", "shared_fc_1"):
        x = graph.add("Gemm", x, *_plain(graph, parameters, f"rcnn.{name}")).relu()
    graph.stage = "box_predictor"
    logits, deltas = (
        graph.add("Gemm", x, *_plain(graph, parameters, f"rcnn.{name}")) for name in ("cls_scores", "reg_scores")
    )
    return logits.gather(order), deltas.gather(order)


# ---- detections ----------------------------------------------------------------------------------------------


def _detections(
    graph: Graph,
    logits: Value,
    deltas: Value,
    proposals: Value,
    proposal_mask: Value,
    image_shape: Value,
    config: Config,
) -> tuple[Value, Value, Value]:
    """Boxes with scores, labels and mask, as ``src.FasterRcnn.rcnn.BoxPredictor``; everything is class-major here."""
    graph.stage = "detections"
    num_fg, num_rois = config.num_fg_classes, config.rpn_max_num
    scores = graph.add("Softmax", logits, axis=1).columns(1, num_fg + 1).reshape(-1, num_rois, num_fg)
    scores = scores.where(proposal_mask.unsqueeze(-1), 0.0).transpose(0, 2, 1)
    boxes = _class_boxes(graph, deltas, proposals, image_shape, config)
    # Every (image, class) pair is an image of its own to the suppression, whose classes share their boxes.
    class_scores = scores.reshape(-1, 1, num_rois)
    selected = _suppress(
        graph,
        boxes.reshape(-1, num_rois, 4),
        class_scores,
        config.test_max_per_img,
        config.test_iou_thr,
        config.test_score_thr,
    )
    kept = _kept_scores(graph, class_scores.reshape(-1, num_rois), selected, 0.0)
    available = min(config.test_max_per_img, num_fg * num_rois)
    best, index = graph.top_k(kept.reshape(-1, num_fg * num_rois), available)
    mask = (best > 0.0).unsqueeze(-1)
    rows = graph.concat((boxes.reshape(0, -1, 4).take_rows(index), best.unsqueeze(-1)), axis=-1)
    label = (index / graph.constant(num_rois, np.int64)).unsqueeze(-1)
    rows = graph.concat((rows, label.cast(TensorProto.FLOAT), mask.cast(TensorProto.FLOAT)), axis=-1)
    rows = _padded_rows(graph, rows.where(mask, 0.0), config.test_max_per_img - available, rank=3)
    return rows.columns(0, 5), rows.columns(5, 6).cast(TensorProto.INT32), rows.columns(6, 7).cast(TensorProto.BOOL)


def _class_boxes(graph: Graph, deltas: Value, proposals: Value, image_shape: Value, config: Config) -> Value:
    """Boxes (B, classes, R, 4) in pixels of the image."""
    num_fg, num_rois = config.num_fg_classes, config.rpn_max_num
    if not config.without_bg_loss:
        deltas = deltas.columns(4, 4 * (num_fg + 1))
    deltas = deltas.reshape(-1, num_rois, num_fg, 4).transpose(0, 2, 1, 3)
    boxes = _decode(graph, proposals.unsqueeze(1), deltas, config.rcnn_target_means, config.rcnn_target_stds, config)
    scale = graph.add("Gather", image_shape, graph.integers(3, 2, 3, 2), axis=1)  # w, h, w, h
    return boxes / scale.reshape(-1, 1, 1, 4)

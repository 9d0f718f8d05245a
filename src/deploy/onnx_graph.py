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
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from src.FasterRcnn.anchor_generator import pyramid_anchors
from src.FasterRcnn.box_ops import WH_RATIO_CLIP

INPUT_NAMES = ("image", "image_shape")
OUTPUT_NAMES = ("boxes", "labels", "mask")
OPSET = 17  # the newest that ONNX Runtime 1.12 and the compilers of most devices read
IR_VERSION = 8  # goes with it
BATCH_NORM_EPS = 1e-5
SUPPRESSED = -1e30  # below every logit
MIN_FLOAT16_SIZE = 1024


class Graph:
    """Nodes and constants of a graph under construction; what adds a node returns the name of its output.

    Attributes:
        stage (str): part of the detector being built; the first word of the names that follow.
        nodes (list[NodeProto]), initializers (list[TensorProto]): in the order they were added.
    """

    def __init__(self):
        self.stage = ""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def add(self, op_type: str, *inputs: str, num_outputs: int = 1, **attributes):
        """Add a node; returns its output, or a tuple of them when there are several."""
        name = f"{self.stage}/{op_type}_{len(self.nodes)}"
        outputs = [name] if num_outputs == 1 else [f"{name}:{number}" for number in range(num_outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, outputs, name=name, **attributes))
        return name if num_outputs == 1 else tuple(outputs)

    def constant(self, values, dtype=np.float32) -> str:
        """Add a constant."""
        name = f"{self.stage}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a vector of int64, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps an axis, -1 takes what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def columns(self, x: str, begin: int, end: int) -> str:
        """Elements begin .. end - 1 of the last axis."""
        return self.add("Slice", x, self.integers(begin), self.integers(end), self.integers(-1))

    def take_rows(self, rows: str, index: str) -> str:
        """Rows (B, S, ...) of (B, N, ...) by numbers (B, S)."""
        return self.add("GatherND", rows, self.add("Unsqueeze", index, self.integers(-1)), batch_dims=1)


def build_onnx(parameters: Mapping[str, np.ndarray], config) -> onnx.ModelProto:
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
    features = _pyramid(graph, parameters, _backbone(graph, parameters, config), config.fpn_num_outs)
    proposals, proposal_mask = _proposals(graph, parameters, features, config)
    pooled, order = _pool(graph, proposals, features, config)
    logits, deltas = _box_head(graph, parameters, pooled, order)
    outputs = _detections(graph, logits, deltas, proposals, proposal_mask, config)
    types = (TensorProto.FLOAT, TensorProto.INT32, TensorProto.BOOL)
    for output, name in zip(outputs, OUTPUT_NAMES, strict=True):
        graph.nodes.append(helper.make_node("Identity", [output], [name], name=f"output/{name}"))
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


def _convolution(graph: Graph, x: str, weight: str, bias: str, size: int, stride: int = 1) -> str:
    return graph.add("Conv", x, weight, bias, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4)


def _folded(graph: Graph, parameters: Mapping, x: str, conv: str, norm: str, stride: int = 1) -> str:
    """A convolution and the batch norm behind it as one convolution with bias."""
    gamma, beta, mean, variance = (
        parameters[f"{norm}.{part}"].astype(np.float64) for part in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    factor = gamma / np.sqrt(variance + BATCH_NORM_EPS)
    weight = parameters[f"{conv}.weight"] * factor[:, None, None, None]
    return _convolution(graph, x, graph.constant(weight), graph.constant(beta - mean * factor), weight.shape[2], stride)


def _plain(graph: Graph, parameters: Mapping, name: str) -> tuple[str, str]:
    """Weight and bias of a layer as constants."""
    return graph.constant(parameters[f"{name}.weight"]), graph.constant(parameters[f"{name}.bias"])


def _backbone(graph: Graph, parameters: Mapping, config) -> list[str]:
    """C2..C5, as ``src.FasterRcnn.resnet.ResNetFea``."""
    graph.stage = "backbone"
    x = graph.add("Relu", _folded(graph, parameters, INPUT_NAMES[0], "backbone.conv1", "backbone.bn1", 2))
    before = 0 if config.stem_pool_pad == "same" else 1
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[before, before, 1, 1])
    stages = []
    for stage, num_blocks in enumerate(config.resnet_block, start=1):
        for block in range(num_blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _block(
                graph,
                parameters,
                x,
                f"backbone.layer{stage}.{block}",
                stride,
                stride_on_first=config.backbone == "resnet_v1_50",
            )
        stages.append(x)
    return stages


def _block(graph: Graph, parameters: Mapping, x: str, name: str, stride: int, stride_on_first: bool) -> str:
    first, second = (stride, 1) if stride_on_first else (1, stride)
    out = graph.add("Relu", _folded(graph, parameters, x, f"{name}.conv1", f"{name}.bn1", first))
    out = graph.add("Relu", _folded(graph, parameters, out, f"{name}.conv2", f"{name}.bn2", second))
    out = _folded(graph, parameters, out, f"{name}.conv3", f"{name}.bn3")
    if f"{name}.conv_down_sample.weight" in parameters:
        x = _folded(graph, parameters, x, f"{name}.conv_down_sample", f"{name}.bn_down_sample", stride)
    return graph.add("Relu", graph.add("Add", out, x))


def _pyramid(graph: Graph, parameters: Mapping, stages: Sequence[str], num_outs: int) -> list[str]:
    """P2.., as ``src.FasterRcnn.fpn_neck.FeatPyramidNeck``."""
    graph.stage = "fpn"
    twice = graph.constant([1, 1, 2, 2])
    merged, outs = "", []
    for level in range(len(stages) - 1, -1, -1):
        lateral = _convolution(
            graph, stages[level], *_plain(graph, parameters, f"fpn_neck.lateral_convs_list.{level}"), 1
        )
        if merged:
            coarse = graph.add(
                "Resize",
                merged,
                "",
                twice,
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
            lateral = graph.add("Add", lateral, coarse)
        merged = lateral
        outs.insert(0, _convolution(graph, merged, *_plain(graph, parameters, f"fpn_neck.fpn_convs_list.{level}"), 3))
    while len(outs) < num_outs:
        outs.append(graph.add("MaxPool", outs[-1], kernel_shape=[1, 1], strides=[2, 2]))
    return outs


# ---- boxes ---------------------------------------------------------------------------------------------------


def _decode(graph: Graph, anchors: str, deltas: str, means: Sequence[float], stds: Sequence[float], config) -> str:
    """Boxes (..., 4) from anchors and deltas, clipped to the canvas, as ``src.FasterRcnn.box_ops.BoxCoder``."""
    deltas = graph.add("Add", graph.add("Mul", deltas, graph.constant(stds)), graph.constant(means))
    low, high = graph.columns(anchors, 0, 2), graph.columns(anchors, 2, 4)
    size = graph.add("Add", graph.add("Sub", high, low), graph.constant(1.0))
    half = graph.constant(0.5)
    shift = graph.add("Mul", graph.columns(deltas, 0, 2), size)
    centre = graph.add("Add", graph.add("Mul", graph.add("Add", low, high), half), shift)
    limit = abs(math.log(WH_RATIO_CLIP))
    log_size = graph.add("Clip", graph.columns(deltas, 2, 4), graph.constant(-limit), graph.constant(limit))
    # A box includes its last pixel: its corners lie (size - 1) / 2 from the centre.
    reach = graph.add("Sub", graph.add("Mul", graph.add("Mul", graph.add("Exp", log_size), size), half), half)
    boxes = graph.add("Concat", graph.add("Sub", centre, reach), graph.add("Add", centre, reach), axis=-1)
    canvas = graph.constant([config.img_width, config.img_height] * 2)
    return graph.add("Min", graph.add("Max", boxes, graph.constant(0.0)), canvas)


def _suppress(graph: Graph, boxes: str, scores: str, max_num: int, iou_thr: float, score_thr: float) -> str:
    """Greedy suppression of boxes (N, M, 4) by scores (N, classes, M): the pairs (n, m) that stay, (S, 2) int64.

    A box thinner than a pixel may end before it begins. It overlaps nothing; the operator would swap its corners.
    """
    low, high = graph.columns(boxes, 0, 2), graph.columns(boxes, 2, 4)
    boxes = graph.add("Concat", low, graph.add("Max", low, high), axis=-1)
    selected = graph.add(
        "NonMaxSuppression",
        boxes,
        scores,
        graph.integers(max_num),
        graph.constant([iou_thr]),
        graph.constant([score_thr]),
    )
    return graph.add("Gather", selected, graph.integers(0, 2), axis=1)


def _padded_rows(graph: Graph, x: str, missing: int, rank: int, value: float = 0.0) -> str:
    """(B, N, ...) with so many rows of ``value`` behind."""
    if missing <= 0:
        return x
    pads = [0] * (2 * rank)
    pads[rank + 1] = missing
    return graph.add("Pad", x, graph.integers(*pads), graph.constant(value))


def _kept_scores(graph: Graph, scores: str, selected: str, fill: float) -> str:
    """Scores (B, N) with ``fill`` in place of those not selected; ``selected`` holds (row, column) pairs."""
    nothing = graph.add(
        "ConstantOfShape", graph.add("Shape", scores), value=helper.make_tensor("fill", TensorProto.FLOAT, [1], [fill])
    )
    return graph.add("ScatterND", nothing, selected, graph.add("GatherND", scores, selected))


# ---- proposals -----------------------------------------------------------------------------------------------


def _rpn_head(graph: Graph, parameters: Mapping, features: Sequence[str]) -> list[tuple[str, str]]:
    """Logits (B, H, W, A) and deltas (B, H, W, 4A) of every level, as ``src.FasterRcnn.rpn.RpnRegClsBlock``."""
    graph.stage = "rpn_predictor"
    shared, logit, delta = (
        _plain(graph, parameters, f"rpn_with_loss.rpn_convs_list.0.{name}")
        for name in ("rpn_conv", "rpn_cls", "rpn_reg")
    )
    outs = []
    for feature in features:
        graph.stage = "rpn"
        x = graph.add("Relu", _convolution(graph, feature, *shared, 3))
        graph.stage = "rpn_predictor"
        outs.append(
            tuple(
                graph.add("Transpose", _convolution(graph, x, *layer, 1), perm=[0, 2, 3, 1]) for layer in (logit, delta)
            )
        )
    return outs


def _proposals(graph: Graph, parameters: Mapping, features: Sequence[str], config) -> tuple[str, str]:
    """Proposals (B, R, 4) and their mask (B, R), as ``src.FasterRcnn.proposal_generator.Proposal``."""
    heads = _rpn_head(graph, parameters, features)
    graph.stage = "proposals"
    level_anchors = pyramid_anchors(
        (config.img_height, config.img_width), config.anchor_strides, config.anchor_scales, config.anchor_ratios
    )
    scores, anchors, deltas, counts = [], [], [], []
    for (logit_map, delta_map), anchors_here in zip(heads, level_anchors, strict=True):
        counts.append(min(config.rpn_nms_pre, len(anchors_here)))
        best, index = graph.add("TopK", graph.reshape(logit_map, 0, -1), graph.integers(counts[-1]), num_outputs=2)
        scores.append(best)
        anchors.append(graph.add("Gather", graph.constant(anchors_here), index))
        deltas.append(graph.take_rows(graph.reshape(delta_map, 0, -1, 4), index))
    scores, anchors, deltas = (graph.add("Concat", *levels, axis=1) for levels in (scores, anchors, deltas))
    boxes = _decode(graph, anchors, deltas, config.rpn_target_means, config.rpn_target_stds, config)
    # Levels are the "classes" of the suppression: a box takes part in its own level only.
    level = np.repeat(np.arange(len(counts)), counts)
    own_level = graph.constant(level == np.arange(len(counts))[:, None], bool)
    level_scores = graph.add(
        "Where", own_level, graph.add("Unsqueeze", scores, graph.integers(1)), graph.constant(SUPPRESSED)
    )
    selected = _suppress(graph, boxes, level_scores, config.rpn_max_num, config.rpn_nms_thr, SUPPRESSED)
    return _best_proposals(graph, boxes, _kept_scores(graph, scores, selected, SUPPRESSED), sum(counts), config)


def _best_proposals(graph: Graph, boxes: str, scores: str, num_boxes: int, config) -> tuple[str, str]:
    """The best rows of all levels; padded ones are 0 and masked."""
    available = min(config.rpn_max_num, num_boxes)
    best, index = graph.add("TopK", scores, graph.integers(available), num_outputs=2)
    boxes = _padded_rows(graph, graph.take_rows(boxes, index), config.rpn_max_num - available, rank=3)
    best = _padded_rows(graph, best, config.rpn_max_num - available, rank=2, value=SUPPRESSED)
    mask = graph.add("Greater", best, graph.constant(SUPPRESSED))
    return graph.add("Where", graph.add("Unsqueeze", mask, graph.integers(-1)), boxes, graph.constant(0.0)), mask


# ---- RoIAlign and box head -----------------------------------------------------------------------------------


def _roi_levels(graph: Graph, rois: str, config) -> str:
    """Pyramid level of each RoI (B * R, 4) as int64 (B * R,), as ``src.FasterRcnn.roi_align.roi_levels``."""
    size = graph.add("Sub", graph.columns(rois, 2, 4), graph.columns(rois, 0, 2))
    size = graph.add("Max", graph.add("Add", size, graph.constant(1.0)), graph.constant(0.0))
    area = graph.add("Mul", graph.columns(size, 0, 1), graph.columns(size, 1, 2))
    side = graph.add("Div", graph.add("Sqrt", area), graph.constant(config.roi_align_finest_scale))
    side = graph.add("Add", side, graph.constant(1e-6))
    boundaries = 2.0 ** np.arange(1, len(config.roi_align_featmap_strides))
    reached = graph.add("GreaterOrEqual", side, graph.constant(boundaries))
    return graph.add("ReduceSum", graph.add("Cast", reached, to=TensorProto.INT64), graph.integers(1), keepdims=0)


def _pool(graph: Graph, proposals: str, features: Sequence[str], config) -> tuple[str, str]:
    """RoIAlign of every RoI on its own level.

    Returns pooled (B * R, C, bins, bins) in the order of the levels, and for every RoI its place there (B * R,) int64.
    """
    graph.stage = "roi_align"
    rois = graph.reshape(proposals, -1, 4)
    levels = _roi_levels(graph, rois, config)
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    number = graph.add("Range", zero, graph.add("Size", levels), one)
    image = graph.add("Div", number, graph.constant(config.rpn_max_num, np.int64))
    bins, positions, pooled = config.roi_layer.out_size, [], []
    for level, stride in enumerate(config.roi_align_featmap_strides):
        here = graph.add("Equal", levels, graph.constant(level, np.int64))
        position = graph.reshape(graph.add("NonZero", here), -1)
        # The operator counts half-open pixels from their corners; ours include the last one and start at centres.
        corners = np.array([0, 0, 1, 1]) + 0.5 * stride
        half_open = graph.add("Add", graph.add("Gather", rois, position), graph.constant(corners))
        positions.append(position)
        pooled.append(
            graph.add(
                "RoiAlign",
                features[level],
                half_open,
                graph.add("Gather", image, position),
                coordinate_transformation_mode="half_pixel",
                mode="avg",
                output_height=bins,
                output_width=bins,
                sampling_ratio=config.roi_layer.sample_num,
                spatial_scale=1.0 / stride,
            )
        )
    by_level = graph.add("Unsqueeze", graph.add("Concat", *positions, axis=0), graph.integers(-1))
    return graph.add("Concat", *pooled, axis=0), graph.add("ScatterND", number, by_level, number)


def _box_head(graph: Graph, parameters: Mapping, pooled: str, order: str) -> tuple[str, str]:
    """Logits (B * R, K) and deltas (B * R, 4 * classes), as ``src.FasterRcnn.rcnn.Rcnn``, in the proposals' order."""
    graph.stage = "box_head"
    x = graph.add("Flatten", pooled)
    for name in ("shared_fc_0", "shared_fc_1"):
        x = graph.add("Relu", graph.add("Gemm", x, *_plain(graph, parameters, f"rcnn.{name}")))
    graph.stage = "box_predictor"
    logits, deltas = (
        graph.add("Gemm", x, *_plain(graph, parameters, f"rcnn.{name}")) for name in ("cls_scores", "reg_scores")
    )
    return graph.add("Gather", logits, order), graph.add("Gather", deltas, order)


# ---- detections ----------------------------------------------------------------------------------------------


def _detections(
    graph: Graph, logits: str, deltas: str, proposals: str, proposal_mask: str, config
) -> tuple[str, str, str]:
    """Boxes with scores, labels and mask, as ``src.FasterRcnn.rcnn.BoxPredictor``; everything is class-major here."""
    graph.stage = "detections"
    num_fg, num_rois = config.num_fg_classes, config.rpn_max_num
    scores = graph.reshape(graph.columns(graph.add("Softmax", logits, axis=1), 1, num_fg + 1), -1, num_rois, num_fg)
    valid = graph.add("Unsqueeze", proposal_mask, graph.integers(-1))
    scores = graph.add("Where", valid, scores, graph.constant(0.0))
    scores = graph.add("Transpose", scores, perm=[0, 2, 1])
    boxes = _class_boxes(graph, deltas, proposals, config)
    # Every (image, class) pair is an image of its own to the suppression, whose classes share their boxes.
    class_scores = graph.reshape(scores, -1, 1, num_rois)
    selected = _suppress(
        graph,
        graph.reshape(boxes, -1, num_rois, 4),
        class_scores,
        config.test_max_per_img,
        config.test_iou_thr,
        config.test_score_thr,
    )
    kept = _kept_scores(graph, graph.reshape(class_scores, -1, num_rois), selected, 0.0)
    available = min(config.test_max_per_img, num_fg * num_rois)
    best, index = graph.add(
        "TopK", graph.reshape(kept, -1, num_fg * num_rois), graph.integers(available), num_outputs=2
    )
    mask = graph.add("Unsqueeze", graph.add("Greater", best, graph.constant(0.0)), graph.integers(-1))
    rows = graph.add(
        "Concat",
        graph.take_rows(graph.reshape(boxes, 0, -1, 4), index),
        graph.add("Unsqueeze", best, graph.integers(-1)),
        axis=-1,
    )
    label = graph.add("Div", index, graph.constant(num_rois, np.int64))
    label = graph.add("Cast", graph.add("Unsqueeze", label, graph.integers(-1)), to=TensorProto.FLOAT)
    rows = graph.add("Concat", rows, label, graph.add("Cast", mask, to=TensorProto.FLOAT), axis=-1)
    rows = graph.add("Where", mask, rows, graph.constant(0.0))
    rows = _padded_rows(graph, rows, config.test_max_per_img - available, rank=3)
    return (
        graph.columns(rows, 0, 5),
        graph.add("Cast", graph.columns(rows, 5, 6), to=TensorProto.INT32),
        graph.add("Cast", graph.columns(rows, 6, 7), to=TensorProto.BOOL),
    )


def _class_boxes(graph: Graph, deltas: str, proposals: str, config) -> str:
    """Boxes (B, classes, R, 4) in pixels of the image."""
    num_fg, num_rois = config.num_fg_classes, config.rpn_max_num
    if not config.without_bg_loss:
        deltas = graph.columns(deltas, 4, 4 * (num_fg + 1))
    deltas = graph.add("Transpose", graph.reshape(deltas, -1, num_rois, num_fg, 4), perm=[0, 2, 1, 3])
    boxes = _decode(
        graph,
        graph.add("Unsqueeze", proposals, graph.integers(1)),
        deltas,
        config.rcnn_target_means,
        config.rcnn_target_stds,
        config,
    )
    scale = graph.add("Gather", INPUT_NAMES[1], graph.integers(3, 2, 3, 2), axis=1)  # w, h, w, h
    return graph.add("Div", boxes, graph.reshape(scale, -1, 1, 1, 4))

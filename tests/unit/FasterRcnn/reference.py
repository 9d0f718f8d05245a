"""The detector's definitions in numpy and float64: what the tests of this folder compare with.

Written from the specification, with loops where the specification speaks of one box at a time. Functions that decide by
comparing with a threshold take a ``margin``: a decision closer than that could fall the other way in float32, so they
refuse such a case and the test has to choose another one.
"""

import functools
import math

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
NEGATIVE, IGNORED = -1, -2


class Graph(nn.Cell):
    """A function of tensors, compiled as one graph."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, *inputs):
        return self.function(*inputs)


def tensor(values, dtype=mstype.float32) -> Tensor:
    return Tensor(np.asarray(values), dtype)


def is_clear(values, threshold, margin) -> bool:
    """No value so close to the threshold that float32 could decide otherwise."""
    return not np.any(np.abs(np.asarray(values) - threshold) < margin)


# --- boxes ------------------------------------------------------------------------------------------------------------


def level_anchors(stride: int, rows: int, columns: int) -> np.ndarray:
    """(rows * columns * 3, 4) anchors of one level; Python's round() rounds half to even."""
    centre, side = 0.5 * (stride - 1), stride * 8
    anchors = []
    for row in range(rows):
        for column in range(columns):
            for ratio in RATIOS:
                width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
                x1, x2 = round(centre - 0.5 * (width - 1)), round(centre + 0.5 * (width - 1))
                y1, y2 = round(centre - 0.5 * (height - 1)), round(centre + 0.5 * (height - 1))
                anchors.append((x1 + column * stride, y1 + row * stride, x2 + column * stride, y2 + row * stride))
    return np.array(anchors, np.float64)


def canvas_anchors(height: int, width: int) -> list[np.ndarray]:
    return [level_anchors(stride, height // stride, width // stride) for stride in STRIDES]


def inside(anchors, height, width) -> np.ndarray:
    return np.array([x1 >= 0 and y1 >= 0 and x2 <= width - 1 and y2 <= height - 1 for x1, y1, x2, y2 in anchors])


def encode(anchors, boxes, stds=(1, 1, 1, 1), means=(0, 0, 0, 0)) -> np.ndarray:
    anchors, boxes = np.asarray(anchors, np.float64), np.asarray(boxes, np.float64)
    anchor_w, anchor_h = anchors[..., 2] - anchors[..., 0] + 1, anchors[..., 3] - anchors[..., 1] + 1
    box_w, box_h = boxes[..., 2] - boxes[..., 0] + 1, boxes[..., 3] - boxes[..., 1] + 1
    dx = ((boxes[..., 0] + boxes[..., 2]) - (anchors[..., 0] + anchors[..., 2])) / 2 / anchor_w
    dy = ((boxes[..., 1] + boxes[..., 3]) - (anchors[..., 1] + anchors[..., 3])) / 2 / anchor_h
    deltas = np.stack([dx, dy, np.log(box_w / anchor_w), np.log(box_h / anchor_h)], axis=-1)
    return (deltas - np.array(means)) / np.array(stds)


def decode(anchors, deltas, height, width, stds=(1, 1, 1, 1), means=(0, 0, 0, 0)) -> np.ndarray:
    anchors = np.asarray(anchors, np.float64)
    deltas = np.asarray(deltas, np.float64) * np.array(stds) + np.array(means)
    limit = -math.log(0.016)
    anchor_w, anchor_h = anchors[..., 2] - anchors[..., 0] + 1, anchors[..., 3] - anchors[..., 1] + 1
    box_w = anchor_w * np.exp(np.clip(deltas[..., 2], -limit, limit))
    box_h = anchor_h * np.exp(np.clip(deltas[..., 3], -limit, limit))
    centre_x = (anchors[..., 0] + anchors[..., 2]) / 2 + deltas[..., 0] * anchor_w
    centre_y = (anchors[..., 1] + anchors[..., 3]) / 2 + deltas[..., 1] * anchor_h
    boxes = np.stack(
        [
            centre_x - (box_w - 1) / 2,
            centre_y - (box_h - 1) / 2,
            centre_x + (box_w - 1) / 2,
            centre_y + (box_h - 1) / 2,
        ],
        axis=-1,
    )
    return np.clip(boxes, 0, np.array([width, height, width, height]))


def iou(box, boxes, extra_pixel) -> np.ndarray:
    """IoU of one box with several; NaN between two boxes without area."""
    box, boxes = np.asarray(box, np.float64), np.asarray(boxes, np.float64)
    shared_w = np.maximum(np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0]) + extra_pixel, 0)
    shared_h = np.maximum(np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1]) + extra_pixel, 0)
    area = (box[2] - box[0] + extra_pixel) * (box[3] - box[1] + extra_pixel)
    areas = (boxes[:, 2] - boxes[:, 0] + extra_pixel) * (boxes[:, 3] - boxes[:, 1] + extra_pixel)
    with np.errstate(invalid="ignore"):
        return shared_w * shared_h / (area + areas - shared_w * shared_h)


def iou_matrix(rows, columns, extra_pixel) -> np.ndarray:
    return np.stack([iou(row, columns, extra_pixel) for row in rows])


def greedy_nms(boxes, threshold, margin=0.0) -> np.ndarray:
    """Which boxes stay, best first: each that stays removes the later ones that it overlaps by more than threshold."""
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if keep[i] and i + 1 < len(boxes):
            overlaps = iou(boxes[i], boxes[i + 1 :], extra_pixel=0)
            assert is_clear(overlaps[keep[i + 1 :]], threshold, margin), "an IoU at the threshold: choose another case"
            keep[i + 1 :] &= ~(overlaps > threshold)
    return keep


# --- targets ----------------------------------------------------------------------------------------------------------


def match(overlaps, gt_valid, pos_thr, neg_thr, min_pos) -> np.ndarray:
    """(N,) ground truth of every candidate from overlaps (G, N), or NEGATIVE or IGNORED."""
    valid_gts = [g for g in range(len(overlaps)) if gt_valid[g]]
    matched = np.full(overlaps.shape[1], NEGATIVE)
    for n in range(overlaps.shape[1]):
        if not valid_gts:
            continue
        best = max(valid_gts, key=lambda g: overlaps[g, n])
        if overlaps[best, n] >= pos_thr:
            matched[n] = best
        elif overlaps[best, n] >= neg_thr:
            matched[n] = IGNORED
    for g in valid_gts:
        best_of_gt = overlaps[g].max()
        if best_of_gt >= min_pos:
            matched[overlaps[g] == best_of_gt] = g
    return matched


# --- losses -----------------------------------------------------------------------------------------------------------


def smooth_l1(difference, beta) -> np.ndarray:
    size = np.abs(np.asarray(difference, np.float64))
    return np.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def sigmoid(x) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def sigmoid_cross_entropy(logits, labels) -> np.ndarray:
    probability = sigmoid(logits)
    return -(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))


def softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# --- layers -----------------------------------------------------------------------------------------------------------


def conv2d(x, weight, bias=None, stride=1) -> np.ndarray:
    """Convolution of (B, C, H, W), zero-padded by half the kernel."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    pad = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for dy in range(weight.shape[2]):
        for dx in range(weight.shape[3]):
            window = padded[:, :, dy : dy + stride * rows : stride, dx : dx + stride * columns : stride]
            out += np.einsum("bchw,oc->bohw", window, weight[:, :, dy, dx], optimize=True)
    return out if bias is None else out + np.asarray(bias, np.float64)[:, None, None]


def relu(x) -> np.ndarray:
    return np.maximum(x, 0)


def max_pool(x, before, after) -> np.ndarray:
    """3x3 maximum with stride 2 over a map padded by so many pixels before and after it."""
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)), constant_values=-np.inf)
    rows, columns = (padded.shape[2] - 3) // 2 + 1, (padded.shape[3] - 3) // 2 + 1
    out = np.full((*x.shape[:2], rows, columns), -np.inf)
    for dy in range(3):
        for dx in range(3):
            out = np.maximum(out, padded[:, :, dy : dy + 2 * rows : 2, dx : dx + 2 * columns : 2])
    return out


class NumpyNet:
    """The network's layers in numpy, on parameters by name as in a checkpoint."""

    def __init__(self, net):
        self.values = {param.name: param.asnumpy().astype(np.float64) for param in net.get_parameters()}

    def batch_norm(self, x, name):
        gamma, beta, mean, variance = (
            self.values[f"{name}.{part}"][:, None, None] for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def block(self, x, name, stride, stride_on_first=False):
        """Bottleneck; the stage's stride on its first 1x1 convolution or on its 3x3 one."""
        first, second = (stride, 1) if stride_on_first else (1, stride)
        weight = {
            part: self.values.get(f"{name}{part}.weight") for part in ("conv1", "conv2", "conv3", "conv_down_sample")
        }
        out = relu(self.batch_norm(conv2d(x, weight["conv1"], stride=first), f"{name}bn1"))
        out = relu(self.batch_norm(conv2d(out, weight["conv2"], stride=second), f"{name}bn2"))
        out = self.batch_norm(conv2d(out, weight["conv3"]), f"{name}bn3")
        if weight["conv_down_sample"] is not None:
            x = self.batch_norm(conv2d(x, weight["conv_down_sample"], stride=stride), f"{name}bn_down_sample")
        return relu(out + x)

    def backbone(self, image, prefix="", symmetric_pool=False, blocks=(1, 1, 1, 1), stride_on_first=False):
        x = relu(self.batch_norm(conv2d(image, self.values[f"{prefix}conv1.weight"], stride=2), f"{prefix}bn1"))
        x = max_pool(x, 1, 1) if symmetric_pool else max_pool(x, 0, 1)
        maps = []
        for stage, num_blocks in enumerate(blocks, start=1):
            for number in range(num_blocks):
                stride = 2 if stage > 1 and number == 0 else 1
                x = self.block(x, f"{prefix}layer{stage}.{number}.", stride, stride_on_first)
            maps.append(x)
        return maps

    def pyramid(self, maps, prefix=""):
        def layer(x, name):
            return conv2d(x, self.values[f"{prefix}{name}.weight"], self.values[f"{prefix}{name}.bias"])

        merged, outs = None, []
        for level in range(len(maps) - 1, -1, -1):
            lateral = layer(maps[level], f"lateral_convs_list.{level}")
            merged = lateral if merged is None else lateral + merged.repeat(2, axis=2).repeat(2, axis=3)
            outs.insert(0, layer(merged, f"fpn_convs_list.{level}"))
        return [*outs, outs[-1][:, :, ::2, ::2]]

    def rpn_head(self, feature, prefix=""):
        """Logits (B, H * W * A) and deltas (B, H * W * A, 4) in the order row, column, anchor."""

        def layer(x, name):
            return conv2d(x, self.values[f"{prefix}{name}.weight"], self.values[f"{prefix}{name}.bias"])

        x = relu(layer(feature, "rpn_conv"))
        scores, deltas = layer(x, "rpn_cls"), layer(x, "rpn_reg")
        batch, num_anchors, height, width = scores.shape
        logits_out = np.zeros((batch, height, width, num_anchors))
        deltas_out = np.zeros((batch, height, width, num_anchors, 4))
        for anchor in range(num_anchors):
            logits_out[..., anchor] = scores[:, anchor]
            for k in range(4):
                deltas_out[..., anchor, k] = deltas[:, 4 * anchor + k]
        return logits_out.reshape(batch, -1), deltas_out.reshape(batch, -1, 4)

    def box_head(self, pooled, prefix=""):
        def layer(x, name):
            return x @ self.values[f"{prefix}{name}.weight"] + self.values[f"{prefix}{name}.bias"]

        x = np.asarray(pooled, np.float64).reshape(len(pooled), -1)  # channel, row, column
        x = relu(layer(relu(layer(x, "shared_fc_0")), "shared_fc_1"))
        return layer(x, "cls_scores"), layer(x, "reg_scores").reshape(len(x), -1, 4)


# --- RoIAlign ---------------------------------------------------------------------------------------------------------


def roi_level(roi, finest_scale=56, num_levels=4) -> int:
    side = math.sqrt((roi[2] - roi[0] + 1) * (roi[3] - roi[1] + 1))
    return int(np.clip(math.floor(math.log2(side / finest_scale + 1e-6)), 0, num_levels - 1))


def bilinear(y, x, height, width) -> list[tuple[int, int, float]]:
    """Pixels and weights of one sample; a sample more than a pixel outside the map has none."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    row, column = int(y), int(x)
    below, right = min(row + 1, height - 1), min(column + 1, width - 1)
    dy, dx = y - row, x - column
    return [
        (row, column, (1 - dy) * (1 - dx)),
        (row, right, (1 - dy) * dx),
        (below, column, dy * (1 - dx)),
        (below, right, dy * dx),
    ]


def roi_align_matrix(roi, stride, height, width, out_size=7, samples=2) -> np.ndarray:
    """(out_size**2, height * width): RoIAlign of one RoI is this matrix times the pixels of the map."""
    return _roi_align_matrix(tuple(map(float, roi)), stride, height, width, out_size, samples)


# Differences of a loss pool the same RoIs again and again.
@functools.lru_cache(maxsize=400)
def _roi_align_matrix(roi, stride, height, width, out_size, samples) -> np.ndarray:
    x1, y1, x2, y2 = roi
    begin_x, begin_y = x1 / stride, y1 / stride
    bin_w, bin_h = ((x2 + 1) / stride - begin_x) / out_size, ((y2 + 1) / stride - begin_y) / out_size
    matrix = np.zeros((out_size, out_size, height, width))
    for bin_y in range(out_size):
        for bin_x in range(out_size):
            for i in range(samples):
                for j in range(samples):
                    y = begin_y + (bin_y + (i + 0.5) / samples) * bin_h
                    x = begin_x + (bin_x + (j + 0.5) / samples) * bin_w
                    for row, column, weight in bilinear(y, x, height, width):
                        matrix[bin_y, bin_x, row, column] += weight / samples**2
    return matrix.reshape(out_size**2, height * width)


def roi_align(rois, features, finest_scale=56, strides=(4, 8, 16, 32), out_size=7) -> np.ndarray:
    """(B * R, C, out_size, out_size) of rois (B, R, 4)."""
    pooled = []
    for image, image_rois in enumerate(np.asarray(rois, np.float64)):
        for roi in image_rois:
            level = roi_level(roi, finest_scale, len(strides))
            feature = np.asarray(features[level][image], np.float64)
            channels, height, width = feature.shape
            matrix = roi_align_matrix(roi, strides[level], height, width, out_size)
            pooled.append((feature.reshape(channels, -1) @ matrix.T).reshape(channels, out_size, out_size))
    return np.stack(pooled)


# --- stages -----------------------------------------------------------------------------------------------------------


def proposals(anchors, logits, deltas, nms_pre, max_num, threshold, canvas, margin=0.0):
    """Proposals (n, 4) of one image, best first, and their logits; anchors, logits, deltas per level."""
    boxes, scores = [], []
    for level, level_logits in enumerate(logits):
        order = np.argsort(-np.asarray(level_logits), kind="stable")[:nms_pre]
        level_boxes = decode(anchors[level][order], np.asarray(deltas[level])[order], *canvas)
        keep = greedy_nms(level_boxes, threshold, margin)
        boxes.append(level_boxes[keep])
        scores.append(np.asarray(level_logits)[order][keep])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    order = np.argsort(-scores, kind="stable")[:max_num]
    return boxes[order], scores[order]


def detections(
    logits,
    deltas,
    rois,
    roi_mask,
    scale,
    canvas,
    *,
    score_thr=0.05,
    iou_thr=0.5,
    max_num=100,
    stds=(0.1, 0.1, 0.2, 0.2),
    margin=0.0,
):
    """Rows (x1, y1, x2, y2, score, label) of one image, best first: one suppression per class.

    ``deltas`` is (R, K, 4) or, without background, (R, K - 1, 4).
    """
    scores = softmax(logits)
    num_fg = scores.shape[1] - 1
    deltas = deltas[:, -num_fg:]
    scale_h, scale_w = scale
    rows = []
    for label in range(num_fg):
        column = scores[:, label + 1]
        assert is_clear(column[roi_mask], score_thr, margin), "a score at the threshold: choose another case"
        chosen = [r for r in np.argsort(-column, kind="stable") if roi_mask[r] and column[r] > score_thr]
        if not chosen:
            continue
        boxes = decode(rois[chosen], deltas[chosen, label], *canvas, stds)
        boxes = boxes / np.array([scale_w, scale_h, scale_w, scale_h])
        keep = greedy_nms(boxes, iou_thr, margin)
        rows += [(*box, column[r], label) for box, r, stays in zip(boxes, chosen, keep, strict=True) if stays]
    rows.sort(key=lambda row: -row[4])
    return np.array(rows[:max_num]).reshape(-1, 6)

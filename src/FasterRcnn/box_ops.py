"""Arithmetic on boxes, and the one place that states where a box is one pixel wider than x2 - x1.

Boxes are xyxy in pixels. Following mmdetection v1 a box **includes** its last pixel (width ``x2 - x1 + 1``) in
matching, coding, level choice and RoIAlign, but not in non-maximum suppression (width ``x2 - x1``).
MindSpore's own operators do the same: ``IOU``, ``BoundingBoxEncode``, ``BoundingBoxDecode`` and ``ROIAlign`` with,
``NMSWithMask`` without the extra pixel.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.ops.functional import tuple_getitem

# |log(w / w_anchor)| is cut here when decoding, as in mmdetection v1: exp(4.135) = 62.5 = 1000 / 16.
WH_RATIO_CLIP = 0.016


class BoxCoder(nn.Cell):
    """Boxes to regression targets and back (Girshick et al. 2014, appendix C), widths x2 - x1 + 1.

    Args:
        means, stds (Sequence[float]): normalisation of the four deltas (dx, dy, dw, dh).
        canvas_size (tuple[int, int]): height and width; decoded boxes are clipped to [0, width] x [0, height].
    """

    def __init__(self, means: Sequence[float], stds: Sequence[float], canvas_size: tuple[int, int]):
        super().__init__()
        means, stds = tuple(map(float, means)), tuple(map(float, stds))
        self.bounding_box_encode = ops.BoundingBoxEncode(means=means, stds=stds)
        self.bounding_box_decode = ops.BoundingBoxDecode(
            max_shape=tuple(canvas_size), means=means, stds=stds, wh_ratio_clip=WH_RATIO_CLIP
        )

    def encode(self, anchors, boxes):
        """Deltas (..., 4) that turn anchors (..., 4) into boxes (..., 4)."""
        deltas = self.bounding_box_encode(ops.reshape(anchors, (-1, 4)), ops.reshape(boxes, (-1, 4)))
        return ops.reshape(deltas, anchors.shape)

    def decode(self, anchors, deltas):
        """Boxes (..., 4), clipped to the canvas, from anchors (..., 4) and deltas (..., 4)."""
        boxes = self.bounding_box_decode(ops.reshape(anchors, (-1, 4)), ops.reshape(deltas, (-1, 4)))
        return ops.reshape(boxes, anchors.shape)


def shared_iou(anchors, boxes):
    """IoU of the same anchors with the boxes of every image, widths x2 - x1 + 1.

    Args:
        anchors (Tensor): (N, 4) xyxy.
        boxes (Tensor): (B, G, 4) xyxy.

    Returns:
        Tensor (B, G, N) in [0, 1].
    """
    batch, num_boxes, _ = boxes.shape
    return ops.reshape(ops.iou(anchors, ops.reshape(boxes, (-1, 4))), (batch, num_boxes, anchors.shape[0]))


def pairwise_iou(rows, columns, extra_pixel: int):
    """IoU of two sets of boxes, image by image.

    Args:
        rows (Tensor): (B, M, 4) xyxy.
        columns (Tensor): (B, N, 4) xyxy.
        extra_pixel (int): 1 for widths x2 - x1 + 1 (matching), 0 for x2 - x1 (suppression).

    Returns:
        Tensor (B, M, N) in [0, 1]; NaN for two boxes without area.
    """
    row_x1, row_y1, row_x2, row_y2 = ops.Split(2, 4)(rows)  # (B, M, 1)
    columns = ops.transpose(columns, (0, 2, 1))
    col_x1, col_y1, col_x2, col_y2 = ops.Split(1, 4)(columns)  # (B, 1, N)
    width = ops.relu(_min(row_x2, col_x2) + _min(-row_x1, -col_x1) + extra_pixel)
    height = ops.relu(_min(row_y2, col_y2) + _min(-row_y1, -col_y1) + extra_pixel)
    intersection = width * height  # (B, M, N)
    row_area = (row_x2 - row_x1 + extra_pixel) * (row_y2 - row_y1 + extra_pixel)
    col_area = (col_x2 - col_x1 + extra_pixel) * (col_y2 - col_y1 + extra_pixel)
    return intersection / (row_area + col_area - intersection)


def _min(row, column):
    """Minimum of (B, M, 1) and (B, 1, N). Spread out first: the CPU's broadcasting Minimum is 20 times slower."""
    shape = (row.shape[0], row.shape[1], column.shape[2])
    return ops.minimum(ops.broadcast_to(row, shape), ops.broadcast_to(column, shape))


class Nms(nn.Cell):
    """Greedy non-maximum suppression of boxes that come in falling score, widths x2 - x1.

    Args:
        iou_thr (float): a box goes when its IoU with a better box that stays is above this.

    Inputs: boxes, Tensor (N, 4) xyxy float32, best first.
    Outputs: Tensor (N,) bool, True where a box stays.
    """

    def __init__(self, iou_thr: float):
        super().__init__()
        self.nms_with_mask = ops.NMSWithMask(iou_thr)
        self.join = ops.Concat(axis=1)

    def construct(self, boxes):
        # The operator sorts by score and its order among equal scores is arbitrary; ranks keep ours.
        return tuple_getitem(self.nms_with_mask(self.join((boxes, _ranks(boxes.shape[0])))), 2)


@ops.constexpr
def _ranks(count: int) -> Tensor:
    """count .. 1, (count, 1) float32."""
    return Tensor(np.arange(count, 0, -1).reshape(-1, 1), mstype.float32)


class ClassAwareNms(nn.Cell):
    """Greedy non-maximum suppression inside each class, all classes and images at once, widths x2 - x1.

    A box stays when no better box of its class that stays overlaps it by more than the threshold. That rule has one
    solution, reached by applying it to all boxes again and again, starting from "all stay": pass k settles at least the
    first k boxes, in practice all of them within some ten passes. No box is moved to separate the classes, so the
    result equals a loop over the classes to the last digit.

    Args:
        iou_thr (float): a box goes when its IoU is above this.

    Inputs:
        - **boxes** (Tensor) - (B, M, 4) xyxy float32, best first.
        - **labels** (Tensor) - (B, M) float32 class numbers.
        - **valid** (Tensor) - (B, M) bool; other rows neither stay nor suppress.

    Outputs:
        Tensor (B, M) bool, True where a box stays.
    """

    def __init__(self, iou_thr: float):
        super().__init__()
        self.iou_thr = iou_thr

    def construct(self, boxes, labels, valid):
        num_boxes = boxes.shape[1]
        # An operator, not a constant: what follows would become constants too, 32 MB of them in every exported file.
        rank = ops.cast(ops.Range()(0, num_boxes, 1), mstype.float32)
        earlier = ops.cast(ops.expand_dims(rank, 1) - ops.expand_dims(rank, 0) > 0, mstype.float32)
        overlap = ops.cast(pairwise_iou(boxes, boxes, extra_pixel=0) > self.iou_thr, mstype.float32)  # (B, M, M)
        other_class = ops.abs(ops.expand_dims(labels, 2) - ops.expand_dims(labels, 1))
        suppresses = overlap * ops.relu(1.0 - other_class) * earlier  # (B, M, M)
        valid = ops.expand_dims(ops.cast(valid, mstype.float32), 2)  # (B, M, 1)
        keep = valid
        changes = ops.ones((), mstype.float32)
        while changes > 0:
            settled = valid * ops.cast(ops.bmm(suppresses, keep) < 0.5, mstype.float32)
            changes = ops.reduce_sum(ops.abs(settled - keep))
            keep = settled
        return ops.reshape(keep, valid.shape[:2]) > 0.5

"""Targets of the region proposal network: which anchors learn what."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.anchor_generator import inside_canvas
from src.FasterRcnn.box_ops import BoxCoder, shared_iou
from src.FasterRcnn.graph_ops import take_columns, take_rows
from src.FasterRcnn.target_assign import FAR_AWAY, PosNegSample, match


class BboxAssignSample(nn.Cell):
    """Match anchors to ground truths and sample those the RPN's losses look at.

    Anchors that leave the canvas (padding counts as canvas) are left out before matching, so a ground truth's best IoU
    is over the others.

    Args:
        anchors (np.ndarray): (N, 4) xyxy anchors of all levels.
        canvas_size (tuple[int, int]): height and width in pixels.
        coder (BoxCoder): encodes the regression targets.
        num_pos (int): positives per image at most.
        num_total (int): positives and negatives per image at most; negatives fill up.
        pos_iou_thr, neg_iou_thr, min_pos_iou (float): see :func:`src.FasterRcnn.target_assign.match`.
        seed (Sequence[int]): see :class:`src.FasterRcnn.target_assign.PosNegSample`.

    Inputs:
        - **gt_boxes** (Tensor) - (B, G, 4) float32 xyxy in pixels of the canvas.
        - **gt_valid** (Tensor) - (B, G) bool, False in padded rows and crowds.

    Outputs, with S = num_pos + num_total slots:
        - **index** (Tensor) - (B, S) int32 numbers of the sampled anchors.
        - **labels** (Tensor) - (B, S) float32, 1 object, 0 background.
        - **valid** (Tensor) - (B, S) float32, 0 in empty slots.
        - **deltas** (Tensor) - (B, num_pos, 4) float32 regression targets of the first slots, 0 where not positive.
    """

    def __init__(
        self,
        anchors: np.ndarray,
        canvas_size: tuple[int, int],
        coder: BoxCoder,
        num_pos: int,
        num_total: int,
        pos_iou_thr: float,
        neg_iou_thr: float,
        min_pos_iou: float,
        seed: Sequence[int] = (1,),
    ):
        super().__init__()
        inside = np.flatnonzero(inside_canvas(anchors, canvas_size))
        if inside.size == 0:
            raise ValueError(f"no anchor lies inside the canvas of {canvas_size}: enlarge it or use smaller anchors")
        self.inside = Tensor(inside, mstype.int32)
        self.anchors = Tensor(anchors[inside], mstype.float32)
        self.coder = coder
        self.num_pos = num_pos
        self.thresholds = (pos_iou_thr, neg_iou_thr, min_pos_iou)
        self.sample = PosNegSample(num_pos, num_total, num_total, seed)

    def construct(self, gt_boxes, gt_valid):
        matchable = ops.where(ops.expand_dims(gt_valid, 2), gt_boxes, FAR_AWAY)
        iou = shared_iou(self.anchors, matchable)  # (B, G, N), N inside the canvas
        matched_gt = match(iou, *self.thresholds)  # (B, N)
        index, pos_mask, valid = self.sample(matched_gt)  # (B, S)
        pos_index = take_columns(index, 0, self.num_pos)  # (B, num_pos)
        pos_mask = ops.cast(pos_mask, mstype.float32)
        gt_index = ops.relu(ops.gather_elements(matched_gt, 1, pos_index))
        deltas = self.coder.encode(
            ops.gather(self.anchors, pos_index, 0), take_rows(gt_boxes, gt_index)
        )  # (B, num_pos, 4)
        is_pos = ops.expand_dims(take_columns(pos_mask, 0, self.num_pos), 2) > 0
        deltas = ops.where(is_pos, deltas, ops.zeros_like(deltas))
        return ops.gather(self.inside, index, 0), pos_mask, ops.cast(valid, mstype.float32), deltas

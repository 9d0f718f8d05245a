"""Targets of the box head: which proposals learn what."""

from collections.abc import Sequence

from mindspore import dtype as mstype
from mindspore import nn, ops

from src.FasterRcnn.box_ops import BoxCoder, pairwise_iou
from src.FasterRcnn.graph_ops import count_up, take_rows
from src.FasterRcnn.target_assign import FAR_AWAY, IGNORED, PosNegSample, match


class BboxAssignSampleForRcnn(nn.Cell):
    """Match proposals to ground truths, add the ground truths themselves, and sample RoIs for the box head.

    Matching is on the proposals alone; then the valid ground truths are put in front, each matched to itself.

    Args:
        coder (BoxCoder): encodes the regression targets.
        num_pos (int): positives per image at most.
        num_total (int): RoIs per image at most; negatives fill up.
        pos_iou_thr, neg_iou_thr, min_pos_iou (float): see :func:`src.FasterRcnn.target_assign.match`.
        seed (Sequence[int]): see :class:`src.FasterRcnn.target_assign.PosNegSample`.

    Inputs:
        - **gt_boxes** (Tensor) - (B, G, 4) float32 xyxy in pixels of the canvas.
        - **gt_labels** (Tensor) - (B, G) int32 classes, 1 = first foreground class.
        - **gt_valid** (Tensor) - (B, G) bool.
        - **proposals** (Tensor) - (B, R, 4) float32 xyxy.
        - **proposal_mask** (Tensor) - (B, R) bool, False in padded rows, which are never chosen.

    Outputs, with S = num_pos + num_total rows:
        - **rois** (Tensor) - (B, S, 4) float32 xyxy.
        - **labels** (Tensor) - (B, S) int32, 0 background.
        - **deltas** (Tensor) - (B, S, 4) float32 regression targets, 0 where not positive.
        - **valid** (Tensor) - (B, S) float32, 0 in padded rows.
    """

    def __init__(
        self,
        coder: BoxCoder,
        num_pos: int,
        num_total: int,
        pos_iou_thr: float,
        neg_iou_thr: float,
        min_pos_iou: float,
        seed: Sequence[int] = (1,),
    ):
        super().__init__()
        self.coder = coder
        self.thresholds = (pos_iou_thr, neg_iou_thr, min_pos_iou)
        self.sample = PosNegSample(num_pos, num_total, num_total, seed)

    def construct(self, gt_boxes, gt_labels, gt_valid, proposals, proposal_mask):
        matched_gt = self.match_with_gts(gt_boxes, gt_valid, proposals, proposal_mask)  # (B, G + R)
        candidates = ops.concat((gt_boxes, proposals), axis=1)  # (B, G + R, 4)
        index, pos_mask, valid = self.sample(matched_gt)  # (B, S)
        rois = take_rows(candidates, index)  # (B, S, 4)
        gt_index = ops.relu(ops.gather_elements(matched_gt, 1, index))
        labels = ops.gather_elements(ops.cast(gt_labels, mstype.int32), 1, gt_index)  # (B, S)
        labels = ops.where(pos_mask, labels, ops.zeros_like(labels))
        deltas = self.coder.encode(rois, take_rows(gt_boxes, gt_index))  # (B, S, 4)
        deltas = ops.where(ops.expand_dims(pos_mask, 2), deltas, ops.zeros_like(deltas))
        rois = ops.where(ops.expand_dims(valid, 2), rois, ops.zeros_like(rois))
        return rois, labels, deltas, ops.cast(valid, mstype.float32)

    def match_with_gts(self, gt_boxes, gt_valid, proposals, proposal_mask):
        """Matched ground truth of every candidate, (B, G + R) int32: the ground truths first, then the proposals."""
        batch, num_gts, _ = gt_boxes.shape
        matchable = ops.where(ops.expand_dims(gt_valid, 2), gt_boxes, FAR_AWAY)
        # Padded rows stand on the other side of the canvas from padded ground truths.
        choosable = ops.where(ops.expand_dims(proposal_mask, 2), proposals, -FAR_AWAY)
        matched = match(pairwise_iou(matchable, choosable, extra_pixel=1), *self.thresholds)  # (B, R)
        matched = ops.where(proposal_mask, matched, IGNORED)
        itself = ops.broadcast_to(ops.reshape(count_up(num_gts), (1, num_gts)), (batch, num_gts))
        itself = ops.where(gt_valid, itself, IGNORED)
        return ops.concat((itself, matched), axis=1)

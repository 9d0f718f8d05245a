"""From the RPN's scores and deltas to proposals."""
from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.box_ops import BoxCoder, Nms
from src.FasterRcnn.target_assign import take_rows

# Below every logit.
SUPPRESSED = -1e30


class Proposal(nn.Cell):
    """Select the best boxes of every level, suppress overlaps inside the level, keep the best of all levels.

    Args:
        level_anchors (Sequence[np.ndarray]): (N_l, 4) xyxy anchors of each level.
        coder (BoxCoder): decodes deltas.
        nms_pre (int): boxes per level that enter suppression.
        max_num (int): proposals returned per image (R).
        nms_iou_thr (float): suppression threshold, strict.

    Inputs:
        - **logits** (tuple of Tensor) - (B, N_l) objectness of each level.
        - **deltas** (tuple of Tensor) - (B, N_l, 4).

    Outputs, without gradient:
        - **proposals** (Tensor) - (B, R, 4) float32 xyxy inside the canvas, best first, 0 in padded rows.
        - **mask** (Tensor) - (B, R) bool, False in padded rows.
    """

    def __init__(self, level_anchors: Sequence[np.ndarray], coder: BoxCoder, nms_pre: int, max_num: int,
                 nms_iou_thr: float):
        super().__init__()
        self.level_anchors = [Tensor(anchors, mstype.float32) for anchors in level_anchors]
        self.coder = coder
        self.nms_pre = nms_pre
        self.max_num = max_num
        self.nms = Nms(nms_iou_thr)
        self.top_k = ops.TopK(sorted=True)

    def construct(self, logits, deltas):
        boxes, scores = (), ()
        for level in range(len(self.level_anchors)):
            level_boxes, level_scores = self.best_of_level(self.level_anchors[level], logits[level], deltas[level])
            boxes = boxes + (level_boxes,)
            scores = scores + (level_scores,)
        boxes, scores = ops.concat(boxes, axis=1), ops.concat(scores, axis=1)
        available = min(self.max_num, scores.shape[1])
        best, index = self.top_k(scores, available)
        mask = best > SUPPRESSED
        boxes = ops.where(ops.expand_dims(mask, 2), take_rows(boxes, index), 0.0)
        if available < self.max_num:
            padding = self.max_num - available
            boxes = ops.Pad(((0, 0), (0, padding), (0, 0)))(boxes)
            mask = ops.Pad(((0, 0), (0, padding)))(ops.cast(mask, mstype.float32)) > 0
        return ops.stop_gradient(boxes), ops.stop_gradient(mask)

    def best_of_level(self, anchors, logits, deltas):
        """Boxes (B, k, 4) and logits (B, k) of one level, best first; suppressed boxes have logit SUPPRESSED."""
        batch, num_anchors = logits.shape
        # Ranked by logits: float32 sigmoids of large ones are equal.
        best, index = self.top_k(ops.cast(logits, mstype.float32), min(self.nms_pre, num_anchors))
        deltas = ops.cast(take_rows(deltas, index), mstype.float32)
        boxes = self.coder.decode(ops.gather(anchors, index, 0), deltas)
        # No operator suppresses a batch at once, and one over all images would need the square of their boxes.
        keep = ops.stack([self.nms(boxes[image]) for image in range(batch)], axis=0)
        return boxes, ops.where(keep, best, SUPPRESSED)

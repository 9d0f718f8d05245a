"""From the RPN's scores and deltas to proposals."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from src.FasterRcnn.box_ops import BoxCoder, Nms
from src.FasterRcnn.graph_ops import take_rows, unzip

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

    def __init__(
        self, level_anchors: Sequence[np.ndarray], coder: BoxCoder, nms_pre: int, max_num: int, nms_iou_thr: float
    ):
        super().__init__()
        sizes = [len(anchors) for anchors in level_anchors]
        self.counts = tuple(min(nms_pre, size) for size in sizes)
        self.available = min(max_num, sum(self.counts))
        self.max_num = max_num
        self.anchors = Tensor(np.concatenate(level_anchors), mstype.float32)
        # Where the level of each chosen box begins among all anchors.
        self.first_anchor = Tensor(np.repeat(np.cumsum([0, *sizes[:-1]]), self.counts), mstype.int32)
        self.coder = coder
        self.nms = Nms(nms_iou_thr)
        self.top_k = ops.TopK(sorted=True)
        self.join = ops.Concat(axis=1)
        self.slice = ops.Slice()

    def construct(self, logits, deltas):
        scores, index = unzip(ops.Map()(self.best_of_level, logits, self.counts))  # L times (B, count)
        scores, index = self.join(scores), self.join(index) + self.first_anchor  # (B, M), M over all levels
        deltas = ops.cast(take_rows(self.join(deltas), index), mstype.float32)  # (B, M, 4)
        boxes = self.coder.decode(ops.gather(self.anchors, index, 0), deltas)  # (B, M, 4)
        scores = ops.where(self.suppress(boxes), scores, SUPPRESSED)
        best, index = self.top_k(scores, self.available)  # (B, available)
        mask = best > SUPPRESSED
        boxes = ops.where(ops.expand_dims(mask, 2), take_rows(boxes, index), 0.0)  # (B, available, 4)
        if self.available < self.max_num:
            padding = self.max_num - self.available
            boxes = ops.Pad(((0, 0), (0, padding), (0, 0)))(boxes)
            mask = ops.Pad(((0, 0), (0, padding)))(ops.cast(mask, mstype.float32)) > 0
        return ops.stop_gradient(boxes), ops.stop_gradient(mask)

    def best_of_level(self, logits, count):
        """The count highest of logits (B, N) and their indices, (B, count) each."""
        # Ranked by logits: float32 sigmoids of large ones are equal.
        return self.top_k(ops.cast(logits, mstype.float32), count)

    def suppress(self, boxes):
        """Which boxes stay, (B, K) bool, of boxes (B, K, 4), level after level, in each level best first.

        No operator suppresses a batch at once, and one over all images would need the square of their boxes.
        """
        batch, num_boxes, _ = boxes.shape
        firsts, sizes = _parts(self.counts, batch)  # B * L pairs each
        level_boxes = ops.Map()(ops.partial(self.slice, ops.reshape(boxes, (-1, 4))), firsts, sizes)
        return ops.reshape(ops.Concat()(ops.Map()(self.nms, level_boxes)), (batch, num_boxes))


@ops.constexpr
def _parts(counts: Sequence[int], batch: int) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Where every image's levels begin among the boxes (B * K, 4) of all images, and their sizes: rows, columns."""
    counts = [*counts] * batch
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    return tuple((first, 0) for first in firsts), tuple((count, 4) for count in counts)

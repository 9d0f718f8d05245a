"""Box head: classifies pooled RoIs and regresses class-specific boxes."""

from mindspore import Parameter, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Initializer, Normal, XavierUniform, initializer

from src.FasterRcnn.box_ops import BoxCoder, ClassAwareNms
from src.FasterRcnn.graph_ops import count_up, smooth_l1, take_columns, take_rows


class DenseInOut(nn.Cell):
    """Fully connected layer whose weight is stored (in, out), as published checkpoints hold it.

    Args:
        in_channels, out_channels (int): features in and out.
        weight_init (Initializer): initial weights; biases start at 0.

    Inputs: x, Tensor (N, in_channels).
    Outputs: Tensor (N, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, weight_init: Initializer):
        super().__init__()
        self.weight = Parameter(initializer(weight_init, (in_channels, out_channels), mstype.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (out_channels,), mstype.float32), name="bias")
        # Not ops.matmul, whose gradient copies both operands to transpose them.
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()

    def construct(self, x):
        weight, bias = ops.cast(self.weight, x.dtype), ops.cast(self.bias, x.dtype)
        return self.bias_add(self.matmul(x, weight), bias)


class Rcnn(nn.Cell):
    """Two shared fully connected layers, then class scores and class-specific deltas (Lin et al. 2017).

    Args:
        in_features (int): channels * bins of a pooled RoI.
        hidden (int): width of the shared layers.
        num_classes (int): classes with background (K).
        background_boxes (bool): regress a box for class 0 too (``without_bg_loss: False``).
        beta (float): error at which the smooth L1 of the deltas turns from square to linear, in units of the targets.

    Inputs: pooled, Tensor (N, C, bins, bins).
    Outputs: logits (N, K) and deltas (N, D, 4), D = K - 1 or, with background boxes, K; float32.
    """

    def __init__(self, in_features: int, hidden: int, num_classes: int, background_boxes: bool, beta: float = 1.0):
        super().__init__()
        self.beta = beta
        self.background_boxes = background_boxes
        self.num_boxes = num_classes if background_boxes else num_classes - 1
        self.shared_fc_0 = DenseInOut(in_features, hidden, XavierUniform())
        self.shared_fc_1 = DenseInOut(hidden, hidden, XavierUniform())
        self.cls_scores = DenseInOut(hidden, num_classes, Normal(0.01))
        self.reg_scores = DenseInOut(hidden, self.num_boxes * 4, Normal(0.01))
        self.relu = ops.ReLU()

    def construct(self, pooled):
        x = ops.reshape(pooled, (pooled.shape[0], -1))  # (N, in_features)
        x = self.relu(self.shared_fc_0(x))
        x = self.relu(self.shared_fc_1(x))  # (N, hidden)
        logits = ops.cast(self.cls_scores(x), mstype.float32)
        deltas = ops.cast(self.reg_scores(x), mstype.float32)
        return logits, ops.reshape(deltas, (-1, self.num_boxes, 4))

    def losses(self, logits, deltas, labels, target_deltas, valid):
        """Classification and regression loss of the sampled RoIs, sums and counts over the whole batch.

        Args:
            logits, deltas (Tensor): outputs of the head for N rows.
            labels (Tensor): (N,) int32, 0 background (also in padded rows).
            target_deltas (Tensor): (N, 4), 0 where not positive.
            valid (Tensor): (N,) float32, 0 in padded rows.

        Returns:
            two float32 scalars: softmax cross entropy averaged over valid rows; smooth L1 over the columns of
            the true class in positive rows, divided by valid rows + 1e-4. With background boxes every other row pulls
            the columns of class 0 towards 0 and the divisor is the number of valid rows.
        """
        num_valid = ops.reduce_sum(valid)
        log_prob = ops.log_softmax(logits, 1)  # (N, K)
        true_log_prob = ops.gather_elements(log_prob, 1, ops.expand_dims(labels, 1))  # (N, 1)
        cls_loss = -ops.reduce_sum(ops.reshape(true_log_prob, (-1,)) * valid) / ops.maximum(num_valid, 1.0)
        num_rows = labels.shape[0]
        column = labels if self.background_boxes else ops.relu(labels - 1)
        index = count_up(num_rows) * self.num_boxes + column
        true_deltas = ops.gather(ops.reshape(deltas, (-1, 4)), index, 0)  # (N, 4)
        row_loss = ops.reduce_sum(smooth_l1(true_deltas - target_deltas, self.beta), 1)  # (N,)
        if self.background_boxes:
            return cls_loss, ops.reduce_sum(row_loss) / ops.maximum(num_valid, 1.0)
        is_pos = ops.cast(labels > 0, mstype.float32)
        return cls_loss, ops.reduce_sum(row_loss * is_pos) / (num_valid + 1e-4)


class BoxPredictor(nn.Cell):
    """Turn the box head's outputs into detections: threshold, decode, suppress inside each class, keep the best.

    Only the best ``num_candidates`` (box, class) pairs of an image enter the suppression. The result equals a loop over
    the classes with all pairs when ``num_candidates`` covers all pairs above the threshold, or when ``max_per_img``
    boxes survive: a pair left out scores less than all of these. Otherwise ``truncated`` says so.

    Args:
        coder (BoxCoder): decodes deltas.
        background_boxes (bool): deltas hold columns for class 0.
        score_thr (float): pairs must score above this.
        nms_iou_thr (float): suppression threshold, strict.
        max_per_img (int): detections per image (D).
        num_candidates (int): pairs that enter suppression, at least max_per_img (M).

    Inputs:
        - **logits** (Tensor) - (B * R, K).
        - **deltas** (Tensor) - (B * R, K or K - 1, 4).
        - **rois** (Tensor) - (B, R, 4) float32 xyxy in pixels of the canvas.
        - **roi_mask** (Tensor) - (B, R) bool.
        - **scale** (Tensor) - (B, 2) float32, pixels of the canvas per pixel of the image: scale_h, scale_w.

    Outputs:
        - **boxes** (Tensor) - (B, D, 5) float32 xyxy in pixels of the image, and score; best first, 0 in padded rows.
        - **labels** (Tensor) - (B, D, 1) int32, 0 = first foreground class.
        - **mask** (Tensor) - (B, D, 1) bool, False in padded rows.
        - **truncated** (Tensor) - (B,) bool, True where the suppression may have missed a box.
    """

    def __init__(
        self,
        coder: BoxCoder,
        background_boxes: bool,
        score_thr: float,
        nms_iou_thr: float,
        max_per_img: int,
        num_candidates: int,
    ):
        super().__init__()
        self.coder = coder
        self.background_boxes = background_boxes
        self.score_thr = score_thr
        self.nms = ClassAwareNms(nms_iou_thr)
        self.max_per_img = max_per_img
        self.num_candidates = num_candidates
        self.top_k = ops.TopK(sorted=True)

    def construct(self, logits, deltas, rois, roi_mask, scale):
        boxes, scores, labels, num_above = self.candidates(logits, deltas, rois, roi_mask, scale)
        keep = self.nms(boxes, labels, scores > 0)  # (B, M)
        num_candidates = scores.shape[1]
        # Rank, not score, orders the survivors: equal scores then keep the order of the candidates.
        rank = ops.cast(num_candidates - count_up(num_candidates), mstype.float32) * ops.cast(keep, mstype.float32)
        best, index = self.top_k(rank, min(self.max_per_img, num_candidates))
        mask = ops.expand_dims(ops.cast(best > 0, mstype.float32), 2)
        rows = ops.concat((boxes, ops.expand_dims(scores, 2), ops.expand_dims(labels, 2)), axis=2)  # (B, M, 6)
        rows = ops.concat((take_rows(rows, index) * mask, mask), axis=2)  # (B, D, 7)
        if num_candidates < self.max_per_img:
            rows = ops.Pad(((0, 0), (0, self.max_per_img - num_candidates), (0, 0)))(rows)
        num_kept = ops.reduce_sum(ops.cast(keep, mstype.float32), 1)
        truncated = ops.logical_and(num_above > num_candidates, num_kept < self.max_per_img)
        boxes, labels, mask = take_columns(rows, 0, 5), take_columns(rows, 5, 1), take_columns(rows, 6, 1)
        return boxes, ops.cast(labels, mstype.int32), mask > 0, truncated

    def candidates(self, logits, deltas, rois, roi_mask, scale):
        """The best (box, class) pairs: boxes (B, M, 4), scores (B, M), 0 below the threshold, labels (B, M) float32,
        and how many pairs are above the threshold (B,)."""
        batch, num_rois, _ = rois.shape
        scores = ops.softmax(logits, 1)
        num_fg = scores.shape[1] - 1
        scores = ops.reshape(take_columns(scores, 1, num_fg), (batch, num_rois, num_fg))  # (B, R, K - 1)
        above = ops.logical_and(scores > self.score_thr, ops.expand_dims(roi_mask, 2))
        scores = ops.reshape(scores * ops.cast(above, mstype.float32), (batch, -1))  # (B, R * (K - 1))
        num_above = ops.reduce_sum(ops.reshape(ops.cast(above, mstype.float32), (batch, -1)), 1)
        best, index = self.top_k(scores, min(self.num_candidates, num_rois * num_fg))  # (B, M)
        index = ops.cast(index, mstype.int32)
        roi_index = index // num_fg
        if self.background_boxes:
            deltas = take_columns(ops.reshape(deltas, (batch * num_rois, -1)), 4, num_fg * 4)
        deltas = take_rows(ops.reshape(deltas, (batch, num_rois * num_fg, 4)), index)  # (B, M, 4)
        boxes = self.coder.decode(take_rows(rois, roi_index), deltas)  # (B, M, 4)
        scale_h, scale_w = ops.Split(1, 2)(scale)  # (B, 1)
        boxes = boxes / ops.expand_dims(ops.concat((scale_w, scale_h, scale_w, scale_h), axis=1), 1)
        return boxes, best, ops.cast(index - roi_index * num_fg, mstype.float32), num_above

"""Region proposal network: its head, shared by all levels, and its losses."""
from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.common.initializer import Normal

from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.target_assign import take_rows


def smooth_l1(difference, beta: float):
    """Smooth L1 (Girshick 2015), elementwise: 0.5 * d**2 / beta below beta, |d| - beta / 2 above."""
    distance = ops.abs(difference)
    return ops.where(distance < beta, 0.5 / beta * distance * distance, distance - 0.5 * beta)


class RpnRegClsBlock(nn.Cell):
    """Head of the RPN (Ren et al. 2015): 3x3 convolution, ReLU, then 1x1 scores and 1x1 deltas.

    Args:
        in_channels (int): channels of the pyramid.
        feat_channels (int): channels of the 3x3 convolution.
        num_anchors (int): anchors per cell (A).

    Inputs: feature, Tensor (B, in_channels, H, W).
    Outputs: logits (B, H * W * A) and deltas (B, H * W * A, 4), in the order of the anchors: row, column, anchor.
    """

    def __init__(self, in_channels: int, feat_channels: int, num_anchors: int):
        super().__init__()
        init = {"has_bias": True, "weight_init": Normal(0.01), "bias_init": "zeros"}
        self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, pad_mode="pad", padding=1, **init)
        self.relu = nn.ReLU()
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1, pad_mode="valid", **init)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1, pad_mode="valid", **init)

    def construct(self, feature):
        x = self.relu(self.rpn_conv(feature))
        batch = x.shape[0]
        logits = ops.reshape(ops.transpose(self.rpn_cls(x), (0, 2, 3, 1)), (batch, -1))
        deltas = ops.reshape(ops.transpose(self.rpn_reg(x), (0, 2, 3, 1)), (batch, -1, 4))
        return logits, deltas


class RPN(nn.Cell):
    """Region proposal network over all levels, with its losses.

    Args:
        in_channels, feat_channels, num_anchors (int): see :class:`RpnRegClsBlock`.
        assign (BboxAssignSample): targets of the losses.

    Inputs: features, tuple of Tensor (B, in_channels, H_l, W_l).
    Outputs: tuples of logits (B, N_l) and of deltas (B, N_l, 4), one entry per level; float32.
    """

    # Where the smooth L1 of the deltas turns from square to linear, as published.
    REG_BETA = 1.0 / 9.0

    def __init__(self, in_channels: int, feat_channels: int, num_anchors: int, assign: BboxAssignSample):
        super().__init__()
        # One head for all levels; the list is part of the parameter names.
        self.rpn_convs_list = nn.CellList([RpnRegClsBlock(in_channels, feat_channels, num_anchors)])
        self.assign = assign

    def construct(self, features):
        head = self.rpn_convs_list[0]
        logits, deltas = (), ()
        for feature in features:
            level_logits, level_deltas = head(feature)
            # float16 has too few logits to rank 200,000 anchors.
            logits = logits + (ops.cast(level_logits, mstype.float32),)
            deltas = deltas + (ops.cast(level_deltas, mstype.float32),)
        return logits, deltas

    def losses(self, logits, deltas, gt_boxes, gt_valid):
        """Classification and regression loss (Ren et al. 2015, equation 1).

        Args:
            logits, deltas (tuple of Tensor): outputs of the RPN.
            gt_boxes (Tensor): (B, G, 4) xyxy in pixels.
            gt_valid (Tensor): (B, G) bool.

        Returns:
            two float32 scalars: sigmoid cross entropy and smooth L1, both summed over the sampled anchors and divided
            by the most that can be sampled, 256 * B in the published configuration.
        """
        index, labels, valid, target_deltas = self.assign(gt_boxes, gt_valid)
        index, labels, valid = ops.stop_gradient(index), ops.stop_gradient(labels), ops.stop_gradient(valid)
        target_deltas = ops.stop_gradient(target_deltas)
        batch, num_pos, _ = target_deltas.shape
        logits = ops.cast(ops.concat(logits, axis=1), mstype.float32)
        logits = ops.gather_elements(logits, 1, index)
        deltas = take_rows(ops.concat(deltas, axis=1), index[:, :num_pos])
        normaliser = (index.shape[1] - num_pos) * batch
        cls_loss = ops.binary_cross_entropy_with_logits(logits, labels, valid, ops.ones_like(logits), "sum")
        reg_loss = smooth_l1(ops.cast(deltas, mstype.float32) - target_deltas, self.REG_BETA)
        reg_loss = ops.reduce_sum(reg_loss * ops.expand_dims(labels[:, :num_pos], 2))
        return cls_loss / normaliser, reg_loss / normaliser

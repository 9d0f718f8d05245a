"""Region proposal network: its head, shared by all levels, and its losses."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal

from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.graph_ops import after, count_up, smooth_l1, take_columns, take_rows, unzip
from src.FasterRcnn.rows import map_sizes, pixel_rows
from src.FasterRcnn.winograd import Conv3x3


class RpnRegClsBlock(nn.Cell):
    """Head of the RPN (Ren et al. 2015): 3x3 convolution, ReLU, then 1x1 scores and 1x1 deltas.

    Args:
        in_channels (int): channels of the pyramid.
        feat_channels (int): channels of the 3x3 convolution.
        num_anchors (int): anchors per cell (A).
        winograd (bool): see :class:`src.FasterRcnn.winograd.Conv3x3`.

    Inputs: feature, Tensor (B, in_channels, H, W).
    Outputs: logits (B, H * W * A) and deltas (B, H * W * A, 4), in the order of the anchors: row, column, anchor.
    """

    def __init__(self, in_channels: int, feat_channels: int, num_anchors: int, winograd: bool = False):
        super().__init__()
        init = {"has_bias": True, "weight_init": Normal(0.01), "bias_init": "zeros"}
        self.rpn_conv = Conv3x3(in_channels, feat_channels, winograd=winograd, **init)
        self.relu = ops.ReLU()
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1, pad_mode="valid", **init)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1, pad_mode="valid", **init)

    def construct(self, feature):
        x = self.relu(self.rpn_conv(feature))  # (B, feat_channels, H, W)
        batch = x.shape[0]
        logits = ops.reshape(ops.transpose(self.rpn_cls(x), (0, 2, 3, 1)), (batch, -1))
        deltas = ops.reshape(ops.transpose(self.rpn_reg(x), (0, 2, 3, 1)), (batch, -1, 4))
        return logits, deltas

    def at_cells(self, patches):
        """The same outputs for some cells only.

        Args:
            patches (Tensor): (N, 9, in_channels), every cell's 3 x 3 pixels, row by row; 0 beyond the map.

        Returns:
            logits (N, A) and deltas (N, A, 4).
        """
        num_cells, _, channels = patches.shape
        weight = ops.reshape(ops.transpose(self.rpn_conv.weight, (2, 3, 1, 0)), (9 * channels, -1))
        x = ops.MatMul()(ops.reshape(patches, (num_cells, -1)), weight)  # (N, feat_channels)
        x = ops.reshape(self.relu(ops.BiasAdd()(x, self.rpn_conv.bias)), (num_cells, -1, 1, 1))
        return ops.reshape(self.rpn_cls(x), (num_cells, -1)), ops.reshape(self.rpn_reg(x), (num_cells, -1, 4))


class CellPatches(nn.Cell):
    """The 3 x 3 pixels around some cells, with a gradient to the pixels.

    Inputs:
        - **pixels** (Tensor) - (P, C), :func:`src.FasterRcnn.rows.pixel_rows` of the feature maps.
        - **cells** (Tensor) - (B, S) int32 numbers of cells, counted over all levels: level, row, column.
        - **sizes** (tuple) - height and width of each level's map, plain numbers.

    Outputs:
        Tensor (B * S, 9, C), row by row, 0 beyond the map; and the pixels themselves, see :class:`_SharedRows`.
    """

    def __init__(self):
        super().__init__()
        self.share = _SharedRows()

    def construct(self, pixels, cells, sizes):
        batch, num_cells = cells.shape
        image = ops.reshape(count_up(batch), (batch, 1, 1))
        neighbours, map_size = _neighbours(sizes, batch)
        # Negative beyond the map in every image.
        rows = ops.gather(neighbours, cells, 0) + image * ops.gather(map_size, cells, 0)  # (B, S, 9)
        rows = ops.reshape(rows, (-1, 1))  # (B * S * 9, 1)
        patches, pixels = self.share(pixels, ops.relu(rows))  # (B * S * 9, C), (P, C)
        patches = patches * ops.broadcast_to(ops.cast(rows >= 0, pixels.dtype), patches.shape)
        return ops.reshape(patches, (batch * num_cells, 9, -1)), pixels


class _SharedRows(nn.Cell):
    """Some rows of a matrix that others use too, whole.

    They take the matrix that comes out here, so that the gradients of both meet in one array. Each would be as large as
    the matrix otherwise, and so would be their sum.

    Inputs: matrix, Tensor (P, C); numbers of rows, (R, 1) int32.
    Outputs: Tensors (R, C) and (P, C).
    """

    def __init__(self):
        super().__init__()
        self.scatter_add = ops.TensorScatterAdd()

    def construct(self, matrix, rows):
        return ops.gather(matrix, ops.reshape(rows, (-1,)), 0), matrix

    def bprop(self, matrix, rows, out, dout):
        return self.scatter_add(dout[1], rows, dout[0]), ops.zeros_like(rows)


@ops.constexpr
def _neighbours(sizes: Sequence[tuple[int, int]], batch: int) -> tuple[Tensor, Tensor]:
    """For each cell the rows that its 3 x 3 pixels of the first image have in ``pixel_rows``, and its map's size.

    Args:
        sizes (Sequence[tuple[int, int]]): height and width of each level's map.
        batch (int): images.

    Returns:
        Tensors (cells, 9) and (cells, 1), int32; of pixels beyond the map the first is negative and stays so when the
        second is added for every image.
    """
    neighbours, areas, first = [], [], 0
    for height, width in sizes:
        rows = np.full((height + 2, width + 2), -batch * height * width)
        rows[1:-1, 1:-1] = first + np.arange(height * width).reshape(height, width)
        windows = np.lib.stride_tricks.sliding_window_view(rows, (3, 3))
        neighbours.append(windows.reshape(-1, 9))
        areas.append(np.full((height * width, 1), height * width))
        first += batch * height * width
    return Tensor(np.concatenate(neighbours), mstype.int32), Tensor(np.concatenate(areas), mstype.int32)


class RPN(nn.Cell):
    """Region proposal network over all levels, with its losses.

    Args:
        in_channels, feat_channels, num_anchors (int): see :class:`RpnRegClsBlock`.
        assign (BboxAssignSample): targets of the losses.
        winograd (bool): see :class:`src.FasterRcnn.winograd.Conv3x3`.
        sparse_gradient (bool): in training, let gradients flow through the sampled anchors alone (CPU) instead of the
            dense outputs (Ascend, GPU). THE one switch between the two; both give the same numbers to rounding.

    Inputs: features, tuple of Tensor (B, in_channels, H_l, W_l).
    Outputs: tuples of logits (B, N_l) and of deltas (B, N_l, 4), one entry per level; float16
        on Ascend, float32 elsewhere.
    """

    # Where the smooth L1 of the deltas turns from square to linear, as published.
    REG_BETA = 1.0 / 9.0

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_anchors: int,
        assign: BboxAssignSample,
        winograd: bool = False,
        sparse_gradient: bool = False,
    ):
        super().__init__()
        # One head for all levels; the list is part of the parameter names.
        self.rpn_convs_list = nn.CellList([RpnRegClsBlock(in_channels, feat_channels, num_anchors, winograd)])
        self.assign = assign
        self.num_anchors = num_anchors
        self.sparse_gradient = sparse_gradient
        self.cell_patches = CellPatches()

    def construct(self, features):
        return unzip(ops.Map()(self.rpn_convs_list[0], features))

    def with_losses(self, features, gt_boxes, gt_valid):
        """Outputs and losses of a training step.

        Args:
            features (tuple of Tensor): inputs of the RPN.
            gt_boxes, gt_valid (Tensor): as in :meth:`losses`.

        Returns:
            logits and deltas, outputs of the RPN, of which only the losses have a gradient where it is sparse; the two
            scalars of :meth:`losses`; and, where the gradient is sparse, the features as rows of pixels, which others
            take instead of their own, or None: gradients of all uses meet in one array.
        """
        if not self.sparse_gradient:
            logits, deltas = self.construct(features)
            return logits, deltas, *self.losses(logits, deltas, gt_boxes, gt_valid), None
        logits, deltas = self.construct(ops.stop_gradient(features))
        # Dense head and rows both copy all levels. "stop_gradient", or the head would be differentiated with zeros.
        pixels = pixel_rows(after(features, ops.stop_gradient(logits)))  # (P, C)
        return logits, deltas, *self.losses_at_samples(features, pixels, gt_boxes, gt_valid)

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
        targets = self.targets(gt_boxes, gt_valid)
        index, num_pos = targets[0], targets[3].shape[1]
        logits = ops.gather_elements(ops.cast(ops.concat(logits, axis=1), mstype.float32), 1, index)  # (B, S)
        deltas = take_rows(ops.concat(deltas, axis=1), take_columns(index, 0, num_pos))  # (B, num_pos, 4)
        return self.sampled_losses(logits, deltas, targets)

    def losses_at_samples(self, features, pixels, gt_boxes, gt_valid):
        """The same losses from the head's outputs at the sampled anchors alone.

        Their values are those of :meth:`losses`. The gradient of all other outputs is 0, and a convolution's backward
        pass spends most of its time on zeros then: some 500 cells of 160,000 are sampled. Here the head is computed
        again at these cells, and the gradient flows through them.

        Args:
            features (tuple of Tensor): (B, C, H_l, W_l), inputs of the RPN; for their sizes.
            pixels (Tensor): :func:`src.FasterRcnn.rows.pixel_rows` of them.
            gt_boxes, gt_valid (Tensor): as in :meth:`losses`.

        Returns:
            two float32 scalars, see :meth:`losses`; and the pixels again, to be used from here on: gradients of both
            uses meet in one array.
        """
        targets = self.targets(gt_boxes, gt_valid)
        index, num_pos = targets[0], targets[3].shape[1]
        batch, num_samples = index.shape
        cells = index // self.num_anchors  # (B, S)
        patches, pixels = self.cell_patches(pixels, cells, map_sizes(features))  # (B * S, 9, C), (P, C)
        logits, deltas = self.rpn_convs_list[0].at_cells(patches)  # (B * S, A), (B * S, A, 4)
        anchor = ops.reshape(index - cells * self.num_anchors, (batch * num_samples, 1))
        logits = ops.reshape(ops.gather_elements(logits, 1, anchor), (batch, num_samples))
        rows = ops.reshape(count_up(batch * num_samples), (-1, 1)) * self.num_anchors + anchor
        rows = take_columns(ops.reshape(rows, (batch, num_samples)), 0, num_pos)
        deltas = ops.gather(ops.reshape(deltas, (-1, 4)), rows, 0)  # (B, num_pos, 4)
        return *self.sampled_losses(logits, deltas, targets), pixels

    def targets(self, gt_boxes, gt_valid):
        """Outputs of :class:`src.FasterRcnn.bbox_assign_sample.BboxAssignSample`, without gradient."""
        index, labels, valid, deltas = self.assign(gt_boxes, gt_valid)
        return ops.stop_gradient(index), ops.stop_gradient(labels), ops.stop_gradient(valid), ops.stop_gradient(deltas)

    def sampled_losses(self, logits, deltas, targets):
        """Losses of logits (B, S) and deltas (B, num_pos, 4) of the sampled anchors."""
        index, labels, valid, target_deltas = targets
        batch, num_pos, _ = target_deltas.shape
        normaliser = (index.shape[1] - num_pos) * batch
        cls_loss = ops.binary_cross_entropy_with_logits(logits, labels, valid, ops.ones_like(logits), "sum")
        reg_loss = smooth_l1(ops.cast(deltas, mstype.float32) - target_deltas, self.REG_BETA)  # (B, num_pos, 4)
        reg_loss = ops.reduce_sum(reg_loss * ops.expand_dims(take_columns(labels, 0, num_pos), 2))
        return cls_loss / normaliser, reg_loss / normaliser

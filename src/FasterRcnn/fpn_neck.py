"""Feature pyramid (Lin et al. 2017)."""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import XavierUniform

from src.FasterRcnn.winograd import Conv3x3


class FeatPyramidNeck(nn.Cell):
    """Merge backbone maps top-down into pyramid levels of equal width; no ReLU, nearest-neighbour upsampling.

    Args:
        in_channels (Sequence[int]): channels of C2..C5, finest first; each map twice as fine as the next.
        out_channels (int): channels of every level returned.
        num_outs (int): levels returned, at least len(in_channels); extra ones take the even pixels of the last.
        winograd (bool): see :class:`src.FasterRcnn.winograd.Conv3x3`.

    Inputs: features, tuple of Tensor (B, in_channels[i], H_i, W_i), float32 or float16.
    Outputs: tuple of num_outs Tensors (B, out_channels, H_i, W_i), finest first (P2..P6).

    Raises:
        ValueError: fewer outputs than inputs.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, winograd: bool = False):
        super().__init__()
        if num_outs < len(in_channels):
            raise ValueError(f"num_outs is {num_outs}, expected at least {len(in_channels)}, the number of inputs")
        self.num_levels = len(in_channels)
        self.num_extra = num_outs - self.num_levels
        self.lateral_convs_list = nn.CellList(
            [
                nn.Conv2d(
                    channels,
                    out_channels,
                    1,
                    pad_mode="valid",
                    has_bias=True,
                    weight_init=XavierUniform(),
                    bias_init="zeros",
                )
                for channels in in_channels
            ]
        )
        self.fpn_convs_list = nn.CellList(
            [
                Conv3x3(
                    out_channels,
                    out_channels,
                    winograd=winograd,
                    has_bias=True,
                    weight_init=XavierUniform(),
                    bias_init="zeros",
                )
                for _ in in_channels
            ]
        )
        self.subsample = nn.MaxPool2d(kernel_size=1, stride=2)
        self.add_upsampled = _AddUpsampled()

    def construct(self, features):
        top = self.num_levels - 1
        merged = self.lateral_convs_list[top](features[top])  # (B, C, H_top, W_top)
        outs = (self.fpn_convs_list[top](merged),)
        for level in range(top - 1, -1, -1):
            merged = self.add_upsampled(self.lateral_convs_list[level](features[level]), merged)  # (B, C, H_l, W_l)
            outs = (self.fpn_convs_list[level](merged),) + outs
        for _ in range(self.num_extra):
            outs = outs + (self.subsample(outs[-1]),)
        return outs


class _AddUpsampled(nn.Cell):
    """Add a map to one twice as fine, each coarse pixel to its 2 x 2 fine ones (nearest-neighbour upsampling).

    Inputs: fine (B, C, 2H, 2W) and coarse (B, C, H, W).
    Outputs: Tensor (B, C, 2H, 2W).
    """

    def __init__(self):
        super().__init__()
        # A transposed convolution of single channels with a kernel of ones copies; a sum with broadcasting would keep
        # two lists of as many 64-bit indices as there are pixels.
        self.copy_to_block = ops.Conv2DTranspose(out_channel=1, kernel_size=2, stride=2)
        self.ones = Tensor(np.ones((1, 1, 2, 2)), mstype.float32)
        self.mean_of_block = ops.AvgPool(kernel_size=2, strides=2)
        self.add = ops.Add()

    def construct(self, fine, coarse):
        batch, channels, height, width = coarse.shape
        maps = ops.reshape(coarse, (batch * channels, 1, height, width))  # (B * C, 1, H, W)
        blocks = self.copy_to_block(
            maps, ops.cast(self.ones, coarse.dtype), (batch * channels, 1, 2 * height, 2 * width)
        )
        return self.add(fine, ops.reshape(blocks, fine.shape))

    def bprop(self, fine, coarse, out, dout):
        # The sum over 2 x 2 blocks; a pooling does it four times faster than a reduction over split axes.
        return dout, self.mean_of_block(dout) * 4

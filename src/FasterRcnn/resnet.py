"""ResNet-50/101/152 backbone; the residual block is passed in, because two kinds differ in where the stride sits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, lazy_inline, nn, ops
from mindspore import dtype as mstype
from mindspore.ops.functional import tuple_getitem

from src.FasterRcnn.winograd import Conv3x3

# Arguments of the stem's max pool by ``stem_pool_pad``.
_POOL_PADS: dict[str, dict[str, Any]] = {"same": {"pad_mode": "same"}, "symmetric": {"pad_mode": "pad", "padding": 1}}


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, winograd: bool = False) -> nn.Conv2d:
    """Convolution without bias, padded so that stride 1 keeps the size, He-normal weights (He et al. 2015).

    ``winograd``: see :class:`src.FasterRcnn.winograd.Conv3x3`; other kernels do not know it.
    """
    if kernel_size == 3:
        return Conv3x3(in_channels, out_channels, stride, winograd, weight_init="he_normal")
    return _Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        pad_mode="pad",
        padding=kernel_size // 2,
        has_bias=False,
        weight_init="he_normal",
    )


def batch_norm(num_features: int, norm_eval: bool, gamma_init: str = "ones") -> nn.BatchNorm2d:
    """Batch normalisation; ``norm_eval`` fixes its statistics in training too, see :class:`FixedBatchNorm`."""
    return (FixedBatchNorm if norm_eval else BatchNorm)(num_features, gamma_init)


class _Conv2d(nn.Conv2d):
    """Convolution without bias. The parent asks each of them whether it has one, which takes time to compile."""

    def construct(self, x):
        return self.conv2d(x, self.weight)

    def convolved(self, x, weight):
        """The convolution with another weight of the same shape."""
        return self.conv2d(x, weight)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation, eps 1e-5.

    MindSpore's momentum is the weight of the OLD statistics: 0.9 here is 0.1 in other frameworks.

    Args:
        num_features (int): channels.
        gamma_init (str): initial scale, "ones" or "zeros".
    """

    def __init__(self, num_features: int, gamma_init: str = "ones"):
        super().__init__(num_features, eps=1e-5, momentum=0.9, gamma_init=gamma_init)
        # Statistics follow the data, no optimiser updates them.
        self.moving_mean.requires_grad = False
        self.moving_variance.requires_grad = False

    def construct(self, x):
        # The parent asks for rank and settings first, which takes time to compile for each of 53 norms. Nor [0], which
        # is a small graph of its own.
        norm = self.bn_train if self.training else self.bn_infer
        return tuple_getitem(norm(x, self.gamma, self.beta, self.moving_mean, self.moving_variance), 0)


class FixedBatchNorm(BatchNorm):
    """Batch normalisation by the running mean and variance also in training; gamma and beta still learn.

    Fine-tuning a detector with small batches needs it.
    """

    def __init__(self, num_features: int, gamma_init: str = "ones"):
        super().__init__(num_features, gamma_init)
        self.zeros = Tensor(np.zeros(num_features), mstype.float32)
        self.zero_pixel = Tensor(np.zeros((1, num_features, 1, 1)), mstype.float32)

    def construct(self, x):
        return tuple_getitem(self.bn_infer(x, self.gamma, self.beta, self.moving_mean, self.moving_variance), 0)

    def scaled(self, weight):
        """The weight (num_features, C, K, K) of a convolution in front, times what this norm multiplies by."""
        # The operator itself scales the weights: a product with broadcasting would keep 64-bit indices of all of them.
        rows = ops.reshape(weight, (1, weight.shape[0], -1, 1))
        scaled = tuple_getitem(self.bn_infer(rows, self.gamma, self.zeros, self.zeros, self.moving_variance), 0)
        return ops.reshape(scaled, weight.shape)

    def shift(self):
        """What this norm adds, (num_features,)."""
        return ops.reshape(self.construct(self.zero_pixel), (-1,))


class ResidualBlock(nn.Cell):
    """Bottleneck block (He et al. 2016) with the stage's stride on its 3x3 convolution ("v1.5").

    Args:
        in_channels (int): channels in.
        out_channels (int): channels out, a multiple of 4; the bottleneck has a quarter.
        stride (int): 1 or 2.
        down_sample (bool): project the shortcut with a strided 1x1 convolution; needed when shapes change.
        norm_eval (bool): see :func:`batch_norm`.
        winograd (bool): see :class:`src.FasterRcnn.winograd.Conv3x3`.
        fold_norms (bool): in training, compute convolutions and the norms behind them in one; needs ``norm_eval``. The
            same numbers but for rounding, less memory.

    Inputs: x, Tensor (B, in_channels, H, W).
    Outputs: Tensor (B, out_channels, H / stride, W / stride).
    """

    stride_on_first = False

    # Equal blocks of a stage are read and inferred once. By this policy they are put in place before anything is
    # differentiated, and results are the same to the last bit; without it compilation fails on CPU.
    @lazy_inline(policy="front")
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        down_sample: bool,
        norm_eval: bool,
        winograd: bool = False,
        fold_norms: bool = False,
    ):
        super().__init__()
        self.fold_norms = fold_norms
        width = out_channels // 4
        first, second = (stride, 1) if self.stride_on_first else (1, stride)
        self.conv1 = conv(in_channels, width, 1, first)
        self.bn1 = batch_norm(width, norm_eval)
        self.conv2 = conv(width, width, 3, second, winograd)
        self.bn2 = batch_norm(width, norm_eval)
        self.conv3 = conv(width, out_channels, 1)
        # A block starts as its shortcut (Goyal et al. 2017, section 5.1): gradients of the first layers stay small.
        self.bn3 = batch_norm(out_channels, norm_eval, gamma_init="zeros")
        self.relu = ops.ReLU()
        # Not +, which is several small graphs to compile.
        self.add = ops.Add()
        self.down_sample = down_sample
        if down_sample:
            self.conv_down_sample = conv(in_channels, out_channels, 1, stride)
            self.bn_down_sample = batch_norm(out_channels, norm_eval)

    def construct(self, x):
        out = self.relu(self.normed(self.conv1, self.bn1, x))  # (B, out_channels / 4, H, W), in v1 H / stride
        out = self.relu(self.normed(self.conv2, self.bn2, out))
        shortcut = self.normed(self.conv_down_sample, self.bn_down_sample, x) if self.down_sample else x
        return self.relu(self.add(self.normed(self.conv3, self.bn3, out), shortcut))

    def normed(self, convolution, norm, x):
        """A convolution and the norm behind it.

        Gradients of the two alone need the convolution's result, those of one convolution with scaled weights and a
        bias do not, and memory for it is saved. Learnt are weight, gamma and beta either way.
        """
        if self.fold_norms and self.training:
            out = convolution.convolved(x, norm.scaled(convolution.weight))
            return convolution.bias_add(out, norm.shift())
        return norm(convolution(x))


class ResNetFea(nn.Cell):
    """ResNet feature extractor that returns the maps of its four stages.

    Args:
        block (type): :class:`ResidualBlock` or :class:`src.FasterRcnn.resnet50v1.ResidualBlockV1`.
        layer_nums (Sequence[int]): blocks per stage, e.g. (3, 4, 6, 3) for ResNet-50.
        in_channels, out_channels (Sequence[int]): channels into and out of each stage.
        frozen_stages (int): -1 fixes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval (bool): see :func:`batch_norm`; fixed stages never update their statistics.
        stem_pool_pad (str): padding of the stem's max pool, "same" (right and bottom only, as the published
            weights were trained) or "symmetric" (one pixel on every side, as PyTorch projects do).
        winograd (bool): see :class:`src.FasterRcnn.winograd.Conv3x3`.
        fold_norms (bool): see :class:`ResidualBlock`; concerns stages that learn and have fixed norms.

    Inputs: image, Tensor (B, 3, H, W), normalised.
    Outputs: tuple of four Tensors C2..C5 (B, out_channels[i], H / 4 / 2**i, W / 4 / 2**i).
    """

    def __init__(
        self,
        block: type,
        layer_nums: Sequence[int],
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        frozen_stages: int = 1,
        norm_eval: bool = True,
        stem_pool_pad: str = "same",
        winograd: bool = False,
        fold_norms: bool = False,
    ):
        super().__init__()
        self.frozen_stages = frozen_stages
        self.conv1 = conv(3, 64, 7, 2)
        self.bn1 = batch_norm(64, norm_eval or frozen_stages >= 0)
        self.relu = ops.ReLU()
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, **_POOL_PADS[stem_pool_pad])
        stages = [
            self._make_stage(
                block,
                layer_nums[i],
                in_channels[i],
                out_channels[i],
                stride=1 if i == 0 else 2,
                norm_eval=norm_eval or frozen_stages > i,
                winograd=winograd,
                # A fixed stage keeps nothing for its gradients anyway.
                fold_norms=fold_norms and norm_eval and frozen_stages <= i,
            )
            for i in range(4)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._freeze([self.conv1, self.bn1], stages)

    @staticmethod
    def _make_stage(
        block: type,
        num_blocks: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        norm_eval: bool,
        winograd: bool,
        fold_norms: bool,
    ) -> nn.SequentialCell:
        """One stage: a projecting block, then num_blocks - 1 plain ones."""
        options = {"norm_eval": norm_eval, "winograd": winograd, "fold_norms": fold_norms}
        first = block(in_channels, out_channels, stride, True, **options)
        rest = [block(out_channels, out_channels, 1, False, **options) for _ in range(num_blocks - 1)]
        return nn.SequentialCell([first, *rest])

    def _freeze(self, stem: Sequence[nn.Cell], stages: Sequence[nn.Cell]) -> None:
        """Take the fixed part out of training."""
        fixed = ([*stem] if self.frozen_stages >= 0 else []) + [*stages[: max(self.frozen_stages, 0)]]
        for cell in fixed:
            for param in cell.get_parameters():
                param.requires_grad = False

    def thaw(self) -> None:
        """Train the fixed stages too, from the next compilation on. Their batch norms keep their statistics."""
        for cell in (self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4):
            for param in cell.get_parameters():
                if not param.name.endswith(("moving_mean", "moving_variance")):
                    param.requires_grad = True
        self.frozen_stages = -1

    def construct(self, image):
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))  # (B, 64, H / 4, W / 4)
        c2 = self.layer1(self._cut(x, 0))  # (B, out_channels[0], H / 4, W / 4)
        c3 = self.layer2(self._cut(c2, 1))
        c4 = self.layer3(self._cut(c3, 2))
        c5 = self.layer4(self._cut(c4, 3))
        return self._cut(c2, 1), self._cut(c3, 2), self._cut(c4, 3), self._cut(c5, 4)

    def _cut(self, x, stage):
        """Stop the gradient at the output of a fixed stage (0 is the stem)."""
        return ops.stop_gradient(x) if self.frozen_stages >= stage else x

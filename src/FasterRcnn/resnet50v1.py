"""The original bottleneck block: its stage's stride sits on the first 1x1 convolution."""

from src.FasterRcnn.resnet import ResidualBlock


class ResidualBlockV1(ResidualBlock):
    """Bottleneck block of the first ResNet paper (He et al. 2016, "v1"): stride on the first 1x1 convolution.

    Arguments, inputs, outputs and parameter names are those of :class:`src.FasterRcnn.resnet.ResidualBlock`;
    shapes are equal too, so only the configured backbone tells the two kinds of checkpoint apart.
    """

    stride_on_first = True

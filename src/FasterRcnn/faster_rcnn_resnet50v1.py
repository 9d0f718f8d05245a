"""The detector with the original ResNet (stride on the first 1x1 convolution)."""

from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet as _Detector
from src.FasterRcnn.resnet50v1 import ResidualBlockV1


class Faster_Rcnn_Resnet(_Detector):  # noqa: N801 - the published name
    """:class:`src.FasterRcnn.faster_rcnn_resnet.Faster_Rcnn_Resnet` with the v1 residual block.

    Args:
        config (Config): a configuration whose ``stride_on_first`` is True.
        rank (int): as there.
    """

    def __init__(self, config, rank: int = 0):
        super().__init__(config, ResidualBlockV1, rank)

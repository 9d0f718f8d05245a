"""The detector: Faster R-CNN with a ResNet backbone and a feature pyramid.

Size letters used in docstrings and comments: B images, L pyramid levels, A anchors per cell, N anchors in all, R RoIs,
G padded ground truths (128), K classes with background, C channels; S sampling slots, M boxes that enter suppression,
D detections, P pixels of all levels of all images, E entries of a sparse matrix.
Boxes are xyxy in pixels; :mod:`src.FasterRcnn.box_ops` says where a box is one pixel wider than x2 - x1.
"""

from src.FasterRcnn import faster_rcnn_resnet50v1
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet

__all__ = ["Faster_Rcnn_Resnet", "build_detector"]


def build_detector(config, rank: int = 0) -> Faster_Rcnn_Resnet:
    """Build the detector of a configuration with initial weights.

    Args:
        config (Config): ``backbone`` picks the class: ``resnet_v1_50`` and ``resnet_caffe_...`` have their stages'
            stride on the first 1x1 convolution of the block, the others on the 3x3 one.
        rank (int): number of this process among those that train together, from 0; see the class.

    Returns:
        Faster_Rcnn_Resnet; ``set_train()`` and ``set_train(False)`` choose between losses and detections.
    """
    if config.stride_on_first:
        return faster_rcnn_resnet50v1.Faster_Rcnn_Resnet(config, rank)
    return Faster_Rcnn_Resnet(config, rank=rank)

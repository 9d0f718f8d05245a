"""A very small detector for the tests of exported files: its configuration, weights, and the same one in numpy."""
import dataclasses
from functools import cached_property

import numpy as np

from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import NumpyNet, tensor

CANVAS = (64, 128)
CLASSES = ("background", "cell", "leaf", "nut")
WIDTHS = (32, 48, 64, 80)                                    # channels of C2..C5
SMALL = {"resnet_block": (1, 2, 1, 1), "resnet_in_channels": (64, 32, 48, 64), "resnet_out_channels": WIDTHS,
         "fpn_in_channels": WIDTHS, "fpn_out_channels": 16, "rpn_in_channels": 16, "rpn_feat_channels": 16,
         "roi_align_out_channels": 16, "rcnn_in_channels": 16, "rcnn_fc_out_channels": 32,
         "rpn_nms_pre": 60, "rpn_max_num": 50, "rpn_nms_thr": 0.6, "test_score_thr": 0.1, "test_iou_thr": 0.4,
         "roi_align_finest_scale": 10}                       # RoIs of 20, 40 and 80 pixels begin the next level
# A decision closer than this could fall the other way in float32, the network's rounding included.
MARGIN = 1e-4
# Gains of the layers that predict, so that scores and deltas of all sizes come.
GAINS = {"rpn_cls.weight": 2.0, "rpn_reg.weight": 0.3, "cls_scores.weight": 1.5, "reg_scores.weight": 1.0}


def small_config(*flags, classes=CLASSES, **changes):
    """The configuration of the small detector; flags count as given on the command line, changes do not."""
    config = load_config(["--device_target=CPU", *flags])
    small = {"img_height": CANVAS[0], "img_width": CANVAS[1], "coco_classes": tuple(classes),
             "num_classes": len(classes), **SMALL, **changes}
    return dataclasses.replace(config, **{key: value for key, value in small.items()
                                          if key not in config.command_line or key in changes})


def randomise(net, seed):
    """Random weights that keep values near 1, and batch norms that do something."""
    rng = np.random.default_rng(seed)
    for param in net.get_parameters():
        if param.name.endswith(("gamma", "moving_variance")):
            values = rng.uniform(0.6, 1.4, param.shape)
        elif param.ndim == 1:
            values = rng.normal(0, 0.1, param.shape)
        else:
            fan_in = param.shape[0] if param.ndim == 2 else np.prod(param.shape[1:])
            gain = next((gain for name, gain in GAINS.items() if param.name.endswith(name)), 1.0)
            values = gain * rng.normal(0, np.sqrt(1 / fan_in), param.shape)
        param.set_data(tensor(values))
    return net


def random_detector(config, seed):
    """The network of a configuration with random weights."""
    return randomise(build_detector(config), seed)


def parameters_of(net):
    """Arrays by name."""
    return {param.name: param.asnumpy() for param in net.get_parameters()}


def random_images(seed, count, canvas=CANVAS):
    """Normalised canvases (count, 3, H, W)."""
    return np.random.default_rng(seed).normal(0, 1, (count, 3, *canvas)).astype(np.float32)


def metas_of(scales, canvas=CANVAS):
    """Image metadata (B, 4) for scales (B, 2): scale_h, scale_w."""
    return np.concatenate([np.tile(np.float32(canvas), (len(scales), 1)), np.float32(scales)], axis=1)


class NumpyDetector:
    """The detector of the specification on the parameters of a network, in float64."""

    def __init__(self, net, config, images):
        self.layers = NumpyNet(net)
        self.config = config
        self.images = np.asarray(images, np.float64)
        self.canvas = (config.img_height, config.img_width)

    @cached_property
    def features(self):
        """P2..P6."""
        config = self.config
        maps = self.layers.backbone(self.images, "backbone.", config.stem_pool_pad == "symmetric", config.resnet_block,
                                    stride_on_first=config.backbone == "resnet_v1_50")
        return self.layers.pyramid(maps, "fpn_neck.")

    @cached_property
    def rpn_outputs(self):
        """Logits and deltas of each level."""
        return list(zip(*[self.layers.rpn_head(feature, "rpn_with_loss.rpn_convs_list.0.")
                          for feature in self.features], strict=True))

    def proposals(self, image):
        """Boxes (R, 4) of one image."""
        logits, deltas = self.rpn_outputs
        return reference.proposals(reference.canvas_anchors(*self.canvas), [level[image] for level in logits],
                                   [level[image] for level in deltas], self.config.rpn_nms_pre,
                                   self.config.rpn_max_num, self.config.rpn_nms_thr, self.canvas, MARGIN)[0]

    def roi_levels(self, image):
        """Pyramid level of each proposal; none may lie at a boundary."""
        rois, finest = self.proposals(image), self.config.roi_align_finest_scale
        sides = np.sqrt((rois[:, 2] - rois[:, 0] + 1) * (rois[:, 3] - rois[:, 1] + 1)) / finest
        assert all(reference.is_clear(sides, boundary, MARGIN) for boundary in (2, 4, 8)), "an RoI between two levels"
        return [reference.roi_level(roi, finest) for roi in rois]

    def detections(self, image, scale):
        """Rows (x1, y1, x2, y2, score, label) of one image, best first."""
        config, rois = self.config, self.proposals(image)
        self.roi_levels(image)
        features = [feature[image:image + 1] for feature in self.features]
        pooled = reference.roi_align(rois[None], features, config.roi_align_finest_scale)
        return reference.detections(*self.layers.box_head(pooled, "rcnn."), rois, np.ones(len(rois), bool), scale,
                                    self.canvas, score_thr=config.test_score_thr, iou_thr=config.test_iou_thr,
                                    max_num=config.test_max_per_img, margin=MARGIN)

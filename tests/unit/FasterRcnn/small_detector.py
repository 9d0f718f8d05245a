"""A small detector, and the same detector in numpy: what the tests of the whole and of its ONNX graph compare with."""

import dataclasses
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import pytest

from src.convert_checkpoint import write_checkpoint
from src.FasterRcnn import build_detector, faster_rcnn_resnet, winograd
from src.model_utils.config import load_config
from src.weights.detector_notes import META_CLASSES
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import NumpyNet, tensor

CANVAS = (64, 128)
CLASSES = ("background", "cell", "leaf", "nut")
WIDTHS = (32, 48, 64, 80)  # channels of C2..C5


def config_of(*flags, classes=CLASSES, **changes):
    """A small canvas and a small network; the published values elsewhere."""
    config = load_config(
        [
            "--device_target=CPU",
            "--compile_cache_path=",
            f"--img_height={CANVAS[0]}",
            f"--img_width={CANVAS[1]}",
            f"--coco_classes={list(classes)}",
            *flags,
        ]
    )
    small = {
        "resnet_block": (1, 1, 1, 1),
        "resnet_in_channels": (64, 32, 48, 64),
        "resnet_out_channels": WIDTHS,
        "fpn_in_channels": WIDTHS,
        "fpn_out_channels": 16,
        "rpn_in_channels": 16,
        "rpn_feat_channels": 16,
        "roi_align_out_channels": 16,
        "rcnn_in_channels": 16,
        "rcnn_fc_out_channels": 32,
    }
    return dataclasses.replace(config, **{**small, **changes})


# All anchors and RoIs fit into the samples, so that nothing in the losses is left to chance.
SETTINGS = {
    "num_expected_pos": 500,
    "num_expected_neg": 2000,
    "num_expected_pos_stage2": 200,
    "num_expected_neg_stage2": 300,
    "roi_sample_num": 500,
    "rpn_proposal_nms_pre": 120,
    "rpn_proposal_max_num": 150,
    "num_bboxes_stage2": 150,
    "rpn_nms_pre": 60,
    "rpn_max_num": 50,
    "rpn_proposal_nms_thr": 0.7,
    "rpn_nms_thr": 0.6,
    "rpn_loss_cls_weight": 0.5,
    "rpn_loss_reg_weight": 2.0,
    "rcnn_loss_cls_weight": 3.0,
    "rcnn_loss_reg_weight": 0.25,
    "test_score_thr": 0.1,
    "test_iou_thr": 0.4,
    "roi_align_finest_scale": 6,
}  # RoIs of 12, 24 and 48 pixels begin the next level
# A decision closer than this could fall the other way in float32, the network's rounding included.
MARGIN = 1e-4


def randomise(net, seed):
    """Weights that keep values near 1 and give scores and deltas of all sizes."""
    rng = np.random.default_rng(seed)
    gains = {"rpn_cls.weight": 2.0, "rpn_reg.weight": 0.3, "cls_scores.weight": 1.5, "reg_scores.weight": 1.0}
    for param in net.get_parameters():
        if param.name.endswith(("gamma", "moving_variance")):
            values = rng.uniform(0.6, 1.4, param.shape)
        elif param.ndim == 1:
            values = rng.normal(0, 0.1, param.shape)
        else:
            fan_in = param.shape[0] if param.ndim == 2 else np.prod(param.shape[1:])
            gain = next((gain for name, gain in gains.items() if param.name.endswith(name)), 1.0)
            values = gain * rng.normal(0, np.sqrt(1 / fan_in), param.shape)
        param.set_data(tensor(values))
    return net


class NumpyDetector:
    """The detector of the specification on the parameters of a network, in float64.

    Options go to :meth:`NumpyNet.backbone`.
    """

    def __init__(self, net, images, **backbone_options):
        self.backbone_options = backbone_options
        self.layers = NumpyNet(net)
        self.images = np.asarray(images, np.float64)
        self.anchors = reference.canvas_anchors(*CANVAS)

    @cached_property
    def features(self):
        maps = self.layers.backbone(self.images, "backbone.", **self.backbone_options)
        return self.layers.pyramid(maps, "fpn_neck.")

    @cached_property
    def rpn_outputs(self):
        """Logits and deltas of each level."""
        return list(
            zip(
                *[self.layers.rpn_head(feature, "rpn_with_loss.rpn_convs_list.0.") for feature in self.features],
                strict=True,
            )
        )

    def proposals(self, image, nms_pre, max_num, threshold):
        logits, deltas = self.rpn_outputs
        return reference.proposals(
            self.anchors,
            [level[image] for level in logits],
            [level[image] for level in deltas],
            nms_pre,
            max_num,
            threshold,
            CANVAS,
            MARGIN,
        )[0]

    def box_outputs(self, image, rois):
        features = [feature[image : image + 1] for feature in self.features]
        pooled = reference.roi_align(rois[None], features, SETTINGS["roi_align_finest_scale"])
        return self.layers.box_head(pooled, "rcnn.")

    def detections(self, image, scale):
        rois = self.proposals(image, SETTINGS["rpn_nms_pre"], SETTINGS["rpn_max_num"], SETTINGS["rpn_nms_thr"])
        logits, deltas = self.box_outputs(image, rois)
        return reference.detections(
            logits,
            deltas,
            rois,
            np.ones(len(rois), bool),
            scale,
            CANVAS,
            margin=MARGIN,
            score_thr=SETTINGS["test_score_thr"],
            iou_thr=SETTINGS["test_iou_thr"],
        )

    def targets(self, gt_boxes, gt_labels, gt_valid):
        """Matched anchors, and RoIs with labels and target deltas, of each image."""
        anchors = np.concatenate(self.anchors)
        is_inside = reference.inside(anchors, *CANVAS)
        result = []
        for image, valid in enumerate(gt_valid):
            boxes, labels = gt_boxes[image][valid], gt_labels[image][valid]
            valid = np.ones(len(boxes), bool)
            rois = self.proposals(
                image,
                SETTINGS["rpn_proposal_nms_pre"],
                SETTINGS["rpn_proposal_max_num"],
                SETTINGS["rpn_proposal_nms_thr"],
            )
            anchor_match = np.full(len(anchors), reference.IGNORED)
            anchor_match[is_inside] = self._match(boxes, anchors[is_inside], 0.7, 0.3, 0.3)
            roi_match = np.concatenate([np.arange(len(boxes)), self._match(boxes, rois, 0.5, 0.5, 0.5)])
            rois = np.concatenate([boxes, rois])
            roi_labels, roi_deltas = np.zeros(len(rois), int), np.zeros((len(rois), 4))
            for row in np.flatnonzero(roi_match >= 0):
                roi_labels[row] = labels[roi_match[row]]
                roi_deltas[row] = reference.encode(rois[row], boxes[roi_match[row]], (0.1, 0.1, 0.2, 0.2))
            result.append((boxes, anchor_match, rois, roi_labels, roi_deltas))
        return result

    @staticmethod
    def _match(boxes, candidates, *thresholds):
        if not len(boxes):
            return np.full(len(candidates), reference.NEGATIVE)
        overlaps = reference.iou_matrix(boxes, candidates, extra_pixel=1)
        for threshold in thresholds:
            assert reference.is_clear(overlaps.max(0), threshold, MARGIN / 10)
        return reference.match(overlaps, np.ones(len(boxes), bool), *thresholds)

    def losses(self, targets):
        """The six losses for given targets."""
        logits, deltas = (np.concatenate(levels, axis=1) for levels in self.rpn_outputs)
        anchors = np.concatenate(self.anchors)
        rpn_cls = rpn_reg = rcnn_cls = rcnn_reg = num_rois = 0.0
        for image, (boxes, anchor_match, rois, labels, roi_deltas) in enumerate(targets):
            used, positive = anchor_match != reference.IGNORED, anchor_match >= 0
            rpn_cls += reference.sigmoid_cross_entropy(logits[image, used], positive[used]).sum()
            for anchor in np.flatnonzero(positive):
                target = reference.encode(anchors[anchor], boxes[anchor_match[anchor]])
                rpn_reg += reference.smooth_l1(deltas[image, anchor] - target, 1 / 9).sum()
            roi_logits, outputs = self.box_outputs(image, rois)
            rcnn_cls -= np.log(reference.softmax(roi_logits)[np.arange(len(rois)), labels]).sum()
            for row in np.flatnonzero(labels):
                rcnn_reg += reference.smooth_l1(outputs[row, labels[row] - 1] - roi_deltas[row], 1).sum()
            num_rois += len(rois)
        divisor = SETTINGS["num_expected_neg"] * len(targets)
        parts = rpn_cls / divisor, rpn_reg / divisor, rcnn_cls / num_rois, rcnn_reg / (num_rois + 1e-4)
        rpn_loss = SETTINGS["rpn_loss_cls_weight"] * parts[0] + SETTINGS["rpn_loss_reg_weight"] * parts[1]
        rcnn_loss = SETTINGS["rcnn_loss_cls_weight"] * parts[2] + SETTINGS["rcnn_loss_reg_weight"] * parts[3]
        return rpn_loss, rcnn_loss, *parts


@contextmanager
def as_on_large_canvases():
    """Compute small maps and batches as large ones, so that these tests see what large canvases run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_MIN_OUTPUTS", 0)
        patch.setattr(winograd, "_MAX_VALUES", 0)
        patch.setattr(faster_rcnn_resnet, "_MANY_PIXELS", 0)
        yield


@contextmanager
def with_plain_convolutions():
    """Compute all maps as those of canvases too small for Winograd's algorithm, which compile in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_MIN_OUTPUTS", 10**9)
        patch.setattr(faster_rcnn_resnet, "_MANY_PIXELS", 10**9)
        yield


def random_images(seed):
    return np.random.default_rng(seed).normal(0, 1, (2, 3, *CANVAS)).astype(np.float32)


def save_small_detector(path):
    """Write a detector that finds things as a checkpoint that notes its classes; returns the network."""
    net = randomise(build_detector(config_of(**SETTINGS)), 49)
    write_checkpoint(net.parameters_dict(), path, {META_CLASSES: ",".join(CLASSES)})
    return net

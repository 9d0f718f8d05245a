"""The detector as a whole: joins the parts and is the only reader of the configuration among them."""

from collections.abc import Sequence

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops

from src.FasterRcnn.anchor_generator import pyramid_anchors
from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.bbox_assign_sample_stage2 import BboxAssignSampleForRcnn
from src.FasterRcnn.box_ops import BoxCoder
from src.FasterRcnn.fpn_neck import FeatPyramidNeck
from src.FasterRcnn.graph_ops import take_rows
from src.FasterRcnn.proposal_generator import Proposal
from src.FasterRcnn.rcnn import BoxPredictor, Rcnn
from src.FasterRcnn.resnet import ResidualBlock, ResNetFea
from src.FasterRcnn.roi_align import SingleRoIExtractor
from src.FasterRcnn.rpn import RPN

# From so many in a batch on, fixed norms are folded; see docs/architecture.md.
_MANY_PIXELS = 500_000


class Faster_Rcnn_Resnet(nn.Cell):  # noqa: N801 - the published name
    """Faster R-CNN (Ren et al. 2015) with ResNet and feature pyramid (Lin et al. 2017).

    Args:
        config (Config): see ``src.model_utils.config``; read here and nowhere below.
        block (type): residual block of the backbone.
        rank (int): number of this process among those that train together, from 0: each samples by random numbers of
            its own. Initial weights do not depend on it.

    Inputs:
        - **img_data** (Tensor) - (B, 3, H, W) float32, the normalised canvas.
        - **img_metas** (Tensor) - (B, 4) float32: height and width of the image on the canvas, scale_h, scale_w.
          Not used in training.
        - **gt_bboxes** (Tensor) - (B, G, 4) float32 xyxy in pixels of the canvas. Training only, as the next two.
        - **gt_labels** (Tensor) - (B, G) int32, 1 = first foreground class.
        - **gt_valids** (Tensor) - (B, G) bool, False in padded rows and crowds.

    Outputs:
        In training six float32 scalars: rpn_loss, rcnn_loss, rpn_cls_loss, rpn_reg_loss, rcnn_cls_loss,
        rcnn_reg_loss; the first two are the weighted sums of their parts. After ``set_train(False)`` the first three
        outputs of :meth:`detect`.
    """

    def __init__(self, config, block: type = ResidualBlock, rank: int = 0):
        super().__init__()
        canvas_size = (config.img_height, config.img_width)
        level_anchors = pyramid_anchors(canvas_size, config.anchor_strides, config.anchor_scales, config.anchor_ratios)
        rpn_coder = BoxCoder(config.rpn_target_means, config.rpn_target_stds, canvas_size)
        box_coder = BoxCoder(config.rcnn_target_means, config.rcnn_target_stds, canvas_size)
        on_cpu = config.device_target == "CPU"
        # Kept because two backbones have equal parameters: checkpoints are compared with it.
        self.backbone_name = config.backbone
        self.rpn_weights = (config.rpn_loss_cls_weight, config.rpn_loss_reg_weight)
        self.rcnn_weights = (config.rcnn_loss_cls_weight, config.rcnn_loss_reg_weight)
        self.backbone = _build_backbone(config, block, on_cpu)
        self.fpn_neck = FeatPyramidNeck(
            config.fpn_in_channels, config.fpn_out_channels, config.fpn_num_outs, winograd=on_cpu
        )
        self.rpn_with_loss = _build_rpn(config, level_anchors, rpn_coder, rank, on_cpu)
        self.proposals_train = Proposal(
            level_anchors,
            rpn_coder,
            config.rpn_proposal_nms_pre,
            config.rpn_proposal_max_num,
            config.rpn_proposal_nms_thr,
        )
        self.proposals_test = Proposal(
            level_anchors, rpn_coder, config.rpn_nms_pre, config.rpn_max_num, config.rpn_nms_thr
        )
        self.assign_rois = _build_assign_rois(config, box_coder, rank)
        self.num_rois = config.num_expected_neg_stage2
        self.roi_align = _build_roi_align(config, native=not on_cpu)
        self.rcnn = _build_box_head(config)
        self.predict_boxes = _build_box_predictor(config, box_coder)
        if config.device_target == "Ascend":
            self._compute_in_float16()

    def _compute_in_float16(self) -> None:
        """Convolutions and fully connected layers; not the whole box head, whose losses would be in float16 too."""
        for part in (
            self.backbone,
            self.fpn_neck,
            self.rpn_with_loss.rpn_convs_list,
            self.rcnn.shared_fc_0,
            self.rcnn.shared_fc_1,
            self.rcnn.cls_scores,
            self.rcnn.reg_scores,
        ):
            part.to_float(mstype.float16)

    def construct(self, img_data, img_metas, gt_bboxes=None, gt_labels=None, gt_valids=None):
        if self.training:
            return self.losses(img_data, gt_bboxes, gt_labels, gt_valids)
        return self.detect(img_data, img_metas)[:3]

    def losses(self, img_data, gt_boxes, gt_labels, gt_valid):
        """The six losses of a training step; arguments as in the class."""
        features = self.fpn_neck(self.backbone(img_data))  # L times (B, C, H_l, W_l)
        logits, deltas, rpn_cls_loss, rpn_reg_loss, pixels = self.rpn_with_loss.with_losses(
            features, gt_boxes, gt_valid
        )  # L times (B, N_l) and (B, N_l, 4)
        proposals, proposal_mask = self.proposals_train(logits, deltas)  # (B, R, 4), (B, R)
        rois, *targets = self.sampled_rois(gt_boxes, gt_labels, gt_valid, proposals, proposal_mask)
        roi_logits, roi_deltas = self.rcnn(self.roi_align(rois, features, pixels))  # (B * R, K), (B * R, K - 1, 4)
        rcnn_cls_loss, rcnn_reg_loss = self.rcnn.losses(roi_logits, roi_deltas, *targets)
        rpn_loss = self.rpn_weights[0] * rpn_cls_loss + self.rpn_weights[1] * rpn_reg_loss
        rcnn_loss = self.rcnn_weights[0] * rcnn_cls_loss + self.rcnn_weights[1] * rcnn_reg_loss
        return rpn_loss, rcnn_loss, rpn_cls_loss, rpn_reg_loss, rcnn_cls_loss, rcnn_reg_loss

    def sampled_rois(self, gt_boxes, gt_labels, gt_valid, proposals, proposal_mask):
        """RoIs of the box head's losses and their targets, without gradient.

        Args:
            gt_boxes, gt_labels, gt_valid (Tensor): as in the class.
            proposals, proposal_mask (Tensor): (B, P, 4) and (B, P), outputs of the proposal generator.

        Returns:
            rois (B, R, 4), and of all images together labels (B * R,), deltas (B * R, 4) and valid (B * R,), see
            :class:`src.FasterRcnn.bbox_assign_sample_stage2.BboxAssignSampleForRcnn`.
        """
        rois, labels, deltas, valid = self.assign_rois(gt_boxes, gt_labels, gt_valid, proposals, proposal_mask)
        if not self.rcnn.background_boxes:
            # At least a fifth of the rows are padding, which costs as much as the rest and changes no loss.
            _, index = ops.TopK(sorted=True)(valid, self.num_rois)  # (B, R)
            rois, deltas = take_rows(rois, index), take_rows(deltas, index)  # (B, R, 4)
            labels, valid = ops.gather_elements(labels, 1, index), ops.gather_elements(valid, 1, index)  # (B, R)
        rois, labels = ops.stop_gradient(rois), ops.stop_gradient(labels)
        deltas, valid = ops.stop_gradient(deltas), ops.stop_gradient(valid)
        return rois, ops.reshape(labels, (-1,)), ops.reshape(deltas, (-1, 4)), ops.reshape(valid, (-1,))

    def detect(self, img_data, img_metas):
        """Detections in pixels of the images.

        Args:
            img_data, img_metas (Tensor): as in the class.

        Returns:
            boxes and score (B, D, 5) float32, best first; labels (B, D, 1) int32, 0 = first foreground class; mask
            (B, D, 1) bool; and truncated (B,) bool, see :class:`src.FasterRcnn.rcnn.BoxPredictor`. D is
            ``test_max_per_img``; padded rows are 0, 0, False.
        """
        features = self.fpn_neck(self.backbone(img_data))
        logits, deltas = self.rpn_with_loss(features)  # L times (B, N_l), (B, N_l, 4)
        proposals, proposal_mask = self.proposals_test(logits, deltas)  # (B, R, 4), (B, R)
        roi_logits, roi_deltas = self.rcnn(self.roi_align(proposals, features))  # (B * R, K), (B * R, K - 1, 4)
        _, scale = ops.Split(1, 2)(img_metas)  # (B, 2)
        return self.predict_boxes(roi_logits, roi_deltas, proposals, proposal_mask, scale)


def _is_large(config) -> bool:
    """Whether a batch for training has so many pixels that saving memory is worth more operators to compile."""
    return config.batch_size * config.img_height * config.img_width >= _MANY_PIXELS


def _build_backbone(config, block: type, on_cpu: bool) -> ResNetFea:
    return ResNetFea(
        block,
        config.resnet_block,
        config.resnet_in_channels,
        config.resnet_out_channels,
        config.frozen_stages,
        config.norm_eval,
        config.stem_pool_pad,
        winograd=on_cpu,
        fold_norms=on_cpu and _is_large(config),
    )


def _build_rpn(config, level_anchors: Sequence[np.ndarray], coder: BoxCoder, rank: int, on_cpu: bool) -> RPN:
    assign = BboxAssignSample(
        np.concatenate(level_anchors),
        (config.img_height, config.img_width),
        coder,
        config.num_expected_pos,
        config.num_expected_neg,
        config.pos_iou_thr,
        config.neg_iou_thr,
        config.min_pos_iou,
        seed=(config.seed, rank, 0),
    )
    return RPN(
        config.rpn_in_channels,
        config.rpn_feat_channels,
        config.num_anchors,
        assign,
        winograd=on_cpu,
        sparse_gradient=on_cpu,
    )


def _build_assign_rois(config, coder: BoxCoder, rank: int) -> BboxAssignSampleForRcnn:
    return BboxAssignSampleForRcnn(
        coder,
        config.num_expected_pos_stage2,
        config.num_expected_neg_stage2,
        config.pos_iou_thr_stage2,
        config.neg_iou_thr_stage2,
        config.min_pos_iou_stage2,
        seed=(config.seed, rank, 1),
    )


def _build_roi_align(config, native: bool) -> SingleRoIExtractor:
    return SingleRoIExtractor(
        config.roi_layer.out_size,
        config.roi_layer.sample_num,
        config.roi_align_featmap_strides,
        config.roi_align_finest_scale,
        native,
    )


def _build_box_head(config) -> Rcnn:
    return Rcnn(
        config.rcnn_in_channels * config.roi_layer.out_size**2,
        config.rcnn_fc_out_channels,
        config.num_classes,
        background_boxes=not config.without_bg_loss,
        beta=config.rcnn_loss_beta,
    )


def _build_box_predictor(config, coder: BoxCoder) -> BoxPredictor:
    return BoxPredictor(
        coder,
        not config.without_bg_loss,
        config.test_score_thr,
        config.test_iou_thr,
        config.test_max_per_img,
        config.test_nms_candidates,
    )

"""torchvision's part of weights.py: random weights in its own file format, and what its network makes of images.

    python benchmarks/weights_peer.py FOLDER

FOLDER holds inputs.npz: canvases (B, 3, H, W) and rois (R, 4), half-open corners, float32; torchvision.pth and
outputs.npz are written beside it. Runs without MindSpore.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models.detection.image_list import ImageList

# Random logits are small; so much larger, they give scores on both sides of 0.5.
LOGIT_SCALE = 60.0
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def random_detector() -> torch.nn.Module:
    """Faster R-CNN as torchvision draws it, with statistics of its norms like those of a trained network."""
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.25, 0.75)
            part.bias.data.normal_(0, 0.1)
    predictor = model.roi_heads.box_predictor
    predictor.cls_score.weight.data *= LOGIT_SCALE
    predictor.cls_score.bias.data[list(COCO_GAPS)] = -100.0  # ids without a class: a trained network never gives them
    model.rpn.head.cls_logits.weight.data *= LOGIT_SCALE
    return model


@torch.no_grad()
def outputs_of(model: torch.nn.Module, canvases: torch.Tensor, rois: torch.Tensor) -> dict[str, np.ndarray]:
    """Pyramid, RPN logits and boxes, outputs of the box head for the RoIs, and the detections of every canvas."""
    size = tuple(canvases.shape[-2:])
    images = ImageList(canvases, [size] * len(canvases))
    maps = model.backbone(canvases)
    logits, deltas = model.rpn.head(list(maps.values()))
    deltas = torch.cat([level.permute(0, 2, 3, 1).reshape(len(canvases), -1, 4) for level in deltas], 1)
    anchors = model.rpn.anchor_generator(images, list(maps.values()))
    pooled = model.roi_heads.box_roi_pool(maps, [rois] * len(canvases), images.image_sizes)
    scores, boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    found = {
        "roi_logits": scores,
        "roi_deltas": boxes,
        "rpn_boxes": model.rpn.box_coder.decode(deltas.reshape(-1, 4), anchors).reshape(len(canvases), -1, 4),
        **{f"map_{number}": level for number, level in enumerate(maps.values())},
        **{
            f"logits_{number}": level.permute(0, 2, 3, 1).reshape(len(level), -1) for number, level in enumerate(logits)
        },
    }
    proposals, _ = model.rpn(images, maps)
    found["proposals"] = torch.stack(proposals)
    detections, _ = model.roi_heads(maps, proposals, images.image_sizes)
    for number, detection in enumerate(detections):
        found |= {f"{name}_{number}": value for name, value in detection.items()}
    return {name: value.numpy() for name, value in found.items()}


def main() -> None:
    """Write the weights and the outputs."""
    folder = Path(sys.argv[1])
    model = random_detector()
    torch.save(model.state_dict(), folder / "torchvision.pth")
    inputs = np.load(folder / "inputs.npz")
    canvases, rois = torch.from_numpy(inputs["canvases"]), torch.from_numpy(inputs["rois"])
    np.savez(folder / "outputs.npz", **outputs_of(model, canvases, rois))


if __name__ == "__main__":
    main()

"""What is measured of torchvision, beside ours.py; see harness.py. Runs without MindSpore."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.transforms.functional import convert_image_dtype, pil_to_tensor

from benchmarks.inputs import pooled_gradient, pyramid, training_batch


def _detector(
    height: int, width: int, num_classes: int, trainable_stages: int = 3, norm_layer=FrozenBatchNorm2d, **settings
):
    """Faster R-CNN with ResNet-50, fixed batch norms as torchvision builds it for pretrained weights.

    The weights are random, so nothing in inference scores much and its last suppression has little to do.
    """
    torch.manual_seed(0)
    backbone = torchvision.models.resnet50(weights=None, norm_layer=norm_layer)
    return torchvision.models.detection.FasterRCNN(
        _resnet_fpn_extractor(backbone, trainable_stages),
        num_classes,
        min_size=min(height, width),
        max_size=max(height, width),
        **settings,
    )


def train_step(height: int, width: int, batch_size: int, num_classes: int, num_threads: int):
    """One step: the stem and the first stage fixed, 2000 proposals, 512 sampled RoIs, SGD with momentum."""
    torch.set_num_threads(num_threads)
    model = _detector(height, width, num_classes).train()
    optimizer = torch.optim.SGD(
        [value for value in model.parameters() if value.requires_grad], lr=1e-5, momentum=0.91, weight_decay=1e-5
    )
    run = _step(model, optimizer, training_batch(height, width, batch_size))
    with FlopCounterMode(display=False) as counter:
        run()
    return run, {"gflop": counter.get_total_flops() / 1e9}


def _step(model, optimizer, batch):
    """A function that trains for one step on a batch."""
    image, boxes, labels = batch
    images = list(torch.from_numpy(image))
    targets = [
        {"boxes": torch.from_numpy(box), "labels": torch.from_numpy(label)}
        for box, label in zip(boxes, labels, strict=True)
    ]

    def run():
        optimizer.zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        return [loss.item() for loss in losses.values()]

    return run


def first_training_step(height: int, width: int, num_threads: int):
    """A new process from its start to the end of one training step of all layers: imports, model, step.

    Unlike ours it reads no images and no records; they take some tenths of a second.
    """
    code = f"from benchmarks.peer import one_step; one_step({height}, {width}, 2, 4, {num_threads})"

    def run():
        subprocess.run([sys.executable, "-c", code], check=True)

    return run, {}


def one_step(height: int, width: int, batch_size: int, num_classes: int, num_threads: int) -> None:
    """Build and train all layers for one step."""
    torch.set_num_threads(num_threads)
    model = _detector(height, width, num_classes, trainable_stages=5, norm_layer=torch.nn.BatchNorm2d).train()
    _step(model, torch.optim.Adam(model.parameters(), lr=1e-4), training_batch(height, width, batch_size))()


def inference(height: int, width: int, num_classes: int, num_threads: int):
    """Detections of one image, 1000 proposals."""
    torch.set_num_threads(num_threads)
    model = _detector(height, width, num_classes, rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_test=1000).eval()
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(3, height, width)).astype(np.float32))

    def run():
        with torch.inference_mode():
            return model([image])

    with FlopCounterMode(display=False) as counter:
        run()
    return run, {"gflop": counter.get_total_flops() / 1e9}


def roi_align(height: int, width: int, num_rois: int, backward: bool, num_threads: int):
    """RoIAlign of a pyramid of one image, every RoI on its own level."""
    torch.set_num_threads(num_threads)
    arrays, rois = pyramid(height, width, num_rois)
    levels = {str(index): torch.from_numpy(level) for index, level in enumerate(arrays)}
    pool, boxes = MultiScaleRoIAlign(list(levels), 7, 2), [torch.from_numpy(rois)]
    gradient = torch.from_numpy(pooled_gradient(num_rois))
    for level in levels.values():
        level.requires_grad = backward

    def run():
        pooled = pool(levels, boxes, [(height, width)])
        return torch.autograd.grad(pooled, list(levels.values()), gradient) if backward else pooled

    return run, {}


def matrix_product(side: int, num_threads: int):
    """A large float32 matrix product."""
    torch.set_num_threads(num_threads)
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
    return lambda: matrix @ matrix, {"gflop": 2e-9 * side**3}


def convolution(num_threads: int):
    """A 3x3 convolution of 256 channels on a map of 192x320."""
    torch.set_num_threads(num_threads)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 256, 192, 320)).astype(np.float32))
    weight = torch.ones(256, 256, 3, 3)

    def run():
        with torch.inference_mode():
            return torch.nn.functional.conv2d(image, weight, padding=1)

    return run, {"gflop": 2e-9 * 9 * 256 * 256 * 192 * 320}


def _image_transform(height: int, width: int) -> GeneralizedRCNNTransform:
    """Resizing and normalising as its detector does, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    return GeneralizedRCNNTransform(
        min(height, width), max(height, width), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )


def _decoded(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return convert_image_dtype(pil_to_tensor(image.convert("RGB")), torch.float32)


def training_images(coco_root: str, height: int, width: int, num_images: int, num_threads: int):
    """Decode by Pillow, flip half of the images, resize and normalise, with their boxes, on one core."""
    transform = _image_transform(height, width).train()
    root = Path(coco_root)
    content = json.loads((root / "annotations" / "instances_train2017.json").read_text(encoding="utf-8"))
    samples = []
    for image in content["images"][:num_images]:
        boxes = [box["bbox"] for box in content["annotations"] if box["image_id"] == image["id"]]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        samples.append((root / "train2017" / image["file_name"], boxes))

    def run():
        for path, boxes in samples:
            image = _decoded(path)
            if torch.rand(1) < 0.5:
                image, boxes = image.flip(-1), boxes.clone()
                boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
            transform([image], [{"boxes": boxes}])

    return run, {"images": len(samples)}


def evaluation_images(folder: str, height: int, width: int, num_images: int, num_threads: int):
    """Decode by Pillow, to float, resize and normalise: images of a folder on one core."""
    transform = _image_transform(height, width).eval()
    paths = sorted(Path(folder).glob("*.jpg"))[:num_images]

    def run():
        for path in paths:
            transform([_decoded(path)])

    return run, {"images": len(paths)}

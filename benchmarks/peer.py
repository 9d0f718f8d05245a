"""What is measured of torchvision, with the same inputs as ours.py; see harness.py. Runs without MindSpore."""
import subprocess
import sys

import numpy as np
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from benchmarks.inputs import pyramid, training_batch


def _detector(height: int, width: int, num_classes: int, trainable_stages: int = 3, **settings):
    """Faster R-CNN with ResNet-50 and fixed batch norms, as torchvision builds it for pretrained weights."""
    torch.manual_seed(0)
    backbone = torchvision.models.resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    return torchvision.models.detection.FasterRCNN(
        _resnet_fpn_extractor(backbone, trainable_stages), num_classes, min_size=min(height, width),
        max_size=max(height, width), **settings)


def train_step(height: int, width: int, batch_size: int, num_classes: int, num_threads: int, count: bool = True):
    """One step: the stem and the first stage fixed, 2000 proposals, 512 sampled RoIs, SGD with momentum."""
    torch.set_num_threads(num_threads)
    model = _detector(height, width, num_classes).train()
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1e-5, momentum=0.91,
                                weight_decay=1e-5)
    image, boxes, labels = training_batch(height, width, batch_size)
    images = list(torch.from_numpy(image))
    targets = [{"boxes": torch.from_numpy(box), "labels": torch.from_numpy(label)}
               for box, label in zip(boxes, labels, strict=True)]

    def run():
        optimizer.zero_grad()
        losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        return [loss.item() for loss in losses.values()]

    if not count:
        return run, {}
    with FlopCounterMode(display=False) as counter:
        run()
    return run, {"gflop": counter.get_total_flops() / 1e9}


def first_training_step(height: int, width: int, num_threads: int):
    """A new process from its start to the end of one training step: imports, model, step."""
    code = f"from benchmarks.peer import one_step; one_step({height}, {width}, 2, 4, {num_threads})"

    def run():
        subprocess.run([sys.executable, "-c", code], check=True)

    return run, {}


def one_step(height: int, width: int, batch_size: int, num_classes: int, num_threads: int) -> None:
    """Build and train for one step, without counting operations."""
    run, _ = train_step(height, width, batch_size, num_classes, num_threads, count=False)
    run()


def inference(height: int, width: int, num_classes: int, num_threads: int):
    """Detections of one picture, 1000 proposals."""
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
    """RoIAlign of a pyramid of one picture, every RoI on its own level."""
    torch.set_num_threads(num_threads)
    arrays, rois = pyramid(height, width, num_rois)
    levels = {str(index): torch.from_numpy(level) for index, level in enumerate(arrays)}
    pool, boxes = MultiScaleRoIAlign(list(levels), 7, 2), [torch.from_numpy(rois)]
    for level in levels.values():
        level.requires_grad = backward

    def run():
        pooled = pool(levels, boxes, [(height, width)])
        return torch.autograd.grad(pooled.sum(), list(levels.values())) if backward else pooled

    return run, {}


def matrix_product(side: int, num_threads: int):
    """A large float32 matrix product."""
    torch.set_num_threads(num_threads)
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(side, side)).astype(np.float32))
    return lambda: matrix @ matrix, {"gflop": 2e-9 * side ** 3}


def evaluation_pictures(folder: str, height: int, width: int, num_pictures: int, num_threads: int):
    """Decode by Pillow, to float, resize and normalise as its detector does: pictures of a folder on one core."""
    from pathlib import Path

    from PIL import Image
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.transforms.functional import convert_image_dtype, pil_to_tensor
    torch.set_num_threads(1)
    transform = GeneralizedRCNNTransform(min(height, width), max(height, width), [0.485, 0.456, 0.406],
                                         [0.229, 0.224, 0.225]).eval()
    paths = sorted(Path(folder).glob("*.jpg"))[:num_pictures]

    def run():
        for path in paths:
            with Image.open(path) as picture:
                image = convert_image_dtype(pil_to_tensor(picture.convert("RGB")), torch.float32)
            transform([image])

    return run, {"pictures": len(paths)}

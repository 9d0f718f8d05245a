"""torchvision's part of accuracy.py: trains its Faster R-CNN from random weights and writes detections.

    python benchmarks/accuracy_peer.py COCO_ROOT OUTPUT --epochs=4 --seed=1

OUTPUT/detections.json is a COCO results file. Runs without MindSpore.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torchvision
from torchvision.transforms.v2.functional import horizontal_flip_image

BATCH_SIZE = 2
RATE, WARMUP_STEPS = 2e-4, 100
NORM_MOMENTUM = 0.03  # share of the new statistics; torch's own 0.1 follows a batch of 2 too closely
CLIP_NORM = 10.0


class Images(torch.utils.data.Dataset):
    """Images of a COCO set with their boxes, flipped by chance in training.

    Args:
        root (Path): COCO layout.
        part (str): "train2017" or "val2017".
        flip (bool): mirror half of the images.
    """

    def __init__(self, root: Path, part: str, flip: bool):
        content = json.loads((root / "annotations" / f"instances_{part}.json").read_text())
        self.category_ids = [category["id"] for category in content["categories"]]
        self.images, self.folder, self.flip = content["images"], root / part, flip
        self.boxes: dict[int, list] = {image["id"]: [] for image in self.images}
        for box in content["annotations"]:
            if min(box["bbox"][2:]) > 0 and not box.get("iscrowd"):
                self.boxes[box["image_id"]].append((box["bbox"], self.category_ids.index(box["category_id"]) + 1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        entry = self.images[index]
        image = torchvision.io.decode_image(str(self.folder / entry["file_name"]), "RGB") / 255
        rows = self.boxes[entry["id"]]
        boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in rows]).reshape(-1, 4)
        if self.flip and torch.rand(()) < 0.5:
            image = horizontal_flip_image(image)
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": torch.tensor([label for _, label in rows], dtype=torch.int64)}


def detector(num_classes: int, short_side: int, long_side: int) -> torch.nn.Module:
    """torchvision's ResNet-50 FPN with its own anchors, losses and initial weights; all layers learn."""
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        trainable_backbone_layers=5,
        min_size=short_side,
        max_size=long_side,
    )
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = NORM_MOMENTUM
    return model


def train(model: torch.nn.Module, images: Images, epochs: int) -> None:
    """Adam with a linear warm-up and a cosine to 0."""
    loader = torch.utils.data.DataLoader(
        images, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    total = epochs * len(loader)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / WARMUP_STEPS)
            * (1 + math.cos(math.pi * max(0, step - WARMUP_STEPS) / max(1, total - WARMUP_STEPS)))
            / 2
        ),
    )
    model.train()
    start, done = time.time(), 0
    for epoch in range(1, epochs + 1):
        for batch, targets in loader:
            loss = sum(model(list(batch), list(targets)).values())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            done += 1
        pace = (time.time() - start) / done
        print(f"epoch {epoch}/{epochs}: loss {float(loss):.4f}, {pace:.2f} s/step", flush=True)


@torch.no_grad()
def detections(model: torch.nn.Module, images: Images) -> list[dict]:
    """A COCO results list."""
    model.eval()
    found = []
    for index, entry in enumerate(images.images):
        (result,) = model([images[index][0]])
        for (x1, y1, x2, y2), label, score in zip(
            result["boxes"].tolist(), result["labels"].tolist(), result["scores"].tolist(), strict=True
        ):
            category = images.category_ids[label - 1]
            found.append(
                {"image_id": entry["id"], "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    return found


def main() -> None:
    """Train and detect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("coco_root", type=Path, help="Data set in the COCO layout, train2017 and val2017.")
    parser.add_argument("output", type=Path, help="Folder for detections.json.")
    parser.add_argument("--epochs", type=int, default=4, help="Training epochs.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the weights and the order.")
    parser.add_argument("--short_side", type=int, default=240, help="Short side of the resized images.")
    parser.add_argument("--long_side", type=int, default=320, help="Longest long side of the resized images.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of the processor.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images = Images(args.coco_root, "train2017", flip=True)
    model = detector(len(images.category_ids) + 1, args.short_side, args.long_side)
    train(model, images, args.epochs)
    found = detections(model, Images(args.coco_root, "val2017", flip=False))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "detections.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

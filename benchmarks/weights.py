"""torchvision's network and ours with its weights, on the same images: how far they are apart.

    python -m benchmarks.weights IMAGE [IMAGE ...]

Random weights, drawn by torchvision (weights_peer.py) in the .venv-peer that benchmarks/run.sh makes. Prints a table.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from src.runtime import prepare_process

REPO_ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 256, 320
# Of all sizes and shapes, half-open corners.
ROIS = ((10, 20, 110, 150), (5, 5, 60, 40), (0, 0, 319, 255), (100, 30, 300, 200), (40, 50, 47, 61), (200, 3, 230, 250))
SCORE_THR, MIN_IOU = 0.5, 0.98
PARTS = ("boxes", "labels", "mask")  # of detections


def our_outputs(folder: Path, canvases: np.ndarray, rois: np.ndarray, proposals: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of weights_peer.py, of our network, and its detections of the peer's proposals; half-open corners."""
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    from src.convert_checkpoint import load_detector, noted_config
    from src.FasterRcnn import build_detector
    from src.model_utils.config import load_config

    class Parts(nn.Cell):
        """The detector, with what it finds on the way."""

        def __init__(self, detector):
            super().__init__(auto_prefix=False)
            self.detector = detector

        def construct(self, images, image_rois, metas, proposals):
            detector = self.detector
            maps = detector.fpn_neck(detector.backbone(images))
            logits, deltas = detector.rpn_with_loss(maps)
            anchors = ops.tile(ops.expand_dims(detector.proposals_test.anchors, 0), (len(images), 1, 1))
            boxes = detector.proposals_test.coder.decode(anchors, ops.concat(deltas, 1))
            roi_logits, roi_deltas = detector.rcnn(detector.roi_align(image_rois, maps))
            scores, moves = detector.rcnn(detector.roi_align(proposals, maps))
            mask = ops.ones(proposals.shape[:2], ms.bool_)
            given = detector.predict_boxes(scores, moves, proposals, mask, ops.ones((len(images), 2)))
            return maps, logits, boxes, roi_logits, roi_deltas, detector.detect(images, metas), given

    ms.set_context(mode=ms.GRAPH_MODE)
    path = folder / "torchvision.pth"
    flags = ["--device_target=CPU", f"--img_width={WIDTH}", f"--img_height={HEIGHT}"]
    config = noted_config(load_config(flags), path)
    parts = Parts(load_detector(build_detector(config), path))
    parts.set_train(False)
    batch = len(canvases)
    closed = np.tile(rois - [0, 0, 1, 1], (batch, 1, 1)).astype(np.float32)
    metas = np.tile(np.array([HEIGHT, WIDTH, 1, 1], np.float32), (batch, 1))
    inputs = canvases, closed, metas, (proposals - [0, 0, 1, 1]).astype(np.float32)
    maps, logits, boxes, roi_logits, roi_deltas, own, given = parts(*map(Tensor, inputs))
    outputs = {"roi_logits": roi_logits, "roi_deltas": roi_deltas, "rpn_boxes": boxes}
    for name, found in (("own", own), ("given", given)):
        outputs |= {f"{name}_{part}": value for part, value in zip(PARTS, found, strict=False)}
    outputs |= {f"map_{number}": value for number, value in enumerate(maps)}
    outputs |= {f"logits_{number}": value for number, value in enumerate(logits)}
    arrays = {name: value.asnumpy() for name, value in outputs.items()}
    for name in ("rpn_boxes", "own_boxes", "given_boxes"):
        arrays[name][..., 2:4] += 1
    return arrays


def rows_of(peer: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """What is compared, and how far it is apart."""
    from src.weights.foreign import COCO_GAPS

    kept = [number for number in range(91) if number not in COCO_GAPS]
    deltas = peer["roi_deltas"].reshape(len(peer["roi_deltas"]), 91, 4)[:, kept[1:]]
    rows = [(f"pyramid level {number}", _relative(ours[f"map_{number}"], peer[f"map_{number}"])) for number in range(5)]
    rows += [
        (f"RPN logits {number}", _relative(ours[f"logits_{number}"], peer[f"logits_{number}"])) for number in range(5)
    ]
    inside = ((peer["rpn_boxes"] > 1) & (peer["rpn_boxes"] < [WIDTH - 1, HEIGHT - 1] * 2)).all(-1)
    pixels = np.abs(ours["rpn_boxes"] - peer["rpn_boxes"])[inside].max()
    rows.append((f"{inside.sum()} RPN boxes inside the image", f"{pixels:.3f} pixels"))
    rows.append(
        (f"class logits of {len(deltas)} given RoIs", _relative(ours["roi_logits"], peer["roi_logits"][:, kept]))
    )
    rows.append(("their box deltas", _relative(ours["roi_deltas"].reshape(deltas.shape), deltas)))
    for name, what in (("given", "the peer's"), ("own", "its own")):
        rows.append((f"detections above {SCORE_THR} of {what} proposals", _same_detections(peer, ours, name, kept)))
    return rows


def _same_detections(peer: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], name: str, kept: list[int]) -> str:
    """How many of the peer's detections ours has too, with the same class."""
    boxes, labels, mask = (ours[f"{name}_{part}"] for part in PARTS)
    same, total = 0, 0
    for number in range(len(boxes)):
        columns = (peer[f"{part}_{number}"] for part in ("boxes", "labels", "scores"))
        for box, label, score in zip(*columns, strict=True):
            if score > SCORE_THR:
                total += 1
                rows = mask[number, :, 0] & (labels[number, :, 0] + 1 == kept.index(label))
                same += any(_iou(box, other) > MIN_IOU for other in boxes[number, rows, :4])
    return f"{same} of {total} with an IoU above {MIN_IOU}"


def _relative(found: np.ndarray, expected: np.ndarray) -> str:
    return f"{np.abs(found - expected).max() / np.abs(expected).max():.1e} of the largest value"


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = max(width, 0) * max(height, 0)
    return shared / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared)


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("images", nargs="+", type=Path, help="Images to run both networks on.")
    prepare_process()
    from src.data.image_files import read_rgb
    from src.data.transforms import Canvas, evaluation_input

    paths = parser.parse_args().images
    canvases = np.stack([evaluation_input(read_rgb(path), Canvas(WIDTH, HEIGHT))[0] for path in paths])
    rois = np.array(ROIS, np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "inputs.npz", canvases=canvases, rois=rois)
        peer = REPO_ROOT / ".venv-peer" / "bin" / "python"
        subprocess.run([peer, REPO_ROOT / "benchmarks" / "weights_peer.py", folder], check=True)
        found = np.load(folder / "outputs.npz")
        rows = rows_of(found, our_outputs(folder, canvases, rois, found["proposals"]))
    width = max(len(what) for what, _ in rows)
    sys.stdout.writelines(f"{what:{width}}  {difference}\n" for what, difference in rows)


if __name__ == "__main__":
    main()

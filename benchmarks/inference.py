"""Inference time of exported ONNX files against torchvision's Faster R-CNN, side by side on one machine.

    python3.11 -m venv .venv-peer && .venv-peer/bin/pip install torch torchvision "numpy<2"
    python benchmarks/inference.py --peer_python=.venv-peer/bin/python MODEL.onnx [MODEL_int8.onnx ...]

Each contender is a process of its own, so that no library disturbs another, and uses the same number of threads. They
take turns picture by picture; figures are medians, ratios are ours / torchvision over the same turns. Inputs are one
768 x 1280 picture of noise per turn (the size is the file's own), 1000 proposals, batch 1, classes as in the file.
torchvision has random weights and runs eagerly under ``torch.inference_mode``; the time of a forward pass does not
depend on the weights but for the last suppression.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def onnx_contender(path: str, num_threads: int) -> tuple[Callable[[], object], dict]:
    """A function that runs the file once, and what the file says of itself."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    _, _, height, width = session.get_inputs()[0].shape
    image = np.random.default_rng(0).normal(size=(1, 3, height, width)).astype(np.float32)
    metas = np.array([[height, width, 1, 1]], np.float32)
    notes = session.get_modelmeta().custom_metadata_map
    about = {"height": height, "width": width, "num_classes": len(json.loads(notes["class_names"])) + 1}
    return lambda: session.run(None, {"image": image, "image_shape": metas}), about


def torchvision_contender(about: dict, num_threads: int) -> tuple[Callable[[], object], dict]:
    """The same for torchvision's detector on pictures of that size."""
    import torch
    import torchvision
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    height, width = about["height"], about["width"]
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=about["num_classes"], min_size=min(height, width),
        max_size=max(height, width), rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_test=1000).eval()
    image = torch.randn(3, height, width)

    def run():
        with torch.inference_mode():
            return model([image])

    return run, about


def serve(contender: Callable[[], object]) -> None:
    """Run once for every line that arrives and answer with the seconds it took."""
    contender()
    for _ in sys.stdin:
        start = time.perf_counter()
        contender()
        sys.stdout.write(f"{time.perf_counter() - start}\n")
        sys.stdout.flush()


class Worker:
    """A contender in its own process."""

    def __init__(self, python: str, arguments: list[str]):
        self.process = subprocess.Popen([python, __file__, "--worker", *arguments], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def seconds(self) -> float:
        """Seconds of one more run."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(path: str, peer_python: str, num_turns: int, num_threads: int) -> dict:
    """Measure one file and the peer in turns."""
    about = onnx_contender(path, num_threads)[1]
    ours = Worker(sys.executable, ["onnx", path, str(num_threads)])
    peer = Worker(peer_python, ["torchvision", json.dumps(about), str(num_threads)])
    turns = [(ours.seconds(), peer.seconds()) for _ in range(num_turns)]
    ours.stop()
    peer.stop()
    own_times, peer_times = zip(*turns, strict=True)
    return {"model": Path(path).name, **about, "threads": num_threads, "turns": num_turns,
            "ours_s": statistics.median(own_times), "torchvision_s": statistics.median(peer_times),
            "ratio": statistics.median(own / peer for own, peer in turns),
            "ratio_range": [min(own / peer for own, peer in turns), max(own / peer for own, peer in turns)]}


def main() -> int:
    """Compare every file given with torchvision and print a table."""
    if sys.argv[1:2] == ["--worker"]:
        kind, what, num_threads = sys.argv[2:]
        make = onnx_contender if kind == "onnx" else torchvision_contender
        serve(make(what if kind == "onnx" else json.loads(what), int(num_threads))[0])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx", help="Files that export.py has written.")
    parser.add_argument("--peer_python", required=True, help="Python that has torch and torchvision.")
    parser.add_argument("--turns", type=int, default=7, help="Runs of each contender (default: %(default)s).")
    parser.add_argument("--threads", type=int, default=2, help="Threads of each contender (default: %(default)s).")
    parser.add_argument("--output", help="JSON file for the figures.")
    args = parser.parse_args()
    rows = [compare(path, args.peer_python, args.turns, args.threads) for path in args.models]
    print("| file | classes | ours s | torchvision s | ratio (range) |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['model']} | {row['num_classes']} | {row['ours_s']:.2f} | {row['torchvision_s']:.2f} | "
              f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} .. {row['ratio_range'][1]:.2f}) |")
    if args.output:
        Path(args.output).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

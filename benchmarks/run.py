"""Measure this project beside torchvision on this machine; called by run.sh.

    python benchmarks/run.py --peer_python=.venv-peer/bin/python [--only=train_step] [--turns=5]

Every comparison is made in turns by processes of their own (harness.py). Results are medians; a ratio is ours / the
other, the median over turns, so below 1 we are faster. Where operations can be counted (by torch, for the network as
torchvision builds it), the table gives their number per second and its share of a large matrix product's.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from harness import Contender, compare
from onnx_file import describe

GROUPS = ("matrix_product", "convolution", "roi_align", "train_step", "start_up", "inference", "images", "coco_scoring")
SIZES = ((768, 1280), (256, 320))
MATRIX_SIDE = 4096
NUM_IMAGES = 40


def comparisons(peer: str, coco_root: str, onnx_files: Sequence[str]) -> Iterator[tuple[str, str, list[Contender]]]:
    """Group, title and contenders of each comparison."""
    yield from _parts(peer)
    yield from _training(peer)
    yield from _inference(peer, onnx_files)
    if coco_root:
        yield from _images(peer, coco_root)
    yield (
        "coco_scoring",
        "COCO scoring, 5000 images x 100 detections",
        [_ours("coco_scoring", num_images=5000, num_detections=100)],
    )


def _parts(peer: str) -> Iterator[tuple[str, str, list[Contender]]]:
    side = MATRIX_SIDE
    yield (
        "matrix_product",
        f"matrix product {side}",
        [_ours("matrix_product", side=side), _peer(peer, "matrix_product", side=side)],
    )
    convolutions = [
        _ours("convolution", winograd=True),
        _peer(peer, "convolution"),
        _ours("convolution", name="nn.Conv2d", winograd=False),
    ]
    if "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        convolutions.append(
            _ours(
                "convolution",
                name="default instruction set",
                winograd=False,
                environment={"ONEDNN_MAX_CPU_ISA": "DEFAULT"},
            )
        )
    yield "convolution", "convolution 3x3, 256 channels, 192x320", convolutions
    roi = {"height": 768, "width": 1280, "num_rois": 1024}
    for backward in (False, True):
        title = "RoIAlign forward" + (" and backward" if backward else "")
        yield (
            "roi_align",
            title,
            [
                _ours("roi_align", **roi, backward=backward, native=False),
                _peer(peer, "roi_align", **roi, backward=backward),
                _ours("roi_align", name="ops.ROIAlign", **roi, backward=backward, native=True),
            ],
        )


def _training(peer: str) -> Iterator[tuple[str, str, list[Contender]]]:
    for height, width in SIZES:
        step = {"height": height, "width": width, "batch_size": 2, "num_classes": 81}
        yield (
            "train_step",
            f"training step {height}x{width} batch 2",
            [_ours("train_step", **step), _peer(peer, "train_step", **step)],
        )
    yield (
        "start_up",
        "compilation of the training step 256x320",
        [_ours("graph_compile", height=256, width=320, batch_size=2, num_classes=81)],
    )
    yield (
        "start_up",
        "start to the end of the first training step 256x320",
        [
            _ours("first_training_step", height=256, width=320, keep_graph=False),
            _peer(peer, "first_training_step", height=256, width=320),
            _ours("first_training_step", name="ours, second start", height=256, width=320, keep_graph=True),
        ],
    )


def _inference(peer: str, onnx_files: Sequence[str]) -> Iterator[tuple[str, str, list[Contender]]]:
    for num_classes in (4, 81):
        image = {"height": 768, "width": 1280, "num_classes": num_classes}
        yield (
            "inference",
            f"inference 768x1280, {num_classes} classes",
            [_ours("inference", **image), _peer(peer, "inference", **image)],
        )
    for path in onnx_files:
        about = describe(path)
        title = f"inference {about['height']}x{about['width']}, {about['num_classes']} classes, {Path(path).name}"
        yield (
            "inference",
            title,
            [
                Contender(
                    "ours, ONNX Runtime", sys.executable, "onnx_file:inference", {"path": str(Path(path).absolute())}
                ),
                _peer(peer, "inference", **about),
            ],
        )


def _images(peer: str, coco_root: str) -> Iterator[tuple[str, str, list[Contender]]]:
    size = {"height": 768, "width": 1280, "num_images": NUM_IMAGES}
    for function, title, where in (
        ("training_images", "training", {"coco_root": coco_root}),
        ("evaluation_images", "evaluation", {"folder": f"{coco_root}/val2017"}),
    ):
        yield (
            "images",
            f"{NUM_IMAGES} images for {title}, one core",
            [_ours(function, **where, **size), _peer(peer, function, **where, **size)],
        )


def _ours(function: str, name: str = "ours", environment: dict | None = None, **settings) -> Contender:
    return Contender(name, sys.executable, f"ours:{function}", settings, environment or {})


def _peer(python: str, function: str, **settings) -> Contender:
    return Contender("torchvision", python, f"peer:{function}", settings)


def as_table(results: list[dict]) -> str:
    """The results as Markdown, a row for each contender."""
    limit = max(
        (
            row["notes"]["gflop"] / row["median_s"]
            for result in results
            for row in result["rows"]
            if "matrix" in result["title"]
        ),
        default=None,
    )
    lines = [
        "| what | who | median s | spread s | ours / this | first run s | peak GiB | GFLOP/s | of the limit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        # Operations are those of the definition, whoever counts them. Winograd's convolutions need fewer, so that ours
        # may pass the limit.
        gflop = next((row["notes"]["gflop"] for row in result["rows"] if "gflop" in row["notes"]), None)
        for row in result["rows"]:
            rate = gflop / row["median_s"] if gflop else None
            share = f"{100 * rate / limit:.0f} %" if rate and limit else ""
            lines.append(
                f"| {result['title']} | {row['name']} | {row['median_s']:.3g} | {row['spread_s']:.2g} | "
                f"{row['ratio']:.2f} | {row['notes']['first_run_s']:.3g} | {row['peak_bytes'] / 2**30:.1f} | "
                f"{f'{rate:.0f}' if rate else ''} | {share} |"
            )
    return "\n".join(lines) + "\n"


def machine() -> dict[str, str | int | bool]:
    """What the results depend on: processor, whether it has AVX-512, cores, MindSpore."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": next(iter(names), platform.machine()),
        "avx512": any("avx512f" in line for line in lines),
        "cores": os.cpu_count(),
        "mindspore": version("mindspore"),
    }


def main() -> int:
    """Measure, print the table as it grows, and write it with all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="A Python that has torch and torchvision.")
    parser.add_argument("--coco_root", default="", help="JPEG images in COCO layout, for the data pipeline.")
    parser.add_argument(
        "--onnx",
        action="append",
        default=[],
        metavar="FILE",
        help="A file that export.py has written, to be run by ONNX Runtime; may be repeated.",
    )
    parser.add_argument("--only", choices=GROUPS, help="One group. (default: all)")
    parser.add_argument("--turns", type=int, default=5, help="Runs of each contender. (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="Threads of each contender. (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results"),
        help="Folder for results.json and results.md. (default: %(default)s)",
    )
    args = parser.parse_args()
    for path, exists in ((args.coco_root, os.path.isdir), *((path, os.path.isfile) for path in args.onnx)):
        if path and not exists(path):
            parser.error(f"{path} does not exist")
    args.output.mkdir(parents=True, exist_ok=True)
    about = {**machine(), "threads": args.threads, "turns": args.turns, "date": time.strftime("%Y-%m-%d")}
    results = []
    for group, title, contenders in comparisons(args.peer_python, args.coco_root, args.onnx):
        if args.only in (None, group):
            print(f"{title} ...", flush=True)
            results.append(
                {"title": title, "load": os.getloadavg()[0], "rows": compare(contenders, args.turns, args.threads)}
            )
            print(as_table(results[-1:]), flush=True)
            # After each, because the whole takes half an hour and may be broken off.
            (args.output / "results.json").write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
            (args.output / "results.md").write_text(as_table(results))
    print(f"{as_table(results)}\nwritten to {args.output}/results.json and results.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

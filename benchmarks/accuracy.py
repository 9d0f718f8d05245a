"""What this project and torchvision learn from random weights in the same number of epochs, over several seeds.

    python -m benchmarks.accuracy BCCD --output=FOLDER --epochs=4 --seeds 1 2 3

Needs the .venv-peer that benchmarks/run.sh makes; one training after the other, so hours. A run whose detections are in
FOLDER already is not repeated. Prints a table and writes it to FOLDER/accuracy.md; pycocotools scores both.
"""

import argparse
import contextlib
import io
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.runtime import prepare_process

REPO_ROOT = Path(__file__).resolve().parents[1]
METRICS = ("AP", "AP50", "AP75")


def train_ours(root: Path, folder: Path, epochs: int, seed: int, flags: list[str]) -> Path:
    """Train and evaluate this project; returns the COCO results file."""
    common = [f"--coco_root={root}", "--device_target=CPU", *flags]
    training = [f"--epoch_size={epochs}", f"--seed={seed}", f"--save_checkpoint_path={folder}"]
    run([sys.executable, REPO_ROOT / "train.py", *common, *training], folder)
    checkpoint = max((folder / "ckpt_0").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    evaluation = [f"--checkpoint_path={checkpoint}", f"--eval_output_path={folder}"]
    run([sys.executable, REPO_ROOT / "eval.py", *common, *evaluation], folder)
    return folder / "results.bbox.json"


def train_peer(root: Path, folder: Path, epochs: int, seed: int, flags: list[str]) -> Path:
    """Train torchvision's detector; returns the COCO results file."""
    script = [REPO_ROOT / ".venv-peer/bin/python", REPO_ROOT / "benchmarks/accuracy_peer.py", root, folder]
    run([*script, f"--epochs={epochs}", f"--seed={seed}", *flags], folder)
    return folder / "detections.json"


def run(command: list, folder: Path) -> None:
    """One process in the folder; what it says goes to FOLDER/log."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("a") as log:
        subprocess.run([str(part) for part in command], cwd=folder, stdout=log, stderr=log, check=True)


def scores(truth: COCO, detections: Path) -> dict[str, float]:
    """AP, AP50 and AP75 of a results file."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, map(float, evaluation.stats), strict=False))


def measured(contender: str, args: argparse.Namespace, seed: int, truth: COCO) -> dict[str, float]:
    """Scores and minutes of one training, from the folder where it is there."""
    folder = (args.output / f"{contender}-{args.epochs}-{seed}").resolve()
    kept = folder / "measured.json"
    if not kept.exists():
        train = train_ours if contender == "ours" else train_peer
        start = time.time()
        results = train(args.coco_root.resolve(), folder, args.epochs, seed, shlex.split(getattr(args, contender)))
        minutes = (time.time() - start) / 60
        kept.write_text(json.dumps({**scores(truth, results), "minutes": minutes}))
    return json.loads(kept.read_text())


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Mean and range of every metric, Markdown."""
    lines = ["| | seeds | AP | AP50 | AP75 | minutes |", "| --- | --- | --- | --- | --- | --- |"]
    for contender, runs in rows.items():
        cells = []
        for metric in METRICS:
            values = [run[metric] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        minutes = statistics.mean(run["minutes"] for run in runs)
        lines.append(f"| {contender} | {len(runs)} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train both with every seed, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("coco_root", type=Path, help="Data set in the COCO layout, train2017 and val2017.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the runs and the table.")
    parser.add_argument("--epochs", type=int, default=4, help="Training epochs of both.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="One training of each per seed.")
    parser.add_argument("--only", choices=["ours", "torchvision"], help="Train only one of them.")
    parser.add_argument(
        "--ours", default="--config_path=configs/bccd_from_scratch.yaml", help="Flags for train.py and eval.py."
    )
    parser.add_argument("--torchvision", default="", help="Flags for accuracy_peer.py.")
    args = parser.parse_args()
    prepare_process()
    truth = COCO(args.coco_root / "annotations" / "instances_val2017.json")
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds:
        for contender in [args.only] if args.only else ["ours", "torchvision"]:
            rows.setdefault(contender, []).append(measured(contender, args, seed, truth))
            text = table(rows)
            (args.output / "accuracy.md").write_text(text)
            print(f"after seed {seed}:\n{text}", flush=True)


if __name__ == "__main__":
    main()

"""Score an exported ONNX file on a data set with ONNX Runtime: the twelve COCO metrics, as eval.py gives them.

    python eval_onnx.py --file_name=faster_rcnn.onnx --coco_root=COCO2017

Classes and sizes come from the file; flags may repeat them but not contradict. The device is the one of the installed
ONNX Runtime; with --device_target it is that or none.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.runtime import run, run_configured


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code 0."""
    return run_configured(evaluate_file, argv, model_keys=["file_name"], prepare=with_input_file)


def with_input_file(config: Config) -> Config:
    """The configuration with `file_name` as a file that is read: for other programs it is a result."""
    if not config.file_name.endswith(".onnx"):
        raise UserError(
            f"file_name is {config.file_name}: expected an ONNX file, such as "
            "--file_name=faster_rcnn.onnx; checkpoints and MINDIR files are for eval.py"
        )
    return dataclasses.replace(config, file_name=str(Path(config.file_name).absolute()))


def evaluate_file(config: Config) -> None:
    """Score `file_name`."""
    from src.deploy.model_file import load_model
    from src.evaluation.scoring import Evaluation

    model = load_model(config.file_name, config)
    Evaluation(model.config).score(model)


if __name__ == "__main__":
    sys.exit(run(main))

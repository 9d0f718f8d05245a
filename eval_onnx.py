"""Score an exported ONNX file on a data set with ONNX Runtime: the twelve COCO figures, as eval.py gives them.

    python eval_onnx.py --file_name=faster_rcnn.onnx --coco_root=COCO2017

Classes and sizes come from the file; flags may repeat them but not contradict. The device is the one of the installed
ONNX Runtime; with --device_target it is that or none.
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from src.runtime import prepare_process, run

LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code 0."""
    prepare_process()  # before anything imports MindSpore
    from src.deploy.model_file import load_model
    from src.evaluation.scoring import Evaluation
    from src.model_utils.config import describe, load_config
    from src.model_utils.config_checks import check_model_flags
    from src.model_utils.device_adapter import job
    from src.model_utils.errors import UserError

    config = load_config(argv)
    check_model_flags(config, "--file_name", "file_name")
    for line in describe(config):
        LOGGER.info(line)
    if not config.file_name.endswith(".onnx"):
        raise UserError(
            f"file_name is {config.file_name}: expected an ONNX file, such as "
            "--file_name=faster_rcnn.onnx; checkpoints and MINDIR files are for eval.py"
        )
    # For export.py it is a result, so job does not know that it is read here.
    config = dataclasses.replace(config, file_name=str(Path(config.file_name).absolute()))
    with job(config) as config:
        model = load_model(config.file_name, config)
        Evaluation(model.config).score(model)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

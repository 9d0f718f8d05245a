"""Score a trained detector on a data set: the twelve COCO figures.

    python eval.py --dataset=coco --coco_root=COCO2017 --checkpoint_path=faster_rcnn.ckpt \
        --mindrecord_dir=MindRecord --device_target=CPU --backbone=resnet_v1.5_50

`checkpoint_path` may also be a MINDIR or ONNX file of export.py. Classes that the file notes go before those of a
configuration file. Writes results.bbox.json and metrics.json to `eval_output_path`, and with `draw_images` so many
images with their detections to `eval_output_path`/detections.
"""

import logging
import sys
from collections.abc import Sequence

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
    from src.runtime import init_device, with_available_device

    config = load_config(argv)
    check_model_flags(config, "--checkpoint_path", "checkpoint_path")
    for line in describe(config):
        LOGGER.info(line)
    with job(config) as config:
        config = with_available_device(config)
        init_device(config)
        model = load_model(config.checkpoint_path, config)
        Evaluation(model.config).score(model)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

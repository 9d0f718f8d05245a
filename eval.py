"""Score a trained detector on a data set: the twelve COCO metrics.

    python eval.py --dataset=coco --coco_root=COCO2017 --checkpoint_path=faster_rcnn.ckpt \
        --mindrecord_dir=MindRecord --device_target=CPU --backbone=resnet_v1.5_50

`checkpoint_path` may also be a MINDIR or ONNX file of export.py. Classes that the file notes take precedence over
those of a configuration file. Writes results.bbox.json and metrics.json to `eval_output_path`, and with `draw_images`
so many images with their detections to `eval_output_path`/detections.
"""

import sys
from collections.abc import Sequence

from src.model_utils.config import Config
from src.runtime import run, run_configured


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code 0."""
    return run_configured(evaluate_detector, argv, model_keys=["checkpoint_path"])


def evaluate_detector(config: Config) -> None:
    """Score `checkpoint_path`."""
    from src.deploy.model_file import load_model
    from src.evaluation.scoring import Evaluation
    from src.runtime import init_device, with_available_device

    config = with_available_device(config)
    init_device(config)
    model = load_model(config.checkpoint_path, config)
    Evaluation(model.config).score(model)


if __name__ == "__main__":
    sys.exit(run(main))

"""Score a trained detector on a data set: the twelve COCO figures.

    python eval.py --dataset=coco --coco_root=COCO2017 --checkpoint_path=faster_rcnn.ckpt \
        --mindrecord_dir=MindRecord --device_target=CPU --backbone=resnet_v1.5_50

Writes results.bbox.json and metrics.json to `eval_output_path`, and with `draw_images` so many pictures with
their detections to `eval_output_path`/detections.
"""
import logging
import sys
from collections.abc import Sequence

from src.runtime import prepare_process, run

LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code 0."""
    prepare_process()          # before anything imports MindSpore
    from src.convert_checkpoint import load_detector
    from src.dataset import category_ids, coco_ground_truth, create_eval_dataset, ensure_mindrecord, image_path
    from src.draw import draw_results
    from src.FasterRcnn import build_detector
    from src.files import check_writable
    from src.model_utils.config import describe, load_config
    from src.runtime import init_device
    from src.transforms import read_rgb
    from src.util import CocoEvaluator, dataset_name, evaluate

    config = load_config(argv)
    for line in describe(config):
        LOGGER.info(line)
    init_device(config)
    output_dir = check_writable(config.eval_output_path)
    network = build_detector(config)
    load_detector(network, config.checkpoint_path)
    record_files = ensure_mindrecord(config, training=False)
    ground_truth = coco_ground_truth(config)
    evaluator = CocoEvaluator(ground_truth, category_ids(config, ground_truth), dataset_name(config))
    evaluate(network, create_eval_dataset(config, record_files), evaluator, batch_size=config.test_batch_size)
    evaluator.summarize(output_dir)
    if config.draw_images:
        draw_results(evaluator, lambda image: read_rgb(image_path(config, image["file_name"])),
                     output_dir / "detections", config.draw_images)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""Score the result files of the C++ program on a data set: the twelve COCO figures.

    python postprocess.py --anno_path=instances_val2017.json --result_path=result_Files

`--coco_classes` names the model's classes, as in training; without `--anno_path` the evaluation file below `coco_root`
is taken. Writes results.bbox.json and metrics.json to `eval_output_path`.
"""

import logging
import sys
from collections.abc import Sequence

from src.runtime import prepare_process, run

LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Score the files that the command line names; returns the exit code 0."""
    prepare_process()  # before anything imports MindSpore
    from src.common.files import check_writable
    from src.data.annotations import category_ids, coco_ground_truth
    from src.evaluation.result_files import add_result_files
    from src.model_utils.config import describe, load_config
    from src.model_utils.device_adapter import job
    from src.util import CocoEvaluator, dataset_name

    config = load_config(argv)
    for line in describe(config):
        LOGGER.info(line)
    with job(config) as config:
        output_dir = check_writable(config.eval_output_path)
        ground_truth = coco_ground_truth(config)
        evaluator = CocoEvaluator(
            ground_truth, category_ids(config, ground_truth), dataset_name(config), config.test_max_per_img
        )
        add_result_files(evaluator, config.result_path)
        evaluator.summarize(output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

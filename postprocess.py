"""Score the result files of the C++ program on a data set: the twelve COCO metrics.

    python postprocess.py --anno_path=instances_val2017.json --result_path=result_Files

`--coco_classes` names the model's classes, as in training; without `--anno_path` the evaluation file below `coco_root`
is taken. Writes results.bbox.json and metrics.json to `eval_output_path`.
"""

import sys
from collections.abc import Sequence

from src.model_utils.config import Config
from src.runtime import run, run_configured


def main(argv: Sequence[str] | None = None) -> int:
    """Score the files that the command line names; returns the exit code 0."""
    return run_configured(score_result_files, argv)


def score_result_files(config: Config) -> None:
    """Score the files in `result_path`."""
    from src.common.files import check_writable
    from src.data.annotations import category_ids, coco_ground_truth
    from src.data.class_names import with_classes
    from src.evaluation.result_files import add_result_files
    from src.util import CocoEvaluator, dataset_name

    output_dir = check_writable(config.eval_output_path)
    config = with_classes(config, training=False)
    ground_truth = coco_ground_truth(config)
    evaluator = CocoEvaluator(
        ground_truth, category_ids(config, ground_truth), dataset_name(config), config.test_max_per_img
    )
    add_result_files(evaluator, config.result_path)
    evaluator.summarize(output_dir)


if __name__ == "__main__":
    sys.exit(run(main))

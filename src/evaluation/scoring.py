"""The evaluation data of a run, ready to score any model: what eval.py, eval_onnx.py and training share."""

from collections.abc import Callable, Sequence

import numpy as np
from mindspore import nn

from src.common.files import check_writable
from src.data.image_files import read_rgb
from src.dataset import category_ids, coco_ground_truth, create_eval_dataset, ensure_mindrecord, image_path
from src.model_utils.config import Config
from src.predict.draw import draw_results
from src.util import CocoEvaluator, dataset_name, evaluate


class Evaluation:
    """Images and ground truth of a configuration.

    Args:
        config (Config): names the data; its `eval_output_path` takes the results.

    Raises:
        UserError: the results cannot be written, or the data cannot be used; see `ensure_mindrecord`.
    """

    def __init__(self, config: Config):
        self.config = config
        self.output_dir = check_writable(config.eval_output_path)
        self.record_files = ensure_mindrecord(config, training=False)
        # What there is to say of the file has been said with the records.
        self.ground_truth = coco_ground_truth(config, silent=True)

    def score(self, network: nn.Cell | Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]) -> dict[str, float]:
        """Score a model on every image; prints the twelve figures, writes `results.bbox.json` and `metrics.json`.

        With `draw_images` so many images are drawn with their detections into `detections/`.

        Args:
            network (Cell | Callable): see `src.util.evaluate`.

        Returns:
            dict[str, float]: see `src.util.CocoEvaluator.summarize`.
        """
        config = self.config
        evaluator = CocoEvaluator(
            self.ground_truth, category_ids(config, self.ground_truth), dataset_name(config), config.test_max_per_img
        )
        evaluate(network, create_eval_dataset(config, self.record_files), evaluator, batch_size=config.test_batch_size)
        metrics = evaluator.summarize(self.output_dir)
        if config.draw_images:
            draw_results(
                evaluator,
                lambda image: read_rgb(image_path(config, image["file_name"])),
                self.output_dir / "detections",
                config.draw_images,
            )
        return metrics

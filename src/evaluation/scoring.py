"""A model on the evaluation data of a run: what eval.py, eval_onnx.py and training share."""

import logging
import time
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn

from src.common.files import check_writable
from src.common.progress import with_progress
from src.data.image_files import read_rgb
from src.dataset import category_ids, coco_ground_truth, create_eval_dataset, ensure_mindrecord, image_path
from src.deploy.model_file import network_model
from src.model_utils.config import Config
from src.model_utils.errors import UserError
from src.predict.draw import draw_results
from src.util import CocoEvaluator, dataset_name

LOGGER = logging.getLogger(__name__)

# What is evaluated, such as a `src.deploy.model_file.Model`; the arrays are those of `evaluate`.
Detector = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


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

    def score(self, model: Detector) -> dict[str, float]:
        """Score a model on every image; logs the twelve metrics, writes `results.bbox.json` and `metrics.json`.

        With `draw_images` so many images are drawn with their detections into `detections/`.

        Args:
            model (Callable): see `evaluate`.

        Returns:
            dict[str, float]: see `src.util.CocoEvaluator.summarize`.
        """
        config = self.config
        evaluator = CocoEvaluator(
            self.ground_truth, category_ids(config, self.ground_truth), dataset_name(config), config.test_max_per_img
        )
        evaluate(model, create_eval_dataset(config, self.record_files), evaluator)
        metrics = evaluator.summarize(self.output_dir)
        if config.draw_images:
            draw_results(
                evaluator,
                lambda image: read_rgb(image_path(config, image["file_name"])),
                self.output_dir / "detections",
                config.draw_images,
            )
        return metrics


def network_scorer(network: nn.Cell, config: Config) -> Callable[[], dict[str, float]]:
    """Prepare the evaluation of a network between epochs.

    Args:
        network (Cell): a detector, built from this configuration.
        config (Config): names the data, see `Evaluation`.

    Returns:
        Callable: evaluates the network as it is and returns its metrics; compiles it at the first call.
    """
    evaluation = Evaluation(config)
    model = network_model(network, config)
    return lambda: evaluation.score(model)


def evaluate(model: Detector, dataset: ms.dataset.Dataset, evaluator: CocoEvaluator) -> None:
    """Run every image of a dataset through a model and hand the outputs to the evaluator.

    Args:
        model (Callable): a `src.deploy.model_file.Model`, or another function of these arrays: images (B, 3, H, W) and
            image metadata (B, 4), float32, to boxes (B, D, 5), labels (B, D, 1), mask (B, D, 1) and perhaps
            truncated (B,). It takes batches of the dataset's size, and a smaller one at the end.
        dataset (Dataset): columns image, image_shape, image_id; others are ignored.
        evaluator (CocoEvaluator): receives the detections.

    Raises:
        UserError: the dataset holds no images, or an image is unknown to the evaluator or comes twice.
    """
    start = time.perf_counter()
    num_images = num_truncated = first_images = 0
    first_seconds = 0.0
    batches = dataset.create_dict_iterator(num_epochs=1, output_numpy=True)
    for batch in with_progress(batches, dataset.get_dataset_size(), "evaluation", "batches"):
        boxes, labels, mask, *truncated = model(batch["image"], batch["image_shape"])
        image_ids = batch["image_id"].reshape(-1)
        evaluator.add(image_ids, boxes, labels, mask)
        num_images += len(image_ids)
        num_truncated += sum(int(np.count_nonzero(flags)) for flags in truncated)
        if not first_images:
            first_images, first_seconds = num_images, time.perf_counter() - start
    if not num_images:
        raise UserError("the evaluation data hold no images")
    _log_speed(num_images, time.perf_counter() - start, first_images, first_seconds)
    if num_truncated:
        LOGGER.warning(
            "%d of %d images had more candidate boxes than test_nms_candidates and fewer than %d survivors: weak "
            "detections there may be missing; raise test_nms_candidates for exact results",
            num_truncated,
            num_images,
            evaluator.max_detections,
        )


def _log_speed(num_images: int, seconds: float, first_images: int, first_seconds: float) -> None:
    """Images per second without the first batch, which pays for the compilation."""
    speed = ""
    if num_images > first_images:
        rate = (num_images - first_images) / max(seconds - first_seconds, 1e-9)
        speed = f": {rate:.2f} images/s after the first batch ({first_seconds:.1f} s with compilation)"
    LOGGER.info("evaluated %d images in %.1f s%s", num_images, seconds, speed)

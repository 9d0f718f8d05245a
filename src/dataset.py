"""Images and ground truth for the network: record files, and the pipelines that read them.

The columns are `image, image_shape, box, label, valid_num`, for evaluation also `image_id`. All work on an
image happens in Python with OpenCV (`src.data.transforms`), inside MindSpore's batching: MindSpore's own decoder
ends the process on damaged files, and only the batching tells a function which epoch it works for.

What is random about an image (augmentation, choice of boxes) depends on the seed, the epoch and the image id
alone: not on the number of workers, processes or devices, and not on when training was resumed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import mindspore.dataset as ds
import numpy as np

from src.data.annotations import category_ids, coco_ground_truth, load_annotations
from src.data.conversion import num_workers
from src.data.data_paths import image_path
from src.data.image_files import ImageError, decode_rgb
from src.data.records import ensure_mindrecord
from src.data.transforms import Canvas, evaluation_input, pad_ground_truth, training_input
from src.model_utils.config import Config
from src.model_utils.errors import UserError

__all__ = [
    "category_ids",
    "coco_ground_truth",
    "create_eval_dataset",
    "create_train_dataset",
    "ensure_mindrecord",
    "image_path",
    "load_annotations",
]

LOGGER = logging.getLogger(__name__)

RECORD_COLUMNS = ["image", "image_id", "num_boxes", "box", "label", "crowd"]
TRAIN_COLUMNS = ["image", "image_shape", "box", "label", "valid_num"]
EVAL_COLUMNS = [*TRAIN_COLUMNS, "image_id"]
# Worker threads spend their time in OpenCV, which lets others run; measured, processes are slower than threads
# at 1 and 2 workers because every image is copied once more. From here on Python's lock may cost more.
MIN_WORKERS_FOR_PROCESSES = 4
# Batches kept ready in each queue of the pipeline. At 768 x 1280 a batch of 2 is 24 MB; MindSpore's own 16 were
# measured to be no faster.
PREFETCH_BATCHES = 4


@dataclass(frozen=True)
class Preparation:
    """What both pipelines do alike: the parameters, and the loop over the rows of a batch.

    Attributes:
        canvas (Canvas): the network's input size.
        num_gts (int): ground truth rows per image, G.
        seed (int): of everything random.
    """

    canvas: Canvas
    num_gts: int
    seed: int

    def __call__(self, image, image_id, num_boxes, box, label, crowd, batch_info):
        """Turn the raw columns of a batch, lists of arrays, into those for the network."""
        rows = []
        for data, number, count, *ground_truth in zip(image, image_id, num_boxes, box, label, crowd, strict=True):
            try:
                rows.append(
                    self.prepare(
                        data.view(np.uint8),
                        int(number),
                        [array[: int(count)] for array in ground_truth],
                        batch_info.get_epoch_num(),
                    )
                )
            except (ImageError, cv2.error, ValueError) as error:
                raise RuntimeError(f"the image with image id {int(number)}: {error}") from error
        return tuple(list(column) for column in zip(*rows, strict=True))

    def prepare(
        self, data: np.ndarray, image_id: int, ground_truth: Sequence[np.ndarray], epoch: int
    ) -> tuple[np.ndarray, ...]:
        """One image: file content (num_bytes,) uint8 and its boxes, labels and crowd flags."""
        raise NotImplementedError


@dataclass(frozen=True)
class TrainPreparation(Preparation):
    """Augmented images.

    Attributes:
        expand_ratio (float): half of it is the probability of expanding.
        flip_ratio (float): the probability of flipping.
        first_epoch (int): number of the pipeline's first epoch, counted from 0.
        with_image_id (bool): give the image id as a last column.
    """

    expand_ratio: float = 1.0
    flip_ratio: float = 0.5
    first_epoch: int = 0
    with_image_id: bool = False

    def prepare(self, data, image_id, ground_truth, epoch):
        boxes, labels, is_crowd = ground_truth
        rng = np.random.default_rng([self.seed, self.first_epoch + epoch, image_id])
        image, image_shape, boxes = training_input(
            decode_rgb(data), boxes, self.canvas, rng=rng, expand_ratio=self.expand_ratio, flip_ratio=self.flip_ratio
        )
        row = (image, image_shape, *pad_ground_truth(boxes, labels, is_crowd.astype(bool), self.num_gts, rng))
        return (*row, np.int64(image_id)) if self.with_image_id else row


@dataclass(frozen=True)
class EvalPreparation(Preparation):
    """Images as they are; the boxes stay in pixels of the original image."""

    def prepare(self, data, image_id, ground_truth, epoch):
        boxes, labels, is_crowd = ground_truth
        image, image_shape = evaluation_input(decode_rgb(data), self.canvas)
        rng = np.random.default_rng([self.seed, image_id])
        padded = pad_ground_truth(boxes, labels, is_crowd.astype(bool), self.num_gts, rng)
        return image, image_shape, *padded, np.int64(image_id)


def create_train_dataset(
    config: Config,
    record_files: Sequence[str],
    *,
    rank: int = 0,
    num_shards: int = 1,
    first_epoch: int = 0,
    with_image_id: bool = False,
) -> ds.Dataset:
    """The training pipeline: another order and other augmentations each epoch, the same for the same seed.

    The epochs are those of one iterator: take `create_*_iterator(num_epochs=E)` once. A new iterator starts
    again from `first_epoch`, which is what resuming training needs.

    Args:
        config (Config): sizes, augmentation, batch size, workers and seed.
        record_files (Sequence[str]): from `ensure_mindrecord`.
        rank (int): of this process, 0..num_shards-1; it reads every num_shards-th row of the epoch's order.
        num_shards (int): processes that share an epoch. All take the same number of steps, so rows left over
            sit out, others each epoch.
        first_epoch (int): number of the first epoch, counted from 0.
        with_image_id (bool): add the column image_id (B,) int64, to say which images were in a batch.

    Returns:
        Dataset: batches of `batch_size` B, the last partial one dropped: image (B, 3, H, W) float32,
        image_shape (B, 3) float32 [H, W, 1], box (B, G, 4) float32 pixels of the canvas, label (B, G) int32
        1..K or -1, valid_num (B, G) bool.

    Raises:
        UserError: a process has fewer images than a batch needs.
    """
    num_rows = ds.MindDataset(list(record_files), shuffle=False, num_parallel_workers=1).get_dataset_size()
    rows_each = num_rows // num_shards
    if rows_each < config.batch_size:
        raise UserError(
            f"{num_rows} training images on {num_shards} devices are {rows_each} for each, fewer than "
            f"batch_size {config.batch_size}: an epoch would have 0 steps. Use more images or a "
            "smaller batch_size"
        )
    # Cutting to rows_each keeps the shards disjoint: MindSpore fills up uneven ones with rows of others.
    sampler = ds.DistributedSampler(num_shards, rank, shuffle=True, num_samples=rows_each)
    # The sampler adds 1 for every epoch, so the seeds 1 and 2 themselves would share all orders but one. Set here and
    # not by ds.config.set_seed, which would also seed Python and numpy for the whole process.
    order_seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    sampler.seed = (order_seed + first_epoch) % 2**32
    rows = ds.MindDataset(list(record_files), RECORD_COLUMNS, sampler=sampler, num_parallel_workers=1)
    prepare = TrainPreparation(
        _canvas(config),
        config.num_gts,
        config.seed,
        expand_ratio=config.expand_ratio,
        flip_ratio=config.flip_ratio,
        first_epoch=first_epoch,
        with_image_id=with_image_id,
    )
    columns = [*TRAIN_COLUMNS, "image_id"] if with_image_id else TRAIN_COLUMNS
    return _batched(rows, config, prepare, columns, config.batch_size, drop_remainder=True)


def create_eval_dataset(config: Config, record_files: Sequence[str]) -> ds.Dataset:
    """The evaluation pipeline: every image once, in the order of the annotation file.

    Args:
        config (Config): sizes, `test_batch_size` and workers.
        record_files (Sequence[str]): from `ensure_mindrecord`.

    Returns:
        Dataset: batches of `test_batch_size` B, the last one smaller if the images do not fill it: image
        (B, 3, H, W) float32, image_shape (B, 4) float32 [h, w, scale_h, scale_w] with the size of the original
        image, box (B, G, 4) float32 in its pixels, label (B, G) int32, valid_num (B, G) bool, image_id (B,)
        int64.
    """
    rows = ds.MindDataset(list(record_files), RECORD_COLUMNS, shuffle=False, num_parallel_workers=1)
    prepare = EvalPreparation(_canvas(config), config.num_gts, config.seed)
    return _batched(rows, config, prepare, EVAL_COLUMNS, config.test_batch_size, drop_remainder=False)


def _canvas(config: Config) -> Canvas:
    return Canvas(config.img_width, config.img_height, config.keep_ratio)


def _batched(
    rows: ds.Dataset, config: Config, prepare: Preparation, columns: list[str], batch_size: int, *, drop_remainder: bool
) -> ds.Dataset:
    cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's own threads also hang after a fork
    ds.config.set_prefetch_size(PREFETCH_BATCHES)
    workers = num_workers(config)
    processes = config.python_multiprocessing and workers >= MIN_WORKERS_FOR_PROCESSES
    dataset = rows.batch(
        batch_size,
        drop_remainder=drop_remainder,
        num_parallel_workers=workers,
        per_batch_map=prepare,
        input_columns=RECORD_COLUMNS,
        output_columns=columns,
        python_multiprocessing=processes,
    )
    return dataset.project(columns)

"""Images and ground truth for the network: record files, and the pipelines that read them.

The columns are `image, image_shape, box, label, valid_num`, for evaluation also `image_id`. All work on an
image happens in Python with OpenCV (`src.data.transforms`), inside MindSpore's batching: MindSpore's own decoder
ends the process on damaged files, and only the batching tells a function which epoch it works for.

What is random about an image (augmentation, choice of boxes, partners in a mosaic) depends on the seed, the epoch and
the image id alone, for repeated images also on which time it is: not on the number of workers, processes or devices,
and not on when training was resumed.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import mindspore.dataset as ds
import numpy as np

from src.common.wording import count_of, listed
from src.data.annotations import category_ids, coco_ground_truth, load_annotations
from src.data.conversion import num_workers
from src.data.data_paths import image_path
from src.data.image_files import ImageError, decode_rgb
from src.data.records import ensure_mindrecord
from src.data.repeats import class_factors, epoch_length, epoch_rows, image_factors
from src.data.transforms import Canvas, LabelledImage, evaluation_input, mosaic, pad_ground_truth, training_input
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


class RecordReader:
    """Rows of record files by their number, for the threads and processes of a pipeline alike.

    Rows are numbered from 0 in the order of their image ids: MindRecord's own order is another one each time that the
    same images are converted.

    Args:
        record_files (Sequence[str]): from `ensure_mindrecord`.
        num_classes (int): background included.

    Attributes:
        has_class (np.ndarray): (N, num_classes - 1) bool, whether a row has a box of the class, crowds left out.
    """

    def __init__(self, record_files: Sequence[str], num_classes: int):
        self._files = list(record_files)
        self._opened: tuple[int, ds.MindDataset] | None = None
        labels = self._dataset(["image_id", "num_boxes", "label", "crowd"])
        ids, has_class = [], []
        for image_id, count, label, crowd in labels.create_tuple_iterator(num_epochs=1, output_numpy=True):
            ids.append(int(image_id))
            has_class.append(np.isin(np.arange(1, num_classes), label[:count][crowd[:count] == 0]))
        self._places = np.argsort(ids)
        self.has_class = np.array(has_class)[self._places]

    def __getitem__(self, row: int) -> list[np.ndarray]:
        """The `RECORD_COLUMNS` of a row."""
        opened = self._opened
        # Processes that share open files would move each other's place in them.
        if opened is None or opened[0] != os.getpid():
            opened = self._opened = os.getpid(), self._dataset(RECORD_COLUMNS)
        return opened[1][int(self._places[row])]

    def _dataset(self, columns: list[str]) -> ds.MindDataset:
        return ds.MindDataset(self._files, columns, shuffle=False, num_parallel_workers=1)


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
        rows = zip(image, image_id, num_boxes, box, label, crowd, strict=True)
        return _columns_of([self.prepared(row, batch_info.get_epoch_num()) for row in rows])

    def prepared(self, row: Sequence[np.ndarray], epoch: int, repeat: int = 0) -> tuple[np.ndarray, ...]:
        """The columns of one image.

        Args:
            row (Sequence[np.ndarray]): its `RECORD_COLUMNS`.
            epoch (int): of this pipeline, counted from 0.
            repeat (int): how many times the image has come before in this epoch.

        Raises:
            RuntimeError: naming the image id.
        """
        image_id = int(row[1])
        with _named(image_id):
            return self.prepare(_labelled_image(row), image_id, epoch, repeat)

    def prepare(self, example: LabelledImage, image_id: int, epoch: int, repeat: int) -> tuple[np.ndarray, ...]:
        """One image with its boxes, labels and crowd flags."""
        raise NotImplementedError


def _labelled_image(row: Sequence[np.ndarray]) -> LabelledImage:
    data, _, num_boxes, boxes, labels, is_crowd = row
    count = int(num_boxes)
    return decode_rgb(data.view(np.uint8)), boxes[:count], labels[:count], is_crowd[:count].astype(bool)


def _columns_of(rows: Sequence[tuple[np.ndarray, ...]]) -> tuple[list[np.ndarray], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


@contextlib.contextmanager
def _named(image_id: int) -> Iterator[None]:
    try:
        yield
    except (ImageError, cv2.error, ValueError) as error:
        raise RuntimeError(f"the image with image id {image_id}: {error}") from error


@dataclass(frozen=True)
class MosaicPartners:
    """Where mosaics get their other three images from.

    Attributes:
        reader (RecordReader): of all images.
        factors (np.ndarray): (N,) how often each row comes in an epoch; it is drawn as often.
    """

    reader: RecordReader
    factors: np.ndarray

    def draw(self, rng: np.random.Generator) -> Iterator[LabelledImage]:
        """Three images, each drawn from all; the same one may come again."""
        ends = np.cumsum(self.factors)
        for number in np.searchsorted(ends, rng.random(3) * ends[-1], side="right"):
            row = self.reader[number]
            with _named(int(row[1])):
                partner = _labelled_image(row)
            yield partner


@dataclass(frozen=True)
class TrainPreparation(Preparation):
    """Augmented images.

    Attributes:
        augmentation (dict): the settings of `training_input`.
        mosaic_ratio (float): the probability of a mosaic, if there are partners.
        partners (MosaicPartners | None): the other images of mosaics.
        first_epoch (int): number of the pipeline's first epoch, counted from 0.
        with_image_id (bool): give the image id as a last column.
    """

    augmentation: dict[str, float]
    mosaic_ratio: float = 0.0
    partners: MosaicPartners | None = None
    first_epoch: int = 0
    with_image_id: bool = False

    def prepare(self, example, image_id, epoch, repeat):
        # A first time has the numbers of an epoch without repeats.
        rng = np.random.default_rng([self.seed, self.first_epoch + epoch, image_id, *([repeat] if repeat else [])])
        if self.partners is not None and rng.random() < self.mosaic_ratio:
            example = mosaic([example, *self.partners.draw(rng)], self.canvas, rng)
        image, boxes, labels, is_crowd = example
        image, image_shape, boxes = training_input(image, boxes, self.canvas, rng=rng, **self.augmentation)
        row = (image, image_shape, *pad_ground_truth(boxes, labels, is_crowd, self.num_gts, rng))
        return (*row, np.int64(image_id)) if self.with_image_id else row


class RepeatedRows:
    """Batches of an epoch in which images repeat: places in its list become the images that stand there.

    Args:
        preparation (TrainPreparation): of each image.
        reader (RecordReader): of all images.
        factors (np.ndarray): (N,) how often each row comes in an epoch; they make the list.
        rank (int): of this process, which takes every num_shards-th place.
        num_shards (int): processes that share an epoch.
    """

    def __init__(
        self, preparation: TrainPreparation, reader: RecordReader, factors: np.ndarray, rank: int, num_shards: int
    ):
        self.preparation = preparation
        self.reader = reader
        self.factors = factors
        self.rank = rank
        self.num_shards = num_shards
        self._known: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, place, batch_info):
        """Turn the places of a batch into the columns for the network."""
        epoch, prepare = batch_info.get_epoch_num(), self.preparation
        known = self._known
        if known is None or known[0] != epoch:  # the list of COCO takes longer than an image
            lists = epoch_rows(self.factors, prepare.seed, prepare.first_epoch + epoch)
            known = self._known = epoch, *lists
        _, rows, repeats = known
        places = [int(number) * self.num_shards + self.rank for number in place]
        return _columns_of([prepare.prepared(self.reader[rows[at]], epoch, int(repeats[at])) for at in places])


@dataclass(frozen=True)
class EvalPreparation(Preparation):
    """Images as they are; the boxes stay in pixels of the original image."""

    def prepare(self, example, image_id, epoch, repeat):
        image, boxes, labels, is_crowd = example
        image, image_shape = evaluation_input(image, self.canvas)
        rng = np.random.default_rng([self.seed, image_id])
        padded = pad_ground_truth(boxes, labels, is_crowd, self.num_gts, rng)
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
        config (Config): sizes, augmentation, batch size, workers and seed. With `repeat_thr` images of rare classes
            come several times in an epoch, whose length is logged and always the same.
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
    reader = RecordReader(record_files, config.num_classes) if config.mosaic_ratio or config.repeat_thr else None
    factors = np.ones(num_rows)
    if reader is not None and config.repeat_thr:
        factors = _repeat_factors(config, reader.has_class, log=rank == 0)
    num_images = epoch_length(factors)
    rows_each = num_images // num_shards
    if rows_each < config.batch_size:
        raise UserError(
            f"{num_images} training images on {num_shards} devices are {rows_each} for each, fewer than "
            f"batch_size {config.batch_size}: an epoch would have 0 steps. Use more images or a "
            "smaller batch_size"
        )
    prepare = TrainPreparation(
        _canvas(config),
        config.num_gts,
        config.seed,
        {key: getattr(config, key) for key in ("photometric_ratio", "expand_ratio", "flip_ratio", "min_scale")},
        mosaic_ratio=config.mosaic_ratio,
        partners=MosaicPartners(reader, factors) if reader is not None and config.mosaic_ratio else None,
        first_epoch=first_epoch,
        with_image_id=with_image_id,
    )
    columns = [*TRAIN_COLUMNS, "image_id"] if with_image_id else TRAIN_COLUMNS
    if reader is not None and config.repeat_thr:
        # MindSpore has no sampler whose list changes from epoch to epoch; `RepeatedRows` looks the places up.
        rows = ds.NumpySlicesDataset(np.arange(rows_each), ["place"], shuffle=False)
        repeated = RepeatedRows(prepare, reader, factors, rank, num_shards)
        return _batched(rows, config, repeated, columns, config.batch_size)
    # Cutting to rows_each keeps the shards disjoint: MindSpore fills up uneven ones with rows of others.
    sampler = ds.DistributedSampler(num_shards, rank, shuffle=True, num_samples=rows_each)
    # The sampler adds 1 for every epoch, so the seeds 1 and 2 themselves would share all orders but one. Set here and
    # not by ds.config.set_seed, which would also seed Python and numpy for the whole process.
    order_seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    sampler.seed = (order_seed + first_epoch) % 2**32
    rows = ds.MindDataset(list(record_files), RECORD_COLUMNS, sampler=sampler, num_parallel_workers=1)
    return _batched(rows, config, prepare, columns, config.batch_size)


def _repeat_factors(config: Config, has_class: np.ndarray, *, log: bool) -> np.ndarray:
    """(N,) how often each image comes in an epoch, on average, for the rare classes in it."""
    shares, of_classes = class_factors(has_class, config.repeat_thr)
    factors = image_factors(has_class, of_classes)
    if log:
        repeated = [
            f"{config.class_names[index]} {of_classes[index]:.2f} times (in {100 * shares[index]:.3g} % of the images)"
            for index in np.argsort(-of_classes, kind="stable")
            if of_classes[index] > 1
        ]
        LOGGER.info(
            "repeat_thr %g: an epoch has %s, made from %d; repeated: %s",
            config.repeat_thr,
            count_of(epoch_length(factors), "image"),
            len(has_class),
            listed(repeated) or "none, every class is in more of the images",
        )
    return factors


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
    rows: ds.Dataset,
    config: Config,
    prepare: Preparation | RepeatedRows,
    columns: list[str],
    batch_size: int,
    *,
    drop_remainder: bool = True,
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
        input_columns=rows.get_col_names(),
        output_columns=columns,
        python_multiprocessing=processes,
    )
    return dataset.project(columns)

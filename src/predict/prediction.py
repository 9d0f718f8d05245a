"""Images and videos through a detector: drawn copies, and every detection in a JSON or CSV file."""

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from src.common.files import write_bytes, write_json
from src.common.progress import with_progress
from src.common.wording import count_of
from src.data.image_files import ImageError, read_rgb
from src.data.transforms import evaluation_input
from src.deploy.model_file import Model
from src.model_utils.errors import UserError
from src.predict.draw import draw_detections, write_image
from src.predict.image_sources import is_video, left_out_summary
from src.predict.video import VideoReader, VideoWriter
from src.util import Detections, detections_from_outputs

LOGGER = logging.getLogger(__name__)

RESULTS_NAME = "predictions"
CSV_COLUMNS = ("picture", "frame", "label", "name", "score", "x1", "y1", "x2", "y2")
_BOX_DIGITS, _SCORE_DIGITS = 2, 4  # decimals in the results

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """What was found in one image or frame.

    Attributes:
        picture (str): the input file.
        frame (int | None): number in the video, from 0; None for an image.
        drawn (str): the file that shows it.
        width, height (int): pixels, of the input and not of the drawn copy.
        detections (list[dict]): best first, each with label, name, score and bbox_xyxy in pixels of the input.
    """

    picture: str
    frame: int | None
    drawn: str
    width: int
    height: int
    detections: list[dict[str, Any]]


def detect(model: Model, images: Sequence[np.ndarray]) -> list[Detections]:
    """Run images through a model.

    Args:
        model (Model): see `src.deploy.model_file.load_model`.
        images (Sequence[np.ndarray]): up to `model.batch_size` images (h, w, 3) uint8 RGB of any sizes.

    Returns:
        list[Detections]: one per image, boxes in its pixels.

    Raises:
        UserError: the model gives a label for which it has no name.
    """
    inputs = [evaluation_input(image, model.info.canvas) for image in images]
    boxes, labels, mask = model(*(np.stack(column) for column in zip(*inputs, strict=True)))[:3]
    found = [
        detections_from_outputs(*outputs, max_detections=None) for outputs in zip(boxes, labels, mask, strict=True)
    ]
    num_classes = len(model.info.class_names)
    for detections in found:
        wrong = detections.labels[(detections.labels < 0) | (detections.labels >= num_classes)]
        if len(wrong):
            raise UserError(
                f"the model found class {wrong[0]}, but it has names for {num_classes} classes: "
                "names and weights do not belong together"
            )
    return found


class Predictor:
    """Runs inputs through a model, draws what it finds, and collects the results.

    Args:
        model (Model): the detector.
        output_dir (str | Path): an existing folder, for the file of results.
        score_thr (float): detections below it are neither drawn nor listed.
        left_out (Sequence[Path]): what of the user's input is not an input of `run`, for the summary. Default: nothing.

    Attributes:
        predictions (list[Prediction]): one for every image and frame so far, in order.
        skipped (list[str]): inputs that could not be read, each with the reason.
    """

    def __init__(self, model: Model, output_dir: str | Path, score_thr: float, left_out: Sequence[Path] = ()):
        self.model = model
        self.output_dir = Path(output_dir)
        self.score_thr = score_thr
        self.left_out = left_out
        self.predictions: list[Prediction] = []
        self.skipped: list[str] = []
        self._num_dropped = 0
        self._batch_size = model.batch_size or 1
        self._seconds = 0.0

    def run(self, inputs: Sequence[Path], targets: Sequence[Path]) -> None:
        """Work through images, then videos. Inputs that cannot be read are named in a warning and left out.

        Args:
            inputs (Sequence[Path]): files, see `src.predict.image_sources.find_inputs`.
            targets (Sequence[Path]): the drawn copy of each, see `src.predict.image_sources.output_paths`.

        Raises:
            UserError: none of them could be read, or an output cannot be written.
        """
        start = time.perf_counter()
        jobs = list(zip(inputs, targets, strict=True))
        images = [(source, target) for source, target in jobs if not is_video(source)]
        for batch in _batched(with_progress(images, len(images), "detecting", "images"), self._batch_size):
            self._predict_images(batch)
        for source, target in jobs:
            if is_video(source):
                try:
                    self._predict_video(source, target)
                except ImageError as error:
                    self._skip(error)
        if not self.predictions:
            raise UserError(f"{count_of(len(inputs), 'input')} and none that could be read: the warnings above say why")
        if self._num_dropped:
            LOGGER.warning(
                "%d detections held NaN or infinity and were left out: the model is damaged", self._num_dropped
            )
        self._seconds = time.perf_counter() - start

    def _predict_images(self, batch: Iterable[tuple[Path, Path]]) -> None:
        readable = []
        for source, target in batch:
            try:
                readable.append((source, target, read_rgb(source)))
            except ImageError as error:
                self._skip(error)
        if not readable:
            return
        for (source, target, image), found in zip(readable, self._detect([row[2] for row in readable]), strict=True):
            write_image(target, self._draw(image, found))
            self._keep(source, None, target, image, found)

    def _predict_video(self, source: Path, target: Path) -> None:
        video, before = VideoReader(source), len(self.predictions)
        with VideoWriter(target, video.frame_rate) as drawn:
            for frames in _batched(with_progress(video, video.num_frames, source.name, "frames"), self._batch_size):
                for image, found in zip(frames, self._detect(frames), strict=True):
                    drawn.write(self._draw(image, found))
                    self._keep(source, len(self.predictions) - before, target, image, found)
        if len(self.predictions) == before:
            raise ImageError(f"{source}: holds no frame that can be read")

    def _skip(self, error: ImageError) -> None:
        LOGGER.warning("skipped: %s", error)
        self.skipped.append(str(error))

    def _detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """The detections from the threshold on."""
        found = detect(self.model, images)
        self._num_dropped += sum(detections.num_dropped for detections in found)
        counts = [int(np.count_nonzero(detections.scores >= self.score_thr)) for detections in found]
        return [
            Detections(detections.boxes_xyxy[:count], detections.scores[:count], detections.labels[:count])
            for detections, count in zip(found, counts, strict=True)
        ]

    def _draw(self, image: np.ndarray, found: Detections) -> np.ndarray:
        return draw_detections(
            image, found.boxes_xyxy, found.labels, found.scores, self.model.info.class_names, score_thr=self.score_thr
        )

    def _keep(self, source: Path, frame: int | None, drawn: Path, image: np.ndarray, found: Detections) -> None:
        names = self.model.info.class_names
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
        detections = [
            {
                "label": label,
                "name": names[label],
                "score": round(score, _SCORE_DIGITS),
                "bbox_xyxy": [round(number, _BOX_DIGITS) for number in box],
            }
            for label, score, box in rows
        ]
        self.predictions.append(Prediction(str(source), frame, str(drawn), image.shape[1], image.shape[0], detections))

    def write_results(self, kind: str) -> Path:
        """Write `predictions.json` or `predictions.csv` into the output folder, whole or not at all.

        JSON: the model, its classes, the threshold, under `pictures` every `Prediction`, also those without
        detections, the summary without its times, and in full what it counts as `skipped` and `left_out`. CSV: a row
        per detection with the columns `CSV_COLUMNS`; frame is empty for images.

        Args:
            kind (str): "json" or "csv".

        Returns:
            Path: the file.

        Raises:
            UserError: it cannot be written.
        """
        path = self.output_dir / f"{RESULTS_NAME}.{kind}"
        if kind == "csv":
            return write_bytes(path, _as_csv(self.predictions))
        content = {
            "model": str(self.model.path),
            "class_names": self.model.info.class_names,
            "score_thr": self.score_thr,
            "pictures": list(map(asdict, self.predictions)),
            "summary": f"{self._found()}; {self._not_read()}",
            "skipped": self.skipped,
            "left_out": list(map(str, self.left_out)),
        }
        return write_json(path, content, indent=1)

    def summary(self) -> str:
        """One line: images, detections, how many of each class, time, speed, inputs skipped and files left out."""
        speed = len(self.predictions) / max(self._seconds, 1e-9)
        return f"{self._found()} in {self._seconds:.1f} s, {speed:.2f} images/s, start-up included; {self._not_read()}"

    def _found(self) -> str:
        names = Counter(found["name"] for prediction in self.predictions for found in prediction.detections)
        per_class = ", ".join(f"{name} {number}" for name, number in names.most_common())
        num_frames = sum(prediction.frame is not None for prediction in self.predictions)
        numbers = (len(self.predictions) - num_frames, "image"), (num_frames, "frame")
        what = " and ".join(count_of(number, unit) for number, unit in numbers if number)
        return f"{what}, {count_of(names.total(), 'detection')}{f' ({per_class})' if per_class else ''}"

    def _not_read(self) -> str:
        left_out = f"; {left_out_summary(self.left_out)}" if self.left_out else ""
        return f"{count_of(len(self.skipped), 'input')} skipped{left_out}"


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter if they do not fill it."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _as_csv(predictions: Sequence[Prediction]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for prediction in predictions:
        frame = "" if prediction.frame is None else prediction.frame
        writer.writerows(
            [prediction.picture, frame, found["label"], found["name"], found["score"], *found["bbox_xyxy"]]
            for found in prediction.detections
        )
    return text.getvalue().encode(errors="surrogateescape")  # names of files need not be UTF-8

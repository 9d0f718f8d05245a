"""The one evaluation path: network outputs -> detections -> the twelve COCO metrics and the result files.

`eval.py`, `eval_onnx.py`, `postprocess.py` and the evaluation during training all end in `CocoEvaluator`, so one model
gets the same metrics whichever way it is run. Nothing here needs MindSpore. Size letters: B images, D detection rows
per image.
"""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.common.files import write_json
from src.common.wording import listed
from src.model_utils.config import Config, load_config
from src.model_utils.errors import UserError

LOGGER = logging.getLogger(__name__)

# pycocotools' COCOeval.stats, in its order; AR100 and the metrics without a number are at the last of `max_dets`
METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Per image, over all classes: the COCO protocol, whose AR1 and AR10 are at the best 1 and 10 of a class.
MAX_DETECTIONS = 100
RESULTS_FILE = "results.bbox.json"
METRICS_FILE = "metrics.json"
COCO_FOLDER_NAMES = ("coco", "coco2017")
_MAX_IDS_SHOWN = 5


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first.

    Attributes:
        boxes_xyxy (np.ndarray): (D, 4) float64, pixels of the original image.
        scores (np.ndarray): (D,) float64, falling.
        labels (np.ndarray): (D,) int64, 0 = first foreground class.
        num_dropped (int): rows left out because a number in them was NaN or infinite.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    num_dropped: int = 0


def detections_from_outputs(
    boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray, max_detections: int | None = MAX_DETECTIONS
) -> Detections:
    """Turn the padded output rows of one image into its detections.

    Rows that are masked or hold a NaN or infinity go; of the rest the best `max_detections` over all classes
    stay. Equal scores are ordered by label, then by box, so the order of the rows never matters.

    Args:
        boxes (np.ndarray): (D, 5) float, x1 y1 x2 y2 in pixels and the score.
        labels (np.ndarray): (D, 1) or (D,) int.
        mask (np.ndarray): (D, 1) or (D,) bool, False on padding rows.
        max_detections (int | None): most detections kept, default 100; None keeps all.

    Returns:
        Detections: at most `max_detections` rows, best score first.

    Raises:
        ValueError: the arrays do not have these shapes.
    """
    boxes = np.asarray(boxes, np.float64)
    labels, mask = np.asarray(labels).reshape(-1), np.asarray(mask).reshape(-1).astype(bool)
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not len(boxes) == len(labels) == len(mask):
        raise ValueError(
            f"expected boxes (D, 5) with D labels and D mask rows, got boxes {boxes.shape}, "
            f"{len(labels)} labels, {len(mask)} mask rows"
        )
    finite = np.isfinite(boxes).all(axis=1)
    rows, row_labels = boxes[mask & finite], labels[mask & finite].astype(np.int64)
    x1, y1, x2, y2, scores = rows.T
    order = np.lexsort((y2, x2, y1, x1, row_labels, -scores))[:max_detections]
    return Detections(rows[order, :4], scores[order], row_labels[order], int((mask & ~finite).sum()))


def dataset_name(config: Config) -> str:
    """The name in the header of the result: the name of the data's folder, `COCO2017` for COCO's own.

    The folder is `coco_root`, where that is absent (postprocess.py needs no images) the annotations'; for
    `dataset: other` it is `image_dir` or else the folder of `anno_path`. COCO's own is a folder called coco or
    coco2017, in upper or lower case, evaluated on the 80 classes of COCO.
    """
    if config.dataset == "coco":
        folder = Path(config.coco_root).resolve()
        if config.anno_path and not folder.is_dir():
            folder = Path(config.anno_path).resolve().parent
            folder = folder.parent if folder.name == "annotations" else folder
        if folder.name.lower() in COCO_FOLDER_NAMES and set(config.coco_classes) == set(load_config([]).coco_classes):
            return "COCO2017"
        return folder.name
    return Path(config.image_dir or Path(config.anno_path).parent).resolve().name


class CocoEvaluator:
    """Collect detections image by image and score them with pycocotools.

    Detections are joined to the ground truth by image id: order, batch size and number of workers do not
    matter. Every image of the ground truth has to arrive exactly once.

    Args:
        ground_truth (dict): COCO format with `images`, `annotations`, `categories`; it is not changed.
            Annotation ids are renumbered from 1 (pycocotools takes id 0 for "no match"); `area` and
            `iscrowd` are filled in where they are missing.
        category_ids (Sequence[int]): the file's category id of label 0, 1, ...; only these are scored.
        dataset_name (str): for the header `Result on NAME dataset`.
        max_detections (int): best detections kept per image over all classes, default 100. Above 100 the metrics are
            at so many too.

    Attributes:
        max_dets (tuple[int, int, int]): pycocotools' `maxDets`: 1, 10, and 100 or `max_detections` if that is more.

    Raises:
        UserError: no images, an image id twice, or a category id that is not in the ground truth.
    """

    def __init__(
        self, ground_truth: dict, category_ids: Sequence[int], dataset_name: str, max_detections: int = MAX_DETECTIONS
    ):
        self.ground_truth = _prepared_ground_truth(ground_truth)
        self.category_ids = tuple(int(category_id) for category_id in category_ids)
        self.dataset_name = dataset_name
        self.max_detections = max_detections
        self.max_dets = (1, 10, max(MAX_DETECTIONS, max_detections))
        self._image_ids = [image["id"] for image in ground_truth["images"]]
        self._known_ids = frozenset(self._image_ids)
        self._detections: dict[int, Detections] = {}
        if not self._image_ids:
            raise UserError("the ground truth holds no images: nothing to evaluate")
        if len(self._known_ids) < len(self._image_ids):
            twice = next(i for i in self._image_ids if self._image_ids.count(i) > 1)
            raise UserError(f"image id {twice} is twice in the ground truth; image ids must be unique")
        unknown = set(self.category_ids) - {category["id"] for category in ground_truth["categories"]}
        if unknown:
            raise UserError(f"category ids {sorted(unknown)} are not in the ground truth's categories")

    @property
    def num_images(self) -> int:
        """Images of the ground truth that have arrived so far."""
        return len(self._detections)

    def add(self, image_ids: Iterable[int], boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> None:
        """Take the outputs of a batch.

        Args:
            image_ids (Iterable[int]): B ids, as carried through the data pipeline.
            boxes (np.ndarray): (B, D, 5) float, x1 y1 x2 y2 in pixels of the original image, and the score.
            labels (np.ndarray): (B, D, 1) or (B, D) int, 0 = first foreground class.
            mask (np.ndarray): (B, D, 1) or (B, D) bool, False on padding rows.

        Raises:
            UserError: an image id is unknown or arrives twice, or a label has no category.
            ValueError: the arrays do not fit together.
        """
        image_ids = [int(image_id) for image_id in image_ids]
        if not len(image_ids) == len(boxes) == len(labels) == len(mask):
            raise ValueError(
                f"{len(image_ids)} image ids for {len(boxes)} rows of boxes, {len(labels)} of "
                f"labels, {len(mask)} of masks"
            )
        for image_id, image_boxes, image_labels, image_mask in zip(image_ids, boxes, labels, mask, strict=True):
            if image_id not in self._known_ids:
                raise UserError(
                    f"image id {image_id} is not in the ground truth of {self.dataset_name}: "
                    "the images and the annotation file do not belong together"
                )
            if image_id in self._detections:
                raise UserError(f"image id {image_id} arrived twice; every image counts once")
            detections = detections_from_outputs(image_boxes, image_labels, image_mask, self.max_detections)
            self._check_labels(image_id, detections.labels)
            self._detections[image_id] = detections

    def detections(self, image_id: int) -> Detections:
        """The detections of one image that has been added."""
        return self._detections[int(image_id)]

    def summarize(self, output_dir: str | Path | None) -> dict[str, float]:
        """Score all detections, log the twelve lines, write `results.bbox.json` and `metrics.json`.

        `metrics.json` holds the twelve metrics, `max_dets`, the counts and, under `per_class`, AP, AP50 and the
        number of ground truths (without crowds) of every class. AR1, AR10 and AR100 are at the three `max_dets`, all
        others at the last. A metric without any ground truth behind it (for example APs where there are no small
        objects) is -1, as pycocotools has it.

        Args:
            output_dir (str | Path | None): where the files go; None writes none.

        Returns:
            dict[str, float]: the twelve metrics by name: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100,
            ARs, ARm, ARl.

        Raises:
            UserError: images of the ground truth never arrived, or a file cannot be written.
        """
        self._check_complete()
        results = self._results()
        coco_eval, lines = _run_coco_eval(self.ground_truth, results, self.category_ids, self.max_dets)
        metrics = dict(zip(METRIC_NAMES, map(float, coco_eval.stats), strict=True))
        per_class = self._per_class(coco_eval)
        if self.max_detections > MAX_DETECTIONS:
            LOGGER.info(
                "test_max_per_img is %d: up to so many detections per image are scored (maxDets %s), while "
                "published COCO results are at %d",
                self.max_detections,
                list(self.max_dets),
                MAX_DETECTIONS,
            )
        LOGGER.info("Result on %s dataset\n%s", self.dataset_name, lines)
        LOGGER.info("%s", _per_class_table(per_class))
        num_dropped = sum(detections.num_dropped for detections in self._detections.values())
        if num_dropped:
            LOGGER.warning(
                "%d detections held NaN or infinity and were left out: the network is damaged or has diverged",
                num_dropped,
            )
        if output_dir is not None:
            counts = {
                "dataset": self.dataset_name,
                "max_dets": self.max_dets,
                "num_images": self.num_images,
                "num_detections": len(results),
                "num_dropped_not_finite": num_dropped,
            }
            write_json(Path(output_dir) / RESULTS_FILE, results)
            path = write_json(Path(output_dir) / METRICS_FILE, metrics | counts | {"per_class": per_class}, indent=1)
            LOGGER.info("wrote %s and %s", Path(output_dir) / RESULTS_FILE, path)
        return metrics

    def _check_labels(self, image_id: int, labels: np.ndarray) -> None:
        wrong = labels[(labels < 0) | (labels >= len(self.category_ids))]
        if len(wrong):
            raise UserError(
                f"image id {image_id} has a detection of class {wrong[0]}, but there are "
                f"{len(self.category_ids)} classes: model and coco_classes do not fit"
            )

    def _check_complete(self) -> None:
        missing = [image_id for image_id in self._image_ids if image_id not in self._detections]
        if missing:
            ids = listed([str(image_id) for image_id in missing], _MAX_IDS_SHOWN, ", ")
            raise UserError(
                f"{len(missing)} of {len(self._image_ids)} images of {self.dataset_name} were "
                f"not evaluated (ids {ids}); every image of the ground truth counts once"
            )

    def _results(self) -> list[dict[str, Any]]:
        """All detections in COCO's result format, in the ground truth's order of images."""
        results = []
        for image_id in self._image_ids:
            found = self._detections[image_id]
            boxes_xywh = found.boxes_xyxy.copy()
            boxes_xywh[:, 2:] -= boxes_xywh[:, :2]  # width = x2 - x1: no +1
            results += [
                {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
                for box, score, label in zip(
                    boxes_xywh.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
                )
            ]
        return results

    def _per_class(self, coco_eval: COCOeval) -> list[dict[str, Any]]:
        """AP and AP50 of every class from pycocotools' precision, indexed (iou, recall, class, area, max)."""
        names = {category["id"]: category["name"] for category in self.ground_truth["categories"]}
        counts = Counter(
            annotation["category_id"] for annotation in self.ground_truth["annotations"] if not annotation["iscrowd"]
        )
        rows = []
        for index, category_id in enumerate(self.category_ids):
            precision = coco_eval.eval["precision"][:, :, coco_eval.params.catIds.index(category_id), 0, -1]
            known = counts[category_id] > 0
            rows.append(
                {
                    "label": index,
                    "category_id": category_id,
                    "name": names[category_id],
                    "AP": float(precision.mean()) if known else -1.0,
                    "AP50": float(precision[0].mean()) if known else -1.0,
                    "num_ground_truths": counts[category_id],
                }
            )
        return rows


def _prepared_ground_truth(ground_truth: dict) -> dict:
    """A copy of the ground truth as pycocotools needs it; the caller's dict stays as it is."""
    annotations = []
    for number, annotation in enumerate(ground_truth["annotations"], start=1):
        _, _, width, height = annotation["bbox"]
        annotations.append({"iscrowd": 0, "area": width * height} | annotation | {"id": number})
    return {
        "images": list(ground_truth["images"]),
        "annotations": annotations,
        "categories": list(ground_truth["categories"]),
    }


def _run_coco_eval(
    ground_truth: dict, results: list[dict], category_ids: Sequence[int], max_dets: Sequence[int]
) -> tuple[COCOeval, str]:
    """Run pycocotools without its chatter; returns the evaluation and its twelve lines.

    The index of the detections is built here instead of by `COCO.loadRes`, which fails on an empty list.
    """
    detected = [
        result | {"id": number, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]
    lines = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval(_coco_index(ground_truth), _coco_index(ground_truth | {"annotations": detected}), "bbox")
        coco_eval.params.catIds = sorted(category_ids)
        coco_eval.params.maxDets = list(max_dets)
        coco_eval.evaluate()
        coco_eval.accumulate()
        with contextlib.redirect_stdout(lines):
            coco_eval.summarize()
    first, rest = lines.getvalue().rstrip("\n").split("\n", 1)
    if max_dets[-1] != MAX_DETECTIONS:
        # pycocotools 2.0.11 looks for the AP, and for it alone, at 100 detections whatever maxDets says, and finds -1.
        precision = coco_eval.eval["precision"][:, :, :, 0, -1]  # -1 where a class has no ground truth
        coco_eval.stats[0] = precision[precision > -1].mean() if (precision > -1).any() else -1
        first = f"{first.partition('maxDets=')[0]}maxDets={max_dets[-1]:>3d} ] = {coco_eval.stats[0]:0.3f}"
    return coco_eval, f"{first}\n{rest}"


def _coco_index(dataset: dict) -> COCO:
    index = COCO()
    index.dataset = dataset
    index.createIndex()
    return index


def _per_class_table(rows: Sequence[dict[str, Any]]) -> str:
    """The AP of every class as a table; classes without ground truth show a dash."""
    width = max(len("class"), *(len(row["name"]) for row in rows))
    lines = [f"{'class':<{width}}     AP   AP50  ground truths"]
    for row in rows:
        numbers = [f"{row[key]:6.3f}" if row["num_ground_truths"] else "     -" for key in ("AP", "AP50")]
        lines.append(f"{row['name']:<{width}} {' '.join(numbers)} {row['num_ground_truths']:14d}")
    return "\n".join(lines)

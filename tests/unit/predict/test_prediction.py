"""Images and videos through a model that is a few lines of numpy: what is drawn, listed, skipped and counted."""

import csv
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from src.data.transforms import PIXEL_MEAN, PIXEL_STD, Canvas
from src.model_utils.errors import UserError
from src.predict.draw import class_colour
from src.predict.image_sources import output_paths
from src.predict.prediction import Predictor, detect

CLASSES = ("disc", "square")


class BrightBoxModel:
    """Finds the white rectangle of an image (label 1, score 0.75) and the whole image (label 0, score 0.25).

    The rows come worst first, with a padding row between. It notes how many images every call had.
    """

    def __init__(self, batch_size=None, class_names=CLASSES):
        self.path = Path("bright.onnx")
        self.info = SimpleNamespace(class_names=class_names, canvas=Canvas(128, 64))
        self.batch_size = batch_size
        self.calls = []

    def __call__(self, images, metas):
        assert images.shape[1:] == (3, 64, 128) and metas.shape == (len(images), 4)
        self.calls.append(len(images))
        rows = [
            self._rows(image[0] * PIXEL_STD[0] + PIXEL_MEAN[0], meta) for image, meta in zip(images, metas, strict=True)
        ]
        boxes = np.array(rows, np.float32)
        labels, mask = np.array([[0], [0], [1]], np.int32), np.array([[True], [False], [True]])
        return boxes, np.array([labels] * len(images)), np.array([mask] * len(images))

    @staticmethod
    def _rows(red, meta):
        height, width, scale_h, scale_w = meta
        y, x = np.nonzero(red > 200)
        white = [x.min() / scale_w, y.min() / scale_h, x.max() / scale_w, y.max() / scale_h] if len(x) else [0] * 4
        return [[0, 0, width, height, 0.25], [0] * 5, [*white, 0.75]]


def image(left, height=320, width=640):
    """Dark, with a white rectangle from (left, 80) to (left + 100, 160)."""
    image = np.full((height, width, 3), 40, np.uint8)
    image[80:160, left : left + 100] = 255
    return image


@pytest.fixture
def folder(tmp_path):
    """Good and bad images, and an output folder."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for number in range(5):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), image(100 * number))
    (tmp_path / "in" / "text.jpg").write_text("no image")
    (tmp_path / "in" / "empty.png").touch()
    content = (tmp_path / "in" / "0.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def predictor(folder, names, *, score_thr=0.5, suffix=".png", **model):
    """A predictor that has worked through the named files."""
    inputs = [folder / "in" / name for name in names]
    worker = Predictor(BrightBoxModel(**model), folder / "out", score_thr)
    worker.run(inputs, output_paths(inputs, folder / "out", suffix))
    return worker


def test_all_that_the_model_gives_is_listed():
    """A model exported with test_max_per_img above 100."""

    class ManyBoxes(BrightBoxModel):
        def __call__(self, images, metas):
            boxes = np.tile(np.float32([10, 20, 30, 40, 0.5]), (len(images), 130, 1))
            labels, mask = np.zeros((len(images), 130, 1), np.int32), np.ones((len(images), 130, 1), bool)
            return boxes, labels, mask

    assert [len(found.labels) for found in detect(ManyBoxes(), [image(0)])] == [130]


def write_video(path, lefts, size=(640, 320), rate=10):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for left in lefts:
        writer.write(cv2.resize(image(left), size))
    writer.release()


# ---- one call


def test_boxes_are_in_pixels_of_each_image():
    found = detect(BrightBoxModel(), [image(200), image(50, height=640, width=320)])
    for detections, left, scale in zip(found, (200, 50), (128 / 640, 64 / 640), strict=True):
        assert detections.labels.tolist() == [1, 0]  # best first
        np.testing.assert_allclose(detections.boxes_xyxy[0], [left, 80, left + 100, 160], atol=1.5 / scale)


def test_a_label_without_a_name_is_an_error():
    with pytest.raises(UserError, match="found class 1, but it has names for 1 classes"):
        detect(BrightBoxModel(class_names=("disc",)), [image(0)])


# ---- images


@pytest.mark.parametrize(
    ("batch_size", "calls"), [(None, [1, 1, 1, 1, 1]), (1, [1, 1, 1, 1, 1]), (2, [2, 2, 1]), (8, [5])]
)
def test_as_many_images_a_call_as_the_model_takes(folder, batch_size, calls):
    worker = predictor(folder, [f"{number}.png" for number in range(5)], batch_size=batch_size)
    assert worker.model.calls == calls
    lefts = [prediction.detections[0]["bbox_xyxy"][0] for prediction in worker.predictions]
    np.testing.assert_allclose(lefts, [0, 100, 200, 300, 400], atol=8)  # a pixel of the canvas is 5 of these


def test_images_are_drawn_and_weak_detections_are_not(folder):
    predictor(folder, ["2.png"])
    drawn = cv2.imread(str(folder / "out" / "2.png"))[..., ::-1]
    assert drawn.shape == (320, 640, 3)
    assert (drawn == class_colour(1)).all(axis=-1).sum() > 300
    assert (drawn == class_colour(0)).all(axis=-1).sum() == 0
    predictor(folder, ["2.png"], score_thr=0.25)
    drawn = cv2.imread(str(folder / "out" / "2.png"))[..., ::-1]
    assert (drawn == class_colour(0)).all(axis=-1).sum() > 300


def test_bad_images_are_named_and_left_out(folder, caplog):
    worker = predictor(folder, ["text.jpg", "0.png", "empty.png", "cut.png", "1.png", "missing.png"], batch_size=2)
    assert [Path(prediction.picture).name for prediction in worker.predictions] == ["0.png", "1.png"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [re.fullmatch(r"skipped: .*/in/(\S+): .+", text)[1] for text in warnings] == [
        "text.jpg",
        "empty.png",
        "cut.png",
        "missing.png",
    ]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0.png", "1.png"]
    assert worker.summary().endswith("4 inputs skipped")


def test_what_was_skipped_and_left_out_is_in_the_summary_and_in_the_file(folder):
    inputs = [folder / "in" / name for name in ("0.png", "text.jpg")]
    left_out = [folder / "in" / name for name in ("film.mp4", *(f"{number}.txt" for number in range(11)))]
    worker = Predictor(BrightBoxModel(), folder / "out", 0.5, left_out)
    worker.run(inputs, output_paths(inputs, folder / "out", ".png"))
    end = (
        "; 1 input skipped; 12 other files or folders left out: film.mp4; 0.txt; 1.txt; 2.txt; 3.txt; 4.txt; 5.txt; "
        "6.txt; 7.txt; 8.txt and 2 more (a video is detected in when it is named by itself)"
    )
    assert worker.summary().endswith(f"start-up included{end}")
    content = json.loads(worker.write_results("json").read_text())
    assert content["summary"] == f"1 image, 1 detection (square 1){end}"
    assert content["left_out"] == list(map(str, left_out))
    assert content["skipped"] == [f"{inputs[1]}: is not an image (JPEG, PNG, BMP, WEBP or TIFF), or damaged"]


def test_no_good_image_is_an_error(folder):
    with pytest.raises(UserError, match="2 inputs and none that could be read"):
        predictor(folder, ["text.jpg", "empty.png"])


# ---- results


def test_json_holds_every_image_and_detection(folder):
    worker = predictor(folder, ["0.png", "3.png"], score_thr=0.2)
    content = json.loads(worker.write_results("json").read_text())
    assert content["model"] == "bright.onnx"
    assert (content["class_names"], content["score_thr"]) == (["disc", "square"], 0.2)
    first, second = content["pictures"]
    assert (first["picture"], first["frame"]) == (str(folder / "in" / "0.png"), None)
    assert (second["drawn"], second["width"], second["height"]) == (str(folder / "out" / "3.png"), 640, 320)
    white, whole = second["detections"]
    assert (white["label"], white["name"], white["score"]) == (1, "square", 0.75)
    np.testing.assert_allclose(white["bbox_xyxy"], [300, 80, 400, 160], atol=8)
    assert whole == {"label": 0, "name": "disc", "score": 0.25, "bbox_xyxy": [0, 0, 640, 320]}


def test_an_image_without_detections_stands_in_json_and_not_in_csv(folder):
    worker = predictor(folder, ["0.png"], score_thr=0.8)
    assert json.loads(worker.write_results("json").read_text())["pictures"][0]["detections"] == []
    assert worker.write_results("csv").read_text().splitlines() == ["picture,frame,label,name,score,x1,y1,x2,y2"]
    assert "1 image, 0 detections in " in worker.summary()


def test_csv_has_a_row_for_every_detection(folder):
    (folder / "in" / 'a "b", c.png').write_bytes((folder / "in" / "1.png").read_bytes())
    worker = predictor(folder, ['a "b", c.png', "2.png"], score_thr=0.2)
    with worker.write_results("csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    images = [str(folder / "in" / name) for name in ('a "b", c.png', "2.png")]
    assert [row["picture"] for row in rows] == [images[0], images[0], images[1], images[1]]
    assert [(row["frame"], row["label"], row["name"], row["score"]) for row in rows] == [
        ("", "1", "square", "0.75"),
        ("", "0", "disc", "0.25"),
    ] * 2
    assert [float(rows[1][key]) for key in ("x1", "y1", "x2", "y2")] == [0, 0, 640, 320]


def test_the_summary_counts(folder):
    worker = predictor(folder, ["0.png", "1.png", "text.jpg"], score_thr=0.2)
    assert re.fullmatch(
        r"2 images, 4 detections \((square 2, disc 2)\) in \d+\.\d s, \d+\.\d\d "
        r"images/s, start-up included; 1 input skipped",
        worker.summary(),
    )


def test_results_that_cannot_be_written_are_an_error(folder):
    worker = predictor(folder, ["0.png"])
    (folder / "out" / "predictions.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*predictions\.csv"):
        worker.write_results("csv")


# ---- videos


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_video_stays_a_video(folder, batch_size):
    write_video(folder / "in" / "film.avi", [0, 60, 120, 180, 240, 300])
    worker = predictor(folder, ["film.avi"], batch_size=batch_size)
    assert [prediction.frame for prediction in worker.predictions] == [0, 1, 2, 3, 4, 5]
    lefts = [prediction.detections[0]["bbox_xyxy"][0] for prediction in worker.predictions]
    np.testing.assert_allclose(lefts, [0, 60, 120, 180, 240, 300], atol=12)
    capture = cv2.VideoCapture(str(folder / "out" / "film.mp4"))
    assert (capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)) == (10, 6)
    frames = [capture.read()[1][..., ::-1].astype(int) for _ in range(6)]
    assert frames[0].shape == (320, 640, 3)
    near_colour = np.abs(frames[3] - class_colour(1)).max(axis=-1) < 60
    assert np.nonzero(near_colour.sum(axis=0) > 40)[0].min() == pytest.approx(180, abs=12)  # its left side


def test_a_small_video_is_drawn_larger(folder):
    write_video(folder / "in" / "small.mp4", [0, 100], size=(96, 50))
    predictor(folder, ["small.mp4"])
    drawn = cv2.VideoCapture(str(folder / "out" / "small.mp4")).read()[1]
    assert drawn.shape == (334, 640, 3)  # 50 * 640 / 96 = 333.3, made even


def test_frames_are_counted_anew_in_every_video_and_images_come_first(folder):
    write_video(folder / "in" / "a.mp4", [0, 100])
    write_video(folder / "in" / "b.mp4", [0, 100])
    worker = predictor(folder, ["a.mp4", "b.mp4", "0.png"])
    assert [(Path(p.picture).name, p.frame) for p in worker.predictions] == [
        ("0.png", None),
        ("a.mp4", 0),
        ("a.mp4", 1),
        ("b.mp4", 0),
        ("b.mp4", 1),
    ]
    assert worker.summary().startswith("1 image and 4 frames, ")


def test_a_video_that_is_none_is_skipped(folder, caplog):
    (folder / "in" / "text.mp4").write_text("no video")
    worker = predictor(folder, ["text.mp4", "0.png"])
    assert worker.skipped == [f"{folder / 'in' / 'text.mp4'}: is not a video that can be read"]
    assert "text.mp4: is not a video that can be read" in caplog.text
    assert [path.name for path in (folder / "out").iterdir()] == ["0.png"]


def test_progress_is_logged_where_there_is_no_terminal(folder, caplog):
    caplog.set_level(logging.INFO, "src")
    write_video(folder / "in" / "film.mp4", [0] * 40)
    predictor(folder, ["0.png", "1.png", "film.mp4"])
    lines = [record.getMessage() for record in caplog.records if " of " in record.getMessage()]
    assert lines == [
        "detecting: 1 of 2 images",
        "detecting: 2 of 2 images",
        *(f"film.mp4: {number} of 40 frames" for number in range(4, 41, 4)),
    ]

"""Models of a few lines on a data set: what a batch is, modes, what is counted and said."""

import dataclasses
import json
import logging
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.deploy.model_file import Model, ModelInfo, network_model
from src.evaluation import scoring
from src.evaluation.scoring import Evaluation, evaluate, network_scorer
from src.model_utils.errors import UserError
from src.util import CocoEvaluator
from tests.unit.FasterRcnn.small_detector import CANVAS, config_of
from tests.unit.image_sets import config_for, make_coco
from tests.unit.scored_sets import ground_truth, outputs

CONFIG = config_of("--test_batch_size=2")
compiled = []


@ms.constexpr
def note_compilation():
    """Runs when a graph is compiled, and not when it is run."""
    compiled.append(True)
    return 0


class OneBoxNet(nn.Cell):
    """Detects one box of side 50 at x = y = the value of the image's first pixel; nothing where it is 0."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([1.0], ms.float32), name="weight")

    def construct(self, img_data, img_metas):
        corner = img_data[:, 0, 0, 0].reshape(-1, 1, 1) * self.weight
        row = ops.concat([corner, corner, corner + 50, corner + 50, ops.ones_like(corner) * 0.9], axis=2)
        boxes = ops.concat([row, ops.zeros_like(row)], axis=1)
        labels = ops.zeros_like(boxes[:, :, :1]).astype(ms.int32)
        return boxes, labels, ops.logical_and(boxes[:, :, 4:] > 0, corner > 0)


class TruncatingNet(OneBoxNet):
    """The same, and says of every image whose first pixel exceeds 25 that its NMS was cut short."""

    def detect(self, img_data, img_metas):
        boxes, labels, mask = self.construct(img_data, img_metas)
        return boxes, labels, mask, img_data[:, 0, 0, 0] > 25


class ModeNet(OneBoxNet):
    """Detects what OneBoxNet does in evaluation mode, and nothing in training; notes when it is compiled."""

    def construct(self, img_data, img_metas):
        boxes, labels, mask = super().construct(img_data, img_metas)
        note_compilation()
        return boxes, labels, ops.zeros_like(mask) if self.training else mask


def image_dataset(corners, batch_size=2):
    """Batches with a last partial one; image id = 100 + number."""

    def rows():
        for number, corner in enumerate(corners):
            image, meta = np.full((3, *CANVAS), corner, np.float32), np.array([*CANVAS, 1, 1], np.float32)
            yield image, meta, np.int64(100 + number)

    dataset = ms.dataset.GeneratorDataset(rows, ["image", "image_shape", "image_id"], shuffle=False)
    return dataset.batch(batch_size, drop_remainder=False)


CORNERS = (10, 20, 30, 0, 40)


def corner_evaluator():
    boxes = {100 + number: [(corner, corner, 50, 50)] * (corner > 0) for number, corner in enumerate(CORNERS)}
    return CocoEvaluator(ground_truth(boxes), [1], "corners")


@pytest.fixture
def mode(request):
    """The execution mode named by the test's parameter, for this test only."""
    before = ms.get_context("mode")
    ms.set_context(mode=request.param)
    yield
    ms.set_context(mode=before)


# ---- evaluate


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], indirect=True, ids=["graph", "pynative"])
@pytest.mark.parametrize("net_class", [OneBoxNet, TruncatingNet])
def test_every_image_of_a_partial_last_batch_counts(mode, net_class):
    evaluator = corner_evaluator()
    evaluate(network_model(net_class(), CONFIG), image_dataset(CORNERS), evaluator)
    assert evaluator.num_images == 5
    metrics = evaluator.summarize(None)
    assert (metrics["AP"], metrics["AR100"]) == pytest.approx((1, 1))
    np.testing.assert_array_equal(evaluator.detections(104).boxes_xyxy, [[40, 40, 90, 90]])
    assert len(evaluator.detections(103).scores) == 0


def test_images_with_a_cut_nms_are_counted_without_the_padding(caplog):
    evaluate(network_model(TruncatingNet(), CONFIG), image_dataset(CORNERS), corner_evaluator())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 of 5 images")  # 30 and 40; the copy of 40 is not an image


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_parameter_names_and_training_mode_alone(training):
    network = TruncatingNet()
    network.set_train(training)
    evaluate(network_model(network, CONFIG), image_dataset(CORNERS), corner_evaluator())
    assert network.training == training
    assert [parameter.name for parameter in network.get_parameters()] == ["weight"]


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE], indirect=True)
def test_network_sees_full_batches_in_evaluation_mode(mode):
    seen = []

    class Watcher(OneBoxNet):
        def construct(self, img_data, img_metas):
            seen.append((img_data.shape[0], self.training))
            return super().construct(img_data, img_metas)

    network = Watcher()
    network.set_train(True)
    model = network_model(network, CONFIG)
    for _ in range(2):
        evaluate(model, image_dataset(CORNERS), corner_evaluator())
        assert network.training  # as it was before
    assert seen == [(2, False)] * 6


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE], indirect=True)
def test_training_mode_comes_back_after_an_error(mode):
    class Broken(OneBoxNet):
        def construct(self, img_data, img_metas):
            raise ValueError("broken inside")

    network = Broken()
    network.set_train(True)
    with pytest.raises(ValueError, match="broken inside"):
        evaluate(network_model(network, CONFIG), image_dataset(CORNERS), corner_evaluator())
    assert network.training


def test_another_runtime_is_a_function_of_arrays():
    def predict(images, metas):
        assert images.shape == (3, 3, *CANVAS)
        assert metas.shape == (3, 4)
        rows = [outputs((c, c, c + 50, c + 50, 0.9, 0)) for c in images[:, 0, 0, 0]]
        return [np.stack(arrays) for arrays in zip(*rows, strict=True)]

    evaluator = corner_evaluator()
    model = Model(Path("m"), ModelInfo.from_config(CONFIG), 3, predict, CONFIG)
    evaluate(model, image_dataset(CORNERS, batch_size=3), evaluator)
    # a false box in the image without any has the same score as the true ones: only recall is certain
    assert evaluator.summarize(None)["AR100"] == pytest.approx(1)


def test_plain_progress_lines_and_speed_are_logged(caplog):
    caplog.set_level(logging.INFO, "src")
    evaluate(network_model(OneBoxNet(), CONFIG), image_dataset(CORNERS), corner_evaluator())
    text = caplog.text
    assert "evaluation: 3 of 3 batches" in text
    assert "evaluated 5 images in" in text
    assert "images/s" in text


def test_no_images_are_refused():
    empty = image_dataset(CORNERS).take(1).skip(1)
    with pytest.raises(UserError, match="the evaluation data hold no images"):
        evaluate(lambda *arrays: [], empty, corner_evaluator())


# ---- an evaluation of record files


@pytest.mark.parametrize(
    ("flags", "recall", "max_dets"), [(["--test_max_per_img=120"], 1, [1, 10, 120]), ([], 100 / 120, [1, 10, 100])]
)
def test_test_max_per_img_is_what_counts(tmp_path, flags, recall, max_dets):
    """One image of 120 boxes, all found; the cats are the even ones."""
    rows = make_coco(tmp_path, "val2017", 1, boxes_of=lambda index: 120)["annotations"]
    boxes = np.array([[x, y, x + w, y + h, 0.9] for x, y, w, h in (row["bbox"] for row in rows)], np.float32)
    labels = np.array([[row["category_id"] - 10] for row in rows], np.int32)

    def model(images, metas):
        return [np.stack([array] * len(images)) for array in (boxes, labels, np.ones((120, 1), bool))]

    config = config_for(tmp_path, f"--eval_output_path={tmp_path}/out", *flags)
    metrics = Evaluation(config).score(model)
    # Equal scores are cut by label: all 60 cats stay, and 40 of 60 dogs. The mean over classes is that over boxes.
    assert metrics["AR100"] == pytest.approx(recall)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["max_dets"] == max_dets


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE], indirect=True)
def test_a_network_in_training_is_scored_as_it_is_and_compiled_once(tmp_path, monkeypatch, mode):
    """Between epochs: other weights each time, training mode before and after."""
    config = dataclasses.replace(CONFIG, eval_output_path=str(tmp_path))
    monkeypatch.setattr(scoring, "ensure_mindrecord", lambda config, training: ["none"])
    monkeypatch.setattr(scoring, "coco_ground_truth", lambda config, silent: corner_evaluator().ground_truth)
    monkeypatch.setattr(scoring, "category_ids", lambda config, truth: [1])
    monkeypatch.setattr(scoring, "create_eval_dataset", lambda config, files: image_dataset(CORNERS))
    network = ModeNet()
    score = network_scorer(network, config)
    compiled.clear()
    counts, scores = [], []
    for weight in (1.0, 0.0, 1.0):
        network.set_train(True)
        network.weight.set_data(Tensor([weight], ms.float32))
        scores.append(score()["AP"])
        counts.append(len(compiled))
        assert network.training
    assert scores == pytest.approx([1, 0, 1])
    assert counts[0] > 0 and counts == [counts[0]] * 3

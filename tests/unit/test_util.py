"""The evaluation path against cases whose metrics follow from the definitions by hand."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from src.common.files import check_writable, write_json
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.util import METRIC_NAMES, CocoEvaluator, dataset_name, detections_from_outputs
from tests.helpers import REPO_ROOT
from tests.unit.scored_sets import ground_truth, outputs

TWELVE_LINES = [
    " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ",
    " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = ",
    " Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = ",
    " Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = ",
    " Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = ",
    " Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = ",
    " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = ",
]


def score(truth, detections, category_ids=(1,), output_dir=None, order=None):
    """The twelve metrics of `detections`: image id -> rows."""
    evaluator = CocoEvaluator(truth, category_ids, "test")
    for image_id in order or detections:
        evaluator.add([image_id], *(array[None] for array in outputs(*detections[image_id])))
    return evaluator.summarize(output_dir)


# ------------------------------------------------------------------------------------- twelve metrics


@pytest.mark.parametrize("side", [8, 16, 32])
def test_perfect_boxes_score_one_also_when_they_are_small(side):
    # one pixel too much in width and height would make the IoU 64/81 = 0.79 for 8 px
    metrics = score(ground_truth({7: [(10, 20, side, side)]}), {7: [(10, 20, 10 + side, 20 + side, 0.9, 0)]})
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "AR1", "AR100")] == pytest.approx([1] * 6)
    assert metrics["APl"] == -1  # no large object: pycocotools' mark for "nothing to score"


def test_average_precision_by_hand():
    # ranked TP, FP, TP over two boxes: precision 1 up to recall 0.5 (51 of the 101 points), then 2/3
    truth = ground_truth({1: [(0, 0, 40, 40), (100, 100, 40, 40)]})
    metrics = score(truth, {1: [(0, 0, 40, 40, 0.9, 0), (50, 0, 90, 40, 0.8, 0), (100, 100, 140, 140, 0.7, 0)]})
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert [metrics[n] for n in ("AP", "AP50", "AP75", "APm")] == pytest.approx([expected] * 4)
    assert (metrics["AR1"], metrics["AR10"], metrics["AR100"]) == pytest.approx((0.5, 1.0, 1.0))


def test_overlap_of_62_percent_passes_three_of_ten_thresholds():
    metrics = score(ground_truth({1: [(0, 0, 100, 100)]}), {1: [(0, 0, 62, 100, 0.9, 0)]})
    assert [metrics[n] for n in ("AP", "AP50", "AP75", "APl", "AR100")] == pytest.approx([0.3, 1, 0, 0.3, 0.3])


def test_half_of_the_images_detected():
    boxes = {image_id: [(5, 5, 50, 50)] for image_id in (1, 2, 3, 4)}
    found = [(5, 5, 55, 55, 0.9, 0)]
    metrics = score(ground_truth(boxes), {1: found, 2: [], 3: found, 4: []})
    assert (metrics["AP"], metrics["AR100"]) == pytest.approx((51 / 101, 0.5))


def test_false_positive_in_an_image_without_boxes_counts():
    truth = ground_truth({1: [(0, 0, 50, 50)], 2: []})
    metrics = score(truth, {1: [(0, 0, 50, 50, 0.8, 0)], 2: [(0, 0, 50, 50, 0.9, 0)]})
    assert metrics["AP"] == pytest.approx(0.5)  # precision 1/2 at every recall


def test_no_detections_score_zero_and_write_an_empty_list(tmp_path):
    metrics = score(ground_truth({1: [(0, 0, 50, 50)], 2: []}), {1: [], 2: []}, output_dir=tmp_path)
    assert [metrics[name] for name in ("AP", "AP50", "AR100")] == [0.0, 0.0, 0.0]
    assert json.loads((tmp_path / "results.bbox.json").read_text()) == []
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == 0.0


def test_crowd_boxes_are_ignored():
    truth = ground_truth({1: [(0, 0, 50, 50), (100, 100, 60, 60)]})
    truth["annotations"][1]["iscrowd"] = 1
    metrics = score(truth, {1: [(0, 0, 50, 50, 0.8, 0), (100, 100, 160, 160, 0.9, 0)]})
    assert (metrics["AP"], metrics["AR100"]) == pytest.approx((1, 1))


def test_annotation_id_0_is_found_too():
    # pycocotools reads a match with id 0 as "no match"
    truth = ground_truth({1: [(0, 0, 50, 50)]}, first_id=0)
    assert score(truth, {1: [(0, 0, 50, 50, 0.8, 0)]})["AP"] == pytest.approx(1)
    assert truth["annotations"][0]["id"] == 0  # the caller's dict is left alone


def test_area_and_crowd_flag_may_be_missing():
    truth = ground_truth({1: [(0, 0, 50, 50)]})
    del truth["annotations"][0]["area"], truth["annotations"][0]["iscrowd"]
    assert score(truth, {1: [(0, 0, 50, 50, 0.8, 0)]})["APm"] == pytest.approx(1)


# --------------------------------------------------------------- more than a hundred per image

CROWDED = {1: [(12 * (i % 15), 12 * (i // 15), 10, 10) for i in range(150)]}
FOUND = [(x, y, x + w, y + h, 0.9 - i / 1000, 0) for i, (x, y, w, h) in enumerate(CROWDED[1])]


@pytest.mark.parametrize(
    ("max_detections", "kept", "at"),
    [(50, 50, 100), (100, 100, 100), (120, 120, 120), (150, 150, 150), (1500, 150, 1500)],
)
def test_as_many_detections_count_as_are_asked_for(tmp_path, caplog, max_detections, kept, at):
    """150 perfect boxes: precision 1 up to the recall that is reached, at COCO's 101 recalls from 0 to 1."""
    caplog.set_level(logging.INFO, "src.util")
    evaluator = CocoEvaluator(ground_truth(CROWDED), [1], "test", max_detections)
    evaluator.add([1], *(array[None] for array in outputs(*FOUND, num_rows=150)))
    metrics = evaluator.summarize(tmp_path)
    expected = np.count_nonzero(np.arange(101) / 100 <= kept / 150) / 101
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APs")] == pytest.approx([expected] * 4)
    assert [metrics[name] for name in ("AR1", "AR10", "AR100", "ARs")] == pytest.approx(
        [1 / 150, 10 / 150, kept / 150, kept / 150]
    )
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["max_dets"] == [1, 10, at]
    assert {name: written[name] for name in METRIC_NAMES} == metrics
    assert (written["per_class"][0]["AP"], written["num_detections"]) == (pytest.approx(expected), kept)
    text = caplog.text[caplog.text.index("Result on test dataset") :].split("\n")[1:13]
    assert text == [
        f"{line.replace('=100', f'={at:>3d}')}{metrics[name]:.3f}"
        for line, name in zip(TWELVE_LINES, METRIC_NAMES, strict=True)
    ]
    assert (
        f"test_max_per_img is {at}: up to so many detections per image are scored (maxDets [1, 10, {at}])"
        in caplog.text
    ) == (at > 100)


def test_classes_without_ground_truth_do_not_count_at_more_than_a_hundred():
    for boxes, expected in ((CROWDED, 1), ({1: []}, -1)):
        evaluator = CocoEvaluator(ground_truth(boxes, categories=((1, "cat"), (2, "dog"))), [1, 2], "test", 150)
        evaluator.add([1], *(array[None] for array in outputs(*FOUND, num_rows=150)))
        assert evaluator.summarize(None)["AP"] == pytest.approx(expected)


# ------------------------------------------------------------------------------- joining by image id


def test_order_of_arrival_does_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    boxes = {i: [(*rng.uniform(0, 100, 2), *rng.uniform(20, 60, 2))] for i in (44, 3, 18, 7, 101)}
    found = {
        i: [(x + 2, y + 3, x + w, y + h - 2, s, 0) for (x, y, w, h) in rows for s in (0.9, 0.5, 0.5)]
        for i, rows in boxes.items()
    }
    first = score(ground_truth(boxes), found, output_dir=tmp_path / "a")
    second = score(ground_truth(boxes), found, output_dir=tmp_path / "b", order=[101, 7, 3, 44, 18])
    assert first == second
    files = [(tmp_path / folder / "results.bbox.json").read_bytes() for folder in "ab"]
    assert files[0] == files[1]


def test_unknown_repeated_and_missing_images_are_refused():
    evaluator = CocoEvaluator(ground_truth({1: [(0, 0, 50, 50)], 2: [], 3: []}), [1], "test")
    arrays = [array[None] for array in outputs()]
    with pytest.raises(UserError, match="image id 9 is not in the ground truth"):
        evaluator.add([9], *arrays)
    evaluator.add([2], *arrays)
    with pytest.raises(UserError, match="image id 2 arrived twice"):
        evaluator.add([2], *arrays)
    with pytest.raises(UserError, match=r"2 of 3 images of test were not evaluated \(ids 1, 3\)"):
        evaluator.summarize(None)


def test_bad_ground_truth_and_labels_are_refused():
    truth = ground_truth({1: []})
    with pytest.raises(UserError, match="image id 1 is twice"):
        CocoEvaluator(truth | {"images": truth["images"] * 2}, [1], "test")
    with pytest.raises(UserError, match="no images"):
        CocoEvaluator(truth | {"images": []}, [1], "test")
    with pytest.raises(UserError, match=r"category ids \[5\]"):
        CocoEvaluator(truth, [1, 5], "test")
    with pytest.raises(UserError, match="class 1, but there are 1 classes"):
        score(truth, {1: [(0, 0, 1, 1, 0.5, 1)]})


def test_labels_are_written_back_as_the_files_category_ids(tmp_path):
    names = ((44, "owl"), (3, "bat"), (18, "cat"), (90, "not scored"))
    truth = ground_truth({5: [(10, 10, 30, 40)]}, categories=names, category=3)
    metrics = score(
        truth, {5: [(10, 10, 40, 50, 0.75, 1), (0, 0, 20, 30, 0.5, 2)]}, category_ids=(44, 3, 18), output_dir=tmp_path
    )
    assert metrics["AP"] == pytest.approx(1)
    assert json.loads((tmp_path / "results.bbox.json").read_text()) == [
        {"image_id": 5, "category_id": 3, "bbox": [10, 10, 30, 40], "score": 0.75},
        {"image_id": 5, "category_id": 18, "bbox": [0, 0, 20, 30], "score": 0.5},
    ]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: written[name] for name in METRIC_NAMES} == metrics
    assert (written["dataset"], written["num_images"], written["num_detections"]) == ("test", 1, 2)
    rows = [(row["name"], row["category_id"], row["num_ground_truths"]) for row in written["per_class"]]
    assert rows == [("owl", 44, 0), ("bat", 3, 1), ("cat", 18, 0)]
    assert [row["AP"] for row in written["per_class"]] == pytest.approx([-1, 1, -1])


def test_average_precision_of_every_class(tmp_path):
    # class 8 as in the example by hand above at IoU 0.62, class 2 missed: ids in falling order on purpose
    truth = ground_truth({1: [(0, 0, 100, 100)]}, categories=((8, "owl"), (2, "bat")), category=8)
    truth["annotations"].append(truth["annotations"][0] | {"id": 2, "category_id": 2, "bbox": [0, 100, 9, 9]})
    metrics = score(truth, {1: [(0, 0, 62, 100, 0.9, 0)]}, category_ids=(8, 2), output_dir=tmp_path)
    rows = json.loads((tmp_path / "metrics.json").read_text())["per_class"]
    assert [row["name"] for row in rows] == ["owl", "bat"]
    assert [row["AP"] for row in rows] == pytest.approx([0.3, 0])
    assert [row["AP50"] for row in rows] == pytest.approx([1, 0])
    assert metrics["AP"] == pytest.approx(0.15)  # the mean over classes


# --------------------------------------------------------------------------------- rows of one image


def test_nan_and_infinite_rows_are_dropped_and_counted_once(caplog, tmp_path):
    good = (0, 0, 50, 50, 0.8, 0)
    bad = [(np.nan, 0, 9, 9, 0.9, 0), (0, 0, np.inf, 9, 0.9, 0), (0, 0, 9, 9, np.nan, 0)]
    truth = ground_truth({1: [(0, 0, 50, 50)], 2: [(0, 0, 50, 50)]})
    metrics = score(truth, {1: [*bad, good], 2: [good, bad[0]]}, output_dir=tmp_path)
    assert metrics["AP"] == pytest.approx(1)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("4 detections held NaN")
    assert json.loads((tmp_path / "metrics.json").read_text())["num_dropped_not_finite"] == 4


def test_masked_rows_never_count_even_when_they_hold_nan():
    boxes, labels, mask = outputs((0, 0, 9, 9, 0.9, 0), (np.nan, 0, 9, 9, 0.9, 0), num_rows=2)
    mask[:] = False
    found = detections_from_outputs(boxes, labels, mask)
    assert (len(found.scores), found.num_dropped) == (0, 0)


def test_the_best_hundred_over_all_classes_stay():
    rng = np.random.default_rng(3)
    scores = rng.permutation(np.linspace(0.05, 0.95, 150)).astype(np.float32)
    rows = [(0, 0, 10, 10, s, i % 3) for i, s in enumerate(scores)]
    found = detections_from_outputs(*outputs(*rows, num_rows=160))
    np.testing.assert_array_equal(found.scores, np.sort(scores)[::-1][:100])
    np.testing.assert_array_equal(found.labels, np.argsort(-scores)[:100] % 3)


def test_ties_are_cut_alike_whatever_the_order_of_rows():
    rows = [(x, y, x + 10, y + 10, 0.5, label) for x in range(5) for y in range(7) for label in range(4)]
    first = detections_from_outputs(*outputs(*rows, num_rows=140))
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    second = detections_from_outputs(*outputs(*shuffled, num_rows=140))
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert len(first.labels) == 100


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected boxes"):
        detections_from_outputs(np.zeros((3, 4)), np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="expected boxes"):
        detections_from_outputs(np.zeros((3, 5)), np.zeros(2), np.ones(3))


# --------------------------------------------------------------------------------- lines and files


def test_header_and_twelve_lines_are_logged_and_nothing_is_printed(caplog, capsys):
    caplog.set_level(logging.INFO, "src.util")
    metrics = score(ground_truth({1: [(0, 0, 40, 40)]}), {1: [(0, 0, 40, 40, 0.9, 0)]})
    header, *lines = caplog.records[0].getMessage().split("\n")
    assert header == "Result on test dataset"
    assert lines == [f"{text}{metrics[name]:.3f}" for text, name in zip(TWELVE_LINES, METRIC_NAMES, strict=True)]
    assert "cat" in caplog.records[1].getMessage()
    assert capsys.readouterr().out == ""


def test_unwritable_folder_is_named_and_old_results_stay(tmp_path):
    (tmp_path / "file").write_text("precious")
    folder = tmp_path / "file" / "results"  # its parent is a file: nobody, root included, can make it
    with pytest.raises(UserError, match=f"cannot write {folder}.*bytes free"):
        score(ground_truth({1: []}), {1: []}, output_dir=folder)
    with pytest.raises(UserError, match=f"cannot write {folder}: "):
        check_writable(folder)
    assert list(check_writable(tmp_path / "new" / "results").iterdir()) == []
    assert (tmp_path / "file").read_text() == "precious"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    target = write_json(tmp_path / "metrics.json", {"AP": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"AP": float("nan")})
    write_json(target, {"AP": 2})
    assert json.loads(target.read_text()) == {"AP": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    "dataset, coco_root, image_dir, anno_path, name",
    [
        ("coco", "/data/COCO2017", "", "", "COCO2017"),
        ("coco", "/data/coco/", "", "", "COCO2017"),
        ("coco", "/absent", "", "/data/COCO/annotations/val.json", "COCO2017"),
        ("coco", "/data/coco_subset/", "", "", "coco_subset"),
        ("coco", "/data/bccd", "", "", "bccd"),
        ("coco", "/absent/COCO2017", "", "/data/masks/annotations/val.json", "masks"),
        ("coco", "/absent/COCO2017", "", "/data/masks/val.json", "masks"),
        ("other", "/data/coco", "/data/faces", "", "faces"),
        ("other", "", "", "/data/masks/val.txt", "masks"),
    ],
)
def test_name_of_the_data(dataset, coco_root, image_dir, anno_path, name):
    flags = {"dataset": dataset, "coco_root": coco_root, "image_dir": image_dir, "anno_path": anno_path}
    assert dataset_name(load_config([f"--{key}={value}" for key, value in flags.items()])) == name


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        (["background", "RBC", "WBC"], "coco"),
        (["background", "person", "bicycle", "car"], "coco"),
        (["background", *reversed(load_config([]).class_names)], "COCO2017"),
    ],
)
def test_a_folder_called_coco_is_not_cocos_own_with_other_classes(classes, name):
    assert dataset_name(load_config(["--coco_root=/data/coco", f"--coco_classes={classes}"])) == name


def test_default_classes_are_the_eighty_of_coco():
    names = load_config([]).class_names
    assert len(names) == len(set(names)) == 80
    assert (names[0], names[39], names[79]) == ("person", "bottle", "toothbrush")


# ------------------------------------------------------------------------------------ without MindSpore


@pytest.mark.parametrize(
    "code",
    [
        "import src.util",
        "import src.evaluation.result_files",
        "import postprocess\nfrom src.model_utils.errors import UserError\n"
        "try: postprocess.main(['--anno_path=none.json'])\nexcept UserError as error: print(error)",
    ],
)
def test_scoring_result_files_needs_no_mindspore(tmp_path, code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('mindspore' in sys.modules)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"

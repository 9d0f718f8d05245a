"""A data set's evaluation, with a function of arrays in the place of the network."""

import json

import numpy as np
import pytest

from src.evaluation.scoring import Evaluation
from tests.unit.image_sets import config_for, make_coco


@pytest.mark.parametrize(
    ("flags", "recall", "max_dets"), [(["--test_max_per_img=120"], 1, [1, 10, 120]), ([], 100 / 120, [1, 10, 100])]
)
def test_test_max_per_img_is_what_counts(tmp_path, flags, recall, max_dets):
    """One image of 120 boxes, all found; the cats are the even ones."""
    rows = make_coco(tmp_path, "val2017", 1, boxes_of=lambda index: 120)["annotations"]
    boxes = np.array([[x, y, x + w, y + h, 0.9] for x, y, w, h in (row["bbox"] for row in rows)], np.float32)
    labels = np.array([[row["category_id"] - 10] for row in rows], np.int32)

    def network(images, metas):
        return [np.stack([array] * len(images)) for array in (boxes, labels, np.ones((120, 1), bool))]

    config = config_for(tmp_path, f"--eval_output_path={tmp_path}/out", *flags)
    metrics = Evaluation(config).score(network)
    # Equal scores are cut by label: all 60 cats stay, and 40 of 60 dogs. The mean over classes is that over boxes.
    assert metrics["AR100"] == pytest.approx(recall)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["max_dets"] == max_dets

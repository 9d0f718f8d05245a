"""Box targets against a loop over the rules: matching on the proposals alone, then the ground truths in front."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.bbox_assign_sample_stage2 import BboxAssignSampleForRcnn
from src.FasterRcnn.box_ops import BoxCoder
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import NEGATIVE, tensor

CANVAS = (384, 640)
STDS = (0.1, 0.1, 0.2, 0.2)
NUM_GTS, NUM_PROPOSALS = 6, 700


def build(num_pos=128, num_total=512):
    return BboxAssignSampleForRcnn(BoxCoder((0, 0, 0, 0), STDS, CANVAS), num_pos, num_total, 0.5, 0.5, 0.5)


def run(cell, gt_boxes, gt_labels, gt_valid, proposals, mask):
    rois, labels, deltas, valid = cell(
        tensor(gt_boxes),
        tensor(gt_labels, ms.int32),
        tensor(gt_valid, ms.bool_),
        tensor(proposals),
        tensor(mask, ms.bool_),
    )
    assert (rois.dtype, labels.dtype, deltas.dtype, valid.dtype) == (ms.float32, ms.int32, ms.float32, ms.float32)
    return rois.asnumpy(), labels.asnumpy(), deltas.asnumpy(), valid.asnumpy()


class Case:
    """Two images: ground truths with a crowd and padding, none; many proposals around the ground truths."""

    def __init__(self, seed=15):
        rng = np.random.default_rng(seed)
        sizes = rng.uniform(20, 200, (2, NUM_GTS, 2))
        corners = rng.uniform(0, 1, (2, NUM_GTS, 2)) * ([CANVAS[1], CANVAS[0]] - sizes)
        self.gt_boxes = np.concatenate([corners, corners + sizes], 2).astype(np.float32)
        self.gt_labels = rng.integers(1, 81, (2, NUM_GTS))
        self.gt_valid = np.zeros((2, NUM_GTS), bool)
        self.gt_valid[0, [0, 1, 3]] = True  # row 2 is a crowd, the rest padding
        self.gt_boxes[0, 4:] = 0
        self.gt_labels[0, 4:] = -1
        self.gt_boxes[1] = 0
        self.gt_labels[1] = -1
        near = rng.integers(0, 4, NUM_PROPOSALS)
        jitter = rng.normal(0, 25, (2, NUM_PROPOSALS, 4))
        self.proposals = np.clip(self.gt_boxes[0, near] + jitter, 0, [640, 384, 640, 384])
        self.proposals[..., 2:] = np.maximum(self.proposals[..., 2:], self.proposals[..., :2])
        self.proposals = self.proposals.astype(np.float32)
        self.mask = np.ones((2, NUM_PROPOSALS), bool)
        self.mask[:, 600:] = False
        self.proposals[0, 600:650] = self.gt_boxes[0, 0]  # masked, though a perfect match
        self.proposals[:, 650:] = 0

    def matched(self, image):
        overlaps = reference.iou_matrix(self.gt_boxes[image], self.proposals[image, self.mask[image]], 1)
        assert reference.is_clear(overlaps[self.gt_valid[image]], 0.5, 1e-6)
        return reference.match(overlaps, self.gt_valid[image], 0.5, 0.5, 0.5)

    def all_targets(self, image):
        """Every (roi, label, target deltas) that may be sampled: positives, negatives."""
        positives, negatives = [], []
        for g in np.flatnonzero(self.gt_valid[image]):
            positives.append((*self.gt_boxes[image, g], self.gt_labels[image, g], 0, 0, 0, 0))
        for proposal, g in zip(self.proposals[image], self.matched(image), strict=False):
            if g >= 0:
                deltas = reference.encode(proposal, self.gt_boxes[image, g], STDS)
                positives.append((*proposal, self.gt_labels[image, g], *deltas))
            elif g == NEGATIVE:
                negatives.append((*proposal, 0, 0, 0, 0, 0))
        return np.array(positives).reshape(-1, 9), np.array(negatives).reshape(-1, 9)

    def inputs(self):
        return self.gt_boxes, self.gt_labels, self.gt_valid, self.proposals, self.mask


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.fixture(scope="module")
def published():
    return build()


def rows_of(image, rois, labels, deltas, valid):
    rows = np.concatenate([rois[image], labels[image][:, None], deltas[image]], axis=1)[valid[image] == 1]
    return rows[labels[image][valid[image] == 1] > 0], rows[labels[image][valid[image] == 1] == 0]


def by_box(rows):
    return rows[np.lexsort(rows.T[:4])]


def test_all_targets_when_there_is_room_for_all(case):
    outputs = run(build(800, 1600), *case.inputs())
    for image in range(2):
        for rows, expected in zip(rows_of(image, *outputs), case.all_targets(image), strict=True):
            assert len(rows) == len(expected)
            np.testing.assert_allclose(by_box(rows), by_box(expected), rtol=1e-4, atol=1e-3)
    assert len(case.all_targets(0)[0]) > 100 and len(case.all_targets(0)[1]) > 100
    assert len(case.all_targets(1)[0]) == 0 and len(case.all_targets(1)[1]) == 600


def test_published_limits_give_640_rows(case, published):
    positives, negatives = case.all_targets(0)
    assert len(positives) > 128 and len(negatives) > 384  # both limits bind
    seen = []
    for _ in range(2):
        rois, labels, deltas, valid = outputs = run(published, *case.inputs())
        assert (rois.shape, labels.shape, deltas.shape, valid.shape) == ((2, 640, 4), (2, 640), (2, 640, 4), (2, 640))
        assert set(np.unique(valid)) <= {0, 1}
        pos_rows, neg_rows = rows_of(0, *outputs)
        assert (len(pos_rows), len(neg_rows)) == (128, 384)
        for rows, allowed in ((pos_rows, positives), (neg_rows, negatives)):
            assert len(np.unique(rows, axis=0)) == len(rows)
            for row in rows:
                distance = np.abs(allowed - row).max(1)
                assert distance.min() < 1e-3
        assert valid[1].sum() == 512 and not labels[1].any()  # no boxes: background only
        seen.append(rois)
    assert not np.array_equal(*seen)


def test_padded_rows_hold_zeros(case, published):
    rois, labels, deltas, valid = run(published, *case.inputs())
    for values in (rois, labels, deltas):
        assert np.isfinite(values).all()
        assert not values[valid == 0].any()
    assert not deltas[labels == 0].any()


def test_no_boxes_and_no_proposals(published):
    empty = Case()
    empty.gt_valid[:] = False
    empty.mask[1] = False
    rois, labels, deltas, valid = run(published, *empty.inputs())
    assert valid.sum(1).tolist() == [512, 0]
    assert not labels.any() and not deltas.any()
    assert not rois[1].any()


def test_boxes_without_proposals_are_trained_on(published):
    case = Case()
    case.mask[:] = False
    rois, labels, deltas, valid = run(published, *case.inputs())
    assert valid.sum(1).tolist() == [3, 0]
    order = np.argsort(rois[0, valid[0] == 1][:, 0])
    expected = np.argsort(case.gt_boxes[0, [0, 1, 3], 0])
    np.testing.assert_array_equal(rois[0, valid[0] == 1][order], case.gt_boxes[0, [0, 1, 3]][expected])
    np.testing.assert_array_equal(labels[0, valid[0] == 1][order], case.gt_labels[0, [0, 1, 3]][expected])
    assert not deltas.any()


def small_case(gt_boxes, gt_labels, proposals):
    """All targets as roi -> (label, deltas) of one image, nothing left to chance."""
    rois, labels, deltas, valid = run(
        build(16, 16),
        [gt_boxes],
        [gt_labels],
        np.ones((1, len(gt_boxes)), bool),
        [proposals],
        np.ones((1, len(proposals)), bool),
    )
    return [(rois[0, i].tolist(), int(labels[0, i]), deltas[0, i]) for i in np.flatnonzero(valid[0])]


def test_matching_is_on_the_proposals_alone():
    """One proposal equals A (label 7) and overlaps B (label 9) by 60/100: it is the best that B has, and B comes later.

    Were the ground truths candidates of the matching, B's best would be itself and the proposal would stay with A.
    """
    a, b = [100, 100, 109, 109], [100, 100, 109, 105]
    targets = small_case([a, b], [7, 9], [a, [300, 300, 320, 320]])
    assert sorted((roi, label) for roi, label, _ in targets) == [(b, 9), (a, 7), (a, 9), ([300, 300, 320, 320], 0)]
    deltas = next(target for roi, label, target in targets if roi == a and label == 9)
    # centre y 104.5 -> 102.5: -2 / 10 / 0.1; height 6 of 10
    np.testing.assert_allclose(deltas, [0, -2, 0, np.log(0.6) / 0.2], rtol=1e-5, atol=1e-5)


def test_foreground_begins_at_one_half():
    """Against 0..9 x 0..9: 50/100 is foreground, 49/100 background; 40/100 is background although it is the best."""
    at_half, below = [0, 0, 9, 4], [0, 0, 6, 6]
    labels = {tuple(roi): label for roi, label, _ in small_case([[0, 0, 9, 9]], [5], [at_half, below])}
    assert labels == {(0, 0, 9, 9): 5, tuple(at_half): 5, tuple(below): 0}
    labels = {tuple(roi): label for roi, label, _ in small_case([[0, 0, 9, 9]], [5], [[0, 0, 9, 3], [50, 50, 60, 60]])}
    assert labels == {(0, 0, 9, 9): 5, (0, 0, 9, 3): 0, (50, 50, 60, 60): 0}

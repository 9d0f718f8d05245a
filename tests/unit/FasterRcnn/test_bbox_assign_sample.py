"""Anchor targets against a loop over the rules, on hand-made anchors and on those of a small canvas."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.box_ops import BoxCoder
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import NEGATIVE, tensor

HEIGHT, WIDTH = 128, 192
ANCHORS = np.concatenate(reference.canvas_anchors(HEIGHT, WIDTH))
INSIDE = reference.inside(ANCHORS, HEIGHT, WIDTH)
NUM_GTS = 8


def build(anchors, canvas, num_pos, num_total, stds=(1, 1, 1, 1)):
    coder = BoxCoder((0, 0, 0, 0), stds, canvas)
    return BboxAssignSample(np.asarray(anchors, np.float32), canvas, coder, num_pos, num_total, 0.7, 0.3, 0.3)


def run(cell, gt_boxes, gt_valid):
    index, labels, valid, deltas = cell(tensor(gt_boxes), tensor(gt_valid, ms.bool_))
    assert (index.dtype, labels.dtype, valid.dtype, deltas.dtype) == (ms.int32, ms.float32, ms.float32, ms.float32)
    return index.asnumpy(), labels.asnumpy(), valid.asnumpy(), deltas.asnumpy()


def random_gts(rng):
    """Ground truths of three images: several, none, one; padded rows are 0 and invalid, crowds invalid with a box."""
    sizes = rng.uniform(8, 120, (3, NUM_GTS, 2))
    corners = rng.uniform(0, 1, (3, NUM_GTS, 2)) * np.maximum([WIDTH, HEIGHT] - sizes, 1)
    boxes = np.concatenate([corners, np.minimum(corners + sizes, [WIDTH - 1, HEIGHT - 1])], axis=2)
    valid = np.zeros((3, NUM_GTS), bool)
    valid[0, :5] = True
    valid[0, 2] = False  # a crowd between others
    valid[2, 0] = True
    boxes[0, 5:] = 0
    boxes[2, 1:] = 0
    return boxes.astype(np.float32), valid


def expected_match(boxes, valid):
    """(N,) ground truth of every anchor of the canvas; those not inside take no part."""
    matched = np.full(len(ANCHORS), reference.IGNORED)
    overlaps = reference.iou_matrix(boxes, ANCHORS[INSIDE], extra_pixel=1)
    best = overlaps[valid].max(0, initial=0)
    assert reference.is_clear(best, 0.7, 1e-6) and reference.is_clear(best, 0.3, 1e-6)
    matched[INSIDE] = reference.match(overlaps, valid, 0.7, 0.3, 0.3)
    return matched


@pytest.fixture(scope="module")
def gts():
    boxes, valid = random_gts(np.random.default_rng(14))
    return boxes, valid, [expected_match(*image) for image in zip(boxes, valid, strict=True)]


def test_the_cases_have_positives_only_where_there_are_boxes(gts):
    num_pos = [(matched >= 0).sum() for matched in gts[2]]
    assert num_pos[0] > 5 and num_pos[1] == 0 and num_pos[2] >= 1
    assert 2 not in gts[2][0]  # the crowd is nobody's match


def test_all_targets_when_there_is_room_for_all(gts):
    """More slots than anchors: nothing is left to chance, so the targets are the loop's."""
    boxes, valid_gts, expected = gts
    slots = int(INSIDE.sum()) + 100
    stds = (0.1, 0.2, 0.3, 0.4)  # not 1, so that their use shows
    index, labels, valid, deltas = run(build(ANCHORS, (HEIGHT, WIDTH), slots, slots, stds), boxes, valid_gts)
    for image, matched in enumerate(expected):
        is_pos = (labels[image] == 1) & (valid[image] == 1)
        is_neg = (labels[image] == 0) & (valid[image] == 1)
        assert sorted(index[image, is_pos]) == np.flatnonzero(matched >= 0).tolist()
        assert sorted(index[image, is_neg]) == np.flatnonzero(matched == NEGATIVE).tolist()
        assert set(valid[image]) <= {0, 1} and set(labels[image]) <= {0, 1}
        assert not labels[image, valid[image] == 0].any()
        for slot in range(slots):
            anchor = index[image, slot]
            target = np.zeros(4)
            if is_pos[slot]:
                target = reference.encode(ANCHORS[anchor], boxes[image, matched[anchor]], stds)
            np.testing.assert_allclose(deltas[image, slot], target, rtol=1e-4, atol=1e-4)


def test_published_limits(gts):
    """128 + 256 slots: all of the few positives, negatives up to 256 in all."""
    boxes, valid_gts, expected = gts
    cell = build(ANCHORS, (HEIGHT, WIDTH), 128, 256)
    chosen = []
    for _ in range(2):
        index, labels, valid, deltas = run(cell, boxes, valid_gts)
        assert index.shape == labels.shape == valid.shape == (3, 384)
        assert deltas.shape == (3, 128, 4)
        for image, matched in enumerate(expected):
            num_pos = min((matched >= 0).sum(), 128)
            assert labels[image].sum() == num_pos
            assert valid[image].sum() == 256  # this canvas has negatives enough
            slots = np.flatnonzero(valid[image])
            assert len(set(index[image, slots])) == 256
            is_neg = slots[labels[image, slots] == 0]
            assert (matched[index[image, is_neg]] == NEGATIVE).all()
            for slot in np.flatnonzero(labels[image]):
                anchor = index[image, slot]
                target = reference.encode(ANCHORS[anchor], boxes[image, matched[anchor]])
                np.testing.assert_allclose(deltas[image, slot], target, rtol=1e-4, atol=1e-4)
        chosen.append(index)
    assert not np.array_equal(*chosen)


def test_image_without_boxes_has_negatives_and_no_deltas(gts):
    boxes, _, _ = gts
    nothing = np.zeros((3, NUM_GTS), bool)
    # boxes of invalid rows are there (crowds) or not: neither matters
    index, labels, valid, deltas = run(build(ANCHORS, (HEIGHT, WIDTH), 128, 256), boxes, nothing)
    assert not labels.any() and not deltas.any()
    assert (valid.sum(1) == 256).all()
    assert np.isin(index[valid == 1], np.flatnonzero(INSIDE)).all()
    assert np.isfinite(deltas).all()


def targets_of(anchors, gt_boxes, canvas=(64, 64)):
    """Match of each anchor by hand-made case: 1 positive, 0 negative, None not used."""
    cell = build(anchors, canvas, 8, 8)
    valid_gts = np.ones((1, len(gt_boxes)), bool)
    index, labels, valid, _ = run(cell, [gt_boxes], valid_gts)
    result = [None] * len(anchors)
    for slot in np.flatnonzero(valid[0]):
        result[index[0, slot]] = int(labels[0, slot])
    return result


def test_anchor_across_the_border_leaves_before_matching():
    """The ground truth's best anchor (IoU 90/110) crosses the border; the best of the others has 100/196 = 0.51.

    Were the first to leave after matching, no anchor would be positive.
    """
    anchors = [[-1, 0, 8, 9], [0, 0, 13, 13], [20, 20, 29, 29]]
    assert targets_of(anchors, [[0, 0, 9, 9]]) == [None, 1, 0]


def test_anchor_on_the_last_pixel_is_inside():
    """W - 1 = 63 is inside, 64 is not; the canvas counts, not the image on it."""
    anchors = [[54, 54, 63, 63], [55, 54, 64, 63], [54, 55, 63, 64], [0, 0, 9, 9]]
    assert targets_of(anchors, [[54, 54, 63, 63]]) == [1, None, None, 0]


def test_anchors_between_the_thresholds_are_not_used():
    """Against 0..9 x 0..9: equal 1, 70/100 exactly, 60/100, 30/100 exactly, 20/100."""
    anchors = [[0, 0, 9, 9], [0, 0, 9, 6], [0, 0, 9, 5], [0, 0, 9, 2], [0, 0, 9, 1]]
    assert targets_of(anchors, [[0, 0, 9, 9]]) == [1, 1, None, None, 0]


def test_all_anchors_that_tie_the_best_are_positive():
    """IoU 50/100 from both sides; a third with 40/100 is not used."""
    anchors = [[0, 0, 4, 9], [5, 0, 9, 9], [0, 0, 3, 9], [40, 40, 49, 49]]
    assert targets_of(anchors, [[0, 0, 9, 9]]) == [1, 1, None, 0]


def test_later_ground_truth_takes_the_anchor_of_a_better_one():
    """The only anchor near both: equal to the first ground truth, 50/100 with the second, whose best it is."""
    cell = build([[0, 0, 9, 9], [40, 40, 49, 49]], (64, 64), 4, 4)
    gt_boxes = [[0, 0, 9, 9], [0, 0, 4, 9]]
    index, labels, _, deltas = run(cell, [gt_boxes], [[True, True]])
    slot = np.flatnonzero(labels[0])
    assert index[0, slot].tolist() == [0]
    # centre 4.5 -> 2 in x: -2.5 / 10; width 5 of 10
    np.testing.assert_allclose(deltas[0, slot], [[-0.25, 0, np.log(0.5), 0]], atol=1e-6)


def test_canvas_without_an_inner_anchor_is_refused():
    with pytest.raises(ValueError, match="canvas"):
        build([[-1, 0, 8, 9]], (64, 64), 4, 4)

"""Proposals against the definition: best of each level, decode, suppression inside the level, best of all levels."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.box_ops import BoxCoder
from src.FasterRcnn.proposal_generator import Proposal
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import Graph, tensor

CANVAS = (64, 128)
ANCHORS = reference.canvas_anchors(*CANVAS)
SIZES = [len(level) for level in ANCHORS]  # 1536, 384, 96, 24, 6


def build(nms_pre, max_num, threshold=0.7, anchors=ANCHORS):
    """Proposals of five levels, given one by one: five logits, then five deltas."""
    coder = BoxCoder((0,) * 4, (1,) * 4, CANVAS)
    cell = Proposal([level.astype(np.float32) for level in anchors], coder, nms_pre, max_num, threshold)

    def proposals(*inputs):
        return cell(inputs[: len(anchors)], inputs[len(anchors) :])

    return Graph(proposals)


def random_outputs(seed, batch=2):
    """Logits, all different, and deltas of each level."""
    rng = np.random.default_rng(seed)
    values = np.linspace(-4, 4, sum(SIZES), dtype=np.float32)
    logits = np.stack([rng.permutation(values) for _ in range(batch)])
    logits = np.split(logits, np.cumsum(SIZES)[:-1], axis=1)
    deltas = [rng.normal(0, 0.3, (batch, size, 4)).astype(np.float32) for size in SIZES]
    return logits, deltas


def run(cell, logits, deltas):
    boxes, mask = cell(*map(tensor, logits), *map(tensor, deltas))
    assert boxes.dtype == ms.float32 and mask.dtype == ms.bool_
    return boxes.asnumpy(), mask.asnumpy()


def check(boxes, mask, logits, deltas, nms_pre, max_num, threshold):
    assert boxes.shape == (2, max_num, 4) and mask.shape == (2, max_num)
    for image in range(2):
        expected, _ = reference.proposals(
            ANCHORS,
            [level[image] for level in logits],
            [level[image] for level in deltas],
            nms_pre,
            max_num,
            threshold,
            CANVAS,
            margin=5e-6,
        )
        count = len(expected)
        assert mask[image].tolist() == [True] * count + [False] * (max_num - count)
        np.testing.assert_allclose(boxes[image, :count], expected, atol=1e-3)
        assert not boxes[image, count:].any()
    return count


@pytest.fixture(scope="module")
def outputs():
    return random_outputs(24)


@pytest.mark.parametrize("nms_pre, max_num, threshold", [(40, 60, 0.7), (200, 90, 0.5)])
def test_proposals_are_the_best_of_the_best(outputs, nms_pre, max_num, threshold):
    """Both limits bind: more boxes than nms_pre in a level, more survivors than max_num."""
    logits, deltas = outputs
    boxes, mask = run(build(nms_pre, max_num, threshold), logits, deltas)
    assert check(boxes, mask, logits, deltas, nms_pre, max_num, threshold) == max_num


def test_canvas_with_fewer_anchors_than_asked_for(outputs):
    """2046 anchors, 3000 proposals asked for: padded rows are 0 and masked. Another seed compiles nothing new."""
    cell = build(2000, 3000)
    for logits, deltas in (outputs, random_outputs(25)):
        boxes, mask = run(cell, logits, deltas)
        assert 300 < check(boxes, mask, logits, deltas, 2000, 3000, 0.7) < sum(SIZES)


def test_proposals_lie_on_the_canvas(outputs):
    logits, deltas = outputs
    boxes, _ = run(build(40, 60), logits, [10 * level for level in deltas])
    assert (boxes >= 0).all()
    assert (boxes[..., ::2] <= CANVAS[1]).all() and (boxes[..., 1::2] <= CANVAS[0]).all()
    assert boxes[..., 2].max() == CANVAS[1]  # to W, not W - 1


FAR_ANCHORS = [
    np.array([[0, 0, 9, 9], [0, 0, 9, 10], [40, 40, 49, 49]], np.float64),
    np.array([[0, 0, 9, 9], [20, 20, 29, 29], [20, 20, 29, 29]], np.float64),
]


def test_suppression_stays_inside_the_level():
    """Anchor 0 of level 1 equals anchor 0 of level 0 and stays; inside a level the second of two equal ones goes."""
    logits = [[[3.0, 1.0, 0.0]], [[2.5, -1.0, 2.0]]]
    boxes, mask = run(build(3, 6, anchors=FAR_ANCHORS), logits, np.zeros((2, 1, 3, 4)))
    assert mask[0].tolist() == [True] * 4 + [False] * 2
    np.testing.assert_allclose(
        boxes[0],
        [[0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [0, 0, 0, 0], [0, 0, 0, 0]],
        atol=1e-4,
    )


def test_suppression_has_no_extra_pixel_and_is_strict():
    """Anchors 0 and 1 overlap by 81/90 = 0.9 without +1, 100/110 = 0.909 with it: at 0.905 both stay."""
    anchors = FAR_ANCHORS[:1]
    logits, deltas = [[[3.0, 1.0, 0.0]]], np.zeros((1, 1, 3, 4))
    assert run(build(3, 3, 0.905, anchors), logits, deltas)[1].sum() == 3
    assert run(build(3, 3, 0.895, anchors), logits, deltas)[1].sum() == 2


def test_negative_scores_are_scores():
    """Logits far below 0 are probabilities close to 0, not padding."""
    logits = [[[-30.0, -32.0, -40.0]], [[-35.0, -37.0, -36.0]]]
    boxes, mask = run(build(3, 6, anchors=FAR_ANCHORS), logits, np.zeros((2, 1, 3, 4)))
    assert mask.sum() == 4
    np.testing.assert_allclose(
        boxes[0, :4], [[0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49]], atol=1e-4
    )


def test_many_equal_scores():
    """Three distinct scores only. The order among equals is open, the rule is not: those that stay overlap each other
    by at most 0.7, and each one gone overlaps a better or equal one that stays by more."""
    rng = np.random.default_rng(26)
    logits = rng.choice(np.float32([-1, 0, 1]), (2, 384))
    deltas = rng.normal(0, 0.2, (2, 384, 4)).astype(np.float32)
    boxes, mask = run(build(384, 384, anchors=ANCHORS[1:2]), [logits], [deltas])
    for image in range(2):
        every = reference.decode(ANCHORS[1], deltas[image], *CANVAS)
        overlaps = np.nan_to_num(reference.iou_matrix(every, every, extra_pixel=0))
        distances = np.abs(every[None] - boxes[image][mask[image]][:, None]).max(2)
        stays = distances.argmin(1)
        assert distances.min(1).max() < 1e-3 and len(set(stays)) == mask[image].sum()
        assert (np.diff(logits[image, stays]) <= 0).all()
        assert (overlaps[np.ix_(stays, stays)] - np.eye(len(stays))).max() <= 0.7 + 1e-5
        for gone in set(range(384)) - set(stays):
            better = [i for i in stays if logits[image, i] >= logits[image, gone]]
            assert overlaps[gone, better].max() > 0.7 - 1e-5


def test_no_gradient_flows(outputs):
    logits, deltas = outputs
    cell = build(40, 60)

    def total(*inputs):
        boxes, _ = cell(*inputs)
        return boxes.sum()

    gradients = ms.grad(Graph(total), grad_position=(0, 4, 5, 9))(*map(tensor, logits), *map(tensor, deltas))
    assert all(not gradient.asnumpy().any() for gradient in gradients)

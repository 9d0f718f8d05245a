"""Matching and sampling against a loop over the rules, and the odds of the sampling against their binomials."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops

from src.FasterRcnn.target_assign import FAR_AWAY, IGNORED, NEGATIVE, PosNegSample, RandomSample, match, stream_seed
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import Graph, tensor

RPN_THRESHOLDS = (0.7, 0.3, 0.3)
BOX_THRESHOLDS = (0.5, 0.5, 0.5)


class Match:
    """match() of one image, compiled once per shape."""

    def __init__(self, thresholds):
        self.graph = Graph(match_with(thresholds))

    def __call__(self, *images):
        result = self.graph(tensor(images))
        assert result.dtype == ms.int32
        return result.asnumpy().tolist()


def match_with(thresholds):
    def matched(iou):
        return match(iou, *thresholds)

    return matched


@pytest.fixture(scope="module")
def match_anchors():
    return Match(RPN_THRESHOLDS)


@pytest.fixture(scope="module")
def match_proposals():
    return Match(BOX_THRESHOLDS)


def test_names_of_what_is_no_ground_truth():
    assert NEGATIVE < 0 and IGNORED < 0 and NEGATIVE != IGNORED
    assert (NEGATIVE, IGNORED) == (reference.NEGATIVE, reference.IGNORED)
    assert FAR_AWAY < 0


@pytest.mark.parametrize(
    "iou, expected",
    [
        # one good ground truth: >= 0.7 positive, >= 0.3 ignored, < 0.3 negative
        ([[0.9, 0.7, 0.69, 0.3, 0.29, 0.0], [0] * 6], [0, 0, IGNORED, IGNORED, NEGATIVE, NEGATIVE]),
        # below 0.7, yet the best of its ground truth and at least 0.3: all that tie are positive
        ([[0.4, 0.4, 0.39, 0.1, 0.4, 0.0], [0] * 6], [0, 0, IGNORED, NEGATIVE, 0, NEGATIVE]),
        ([[0.3, 0.2, 0.1, 0.1, 0.1, 0.0], [0] * 6], [0, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE]),
        # best below 0.3: nothing is positive
        ([[0.29, 0.2, 0.1, 0.1, 0.1, 0.0], [0] * 6], [NEGATIVE] * 6),
        # candidate 0 fits gt 0 better (0.9), but it is the best that gt 1 has: gt 1 takes it
        ([[0.9, 0.8, 0, 0, 0, 0], [0.5, 0.2, 0, 0, 0, 0]], [1, 0] + [NEGATIVE] * 4),
        # ... and when the other one is later, that one has the last word
        ([[0.5, 0.2, 0, 0, 0, 0], [0.9, 0.8, 0, 0, 0, 0]], [1, 1] + [NEGATIVE] * 4),
        # both have their best at candidate 2: the later one wins, although the IoU is lower
        ([[0, 0, 0.6, 0, 0, 0], [0, 0, 0.4, 0, 0, 0]], [NEGATIVE, NEGATIVE, 1, NEGATIVE, NEGATIVE, NEGATIVE]),
        # no ground truths
        ([[0] * 6, [0] * 6], [NEGATIVE] * 6),
    ],
)
def test_rules_of_the_rpn(match_anchors, iou, expected):
    # as the second image, so that a mix-up of images shows
    assert match_anchors([[0.95] * 6, [0] * 6], iou)[1] == expected


@pytest.mark.parametrize(
    "iou, expected",
    [
        ([[0.5, 0.49, 0.51, 0.0], [0] * 4], [0, NEGATIVE, 0, NEGATIVE]),
        ([[0.49, 0.49, 0.3, 0.0], [0] * 4], [NEGATIVE] * 4),  # the best match counts from 0.5 only
        ([[0.9, 0.8, 0, 0], [0.6, 0.1, 0, 0]], [1, 0, NEGATIVE, NEGATIVE]),  # gt 1 takes what gt 0 fits better
    ],
)
def test_rules_of_the_box_head(match_proposals, iou, expected):
    assert match_proposals([[0] * 4, [0] * 4], iou)[1] == expected


@pytest.mark.parametrize("thresholds", [RPN_THRESHOLDS, BOX_THRESHOLDS])
def test_match_equals_the_loop_with_many_ties(thresholds):
    rng = np.random.default_rng(8)
    # Few distinct values: every ground truth's best is shared, and the thresholds themselves occur. Which of two equal
    # ground truths a candidate takes the rules leave open, so the second one of a candidate's best is taken away.
    ious = rng.choice(np.float32([0, 0.1, 0.29, 0.3, 0.31, 0.5, 0.69, 0.7, 0.71]), (8, 5, 60))
    is_best = ious == ious.max(1, keepdims=True)
    ious = np.where(is_best & (np.cumsum(is_best, 1) > 1), 0, ious).astype(np.float32)
    ious[7] = 0
    ious[6, 2] = 0
    limits = np.float32(thresholds)
    expected = [reference.match(iou, np.ones(5, bool), *limits).tolist() for iou in ious]
    assert Match(thresholds)(*ious) == expected
    flat = np.concatenate(expected)
    assert {NEGATIVE, 0, 1, 2, 3, 4} <= set(flat)


# --- RandomSample -----------------------------------------------------------------------------------------------------


def check_choice(candidates, index, filled, count):
    """What every choice must satisfy: as many as possible, distinct, candidates only, filled slots first."""
    assert index.shape == filled.shape == (len(candidates), count)
    assert filled.dtype == bool
    assert index.dtype == np.int32
    for row, numbers, mask in zip(candidates, index, filled, strict=True):
        expected = min(int(row.sum()), count)
        assert mask.tolist() == [True] * expected + [False] * (count - expected)
        chosen = numbers[mask]
        assert len(set(chosen)) == expected
        assert row[chosen].all()
        assert ((numbers >= 0) & (numbers < len(row))).all()


def test_random_sample_counts_and_masks():
    rng = np.random.default_rng(9)
    candidates = rng.random((6, 50)) < np.array([0, 0.02, 0.1, 0.3, 0.9, 1])[:, None]
    cell = RandomSample(10, seed=(3,))
    seen = set()
    for _ in range(20):
        index, filled = (out.asnumpy() for out in cell(tensor(candidates, ms.bool_)))
        check_choice(candidates, index, filled, 10)
        seen.add(tuple(sorted(index[5])))
    assert len(seen) == 20  # 50 over 10 has 1e10 outcomes: a repetition would be no accident


def test_random_sample_with_fewer_candidates_than_slots():
    candidates = np.array([[True] * 4, [False, True, False, False], [False] * 4])
    index, filled = (out.asnumpy() for out in RandomSample(9, seed=(3,))(tensor(candidates, ms.bool_)))
    check_choice(candidates, index, filled, 9)


def test_every_subset_is_equally_likely():
    """2 of 4 marked among 6: six pairs, 30 draws of 200 independent rows. Chi-square with 5 degrees of freedom."""
    candidates = np.tile([True, False, True, True, False, True], (200, 1))
    cell = RandomSample(2, seed=(5,))
    counts = dict.fromkeys(itertools.combinations((0, 2, 3, 5), 2), 0)
    for _ in range(30):
        index, filled = (out.asnumpy() for out in cell(tensor(candidates, ms.bool_)))
        assert filled.all()
        for pair in np.sort(index, axis=1):
            counts[tuple(pair)] += 1
    expected = 30 * 200 / 6
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 35.0  # exceeded by chance once in 700,000 draws


def test_every_candidate_is_equally_likely():
    """16 of 400 candidates among 1000: over 64 rows and 25 calls each is expected 64 times, standard deviation 7.8."""
    candidates = np.zeros((64, 1000), bool)
    candidates[:, ::5] = candidates[:, 1::5] = True
    cell = RandomSample(16, seed=(6,))
    counts = np.zeros(1000)
    for _ in range(25):
        index, _ = (out.asnumpy() for out in cell(tensor(candidates, ms.bool_)))
        np.add.at(counts, index.reshape(-1), 1)
    assert counts[~candidates[0]].sum() == 0
    chosen = counts[candidates[0]]
    assert chosen.min() > 64 - 6 * 7.8 and chosen.max() < 64 + 6 * 7.8
    # neither the first nor the last half is preferred: 25,600 draws, standard deviation 80
    assert abs(chosen[:200].sum() - 12800) < 6 * 80


# --- PosNegSample -----------------------------------------------------------------------------------------------------


def matched_rows(rng, num_candidates, *counts):
    """(B, N) with so many positives and negatives per image, the rest ignored."""
    rows = np.full((len(counts), num_candidates), IGNORED)
    for row, (num_pos, num_neg) in zip(rows, counts, strict=True):
        places = rng.permutation(num_candidates)
        row[places[:num_pos]] = rng.integers(0, 5, num_pos)
        row[places[num_pos : num_pos + num_neg]] = NEGATIVE
    return rows


COUNTS = [(0, 0), (0, 1500), (300, 1200), (128, 10), (50, 100), (1500, 0), (100, 1400), (1, 1499)]


@pytest.mark.parametrize("num_pos, num_total", [(128, 256), (128, 512)])
def test_limits_of_positives_and_of_all(num_pos, num_total):
    """At most 128 positives; negatives fill up to 256 (RPN) or 512 (box head) in all."""
    matched = matched_rows(np.random.default_rng(10), 1500, *COUNTS)
    cell = PosNegSample(num_pos, num_total, num_total, seed=(1,))
    for _ in range(3):
        index, pos_mask, valid = (out.asnumpy() for out in cell(tensor(matched, ms.int32)))
        assert index.shape == pos_mask.shape == valid.shape == (len(COUNTS), num_pos + num_total)
        assert (index.dtype, pos_mask.dtype, valid.dtype) == (np.int32, bool, bool)
        assert ((index >= 0) & (index < 1500)).all()
        for row, (available_pos, available_neg) in enumerate(COUNTS):
            positives, chosen = index[row, pos_mask[row]], index[row, valid[row]]
            expected_pos = min(available_pos, num_pos)
            assert len(positives) == expected_pos
            assert len(chosen) == expected_pos + min(available_neg, num_total - expected_pos)
            assert len(set(chosen)) == len(chosen)
            assert (matched[row, positives] >= 0).all()
            assert (matched[row, index[row, valid[row] & ~pos_mask[row]]] == NEGATIVE).all()
            assert valid[row, pos_mask[row]].all()
            assert not pos_mask[row, num_pos:].any()  # positives stand in the first slots
            assert not (valid[row, :num_pos] & ~pos_mask[row, :num_pos]).any()


def test_positives_and_negatives_vary_between_calls_and_images():
    matched = matched_rows(np.random.default_rng(11), 1500, (400, 1100), (400, 1100))
    matched[1] = matched[0]
    cell = PosNegSample(128, 256, 256, seed=(1,))
    draws = [cell(tensor(matched, ms.int32)) for _ in range(2)]
    index = np.stack([draw[0].asnumpy() for draw in draws]).reshape(4, 384)
    valid = np.stack([draw[2].asnumpy() for draw in draws]).reshape(4, 384)
    for first, second in itertools.combinations(range(4), 2):
        assert set(index[first, :128]) != set(index[second, :128])
        assert set(index[first, 128:][valid[first, 128:]]) != set(index[second, 128:][valid[second, 128:]])


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_sampling_follows_the_seed(seed):
    """Two cells of one seed draw alike, another seed differently: a run can be repeated, with every seed allowed."""
    candidates = tensor(np.ones((1, 500), bool), ms.bool_)
    first, again, other = (
        RandomSample(20, seed=(number,))(candidates)[0].asnumpy().tolist() for number in (seed, seed, seed ^ 1)
    )
    assert first == again
    assert first != other


def test_streams_have_seeds_of_their_own():
    """Six run seeds, eight ranks, both stages, positives and negatives: 192 different seeds in the operator's range."""
    names = list(itertools.product((0, 1, 2, 3, 2**31, 2**32 - 1), range(8), (0, 1), (0, 1)))
    seeds = {stream_seed(name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 < seed < 2**63 for seed in seeds)


def test_the_operator_uses_all_bits_of_its_seed():
    """Were it to take 32 of the 63, streams would meet far more often."""
    draws = {
        tuple(ops.UniformReal(seed=seed)((4,)).asnumpy().tolist())
        for seed in (5, *(5 + 2**bit for bit in (3, 15, 30, 31, 32, 33, 47, 61, 62)))
    }
    assert len(draws) == 10

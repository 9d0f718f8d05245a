"""Matching boxes to ground truths and sampling them: shared by the RPN's anchors and the box head's proposals."""

from collections.abc import Sequence

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops

from src.FasterRcnn.graph_ops import count_up, smaller

# Values of ``matched_gt`` that are not the number of a ground truth.
NEGATIVE = -1
IGNORED = -2
# Makes the smallest difference of two IoUs larger than the number of any ground truth.
BEYOND_NUMBERS = 1e30
# Corner of a box that overlaps nothing: stands in for rows that may not be matched.
FAR_AWAY = -1e6


def match(iou, pos_iou_thr: float, neg_iou_thr: float, min_pos_iou: float):
    """Match every candidate box to a ground truth (Ren et al. 2015, section 3.1.2; mmdetection v1's rules).

    A candidate is positive for the ground truth it overlaps most when that IoU is at least ``pos_iou_thr``, negative
    when it is below ``neg_iou_thr``. Then every ground truth whose best IoU is at least ``min_pos_iou`` takes ALL
    candidates that reach this best, even those that overlap another ground truth more; a later one wins.

    Args:
        iou (Tensor): (B, G, N) IoU of ground truths and candidates; 0 for padded ground truths and for rows that may
            not be chosen.
        pos_iou_thr, neg_iou_thr, min_pos_iou (float): thresholds in (0, 1].

    Returns:
        Tensor (B, N) int32, number of the matched ground truth, NEGATIVE or IGNORED.
    """
    batch, num_gts, num_candidates = iou.shape
    best_gt, best_iou = ops.ArgMaxWithValue(axis=1)(iou)  # (B, N)
    best_gt = ops.cast(best_gt, mstype.float32)
    matched = ops.where(best_iou < neg_iou_thr, float(NEGATIVE), float(IGNORED))
    matched = ops.where(best_iou >= pos_iou_thr, best_gt, matched)
    # Not ReduceMax, which is several times slower on CPU.
    _, best_of_gt = ops.ArgMaxWithValue(axis=2)(iou)  # (B, G)
    # 2 is not an IoU, so ground truths without a good candidate tie with none.
    best_of_gt = ops.where(best_of_gt >= min_pos_iou, best_of_gt, 2.0)
    number = ops.broadcast_to(ops.cast(count_up(num_gts) + 1, mstype.float32), (batch, num_gts))
    # The ground truth's number where the candidate ties with its best, far below 0 elsewhere. BiasAdd, because sums
    # with broadcasting keep two lists of 64-bit indices as long as their output on CPU, 900 MB here.
    rows = ops.reshape(iou, (1, batch * num_gts, num_candidates, 1))
    rows = ops.BiasAdd()(rows, ops.reshape(-best_of_gt, (-1,)))
    claims = ops.BiasAdd()(rows * BEYOND_NUMBERS, ops.reshape(number, (-1,)))  # (1, B * G, N, 1)
    _, last_claim = ops.ArgMaxWithValue(axis=1)(ops.reshape(claims, iou.shape))  # (B, N)
    matched = ops.where(last_claim > 0, last_claim - 1, matched)
    return ops.cast(matched, mstype.int32)


def stream_seed(numbers: Sequence[int]) -> int:
    """A seed for ``ops.UniformReal``, with which different numbers give random streams that have nothing in common.

    Args:
        numbers (Sequence[int]): at most four, each from 0 to 2**32 - 1; a last 0 counts as if it were not there.

    Returns:
        int: 63 bits, all of which the operator uses on CPU; not 0, which it takes for "no seed".
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1 or 1


class RandomSample(nn.Cell):
    """Choose up to ``count`` of the marked candidates of every image, each subset equally likely.

    Args:
        count (int): slots per image.
        seed (Sequence[int]): see :func:`stream_seed`.

    Inputs: candidates, Tensor (B, N) bool.
    Outputs: two Tensors (B, count): int32 candidate numbers, and bool, False in slots that stayed empty. Filled slots
        come first.
    """

    def __init__(self, count: int, seed: Sequence[int]):
        super().__init__()
        self.count = count
        self.uniform = ops.UniformReal(seed=stream_seed(seed))
        self.top_k = ops.TopK(sorted=True)

    def construct(self, candidates):
        keys = self.uniform(candidates.shape) + 1.0
        keys = keys * ops.cast(candidates, mstype.float32)  # (B, N), 0 where not marked
        available = smaller(self.count, candidates.shape[1])
        key, index = self.top_k(keys, available)  # (B, available)
        index = ops.cast(index, mstype.int32)
        if available < self.count:
            padding = ((0, 0), (0, self.count - available))
            key, index = ops.Pad(padding)(key), ops.Pad(padding)(index)
        return index, key > 0


class PosNegSample(nn.Cell):
    """Sample positives and negatives for a loss.

    Args:
        num_pos (int): positives per image at most; these slots come first.
        num_neg (int): slots for negatives.
        num_total (int): positives and negatives per image at most.
        seed (Sequence[int]): at most three numbers; positives and negatives add 0 and 1, see :func:`stream_seed`.

    Inputs: matched_gt, Tensor (B, N) int32 from :func:`match`.
    Outputs: index (B, num_pos + num_neg) int32 candidate numbers, and two bool masks (B, num_pos + num_neg): slots
        filled with a positive, and slots filled at all.
    """

    def __init__(self, num_pos: int, num_neg: int, num_total: int, seed: Sequence[int]):
        super().__init__()
        self.num_neg = num_neg
        self.num_total = num_total
        self.join = ops.Concat(axis=1)
        self.sample_pos = RandomSample(num_pos, (*seed, 0))
        self.sample_neg = RandomSample(num_neg, (*seed, 1))

    def construct(self, matched_gt):
        pos_index, is_pos = self.sample_pos(matched_gt >= 0)
        neg_index, is_neg = self.sample_neg(matched_gt == NEGATIVE)
        num_pos = ops.reduce_sum(ops.cast(is_pos, mstype.float32), 1)
        room = ops.expand_dims(self.num_total - num_pos, 1)  # (B, 1)
        slot = ops.cast(count_up(self.num_neg), mstype.float32)
        is_neg = ops.logical_and(is_neg, slot < room)
        pos_mask = self.join((is_pos, ops.zeros_like(is_neg)))
        return self.join((pos_index, neg_index)), pos_mask, self.join((is_pos, is_neg))

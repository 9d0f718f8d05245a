"""Box arithmetic against float64 loops: coder, IoU with and without the extra pixel, both suppressions."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.box_ops import BoxCoder, ClassAwareNms, Nms, pairwise_iou, shared_iou
from tests.unit.FasterRcnn.reference import Graph, decode, encode, greedy_nms, iou_matrix, tensor

CANVAS = (768, 1280)
STDS = (0.1, 0.1, 0.2, 0.2)
NUM_BOXES = 120  # rows of every suppression case, so that each cell compiles once


def random_boxes(rng, count, width=1280, height=768, smallest=1, largest=300):
    sizes = rng.uniform(smallest, largest, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sizes)
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32)


# --- coder ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "means, stds", [((0, 0, 0, 0), (1, 1, 1, 1)), ((0, 0, 0, 0), STDS), ((0.1, -0.2, 0.3, -0.4), STDS)]
)
def test_encode_and_decode_equal_the_definition(means, stds):
    rng = np.random.default_rng(1)
    anchors, boxes = random_boxes(rng, 200), random_boxes(rng, 200)
    coder = BoxCoder(means, stds, CANVAS)
    deltas = Graph(coder.encode)(tensor(anchors), tensor(boxes)).asnumpy()
    np.testing.assert_allclose(deltas, encode(anchors, boxes, stds, means), rtol=2e-5, atol=2e-4)
    random_deltas = rng.normal(0, 1, (200, 4)).astype(np.float32)
    decoded = Graph(coder.decode)(tensor(anchors), tensor(random_deltas)).asnumpy()
    np.testing.assert_allclose(decoded, decode(anchors, random_deltas, *CANVAS, stds, means), rtol=1e-5, atol=2e-3)


def test_decode_by_hand():
    """Width x2 - x1 + 1: anchor 0..9 has 10 pixels, its centre at 4.5; dx = 0.5 moves it by 5, log 2 doubles it."""
    coder = BoxCoder((0,) * 4, (1,) * 4, CANVAS)
    anchor = tensor([[100, 200, 109, 219]])
    boxes = Graph(coder.decode)(anchor, tensor([[0.5, -0.25, np.log(2), np.log(0.5)]])).asnumpy()
    # x: centre 104.5 + 5, width 20 -> 100 .. 119; y: centre 209.5 - 5, height 10 -> 200 .. 209
    np.testing.assert_allclose(boxes, [[100, 200, 119, 209]], atol=1e-4)


def test_size_ratio_is_cut_at_both_ends():
    """|dw| is cut at -log 0.016: at most 62.5 times, at least 0.016 times the anchor."""
    coder = BoxCoder((0,) * 4, (1,) * 4, (4096, 4096))
    anchor = np.array([[2000, 2000, 2019, 2019]], np.float32)
    boxes = Graph(coder.decode)(tensor(np.repeat(anchor, 2, 0)), tensor([[0, 0, 10, -10], [0, 0, -10, 10]])).asnumpy()
    # centre 2009.5; 20 * 62.5 = 1250 and 20 * 0.016 = 0.32 pixels
    wide, narrow = [2009.5 - 624.5, 2009.5 + 624.5], [2009.5 + 0.34, 2009.5 - 0.34]
    np.testing.assert_allclose(
        boxes, [[wide[0], narrow[0], wide[1], narrow[1]], [narrow[0], wide[0], narrow[1], wide[1]]], atol=2e-3
    )


def test_decoded_boxes_are_clipped_to_the_canvas_edge():
    """To [0, W] x [0, H]; height 64, width 128."""
    coder = BoxCoder((0,) * 4, (1,) * 4, (64, 128))
    anchors = tensor([[-50, -60, 300, 400], [200, 90, 210, 99], [-30, -20, -10, -5]])
    boxes = Graph(coder.decode)(anchors, tensor(np.zeros((3, 4)))).asnumpy()
    np.testing.assert_allclose(boxes, [[0, 0, 128, 64], [128, 64, 128, 64], [0, 0, 0, 0]])


def test_round_trip_and_leading_dimensions():
    rng = np.random.default_rng(2)
    anchors, boxes = random_boxes(rng, 60).reshape(2, 30, 4), random_boxes(rng, 60).reshape(2, 30, 4)
    coder = BoxCoder((0,) * 4, STDS, CANVAS)

    def round_trip(anchors, boxes):
        return coder.decode(anchors, coder.encode(anchors, boxes))

    result = Graph(round_trip)(tensor(anchors), tensor(boxes)).asnumpy()
    # only ratios within 62.5 come back
    width_ratio = (boxes[..., 2:] - boxes[..., :2] + 1) / (anchors[..., 2:] - anchors[..., :2] + 1)
    possible = np.all((width_ratio < 62.5) & (width_ratio > 0.016), axis=-1)
    assert result.shape == (2, 30, 4)
    assert possible.sum() > 50
    np.testing.assert_allclose(result[possible], boxes[possible], atol=5e-3)


# --- IoU --------------------------------------------------------------------------------------------------------------


def test_shared_iou_counts_the_extra_pixel():
    rng = np.random.default_rng(3)
    anchors, boxes = random_boxes(rng, 70), random_boxes(rng, 10).reshape(2, 5, 4)
    boxes[0, 0] = anchors[3]
    result = Graph(shared_iou)(tensor(anchors), tensor(boxes)).asnumpy()
    assert result.shape == (2, 5, 70)
    for image in range(2):
        np.testing.assert_allclose(result[image], iou_matrix(boxes[image], anchors, 1), rtol=1e-5, atol=1e-6)
    assert result[0, 0, 3] == 1.0


@pytest.mark.parametrize("extra_pixel", [0, 1])
def test_pairwise_iou(extra_pixel):
    rng = np.random.default_rng(4)
    rows, columns = random_boxes(rng, 40).reshape(2, 20, 4), random_boxes(rng, 60).reshape(2, 30, 4)
    columns[1, 4] = rows[1, 2]

    def overlap(a, b):
        return pairwise_iou(a, b, extra_pixel)

    result = Graph(overlap)(tensor(rows), tensor(columns)).asnumpy()
    assert result.shape == (2, 20, 30)
    for image in range(2):
        expected = iou_matrix(rows[image], columns[image], extra_pixel)
        np.testing.assert_allclose(result[image], expected, rtol=1e-5, atol=1e-6)
    assert result[1, 2, 4] == 1.0


def test_iou_by_hand():
    """10 x 10 pixels and their right half: 50 / 100 with the extra pixel; 9 x 9 and 4 x 9 without: 36 / 81."""
    a, b = tensor([[[0, 0, 9, 9]]]), tensor([[[5, 0, 9, 9]]])
    assert pairwise_iou(a, b, 1).asnumpy().item() == 0.5
    np.testing.assert_allclose(pairwise_iou(a, b, 0).asnumpy().item(), 36 / 81, rtol=1e-6)
    assert shared_iou(a[0], b).asnumpy().item() == 0.5


# --- suppression: cases -----------------------------------------------------------------------------------------------


def chain(count):
    """Each box overlaps the next by IoU 7/13 > 0.5, the one after next by 4/16: every second one stays."""
    x1 = 3.0 * np.arange(count)
    return np.stack([x1, np.zeros(count), x1 + 10, np.full(count, 10.0)], axis=1)


def pile(count):
    """The same box again and again, then the same box without area: no area, no overlap, nothing to suppress."""
    half = count // 2
    boxes = np.tile([100.0, 100.0, 150.0, 160.0], (count, 1))
    boxes[half:] = [700.0, 300.0, 700.0, 300.0]
    return boxes


def hairs(count):
    """Boxes at 1000 px whose IoU with their neighbour is 1e-4 above or below 0.5 (at 10/3 px of 10 it is 0.5)."""
    boxes = np.zeros((count, 4))
    for pair in range(count // 2):
        x1 = 1000 + 0.37 * pair
        y1 = 12.0 * pair
        shift = 10 / 3 + (0.001 if pair % 2 else -0.001)
        boxes[2 * pair] = [x1, y1, x1 + 10, y1 + 10]
        boxes[2 * pair + 1] = [x1 + shift, y1, x1 + shift + 10, y1 + 10]
    return boxes


def suppression_case(name):
    rng = np.random.default_rng(5)
    boxes = {
        "random": lambda: random_boxes(rng, NUM_BOXES, 400, 300, 20, 200),
        "tiny": lambda: random_boxes(rng, NUM_BOXES, 8, 8, 0.01, 4),
        "chain": lambda: chain(NUM_BOXES),
        "pile": lambda: pile(NUM_BOXES),
        "hairs": lambda: hairs(NUM_BOXES),
    }[name]()
    return boxes.astype(np.float32)


CASES = ["random", "tiny", "chain", "pile", "hairs"]


# --- Nms --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0.5, 0.7])
def nms(request):
    return Nms(request.param), request.param


@pytest.mark.parametrize("case", CASES)
def test_nms_equals_the_greedy_loop(nms, case):
    cell, threshold = nms
    boxes = suppression_case(case)
    keep = cell(tensor(boxes)).asnumpy()
    assert keep.dtype == bool
    np.testing.assert_array_equal(keep, greedy_nms(boxes, threshold, margin=1e-5))


def test_nms_cases_are_what_their_names_say():
    assert greedy_nms(chain(NUM_BOXES), 0.5).tolist() == [True, False] * (NUM_BOXES // 2)
    assert greedy_nms(hairs(NUM_BOXES), 0.5).tolist() == [True, False, True, True] * (NUM_BOXES // 4)
    half = NUM_BOXES // 2
    assert greedy_nms(pile(NUM_BOXES), 0.5).tolist() == [True] + [False] * (half - 1) + [True] * half


def at_threshold(threshold):
    """Pairs of boxes whose IoU is the threshold exactly: kept, the rule is strict."""
    width, shift = {0.5: (30, 10), 0.7: (17, 3)}[threshold]  # 20 / 40 and 14 / 20
    boxes = np.zeros((NUM_BOXES, 4), np.float32)
    for pair in range(NUM_BOXES // 2):
        boxes[2 * pair] = [0, 20 * pair, width, 20 * pair + 10]
        boxes[2 * pair + 1] = [shift, 20 * pair, width + shift, 20 * pair + 10]
    return boxes


def test_nms_keeps_a_box_at_the_threshold(nms):
    cell, threshold = nms
    assert cell(tensor(at_threshold(threshold))).asnumpy().all()


def test_nms_of_two_thousand_boxes(nms):
    cell, threshold = nms
    boxes = random_boxes(np.random.default_rng(11), 2000, 640, 384, 30, 150)
    np.testing.assert_array_equal(cell(tensor(boxes)).asnumpy(), greedy_nms(boxes, threshold, margin=1e-6))


# --- ClassAwareNms ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def class_nms():
    return ClassAwareNms(0.5)


def per_class_loop(boxes, labels, valid, threshold=0.5, margin=1e-5):
    keep = np.zeros(len(boxes), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & valid)
        keep[rows] = greedy_nms(boxes[rows], threshold, margin)
    return keep


def check_class_nms(cell, boxes, labels, valid):
    keep = cell(tensor(boxes), tensor(labels), tensor(valid, ms.bool_)).asnumpy()
    assert keep.dtype == bool
    for image in range(len(boxes)):
        expected = per_class_loop(boxes[image], labels[image], valid[image])
        np.testing.assert_array_equal(keep[image], expected)


@pytest.mark.parametrize("num_classes", [1, 2, 80])
@pytest.mark.parametrize("case", CASES)
def test_class_aware_nms_equals_a_loop_over_classes(class_nms, case, num_classes):
    rng = np.random.default_rng(6)
    boxes = np.stack([suppression_case(case), suppression_case("random")])
    labels = rng.integers(0, num_classes, (2, NUM_BOXES)).astype(np.float32)
    check_class_nms(class_nms, boxes, labels, np.ones((2, NUM_BOXES), bool))


def test_class_aware_nms_in_neighbouring_corners(class_nms):
    """Every box twice, in classes 0 and 1, 0 and 79, 78 and 79: none of a pair removes the other."""
    boxes = np.repeat(suppression_case("random")[: NUM_BOXES // 2], 2, axis=0)
    pairs = np.tile([0, 1, 0, 79, 78, 79], NUM_BOXES // 6).astype(np.float32)
    check_class_nms(class_nms, np.stack([boxes, boxes]), np.stack([pairs, pairs[::-1]]), np.ones((2, NUM_BOXES), bool))


def test_rows_that_are_not_valid_neither_stay_nor_suppress(class_nms):
    rng = np.random.default_rng(7)
    boxes = np.stack([suppression_case("chain"), suppression_case("pile")])
    labels = np.zeros((2, NUM_BOXES), np.float32)
    valid = rng.random((2, NUM_BOXES)) < 0.5
    valid[:, 0] = False  # the head of the chain: the next one takes its place
    check_class_nms(class_nms, boxes, labels, valid)


def test_an_image_without_valid_rows_keeps_nothing(class_nms):
    boxes = np.stack([suppression_case("random")] * 2)
    labels = np.zeros((2, NUM_BOXES), np.float32)
    valid = np.stack([np.zeros(NUM_BOXES, bool), np.ones(NUM_BOXES, bool)])
    keep = class_nms(tensor(boxes), tensor(labels), tensor(valid, ms.bool_)).asnumpy()
    assert not keep[0].any()
    np.testing.assert_array_equal(keep[1], greedy_nms(boxes[1], 0.5, margin=1e-5))


def test_class_aware_nms_keeps_a_box_at_the_threshold(class_nms):
    boxes = np.stack([at_threshold(0.5)] * 2)
    keep = class_nms(tensor(boxes), tensor(np.zeros((2, NUM_BOXES))), tensor(np.ones((2, NUM_BOXES)), ms.bool_))
    assert keep.asnumpy().all()


def test_one_pixel_boxes_have_no_extra_pixel():
    """IoU without +1: boxes 0..10 and 5..15 overlap by 5/15; with +1 it would be 6/16 > 0.35."""
    boxes = [[0, 0, 10, 10], [5, 0, 15, 10]]
    assert Nms(0.35)(tensor(boxes)).asnumpy().tolist() == [True, True]
    keep = ClassAwareNms(0.35)(tensor([boxes]), tensor([[3, 3]]), tensor([[True, True]], ms.bool_))
    assert keep.asnumpy().tolist() == [[True, True]]

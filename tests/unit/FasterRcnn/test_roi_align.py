"""RoIAlign, both implementations, against loops over the samples: ops.ROIAlign's roi_end_mode=1 written out."""

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.roi_align import SingleRoIExtractor, roi_levels
from src.FasterRcnn.sparse_product import entries_of
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import Graph, tensor

HEIGHT, WIDTH = 128, 192
STRIDES = (4, 8, 16, 32)
FINEST = 14  # levels change at sides of 28, 56 and 112, so that a small canvas uses all four
CHANNELS = 3
# On maps with values around 1. The native form moves a degenerate box at the left border by 0.001 pixel.
TOLERANCE = 2e-3


@pytest.mark.parametrize(
    "side, level",
    [(1, 0), (55, 0), (56, 0), (111.9, 0), (112, 1), (112.1, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (4000, 3)],
)
def test_square_roi_goes_to_the_level_of_its_side(side, level):
    roi = tensor([[0, 0, side - 1, side - 1]])  # width is x2 - x1 + 1
    assert roi_levels(roi, finest_scale=56, num_levels=4).asnumpy().tolist() == [level]


def test_levels_of_many_shapes():
    """Level from the area: sides 2 : 1 and 1 : 3, anywhere on the canvas, against the logarithm in float64."""
    rng = np.random.default_rng(16)
    sizes = rng.uniform(1, 1000, (2, 150, 2))
    corners = rng.uniform(0, 300, (2, 150, 2))
    rois = np.concatenate([corners, corners + sizes - 1], axis=2).astype(np.float32)

    def levels(boxes):
        return roi_levels(boxes, 56, 4)

    result = Graph(levels)(tensor(rois))
    assert result.dtype == ms.int32
    expected = [[reference.roi_level(roi) for roi in image] for image in rois.astype(np.float64)]
    assert result.asnumpy().tolist() == expected
    assert set(np.ravel(expected)) == {0, 1, 2, 3}


def test_fewer_levels_and_another_scale():
    rois = tensor([[[0, 0, 9, 9], [0, 0, 39, 39], [0, 0, 4000, 4000], [7, 7, 6.5, 6.5]]])
    assert roi_levels(rois, 20, 2).asnumpy().tolist() == [[0, 1, 1, 0]]


# --- pooling ----------------------------------------------------------------------------------------------------------


def feature_maps(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        (scale * rng.normal(0, 1, (2, CHANNELS, HEIGHT // stride, WIDTH // stride))).astype(np.float32)
        for stride in STRIDES
    ]


INNER = [
    [10, 20, 40, 70],
    [100, 5, 150, 100],
    [3.7, 8.2, 17.9, 30.1],
    [20, 20, 190, 120],
    [64, 32, 127, 95],
    [0, 0, 191, 127],
    [33.3, 44.4, 50.5, 55.6],
]
BORDER = [[0, 10, 30, 50], [150, 90, 192, 128], [0, 0, 27, 27], [0, 0, 192, 128], [170, 0, 192, 30]]
OUTSIDE = [
    [-30, -20, 25, 30],
    [180, 110, 260, 170],
    [-100, 40, -60, 60],
    [188, 20, 230, 40],
    [-200, -150, 400, 300],
    [50, 130, 80, 150],
]
THIN = [[40, 40, 40, 40], [50.2, 60.7, 49.9, 60.2], [100, 10, 100, 110], [30, 30, 150, 30], [77.7, 3, 77.4, 90]]
# Where ops.ROIAlign writes nothing: |x1| and |x2| below 0.001.
UNWRITTEN = [
    [0, 0, 0, 0],
    [0, 10, 0, 60],
    [0, 0, 0, 128],
    [0.0005, 30, 0.0009, 45],
    [-0.0005, 5, 0.0005, 90],
    [0, 127, 0, 127],
    [0.00099, 3, 0.00099, 5],
    [0.001, 3, 0.001, 5],
    [0, 3, 0.001, 5],
]


def roi_batch():
    """(2, R, 4): the same kinds of RoI in both images, in another order, each level used."""
    rois = np.array(INNER + BORDER + OUTSIDE + THIN + UNWRITTEN, np.float32)
    order = np.random.default_rng(17).permutation(len(rois))
    return np.stack([rois, rois[order]])


@pytest.fixture(scope="module", params=[False, True], ids=["sparse", "native"])
def extractor(request):
    cell = SingleRoIExtractor(7, 2, STRIDES, FINEST, native=request.param)

    def pooled(rois, p2, p3, p4, p5):
        return cell(rois, (p2, p3, p4, p5))

    return Graph(pooled)


@pytest.fixture(scope="module")
def case():
    rois, features = roi_batch(), feature_maps(18)
    return rois, features, reference.roi_align(rois, features, FINEST, STRIDES)


def test_case_uses_all_levels(case):
    assert {reference.roi_level(roi, FINEST) for roi in case[0][0]} == {0, 1, 2, 3}


def test_forward_equals_the_definition(extractor, case):
    rois, features, expected = case
    pooled = extractor(tensor(rois), *map(tensor, features))
    assert pooled.dtype == ms.float32
    assert pooled.shape == (2 * rois.shape[1], CHANNELS, 7, 7)
    np.testing.assert_allclose(pooled.asnumpy(), expected, atol=TOLERANCE)


def test_old_memory_never_shows(extractor, case):
    """Between two calls the memory of the output is filled with large values; RoIs at the left border stay right."""
    rois, features, expected = case
    loud = list(map(tensor, feature_maps(19, scale=1e6)))
    plain = tensor(np.tile(np.float32(INNER * 5)[: rois.shape[1]], (2, 1, 1)))
    for _ in range(3):
        assert np.abs(extractor(plain, *loud).asnumpy()).max() > 1e5
        pooled = extractor(tensor(rois), *map(tensor, features)).asnumpy()
        np.testing.assert_allclose(pooled, expected, atol=TOLERANCE)


def test_padding_rows_alone(extractor, case):
    """A batch without proposals: every row is 0. What they pool does not count, but it is always the same."""
    rois, features, _ = case
    zeros = np.zeros_like(rois)
    loud = list(map(tensor, feature_maps(19, scale=1e6)))
    expected = reference.roi_align(zeros[:, :1], features, FINEST, STRIDES)
    for _ in range(2):
        extractor(tensor(rois), *loud)
        pooled = extractor(tensor(zeros), *map(tensor, features)).asnumpy().reshape(2, -1, CHANNELS, 7, 7)
        for image in range(2):
            repeated = np.broadcast_to(expected[image], pooled[image].shape)
            np.testing.assert_allclose(pooled[image], repeated, atol=TOLERANCE)


def expected_gradients(rois, features, dout):
    """Transposed matrices: each level's gradient is the sum over its RoIs."""
    gradients = [np.zeros(level.shape) for level in features]
    for row, roi in enumerate(rois.reshape(-1, 4).astype(np.float64)):
        image, level = row // rois.shape[1], reference.roi_level(roi, FINEST)
        channels, height, width = features[level].shape[1:]
        matrix = reference.roi_align_matrix(roi, STRIDES[level], height, width)
        gradients[level][image] += (dout[row].reshape(channels, -1) @ matrix).reshape(channels, height, width)
    return gradients


def test_gradient_is_the_transposed_product(extractor, case):
    # the rows where the operator itself writes nothing are padding, whose loss is masked: they have gradient 0
    rois, features, _ = case
    num_rois = rois.shape[1]
    dout = np.random.default_rng(20).normal(0, 1, (2 * num_rois, CHANNELS, 7, 7)).astype(np.float32)
    at_left = (np.abs(rois[..., 0]) < 0.01) & (np.abs(rois[..., 2]) < 0.01)
    dout[at_left.reshape(-1)] = 0

    def weighted_sum(boxes, p2, p3, p4, p5, weights):
        return (extractor(boxes, p2, p3, p4, p5) * weights).sum()

    gradient = ms.grad(Graph(weighted_sum), grad_position=(0, 1, 2, 3, 4))
    to_rois, *to_maps = gradient(tensor(rois), *map(tensor, features), tensor(dout))
    assert to_rois.shape == rois.shape and not to_rois.asnumpy().any()
    for result, expected in zip(to_maps, expected_gradients(rois, features, dout), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(result.asnumpy(), expected, atol=2e-3)


def test_constant_map_gives_the_constant_inside(extractor):
    """Weights of a bin sum to 1 wherever its samples lie on the map; beyond one pixel outside they are 0."""
    rois = roi_batch()
    maps = [np.full((2, CHANNELS, HEIGHT // stride, WIDTH // stride), 5.0, np.float32) for stride in STRIDES]
    pooled = extractor(tensor(rois), *map(tensor, maps)).asnumpy().reshape(2, -1, CHANNELS, 7, 7)
    np.testing.assert_allclose(pooled[0, : len(INNER)], 5.0, rtol=1e-5)
    far_outside = len(INNER) + len(BORDER) + 2
    assert rois[0, far_outside].tolist() == [-100, 40, -60, 60]
    assert not pooled[0, far_outside].any()


@pytest.mark.parametrize("out_size, samples", [(5, 1), (7, 3), (3, 4)])
def test_other_grids(out_size, samples):
    """The sparse form where samples share pixels once, twice, many times or never."""
    rois, features = roi_batch()[:1], feature_maps(22)
    cell = SingleRoIExtractor(out_size, samples, STRIDES, FINEST)

    def pooled(boxes, p2, p3, p4, p5):
        return cell(boxes, (p2, p3, p4, p5))

    results = Graph(pooled)(tensor(rois), *(tensor(level[:1]) for level in features)).asnumpy()
    for roi, result in zip(rois[0].astype(np.float64), results, strict=True):
        level = reference.roi_level(roi, FINEST)
        _, _, height, width = features[level].shape
        matrix = reference.roi_align_matrix(roi, STRIDES[level], height, width, out_size, samples)
        expected = features[level][0].reshape(CHANNELS, -1) @ matrix.T
        np.testing.assert_allclose(result.reshape(CHANNELS, -1), expected, atol=2e-5)


def test_one_entry_for_each_pixel_of_a_bin():
    """A RoI of 28 x 27.9 on stride 4 has bins one cell wide: both samples of an axis lie between the same two pixels,
    so that a bin sees 4 pixels, by 16 taps."""
    pool = SingleRoIExtractor(7, 2, STRIDES, FINEST).pool
    roi = tensor([[[32, 40, 59, 66.9]]])

    def entries(boxes, p2, p3, p4, p5):
        return entries_of(*pool.taps(boxes, roi_levels(boxes, FINEST, 4), (p2, p3, p4, p5)))

    places, values = Graph(entries)(roi, *(tensor(level[:1]) for level in feature_maps(23)))
    assert places.shape == (49 * 4, 2) and values.shape == (49 * 4,)
    assert len(set(map(tuple, places.asnumpy().tolist()))) == 49 * 4
    first_bin = places.asnumpy()[:4]
    assert first_bin.tolist() == [[0, row * WIDTH // 4 + column] for row in (10, 11) for column in (8, 9)]
    np.testing.assert_allclose(np.bincount(places.asnumpy()[:, 0], values.asnumpy()), np.ones(49), atol=1e-5)


def test_rois_that_see_no_pixel(extractor):
    """Alone, far outside: the matrix of the sparse product has no entry. The output and the gradient are 0."""
    rois = np.tile(np.float32([[-300, 40, -200, 90]]), (2, 33, 1))
    maps = list(map(tensor, feature_maps(21)))

    def total(boxes, p2, p3, p4, p5):
        return extractor(boxes, p2, p3, p4, p5).sum()

    assert not extractor(tensor(rois), *maps).asnumpy().any()
    for gradient in ms.grad(Graph(total), grad_position=(1, 2, 3, 4))(tensor(rois), *maps):
        assert not gradient.asnumpy().any()


def test_linear_ramp_by_hand(extractor):
    """On a map that holds its column number, bin b of a RoI from x1 = 32 to x2 = 59 on stride 4 has its centre at
    column 8 + (b + 0.5) * 7 / 7: the bins are 1 cell wide, and no half cell is subtracted."""
    maps = [
        np.tile(np.arange(WIDTH // stride, dtype=np.float32), (2, CHANNELS, HEIGHT // stride, 1)) for stride in STRIDES
    ]
    rois = roi_batch()
    rois[1, 0] = [32, 40, 59, 66.9]  # 28 x 27.9: below 28, level 0
    pooled = extractor(tensor(rois), *map(tensor, maps)).asnumpy().reshape(2, -1, CHANNELS, 7, 7)
    np.testing.assert_allclose(pooled[1, 0], np.broadcast_to(8.5 + np.arange(7), (CHANNELS, 7, 7)), atol=1e-3)

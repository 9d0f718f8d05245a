"""RPN: its head against numpy, its losses against their sums for given targets."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.FasterRcnn.rows import pixel_rows
from src.FasterRcnn.rpn import RPN, RpnRegClsBlock
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import Graph, NumpyNet, tensor

NUM_ANCHORS = 3
LEVEL_SIZES = (240, 60)
BATCH, NUM_POS, NUM_TOTAL = 2, 128, 256


class GivenTargets(nn.Cell):
    """Stands in for BboxAssignSample: the targets are known."""

    def __init__(self, index, labels, valid, deltas):
        super().__init__()
        self.index, self.labels = tensor(index, ms.int32), tensor(labels)
        self.valid, self.deltas = tensor(valid), tensor(deltas)

    def construct(self, gt_boxes, gt_valid):
        return self.index, self.labels, self.valid, self.deltas


def build(assign=None, sparse_gradient=False):
    return RPN(4, 6, NUM_ANCHORS, assign, sparse_gradient=sparse_gradient)


# --- head -------------------------------------------------------------------------------------------------------------


def test_head_equals_the_definition():
    """Channel a scores anchor a, channel 4a + k is its delta k; cells by row, then column."""
    rng = np.random.default_rng(27)
    head = RpnRegClsBlock(4, 6, NUM_ANCHORS)
    for param in head.get_parameters():
        param.set_data(tensor(rng.normal(0, 0.3, param.shape)))
    feature = rng.normal(0, 1, (2, 4, 3, 5)).astype(np.float32)
    logits, deltas = head(tensor(feature))
    assert logits.shape == (2, 45) and deltas.shape == (2, 45, 4)
    expected_logits, expected_deltas = NumpyNet(head).rpn_head(feature)
    np.testing.assert_allclose(logits.asnumpy(), expected_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deltas.asnumpy(), expected_deltas, rtol=1e-4, atol=1e-5)


def test_levels_share_one_head():
    rng = np.random.default_rng(28)
    rpn = build()
    maps = [rng.normal(0, 1, (2, 4, *shape)).astype(np.float32) for shape in ((8, 10), (4, 5))]

    def heads(p2, p3):
        return rpn((p2, p3))

    logits, deltas = Graph(heads)(*map(tensor, maps))
    net = NumpyNet(rpn)
    for level, feature in enumerate(maps):
        expected_logits, expected_deltas = net.rpn_head(feature, "rpn_convs_list.0.")
        np.testing.assert_allclose(logits[level].asnumpy(), expected_logits, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(deltas[level].asnumpy(), expected_deltas, rtol=1e-3, atol=1e-6)
    assert [param.name for param in rpn.get_parameters()] == [
        f"rpn_convs_list.0.{layer}.{part}"
        for layer in ("rpn_conv", "rpn_cls", "rpn_reg")
        for part in ("weight", "bias")
    ]


def test_initial_values_are_normal_with_std_001():
    rpn = RPN(64, 64, NUM_ANCHORS, None)
    for param in rpn.get_parameters():
        values = param.asnumpy()
        if param.name.endswith("bias"):
            assert not values.any()
        else:
            # the smallest weight has 192 values: its standard deviation is known to 5 %
            np.testing.assert_allclose(values.std(), 0.01, rtol=0.25)
            assert abs(values.mean()) < 0.004


# --- losses -----------------------------------------------------------------------------------------------------------


def random_targets(seed, num_pos):
    """As BboxAssignSample gives them: num_pos positives per image first, negatives from slot 128 on, up to 256."""
    rng = np.random.default_rng(seed)
    index = np.zeros((BATCH, NUM_POS + NUM_TOTAL), int)
    labels, valid = np.zeros(index.shape), np.zeros(index.shape)
    deltas = np.zeros((BATCH, NUM_POS, 4))
    for image, count in enumerate(num_pos):
        num_neg = min(sum(LEVEL_SIZES), NUM_TOTAL) - count - 20 * image
        chosen = rng.permutation(sum(LEVEL_SIZES))
        index[image, :count] = chosen[:count]
        index[image, NUM_POS : NUM_POS + num_neg] = chosen[count : count + num_neg]
        labels[image, :count] = 1
        valid[image, :count] = valid[image, NUM_POS : NUM_POS + num_neg] = 1
        deltas[image, :count] = rng.normal(0, 1, (count, 4))
    return index, labels, valid, deltas


def random_outputs(seed):
    rng = np.random.default_rng(seed)
    logits = [rng.normal(0, 2, (BATCH, size)).astype(np.float32) for size in LEVEL_SIZES]
    deltas = [rng.normal(0, 1, (BATCH, size, 4)).astype(np.float32) for size in LEVEL_SIZES]
    return logits, deltas


def losses_of(targets):
    """The two losses as a graph of the head's outputs: two logits, two deltas."""
    rpn = build(GivenTargets(*targets))
    gt_boxes, gt_valid = tensor(np.zeros((BATCH, 4, 4))), tensor(np.zeros((BATCH, 4)), ms.bool_)

    def losses(fine_logits, coarse_logits, fine_deltas, coarse_deltas):
        return rpn.losses((fine_logits, coarse_logits), (fine_deltas, coarse_deltas), gt_boxes, gt_valid)

    return losses


def expected_losses(logits, deltas, index, labels, valid, target_deltas):
    logits, deltas = np.concatenate(logits, axis=1), np.concatenate(deltas, axis=1)
    cls_loss = reg_loss = 0.0
    for image in range(BATCH):
        for slot in range(index.shape[1]):
            if not valid[image, slot]:
                continue
            anchor = index[image, slot]
            cls_loss += reference.sigmoid_cross_entropy(logits[image, anchor], labels[image, slot])
            if labels[image, slot]:
                difference = deltas[image, anchor] - target_deltas[image, slot]
                reg_loss += reference.smooth_l1(difference, 1 / 9).sum()
    return cls_loss / (256 * BATCH), reg_loss / (256 * BATCH)


@pytest.mark.parametrize("num_pos", [(128, 40), (1, 0)])
def test_losses_are_sums_divided_by_256_per_image(num_pos):
    """Divided by 256 * B however many anchors were sampled."""
    targets = random_targets(29, num_pos)
    logits, deltas = random_outputs(30)
    cls_loss, reg_loss = Graph(losses_of(targets))(*map(tensor, logits), *map(tensor, deltas))
    assert cls_loss.shape == reg_loss.shape == ()
    assert cls_loss.dtype == reg_loss.dtype == ms.float32
    expected = expected_losses(logits, deltas, *targets)
    np.testing.assert_allclose([cls_loss.asnumpy(), reg_loss.asnumpy()], expected, rtol=1e-5)


def test_gradients_by_hand():
    """(sigmoid - label) / 512 at sampled anchors; nine times the difference, cut at 1, / 512 at positives."""
    index, labels, valid, target_deltas = targets = random_targets(31, (128, 40))
    logits, deltas = random_outputs(32)
    losses = losses_of(targets)

    def total(*outputs):
        cls_loss, reg_loss = losses(*outputs)
        return cls_loss + reg_loss

    gradients = ms.grad(Graph(total), grad_position=(0, 1, 2, 3))(*map(tensor, logits), *map(tensor, deltas))
    to_logits = np.concatenate([gradient.asnumpy() for gradient in gradients[:2]], axis=1)
    to_deltas = np.concatenate([gradient.asnumpy() for gradient in gradients[2:]], axis=1)
    logits, deltas = np.concatenate(logits, axis=1), np.concatenate(deltas, axis=1)
    expected_logits, expected_deltas = np.zeros(logits.shape), np.zeros(deltas.shape)
    for image, slot in zip(*np.nonzero(valid), strict=True):
        anchor = index[image, slot]
        expected_logits[image, anchor] = (reference.sigmoid(logits[image, anchor]) - labels[image, slot]) / 512
        if labels[image, slot]:
            difference = deltas[image, anchor] - target_deltas[image, slot]
            expected_deltas[image, anchor] = np.clip(difference * 9, -1, 1) / 512
    np.testing.assert_allclose(to_logits, expected_logits, atol=1e-7)
    np.testing.assert_allclose(to_deltas, expected_deltas, atol=1e-7)


LEVEL_MAPS = ((8, 10), (4, 5))  # 3 anchors a cell make LEVEL_SIZES


def test_both_gradients_equal_the_definition():
    """Dense and through the sampled anchors alone: of both levels, corners and borders among them; two images."""
    rng = np.random.default_rng(37)
    targets = random_targets(38, (128, 40))
    values = [rng.normal(0, 0.3, param.shape) for param in build().get_parameters()]
    maps = [rng.normal(0, 1, (BATCH, 4, *shape)).astype(np.float32) for shape in LEVEL_MAPS]
    gt_boxes, gt_valid = tensor(np.zeros((BATCH, 4, 4))), tensor(np.zeros((BATCH, 4)), ms.bool_)

    def run(sparse_gradient):
        """The two losses and the gradients of their sum."""
        rpn = build(GivenTargets(*targets), sparse_gradient)
        for param, value in zip(rpn.get_parameters(), values, strict=True):
            param.set_data(tensor(value))

        def total(p2, p3):
            _, _, cls_loss, reg_loss, _ = rpn.with_losses((p2, p3), gt_boxes, gt_valid)
            return cls_loss + reg_loss, cls_loss, reg_loss

        gradient = ms.value_and_grad(Graph(total), (0, 1), rpn.trainable_params(), has_aux=True)
        (_, *losses), (to_maps, to_weights) = gradient(*map(tensor, maps))
        return rpn, [loss.asnumpy() for loss in losses], [part.asnumpy() for part in (*to_maps, *to_weights)]

    rpn, sparse_losses, sparse = run(True)
    _, dense_losses, dense = run(False)
    net = NumpyNet(rpn)
    outputs = [net.rpn_head(feature, "rpn_convs_list.0.") for feature in maps]
    expected = expected_losses(*zip(*outputs, strict=True), *targets)
    np.testing.assert_allclose(sparse_losses, expected, rtol=1e-5)
    np.testing.assert_allclose(dense_losses, expected, rtol=1e-5)
    for sampled, whole in zip(sparse, dense, strict=True):
        np.testing.assert_allclose(sampled, whole, rtol=1e-4, atol=1e-6)
        assert whole.any()


@pytest.mark.parametrize("sparse_gradient", [True, False])
def test_outputs_beside_the_losses(sparse_gradient):
    """Logits and deltas are those of the RPN; the features come as rows of pixels where the gradient is sparse."""
    rpn = build(GivenTargets(*random_targets(38, (128, 40))), sparse_gradient)
    maps = [np.random.default_rng(39).normal(0, 1, (BATCH, 4, *shape)).astype(np.float32) for shape in LEVEL_MAPS]
    gt_boxes, gt_valid = tensor(np.zeros((BATCH, 4, 4))), tensor(np.zeros((BATCH, 4)), ms.bool_)

    def outputs(p2, p3):
        logits, deltas, _, _, pixels = rpn.with_losses((p2, p3), gt_boxes, gt_valid)
        rows = pixel_rows((p2, p3))
        return *logits, *deltas, *rpn((p2, p3)), (rows if pixels is None else pixels), rows, pixels is None

    *beside, own_logits, own_deltas, pixels, rows, none = Graph(outputs)(*map(tensor, maps))
    for value, own in zip(beside, (*own_logits, *own_deltas), strict=True):
        np.testing.assert_array_equal(value.asnumpy(), own.asnumpy())
    np.testing.assert_array_equal(pixels.asnumpy(), rows.asnumpy())
    assert none == (not sparse_gradient)


def test_images_without_boxes():
    """The regression loss is exactly 0; gradients are finite, those of the deltas 0."""
    targets = random_targets(33, (0, 0))
    logits, deltas = random_outputs(34)
    losses = losses_of(targets)

    def total(*outputs):
        cls_loss, reg_loss = losses(*outputs)
        return cls_loss + reg_loss, reg_loss

    gradient = ms.value_and_grad(Graph(total), grad_position=(0, 1, 2, 3), has_aux=True)
    (loss, reg_loss), gradients = gradient(*map(tensor, logits), *map(tensor, deltas))
    assert reg_loss.asnumpy() == 0.0
    expected, _ = expected_losses(logits, deltas, *targets)
    np.testing.assert_allclose(loss.asnumpy(), expected, rtol=1e-5)
    assert all(np.isfinite(part.asnumpy()).all() for part in gradients)
    assert not gradients[2].asnumpy().any() and not gradients[3].asnumpy().any()


def test_large_logits_stay_finite():
    """-log(1 - sigmoid(200)) is 200, although the sigmoid is 1 in float32."""
    index, labels, valid, deltas = random_targets(35, (1, 0))
    valid[:] = 0
    valid[0, 0] = valid[0, NUM_POS] = 1  # one positive, one negative
    logits, _ = random_outputs(36)
    logits = np.concatenate(logits, axis=1)
    logits[0, index[0, 0]], logits[0, index[0, NUM_POS]] = -300, 200
    cls_loss, _ = Graph(losses_of((index, labels, valid, deltas)))(
        *map(tensor, np.split(logits, LEVEL_SIZES[:1], axis=1)), *map(tensor, random_outputs(36)[1])
    )
    np.testing.assert_allclose(cls_loss.asnumpy(), (300 + 200) / 512, rtol=1e-6)

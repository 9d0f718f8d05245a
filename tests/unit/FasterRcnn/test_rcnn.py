"""Box head and losses against their definitions, detections against a loop over the classes."""

from dataclasses import dataclass
from functools import cache

import mindspore as ms
import numpy as np
import pytest

from src.FasterRcnn.box_ops import BoxCoder
from src.FasterRcnn.rcnn import BoxPredictor, Rcnn
from tests.unit.FasterRcnn import reference
from tests.unit.FasterRcnn.reference import Graph, NumpyNet, tensor

CANVAS = (384, 640)
STDS = (0.1, 0.1, 0.2, 0.2)
NUM_ROWS = 40


# --- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_classes, background_boxes, num_boxes",
    [(4, False, 3), (4, True, 4), (2, False, 1), (81, False, 80), (81, True, 81)],
)
def test_head_equals_the_definition(num_classes, background_boxes, num_boxes):
    """Two shared layers, each with ReLU; weights (in, out); bins flattened channel, row, column."""
    rng = np.random.default_rng(37)
    head = Rcnn(5 * 49, 16, num_classes, background_boxes)
    shapes = {param.name: param.shape for param in head.get_parameters()}
    assert shapes == {
        "shared_fc_0.weight": (245, 16),
        "shared_fc_0.bias": (16,),
        "shared_fc_1.weight": (16, 16),
        "shared_fc_1.bias": (16,),
        "cls_scores.weight": (16, num_classes),
        "cls_scores.bias": (num_classes,),
        "reg_scores.weight": (16, 4 * num_boxes),
        "reg_scores.bias": (4 * num_boxes,),
    }
    for param in head.get_parameters():
        param.set_data(tensor(rng.normal(0, 0.3, param.shape)))
    pooled = rng.normal(0, 1, (6, 5, 7, 7)).astype(np.float32)
    logits, deltas = head(tensor(pooled))
    assert logits.shape == (6, num_classes) and deltas.shape == (6, num_boxes, 4)
    assert logits.dtype == deltas.dtype == ms.float32
    for result, expected in zip((logits, deltas), NumpyNet(head).box_head(pooled), strict=True):
        np.testing.assert_allclose(result.asnumpy(), expected, rtol=1e-4, atol=1e-4)


def test_initial_values():
    """Xavier uniform for the shared layers, normal with std 0.01 for the predictors, biases 0."""
    params = {param.name: param.asnumpy() for param in Rcnn(490, 200, 81, False).get_parameters()}
    for name, fans in (("shared_fc_0", 490 + 200), ("shared_fc_1", 400)):
        bound = np.sqrt(6 / fans)
        assert np.abs(params[f"{name}.weight"]).max() <= bound
        np.testing.assert_allclose(params[f"{name}.weight"].std(), bound / np.sqrt(3), rtol=0.03)
    for name in ("cls_scores", "reg_scores"):
        np.testing.assert_allclose(params[f"{name}.weight"].std(), 0.01, rtol=0.05)
    assert not any(values.any() for name, values in params.items() if name.endswith("bias"))


# --- losses -----------------------------------------------------------------------------------------------------------


def loss_inputs(num_classes, background_boxes, num_pos, num_valid, seed=38):
    """Rows as the sampling gives them: positives, background, padding, mixed; targets 0 where not positive."""
    rng = np.random.default_rng(seed)
    num_boxes = num_classes if background_boxes else num_classes - 1
    logits = rng.normal(0, 2, (NUM_ROWS, num_classes)).astype(np.float32)
    deltas = rng.normal(0, 1.5, (NUM_ROWS, num_boxes, 4)).astype(np.float32)
    rows = rng.permutation(NUM_ROWS)
    labels, valid, targets = np.zeros(NUM_ROWS, int), np.zeros(NUM_ROWS), np.zeros((NUM_ROWS, 4))
    valid[rows[:num_valid]] = 1
    labels[rows[:num_pos]] = rng.integers(1, num_classes, num_pos)
    targets[rows[:num_pos]] = rng.normal(0, 1, (num_pos, 4))
    if num_pos > 1:
        labels[rows[0]], labels[rows[1]] = 1, num_classes - 1
    return logits, deltas, labels, targets, valid


def expected_losses(logits, deltas, labels, targets, valid, background_boxes, beta=1):
    probability = reference.softmax(logits)
    cls_loss = reg_loss = 0.0
    for row in range(NUM_ROWS):
        if valid[row]:
            cls_loss -= np.log(probability[row, labels[row]])
        if background_boxes:
            # background and padding regress class 0 to 0
            reg_loss += reference.smooth_l1(deltas[row, labels[row]] - targets[row], beta).sum()
        elif labels[row] > 0:
            reg_loss += reference.smooth_l1(deltas[row, labels[row] - 1] - targets[row], beta).sum()
    num_valid = valid.sum()
    return cls_loss / num_valid, reg_loss / (num_valid if background_boxes else num_valid + 1e-4)


def losses_graph(num_classes, background_boxes, **options):
    head = Rcnn(49, 8, num_classes, background_boxes, **options)

    def losses(logits, deltas, labels, targets, valid):
        return head.losses(logits, deltas, labels, targets, valid)

    return losses


def to_tensors(logits, deltas, labels, targets, valid):
    return tensor(logits), tensor(deltas), tensor(labels, ms.int32), tensor(targets), tensor(valid)


@pytest.mark.parametrize("beta", [1 / 9, 0.5, 3.0])
def test_where_the_box_loss_turns_linear(beta):
    inputs = loss_inputs(4, False, 12, 30)
    losses = Graph(losses_graph(4, False, beta=beta))(*to_tensors(*inputs))
    np.testing.assert_allclose([loss.asnumpy() for loss in losses], expected_losses(*inputs, False, beta), rtol=2e-5)


@pytest.mark.parametrize("background_boxes", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4, 81])
def test_losses_equal_the_definition(num_classes, background_boxes):
    graph = Graph(losses_graph(num_classes, background_boxes))
    for num_pos, num_valid in ((12, 30), (1, 2), (40, 40)):
        inputs = loss_inputs(num_classes, background_boxes, num_pos, num_valid)
        cls_loss, reg_loss = graph(*to_tensors(*inputs))
        assert cls_loss.shape == reg_loss.shape == () and cls_loss.dtype == reg_loss.dtype == ms.float32
        np.testing.assert_allclose(
            [cls_loss.asnumpy(), reg_loss.asnumpy()], expected_losses(*inputs, background_boxes), rtol=2e-5
        )


def test_divisor_has_its_small_addition():
    """One valid row, a positive one whose deltas are 1 off: 4 * 0.5 / 1.0001."""
    labels, valid = np.zeros(NUM_ROWS, int), np.zeros(NUM_ROWS)
    labels[3], valid[3] = 2, 1
    deltas = np.zeros((NUM_ROWS, 3, 4))
    deltas[3, 1] = [1, -1, 1, -1]
    _, reg_loss = Graph(losses_graph(4, False))(
        *to_tensors(np.zeros((NUM_ROWS, 4)), deltas, labels, np.zeros((NUM_ROWS, 4)), valid)
    )
    np.testing.assert_allclose(reg_loss.asnumpy(), 2 / 1.0001, rtol=2e-6)


def gradients_of(num_classes, background_boxes, inputs):
    losses = losses_graph(num_classes, background_boxes)

    def total(*tensors):
        cls_loss, reg_loss = losses(*tensors)
        return cls_loss + reg_loss

    return [part.asnumpy() for part in ms.grad(Graph(total), grad_position=(0, 1))(*to_tensors(*inputs))]


@pytest.mark.parametrize("background_boxes", [False, True])
def test_gradients_by_hand(background_boxes):
    """Softmax minus one-hot over the valid rows; the difference cut at 1 in the columns of the true class."""
    logits, deltas, labels, targets, valid = inputs = loss_inputs(4, background_boxes, 12, 30)
    to_logits, to_deltas = gradients_of(4, background_boxes, inputs)
    expected_logits = (reference.softmax(logits) - np.eye(4)[labels]) * valid[:, None] / 30
    expected_deltas = np.zeros(deltas.shape)
    for row in range(NUM_ROWS):
        if background_boxes or labels[row]:
            column = labels[row] - (0 if background_boxes else 1)
            expected_deltas[row, column] = np.clip(deltas[row, column] - targets[row], -1, 1)
    np.testing.assert_allclose(to_logits, expected_logits, atol=1e-6)
    np.testing.assert_allclose(to_deltas, expected_deltas / (30 if background_boxes else 30 + 1e-4), atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 81])
def test_batch_without_boxes(num_classes):
    """Background only: the regression loss is exactly 0, gradients are finite."""
    inputs = loss_inputs(num_classes, False, 0, 30)
    cls_loss, reg_loss = Graph(losses_graph(num_classes, False))(*to_tensors(*inputs))
    assert reg_loss.asnumpy() == 0.0
    np.testing.assert_allclose(cls_loss.asnumpy(), expected_losses(*inputs, False)[0], rtol=1e-5)
    to_logits, to_deltas = gradients_of(num_classes, False, inputs)
    assert np.isfinite(to_logits).all() and to_logits.any()
    assert not to_deltas.any()


@pytest.mark.parametrize("background_boxes", [False, True])
def test_batch_without_valid_rows_and_large_logits(background_boxes):
    """No row to learn from: the classification loss is 0 and nothing is divided by zero, whatever the logits are."""
    logits, deltas, labels, targets, valid = loss_inputs(4, background_boxes, 0, 0)
    inputs = (1e4 * logits, deltas, labels, targets, valid)
    cls_loss, reg_loss = Graph(losses_graph(4, background_boxes))(*to_tensors(*inputs))
    assert cls_loss.asnumpy() == 0.0 and np.isfinite(reg_loss.asnumpy())
    assert all(np.isfinite(part).all() for part in gradients_of(4, background_boxes, inputs))


# --- detections -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Outputs of the box head for two images, and the RoIs they belong to."""

    logits: np.ndarray
    deltas: np.ndarray
    rois: np.ndarray
    mask: np.ndarray
    scale: np.ndarray

    def run(self, predictor):
        num_classes, num_boxes = self.logits.shape[-1], self.deltas.shape[2]
        boxes, labels, mask, truncated = predictor(
            tensor(self.logits.reshape(-1, num_classes)),
            tensor(self.deltas.reshape(-1, num_boxes, 4)),
            tensor(self.rois),
            tensor(self.mask, ms.bool_),
            tensor(self.scale),
        )
        assert (boxes.dtype, labels.dtype, mask.dtype, truncated.dtype) == (ms.float32, ms.int32, ms.bool_, ms.bool_)
        return boxes.asnumpy(), labels.asnumpy(), mask.asnumpy(), truncated.asnumpy()

    def expected(self, image, **options):
        return reference.detections(
            self.logits[image],
            self.deltas[image],
            self.rois[image],
            self.mask[image],
            self.scale[image],
            CANVAS,
            margin=2e-6,
            **options,
        )


def random_case(seed, num_classes, num_rois=60, background_boxes=False, spread=2.0, num_spots=None):
    """RoIs anywhere, or scattered around so many spots of each image."""
    rng = np.random.default_rng(seed)
    num_boxes = num_classes if background_boxes else num_classes - 1
    sizes = rng.uniform(10, 150, (2, num_rois, 2))
    corners = rng.uniform(0, 1, (2, num_rois, 2)) * ([CANVAS[1], CANVAS[0]] - sizes)
    mask = np.ones((2, num_rois), bool)
    mask[1, num_rois // 2 :] = False
    rois = np.concatenate([corners, corners + sizes], axis=2)
    if num_spots:
        rois = rois[:, np.arange(num_rois) % num_spots] + rng.uniform(-2, 2, (2, num_rois, 4))
    rois[~mask] = 0
    logits = rng.normal(0, spread, (2, num_rois, num_classes))
    return Case(
        logits.astype(np.float32),
        rng.normal(0, 1, (2, num_rois, num_boxes, 4)).astype(np.float32),
        rois.astype(np.float32),
        mask,
        np.float32([[0.5, 0.7], [1.3, 2.1]]),
    )


@cache  # compiled once for each shape
def predictor_of(*, background_boxes=False, score_thr=0.05, iou_thr=0.5, max_per_img=100, num_candidates=2000):
    return BoxPredictor(
        BoxCoder((0,) * 4, STDS, CANVAS), background_boxes, score_thr, iou_thr, max_per_img, num_candidates
    )


def check_rows(boxes, labels, mask, expected):
    """Rows of one image: the detections, best first, then zeros."""
    count = len(expected)
    assert mask[:, 0].tolist() == [True] * count + [False] * (len(mask) - count)
    np.testing.assert_allclose(boxes[:count, 4], expected[:, 4], rtol=1e-4)
    np.testing.assert_allclose(boxes[:count, :4], expected[:, :4], atol=2e-3)
    assert labels[:count, 0].tolist() == expected[:, 5].tolist()
    assert not boxes[count:].any() and not labels[count:].any()


@pytest.mark.parametrize("num_classes, background_boxes", [(2, False), (4, False), (4, True), (81, False), (81, True)])
def test_detections_equal_a_loop_over_classes(num_classes, background_boxes):
    case = random_case(39, num_classes, background_boxes=background_boxes)
    # of 60 RoIs no more than 19 classes each can be above 0.05
    boxes, labels, mask, truncated = case.run(predictor_of(background_boxes=background_boxes, num_candidates=1140))
    assert boxes.shape == (2, 100, 5) and labels.shape == mask.shape == (2, 100, 1) and truncated.shape == (2,)
    for image in range(2):
        expected = case.expected(image)
        assert len(expected) > 10
        check_rows(boxes[image], labels[image], mask[image], expected)
    assert not truncated.any()


def test_best_hundred_of_more_than_a_hundred():
    case = random_case(40, 4, num_rois=200, spread=1.0)
    boxes, labels, mask, truncated = case.run(predictor_of())
    assert len(case.expected(0, max_num=1000)) > 100
    check_rows(boxes[0], labels[0], mask[0], case.expected(0))
    check_rows(boxes[1], labels[1], mask[1], case.expected(1))
    assert mask[0].all() and not truncated.any()


def hand_made_case(scores, boxes, scale=(1.0, 1.0)):
    """One image, a RoI for each box, deltas 0; scores (R, K - 1) are probabilities. Masked RoIs fill up to eight."""
    scores = np.asarray(scores, np.float64)
    logits, rois = np.zeros((1, 8, scores.shape[1] + 1)), np.zeros((1, 8, 4))
    logits[0, :, 1] = 9
    logits[0, : len(scores)] = np.log(np.concatenate([1 - scores.sum(1, keepdims=True), scores], axis=1))
    rois[0, : len(boxes)] = boxes
    return Case(
        logits.astype(np.float32),
        np.zeros((1, 8, scores.shape[1], 4), np.float32),
        rois.astype(np.float32),
        np.arange(8)[None] < len(boxes),
        np.float32([scale]),
    )


def test_boxes_are_divided_by_the_scale():
    """scale_h 0.5, scale_w 2: x halves, y doubles. Label 0 is the first foreground class."""
    case = hand_made_case([[0.1, 0.7], [0.6, 0.2]], [[10, 20, 50, 80], [200, 200, 300, 260]], scale=(0.5, 2.0))
    boxes, labels, mask, _ = case.run(predictor_of())
    np.testing.assert_allclose(
        boxes[0, :4],
        [[5, 40, 25, 160, 0.7], [100, 400, 150, 520, 0.6], [100, 400, 150, 520, 0.2], [5, 40, 25, 160, 0.1]],
        rtol=1e-5,
    )
    assert labels[0, :4, 0].tolist() == [1, 0, 1, 0]
    assert mask.sum() == 4


def test_decoded_boxes_use_the_stds_and_end_at_the_canvas():
    """dx 5 * 0.1 of 100 pixels moves by 50; dw 5 * log 2 * 0.2 doubles; the canvas ends at 640 before scaling."""
    case = hand_made_case([[0.9]] * 2, [[100, 100, 199, 199], [600, 100, 699, 199]], scale=(1.0, 2.0))
    case.deltas[0, 0, 0] = [5, 0, 5 * np.log(2), 0]
    boxes, _, _, _ = case.run(predictor_of())
    rows = boxes[0, :2][np.argsort(boxes[0, :2, 0])]
    # centre 149.5 + 50, width 200: 100 .. 299
    np.testing.assert_allclose(rows[:, :4], [[50, 100, 149.5, 199], [300, 100, 320, 199]], rtol=1e-5)


def test_score_must_exceed_the_threshold():
    """The softmax of (0, 0) is exactly 0.5: at that threshold it is not a detection."""
    case = hand_made_case([[0.5], [0.5], [0.5]], [[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10]])
    case.logits[0, :3] = [[0, 0], [0, 0.001], [0.001, 0]]
    boxes, _, mask, _ = case.run(predictor_of(score_thr=0.5))
    assert mask.sum() == 1
    assert boxes[0, 0, 0] == 100


def test_masked_rois_are_no_detections():
    case = hand_made_case([[0.9], [0.8]], [[0, 0, 50, 50], [1, 1, 51, 51]])
    case.mask[0, 0] = False
    boxes, _, mask, _ = case.run(predictor_of())
    assert mask.sum() == 1  # and it suppresses nothing
    np.testing.assert_allclose(boxes[0, 0], [1, 1, 51, 51, 0.8], rtol=1e-5)


def test_image_without_detections():
    case = random_case(41, 4)
    case.logits[0] = [10, 0, 0, 0]
    boxes, labels, mask, truncated = case.run(predictor_of())
    assert not boxes[0].any() and not labels[0].any() and not mask[0].any() and not truncated.any()
    check_rows(boxes[1], labels[1], mask[1], case.expected(1))


def test_equal_scores_lose_no_box():
    """Eighty classes, all of one score, one box each at the same place: suppression is inside the class."""
    case = hand_made_case(np.full((2, 80), 1 / 81), [[600.5, 300.25, 639.5, 380.75], [0, 0, 50, 50]])
    boxes, labels, mask, _ = case.run(predictor_of(score_thr=0.01, max_per_img=200))
    assert mask.sum() == 160
    assert sorted(labels[0, mask[0, :, 0], 0]) == sorted([*range(80)] * 2)
    np.testing.assert_allclose(boxes[0, mask[0, :, 0], 4], 1 / 81, rtol=1e-5)
    assert np.unique(boxes[0, mask[0, :, 0], :4], axis=0).tolist() == [[0, 0, 50, 50], [600.5, 300.25, 639.5, 380.75]]


def test_suppression_is_strict_and_without_the_extra_pixel():
    """IoU 200/400 exactly: both stay. With the extra pixel it were (21 * 11) / (2 * 31 * 11 - 21 * 11) = 0.512."""
    boxes = [[0, 0, 30, 10], [10, 0, 40, 10]]
    assert hand_made_case([[0.9], [0.8]], boxes).run(predictor_of())[2].sum() == 2
    assert hand_made_case([[0.9], [0.8]], boxes).run(predictor_of(iou_thr=0.499))[2].sum() == 1


# --- the bound on candidates ------------------------------------------------------------------------------------------


def test_truncated_only_where_the_result_may_differ():
    """With 40 candidates: where the flag is down the result is the full loop's; it is up exactly when more than 40
    are above the threshold and fewer than max_per_img survive."""
    flags = set()
    for max_per_img in (10, 40):
        predictor = predictor_of(max_per_img=max_per_img, num_candidates=40)
        for seed, spread, num_spots in ((42, 1.0, None), (43, 0.5, 3), (44, 8.0, None)):
            case = random_case(seed, 4, spread=spread, num_spots=num_spots)
            boxes, labels, mask, truncated = case.run(predictor)
            for image in range(2):
                scores = reference.softmax(case.logits[image][case.mask[image]])[:, 1:]
                num_above = (scores > 0.05).sum()
                flags.add((bool(truncated[image]), bool(num_above > 40)))
                assert truncated[image] == (num_above > 40 and mask[image].sum() < max_per_img)
                if not truncated[image]:
                    check_rows(boxes[image], labels[image], mask[image], case.expected(image, max_num=max_per_img))
    assert flags == {(False, False), (False, True), (True, True)}


def test_flag_where_a_box_is_missed():
    """Six boxes on one spot and a seventh, worse, elsewhere: with six candidates the seventh is not seen."""
    same = [[10, 10, 60, 60]] * 6
    case = hand_made_case([[0.9], [0.89], [0.88], [0.87], [0.86], [0.85], [0.3]], [*same, [300, 100, 380, 200]])
    _, _, mask, truncated = case.run(predictor_of(max_per_img=2, num_candidates=6))
    assert mask.sum() == 1 and truncated.tolist() == [True]
    boxes, _, mask, truncated = case.run(predictor_of(max_per_img=2, num_candidates=7))
    assert mask.sum() == 2 and truncated.tolist() == [False]
    np.testing.assert_allclose(boxes[0, 1], [300, 100, 380, 200, 0.3], rtol=1e-5)
    # one survivor is enough when one is asked for
    _, _, mask, truncated = case.run(predictor_of(max_per_img=1, num_candidates=6))
    assert mask.sum() == 1 and truncated.tolist() == [False]


def test_fewer_pairs_than_detections_asked_for():
    case = hand_made_case([[0.9], [0.8]], [[0, 0, 50, 50], [100, 100, 151, 151]])
    boxes, labels, mask, truncated = case.run(predictor_of())
    assert boxes.shape == (1, 100, 5) and labels.shape == mask.shape == (1, 100, 1)
    assert mask[0, :, 0].tolist() == [True, True] + [False] * 98
    assert not boxes[0, 2:].any() and not truncated.any()

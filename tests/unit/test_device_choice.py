"""Ascend and GPU without the device: what would be set, and their networks themselves, computed on this processor."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.network_define import TrainStep
from src.runtime import Device, init_device
from src.training.optimizer import build_optimizer
from tests.unit.FasterRcnn.small_detector import CANVAS, SETTINGS, config_of, randomise


def config_for(target, *flags):
    return load_config([f"--device_target={target}", *flags])


# --- what is asked of MindSpore ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Calls of ms.set_device, which refuses devices that are not there."""
    calls = []
    monkeypatch.setattr(ms, "set_device", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(ms, "set_context", lambda **_: None)
    for name in ("DEVICE_ID", "RANK_ID", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize("target", ["CPU", "GPU", "Ascend"])
def test_device_of_the_environment(asked, monkeypatch, target):
    monkeypatch.setenv("DEVICE_ID", "3")
    assert init_device(config_for(target)) == Device(target, 3)
    assert asked == [(target, 3)]


def test_flag_takes_precedence_over_the_environment(asked, monkeypatch):
    monkeypatch.setenv("DEVICE_ID", "3")
    init_device(config_for("Ascend", "--device_id=5"))
    assert asked == [("Ascend", 5)]


@pytest.mark.parametrize("target", ["GPU", "Ascend"])
def test_device_that_is_not_there(target):
    """No stand-in: this MindSpore is built for CPU."""
    with pytest.raises(UserError, match=f"device_target is {target}, but this MindSpore .* cannot use") as refused:
        init_device(config_for(target))
    assert "\n" not in str(refused.value)
    assert "install" in str(refused.value)


@pytest.mark.parametrize("target", ["CPU", "GPU", "Ascend"])
def test_distributed_without_a_launcher(asked, monkeypatch, target):
    for name in ("MS_ROLE", "OMPI_COMM_WORLD_RANK", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f"Use scripts/run_distribute_train_{target.lower()}.sh"):
        init_device(config_for(target, "--run_distribute=True"))


# --- the networks -----------------------------------------------------------------------------------------------------

TARGETS = ("CPU", "GPU", "Ascend")
HEIGHT, WIDTH = CANVAS


def detector_for(target):
    """The small detector as it is built for a device, always with the same weights."""
    return randomise(build_detector(config_of(**SETTINGS, device_target=target)), seed=1)


@pytest.fixture(scope="module")
def batch():
    """An image of noise with one box."""
    image = np.random.default_rng(0).normal(size=(1, 3, HEIGHT, WIDTH)).astype(np.float32)
    return (
        Tensor(image),
        Tensor([[HEIGHT, WIDTH, 1.0]], mstype.float32),
        Tensor([[[5, 5, 40, 60]]], mstype.float32),
        Tensor([[1]], mstype.int32),
        Tensor([[True]]),
    )


@pytest.fixture(scope="module")
def steps(graph_mode, batch):
    """What one training step of each device's detector gives: the losses, and how far every parameter has moved.

    The CPU's own operators for large canvases are compared with numpy in FasterRcnn/test_faster_rcnn_resnet.py.
    """
    return {target: step_of(target, batch) for target in TARGETS}


def step_of(target, batch):
    config = config_of(**SETTINGS, device_target=target)
    detector = detector_for(target)
    before = {value.name: value.asnumpy().copy() for value in detector.trainable_params()}
    step = TrainStep(detector, build_optimizer(config, detector, [1e-3]), config.loss_scale)
    step.set_train()
    losses = step(*batch)
    assert {value.dtype for value in losses} == {mstype.float32}
    assert {value.dtype for value in detector.get_parameters()} == {mstype.float32}
    moved = {value.name: value.asnumpy() - before[value.name] for value in detector.trainable_params()}
    return [float(value) for value in losses], moved


@pytest.mark.parametrize("target", TARGETS)
def test_float16_on_ascend_alone(target):
    """There convolutions and fully connected layers compute in float16; losses, boxes and scores never do."""
    halves = {name for name, cell in detector_for(target).cells_and_names() if cell.get_flags().get("fp16")}
    if target != "Ascend":
        assert halves == set()
    else:
        assert {"backbone.conv1", "fpn_neck.fpn_convs_list.0", "rcnn.shared_fc_0", "rcnn.cls_scores"} <= halves
        assert not halves & {
            "",
            "rcnn",
            "rpn_with_loss",
            "assign_rois",
            "proposals_train",
            "predict_boxes",
            "roi_align",
        }


def test_operator_of_roi_align():
    """Ascend and GPU take MindSpore's own operator, the CPU the sparse product."""
    names = {target: type(detector_for(target).roi_align.pool).__name__ for target in TARGETS}
    assert names["GPU"] == names["Ascend"] == "_NativeRoIAlign" != names["CPU"]


def test_convolutions():
    """The CPU alone computes 3x3 convolutions by Winograd's algorithm, and all of them."""
    for target in TARGETS:
        cells = [cell for _, cell in detector_for(target).cells_and_names() if isinstance(cell, nn.Conv2d)]
        chosen = [cell for cell in cells if cell.kernel_size == (3, 3)]
        assert len(chosen) == 9  # a block of each stage, four levels, the RPN
        assert {cell.winograd for cell in chosen} == {target == "CPU"}


def test_detections_on_gpu(graph_mode, batch):
    found = {}
    for target in ("CPU", "GPU"):
        detector = detector_for(target)
        detector.set_train(False)
        outputs = detector(batch[0], Tensor([[HEIGHT, WIDTH, 1.0, 1.0]], mstype.float32))
        found[target] = [value.asnumpy() for value in outputs]
    assert found["CPU"][2].any()
    np.testing.assert_allclose(found["GPU"][0], found["CPU"][0], atol=1e-3)
    np.testing.assert_array_equal(found["GPU"][1], found["CPU"][1])
    np.testing.assert_array_equal(found["GPU"][2], found["CPU"][2])


# float16 keeps 11 bits, 0.05 % of a number; a few layers on it is more, and proposals move with it.
@pytest.mark.parametrize("target, tolerance", [("GPU", 1e-4), ("Ascend", 2e-2)])
def test_losses(steps, target, tolerance):
    np.testing.assert_allclose(steps[target][0], steps["CPU"][0], rtol=tolerance)


@pytest.mark.parametrize("target, tolerance", [("GPU", 1e-3), ("Ascend", 0.1)])
def test_parameters_move_alike(steps, target, tolerance):
    """Through float16 too, thanks to the loss scale."""
    for name, moved in steps["CPU"][1].items():
        scale = np.linalg.norm(moved)
        assert scale > 0, name
        assert np.linalg.norm(steps[target][1][name] - moved) < tolerance * scale, name

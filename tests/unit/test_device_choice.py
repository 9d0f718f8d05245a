"""Ascend and GPU without the device: what would be set, and their networks themselves, computed on this processor."""
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from src.FasterRcnn import build_detector
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from src.network_define import TrainStep, build_optimizer
from src.runtime import Device, init_device

SMALL = ("--img_width=128", "--img_height=128", "--test_score_thr=0.0")
SIZE = 128


def config_for(target, *flags):
    return load_config([f"--device_target={target}", *SMALL, *flags])


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


def test_flag_goes_before_the_environment(asked, monkeypatch):
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

@pytest.fixture(scope="module")
def detectors(graph_mode):
    """The detector of each device, with the same weights."""
    ms.set_seed(1)
    built = {target: build_detector(config_for(target)) for target in ("CPU", "GPU", "Ascend")}
    weights = built["CPU"].parameters_dict()
    for detector in built.values():
        ms.load_param_into_net(detector, {name: ms.Parameter(value.value().copy(), name=name)
                                          for name, value in weights.items()})
    return built


@pytest.fixture
def batch():
    """A picture of noise with one box."""
    image = np.random.default_rng(0).normal(size=(1, 3, SIZE, SIZE)).astype(np.float32)
    return (Tensor(image), Tensor([[SIZE, SIZE, 1.0]], mstype.float32), Tensor([[[5, 5, 60, 60]]], mstype.float32),
            Tensor([[1]], mstype.int32), Tensor([[True]]))


def test_float16_on_ascend_alone(detectors):
    """Convolutions and fully connected layers compute in float16; losses, boxes and scores do not."""
    for target, detector in detectors.items():
        halves = [name for name, cell in detector.cells_and_names() if cell.get_flags().get("fp16")]
        if target != "Ascend":
            assert halves == []
            continue
        assert {"backbone.conv1", "fpn_neck.fpn_convs_list.0", "rcnn.cls_scores"} <= set(halves)
        assert not {"assign_rois", "proposals_train", "predict_boxes", "roi_align"} & set(halves)
        assert {value.dtype for value in detector.get_parameters()} == {mstype.float32}


def test_operator_of_roi_align(detectors):
    """Ascend and GPU take MindSpore's own operator, the CPU the sparse product."""
    names = {target: type(detector.roi_align.pool).__name__ for target, detector in detectors.items()}
    assert names["GPU"] == names["Ascend"] == "_NativeRoIAlign" != names["CPU"]


def test_detections_on_gpu(detectors, batch):
    found = {}
    for target in ("CPU", "GPU"):
        detectors[target].set_train(False)
        found[target] = [value.asnumpy() for value in detectors[target](batch[0], Tensor([[SIZE, SIZE, 1.0, 1.0]],
                                                                                         mstype.float32))]
    np.testing.assert_allclose(found["GPU"][0], found["CPU"][0], atol=1e-3)
    np.testing.assert_array_equal(found["GPU"][1], found["CPU"][1])
    np.testing.assert_array_equal(found["GPU"][2], found["CPU"][2])


# float16 keeps 11 bits: 0.05 % per number.
@pytest.mark.parametrize("target, tolerance", [("GPU", 1e-4), ("Ascend", 1e-2)])
def test_losses(detectors, batch, target, tolerance):
    losses = {}
    for name in ("CPU", target):
        detectors[name].set_train()
        values = detectors[name](*batch)
        assert {value.dtype for value in values} == {mstype.float32}
        losses[name] = [float(value) for value in values]
    np.testing.assert_allclose(losses[target], losses["CPU"], rtol=tolerance)


def test_training_step_on_ascend(detectors, batch):
    """Gradients pass through float16 with the loss scale; parameters stay float32 and move as on the CPU."""
    moved = {}
    for target in ("CPU", "Ascend"):
        config = config_for(target)
        detector = detectors[target]
        layer = detector.rcnn.cls_scores.weight
        before = layer.asnumpy().copy()
        step = TrainStep(detector, build_optimizer(config, detector, [0.01]), config.loss_scale)
        step.set_train()
        step(*batch)
        assert all(np.isfinite(value.asnumpy()).all() for value in detector.get_parameters())
        moved[target] = layer.asnumpy() - before
        assert layer.dtype == mstype.float32
    scale = np.abs(moved["CPU"]).max()
    assert scale > 1e-5
    np.testing.assert_allclose(moved["Ascend"], moved["CPU"], atol=0.05 * scale)

"""Checkpoints in: every spelling of the names, every kind of damage, and networks that stay as they were."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import save_file

from src.convert_checkpoint import (
    load_detector,
    load_pretrained,
    network_parameters,
    pretrained_config,
    read_checkpoint,
    write_checkpoint,
)
from src.model_utils.config import load_config
from src.model_utils.errors import UserError
from tests.helpers import REPO_ROOT

BACKBONE = {
    "backbone.conv1.weight": (4, 3, 7, 7),
    "backbone.bn1.moving_mean": (4,),
    "backbone.bn1.moving_variance": (4,),
    "backbone.bn1.gamma": (4,),
    "backbone.bn1.beta": (4,),
    "backbone.layer1.0.conv1.weight": (2, 4, 1, 1),
    "backbone.layer1.0.conv_down_sample.weight": (8, 4, 1, 1),
    "backbone.layer1.0.bn_down_sample.gamma": (8,),
    "backbone.layer1.1.conv1.weight": (2, 8, 1, 1),
}
BODY = {
    "fpn_neck.lateral_convs_list.0.weight": (5, 8, 1, 1),
    "fpn_neck.fpn_convs_list.0.bias": (5,),
    "rpn_with_loss.rpn_convs_list.0.rpn_cls.weight": (3, 5, 1, 1),
    "rcnn.shared_fc_0.weight": (20, 6),
}
PREDICTORS = {
    "rcnn.cls_scores.weight": (6, 4),
    "rcnn.cls_scores.bias": (4,),
    "rcnn.reg_scores.weight": (6, 12),
    "rcnn.reg_scores.bias": (12,),
}
DETECTOR = BACKBONE | BODY | PREDICTORS
# The same backbone as the model zoo's ResNet publishes it.
ZOO_NAMES = {
    "conv1.weight": "backbone.conv1.weight",
    "bn1.moving_mean": "backbone.bn1.moving_mean",
    "bn1.moving_variance": "backbone.bn1.moving_variance",
    "bn1.gamma": "backbone.bn1.gamma",
    "bn1.beta": "backbone.bn1.beta",
    "layer1.0.conv1.weight": "backbone.layer1.0.conv1.weight",
    "layer1.0.down_sample_layer.0.weight": "backbone.layer1.0.conv_down_sample.weight",
    "layer1.0.down_sample_layer.1.gamma": "backbone.layer1.0.bn_down_sample.gamma",
    "layer1.1.conv1.weight": "backbone.layer1.1.conv1.weight",
}
CLASSIFIER = {"end_point.weight": (1001, 8), "end_point.bias": (1001,)}
OPTIMISER = {
    "accum.backbone.conv1.weight": (4, 3, 7, 7),
    "stat.rcnn.cls_scores.bias": (4,),
    "moments.backbone.bn1.gamma": (4,),
    "moments.conv1.weight": (4, 3, 7, 7),
    "learning_rate": (),
    "global_step": (1,),
}
LAYER_TWO = {"backbone.layer2.0.conv1.weight": (4, 8, 1, 1)}


class Network(nn.Cell):
    """Parameters with given names and shapes, every value 0.5."""

    def __init__(self, shapes, backbone_name=None):
        super().__init__()
        if backbone_name:
            self.backbone_name = backbone_name
        for k, (name, shape) in enumerate(shapes.items()):
            setattr(self, f"p{k}", Parameter(Tensor(np.full(shape, 0.5, np.float32)), name=name))


def values_of(shapes, seed=0):
    """Random values for names and shapes."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def entries_of(values):
    return [{"name": name, "data": Tensor(value)} for name, value in values.items()]


def save(path, values, **options):
    """A checkpoint as others write it, without checksum."""
    ms.save_checkpoint(entries_of(values), str(path), **options)
    path.chmod(0o644)
    return path


def contents(network):
    return {param.name: param.asnumpy() for param in network.get_parameters()}


def assert_values(network, expected):
    """`expected` parameters have these values, the others still 0.5."""
    for name, value in contents(network).items():
        np.testing.assert_array_equal(value, expected.get(name, np.full_like(value, 0.5)), err_msg=name)


def refuse(load, network, path, match):
    """The load raises one UserError that names the file, and leaves the network alone."""
    before = contents(network)
    with pytest.raises(UserError, match=match) as error:
        load(network, path)
    assert str(path) in str(error.value)
    for name, value in contents(network).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    return str(error.value)


def load_finetune(network, path):
    return load_pretrained(network, path, finetune=True)


LOADERS = pytest.mark.parametrize("load", [load_pretrained, load_finetune, load_detector])


@pytest.fixture
def detector_file(tmp_path):
    """A whole detector as this program writes it."""
    path = tmp_path / "detector.ckpt"
    write_checkpoint(
        {name: Tensor(value) for name, value in values_of(DETECTOR).items()}, path, {"epoch_num": 3, "step_num": 7}
    )
    return path


# ---- names


def test_zoo_resnet_names(tmp_path):
    values = values_of(BACKBONE)
    zoo = {old: values[new] for old, new in ZOO_NAMES.items()} | values_of(CLASSIFIER)
    network = Network(DETECTOR)
    assert load_pretrained(network, save(tmp_path / "resnet.ckpt", zoo)) is network
    assert_values(network, values)


def test_names_of_a_zoo_resnet_become_those_of_the_backbone(tmp_path):
    values = values_of(BACKBONE)
    zoo = {old: values[new] for old, new in ZOO_NAMES.items()} | values_of(CLASSIFIER | OPTIMISER)
    found = network_parameters(read_checkpoint(save(tmp_path / "resnet.ckpt", zoo)))
    assert set(found) == set(BACKBONE)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name].asnumpy(), value)


def test_backbone_of_a_whole_detector(detector_file):
    network = load_pretrained(Network(DETECTOR), detector_file)
    assert_values(network, {name: value for name, value in values_of(DETECTOR).items() if name in BACKBONE})


def test_finetune_takes_all_but_the_predictors(detector_file):
    network = load_pretrained(Network(DETECTOR), detector_file, finetune=True)
    assert_values(network, {name: value for name, value in values_of(DETECTOR).items() if name not in PREDICTORS})


def test_finetune_to_another_number_of_classes(detector_file):
    other = {
        "rcnn.cls_scores.weight": (6, 9),
        "rcnn.cls_scores.bias": (9,),
        "rcnn.reg_scores.weight": (6, 32),
        "rcnn.reg_scores.bias": (32,),
    }
    network = load_pretrained(Network(DETECTOR | other), detector_file, finetune=True)
    assert_values(network, {name: value for name, value in values_of(DETECTOR).items() if name not in PREDICTORS})


def test_detector_takes_everything(detector_file):
    network = Network(DETECTOR)
    assert load_detector(network, detector_file) is network
    assert_values(network, values_of(DETECTOR))


@LOADERS
def test_optimiser_entries_are_skipped(tmp_path, load):
    values = values_of(DETECTOR)
    path = save(tmp_path / "a.ckpt", values_of(OPTIMISER, seed=1) | values)
    network = load(Network(DETECTOR), path)
    np.testing.assert_array_equal(contents(network)["backbone.conv1.weight"], values["backbone.conv1.weight"])
    assert set(network_parameters(read_checkpoint(path))) == set(DETECTOR)


@pytest.mark.parametrize("load", [load_finetune, load_detector])
def test_old_spelling_of_the_neck_loads_with_a_notice(tmp_path, load, info):
    values = values_of(DETECTOR)
    path = save(tmp_path / "a.ckpt", {name.replace("fpn_neck", "fpn_ncek"): value for name, value in values.items()})
    network = load(Network(DETECTOR), path)
    np.testing.assert_array_equal(
        contents(network)["fpn_neck.fpn_convs_list.0.bias"], values["fpn_neck.fpn_convs_list.0.bias"]
    )
    assert any("fpn_ncek" in record.message for record in info.records)


def test_no_path_keeps_the_random_weights():
    network = Network(DETECTOR)
    assert load_pretrained(network, "") is network
    assert_values(network, {})


@LOADERS
def test_load_says_what_it_took(detector_file, load, info):
    load(Network(DETECTOR), detector_file)
    assert any(str(detector_file) in record.message for record in info.records)


def test_half_precision_becomes_the_type_of_the_network(tmp_path):
    values = {name: value.astype(np.float16) for name, value in values_of(BACKBONE).items()}
    network = load_pretrained(Network(BACKBONE), save(tmp_path / "a.ckpt", values))
    assert all(param.dtype == ms.float32 for param in network.get_parameters())
    assert_values(network, {name: value.astype(np.float32) for name, value in values.items()})


# ---- files that cannot be read


@LOADERS
def test_missing_file(tmp_path, load):
    refuse(load, Network(DETECTOR), tmp_path / "none.ckpt", "not exist")


@LOADERS
def test_folder(tmp_path, load):
    (tmp_path / "a.ckpt").mkdir()
    refuse(load, Network(DETECTOR), tmp_path / "a.ckpt", "folder")


def test_empty_detector_path():
    with pytest.raises(UserError, match="checkpoint"):
        load_detector(Network(DETECTOR), "")


@LOADERS
def test_empty_file(tmp_path, load):
    (tmp_path / "a.ckpt").write_bytes(b"")
    refuse(load, Network(DETECTOR), tmp_path / "a.ckpt", "damaged")


@LOADERS
@pytest.mark.parametrize(
    "content",
    [np.random.default_rng(0).bytes(5000), b"<html>404</html>" * 40, bytes(3000)],
    ids=["random", "html", "zeros"],
)
def test_file_of_something_else(tmp_path, load, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    refuse(load, Network(DETECTOR), tmp_path / "a.ckpt", "damaged")


@LOADERS
def test_no_permission_to_read(detector_file, load, monkeypatch):
    real_open = Path.open

    def denied(self, *args, **options):
        if self == detector_file:
            raise PermissionError(13, "Permission denied", str(self))
        return real_open(self, *args, **options)

    monkeypatch.setattr(Path, "open", denied)
    refuse(load, Network(DETECTOR), detector_file, "Permission denied")


@LOADERS
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_truncated_file(detector_file, load, share):
    data = detector_file.read_bytes()
    detector_file.write_bytes(data[: int(len(data) * share)])
    refuse(load, Network(DETECTOR), detector_file, "damaged")


def record_ends(data):
    """Where the records of a checkpoint end: a record is 0x0a, its length (7 bits a byte, low first), its content."""
    ends, position = [], 0
    while position < len(data) and data[position] == 0x0A:
        length, shift, position = 0, 0, position + 1
        while True:
            byte, position = data[position], position + 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        position += length
        ends.append(position)
    return ends


@LOADERS
def test_file_truncated_between_two_records(detector_file, load):
    """MindSpore loads such a file without complaint: the checksum is gone, and only parameters are missing."""
    data = detector_file.read_bytes()
    ends = record_ends(data)
    assert len(ends) >= len(DETECTOR) + 2  # with epoch_num and step_num
    silent = []
    for end in ends:
        detector_file.write_bytes(data[:end])
        network = Network(DETECTOR)
        try:
            load(network, detector_file)
            silent.append(f"{ends.index(end) + 1} of {len(ends)} records")
        except UserError:
            assert_values(network, {})
    assert silent == []


@LOADERS
def test_flipped_byte(detector_file, load):
    """In a file of this program every single byte is guarded."""
    data = detector_file.read_bytes()
    rng = np.random.default_rng(0)
    positions = {0, 1, len(data) - 1, len(data) - 12, *rng.integers(0, len(data), 20).tolist()}
    for position in sorted(positions):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        detector_file.write_bytes(flipped)
        refuse(load, Network(DETECTOR), detector_file, "damaged")


# ---- files that do not fit


def test_wrong_shapes_are_listed_by_name(detector_file):
    shapes = DETECTOR | {"rcnn.cls_scores.weight": (6, 81), "backbone.bn1.gamma": (7,)}
    message = refuse(load_detector, Network(shapes), detector_file, "does not fit")
    for part in ("rcnn.cls_scores.weight", "(6, 4)", "(6, 81)", "backbone.bn1.gamma", "(4,)", "(7,)"):
        assert part in message
    assert "rcnn.cls_scores.bias" not in message


@LOADERS
def test_same_number_of_values_in_another_shape(tmp_path, load):
    path = save(tmp_path / "a.ckpt", values_of(DETECTOR | {"backbone.conv1.weight": (3, 4, 7, 7)}))
    refuse(load, Network(DETECTOR), path, r"backbone\.conv1\.weight")


def test_at_most_ten_names_are_listed(tmp_path):
    many = {f"backbone.layer3.{k}.conv1.weight": (2, 2) for k in range(25)}
    path = save(tmp_path / "a.ckpt", values_of(dict.fromkeys(many, (2, 3))))
    message = refuse(load_pretrained, Network(many), path, "does not fit")
    assert sum(f"layer3.{k}." in message for k in range(25)) == 10
    assert "25" in message  # how many there are in all


@LOADERS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path, load, bad):
    values = values_of(DETECTOR)
    values["backbone.layer1.0.conv1.weight"][0, 3] = bad
    path = save(tmp_path / "a.ckpt", values)
    refuse(load, Network(DETECTOR), path, r"backbone\.layer1\.0\.conv1\.weight")


@LOADERS
def test_missing_statistics(tmp_path, load):
    values = values_of(DETECTOR)
    del values["backbone.bn1.moving_mean"]
    path = save(tmp_path / "a.ckpt", values)
    refuse(load, Network(DETECTOR), path, r"backbone\.bn1\.moving_mean")


@LOADERS
def test_checkpoint_of_a_shallower_backbone(detector_file, load):
    network = Network(DETECTOR | LAYER_TWO)
    refuse(load, network, detector_file, r"backbone\.layer2\.0\.conv1\.weight")


@LOADERS
def test_checkpoint_of_a_deeper_backbone(tmp_path, load):
    """All names that the network asks for are there, with the right shapes: ResNet-101 into ResNet-50."""
    path = save(tmp_path / "a.ckpt", values_of(DETECTOR | LAYER_TWO))
    refuse(load, Network(DETECTOR), path, r"backbone\.layer2\.0\.conv1\.weight")


def test_zoo_checkpoint_of_a_deeper_backbone(tmp_path):
    values = values_of(BACKBONE)
    zoo = {old: values[new] for old, new in ZOO_NAMES.items()} | values_of({"layer1.2.conv1.weight": (2, 8, 1, 1)})
    refuse(load_pretrained, Network(DETECTOR), save(tmp_path / "a.ckpt", zoo), r"layer1\.2\.conv1\.weight")


@LOADERS
def test_checkpoint_of_another_project(tmp_path, load):
    path = save(tmp_path / "a.ckpt", values_of({"model.encoder.weight": (3, 3), "model.decoder.bias": (3,)}))
    refuse(load, Network(DETECTOR), path, r"backbone\.conv1\.weight")


@LOADERS
def test_checkpoint_of_an_optimiser_only(tmp_path, load):
    refuse(load, Network(DETECTOR), save(tmp_path / "a.ckpt", values_of(OPTIMISER)), r"backbone\.conv1\.weight")


@pytest.mark.parametrize("load", [load_finetune, load_detector])
def test_backbone_file_is_no_detector(tmp_path, load):
    path = save(tmp_path / "a.ckpt", values_of(BACKBONE))
    refuse(load, Network(DETECTOR), path, r"fpn_neck\.lateral_convs_list\.0\.weight")


@LOADERS
def test_other_kind_of_backbone(tmp_path, load):
    """resnet_v1_50 and resnet_v1.5_50 have equal names and shapes; a file of this program says which it holds."""
    from src.model_utils.config import load_config
    from src.network_define import Checkpoints
    from src.runtime import Device

    config = load_config(
        [f"--save_checkpoint_path={tmp_path}", "--backbone=resnet_v1_50", "--epoch_size=1", "--milestones=[]"]
    )
    Checkpoints(config, Device("CPU")).save(Network(DETECTOR, "resnet_v1_50"), 1, 4)
    path = tmp_path / "ckpt_0" / "faster_rcnn-1_4.ckpt"
    message = refuse(load, Network(DETECTOR, "resnet_v1.5_50"), path, r"resnet_v1_50")
    assert "resnet_v1.5_50" in message
    load(Network(DETECTOR, "resnet_v1_50"), path)


@LOADERS
def test_file_without_a_note_of_its_backbone_loads(tmp_path, load):
    network = Network(DETECTOR, "resnet_v1_50")
    assert load(network, save(tmp_path / "a.ckpt", values_of(DETECTOR))) is network


# ---- the command line


def convert(folder, *arguments):
    """Run the converter in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "src.convert_checkpoint", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line_writes_backbone_ckpt(tmp_path):
    values = values_of(BACKBONE)
    zoo = {old: values[new] for old, new in ZOO_NAMES.items()} | values_of(CLASSIFIER | OPTIMISER)
    save(tmp_path / "resnet.ckpt", zoo)
    done = convert(tmp_path, "--ckpt_file=resnet.ckpt")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.ckpt", "resnet.ckpt"]
    written = {
        name: value.asnumpy()
        for name, value in ms.load_checkpoint(str(tmp_path / "backbone.ckpt")).items()
        if isinstance(value, Parameter) and not name.startswith("meta_")
    }
    assert set(written) == set(BACKBONE)
    assert_values(load_pretrained(Network(DETECTOR), tmp_path / "backbone.ckpt"), values)
    assert "backbone.ckpt" in done.stdout  # says what it wrote


def test_command_line_names_a_missing_file(tmp_path):
    done = convert(tmp_path, "--ckpt_file=none.ckpt")
    assert done.returncode == 1
    assert "none.ckpt" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_shape_that_claims_more_values_than_the_file_holds(tmp_path):
    """One byte of a file without checksum; MindSpore fills up from memory that is not the tensor's, or crashes."""
    path = save(tmp_path / "a.ckpt", {"conv1.weight": np.ones((63, 64), np.float32)})
    data = path.read_bytes()
    assert data.count(b"\x08\x3f\x08\x40") == 1  # the sizes 63 and 64
    path.write_bytes(data.replace(b"\x08\x3f\x08\x40", b"\x08\x7f\x08\x40"))
    done = convert(tmp_path, "--ckpt_file=a.ckpt")
    assert done.returncode == 1
    assert "damaged" in done.stdout
    assert not (tmp_path / "backbone.ckpt").exists()


# ---- files of other projects


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """A ResNet-50 classifier as torchvision names it, of random numbers."""
    names = json.loads((REPO_ROOT / "tests/unit/weights/fixtures/torchvision_names.json").read_text())["resnet50"]
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("resnet50") / "resnet50.safetensors"
    save_file({name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in names.items()}, path)
    return path


def test_a_backbone_of_torchvision_needs_no_flags(resnet50, info):
    """It is padded on all sides at the pool behind the stem, which its shapes do not show."""
    config = load_config([f"--pre_trained={resnet50}"])
    assert config.stem_pool_pad == "same"
    assert pretrained_config(config).stem_pool_pad == "symmetric"
    assert [record.getMessage() for record in info.records] == [
        f"{resnet50} holds weights of torchvision or timm ResNet: backbone resnet_v1.5_50, stride of its stages on the "
        "3x3 convolution",
        f"checkpoint {resnet50} was trained with stem_pool_pad symmetric: taken from there",
    ]
    with pytest.raises(UserError, match="--stem_pool_pad is same, but checkpoint .* was trained with symmetric"):
        pretrained_config(load_config([f"--pre_trained={resnet50}", "--stem_pool_pad=same"]))
    with pytest.raises(UserError, match=r"--backbone is resnet_v1_50, but .* trained with resnet_v1\.5_50"):
        pretrained_config(load_config([f"--pre_trained={resnet50}", "--backbone=resnet_v1_50"]))


def test_command_line_converts_a_backbone_of_torchvision(tmp_path, resnet50):
    done = convert(tmp_path, f"--ckpt_file={resnet50}")
    assert done.returncode == 0, done.stderr
    assert "\nlayer4.2.bn3.running_var -> backbone.layer4.2.bn3.moving_variance (2048,)\n" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.ckpt"]
    direct, written = read_checkpoint(resnet50), read_checkpoint(tmp_path / "backbone.ckpt")
    assert len([name for name in direct if name.startswith("backbone.")]) == 265
    for name, value in direct.items():
        if name.startswith("backbone."):
            assert np.array_equal(value.asnumpy(), written[name].asnumpy()), name
    notes = json.loads(written["meta_detector"])
    assert notes["source"] == {
        "file": "resnet50.safetensors",
        "sha256": hashlib.sha256(resnet50.read_bytes()).hexdigest(),
        "format": "torchvision or timm ResNet",
    }


def test_no_detector_goes_to_torchvision(tmp_path, resnet50):
    done = convert(tmp_path, f"--ckpt_file={resnet50}", "--to=torchvision")
    assert done.returncode == 1
    assert "holds no detector" in done.stdout
    assert list(tmp_path.iterdir()) == []

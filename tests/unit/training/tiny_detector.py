"""A detector of two trained numbers, its data, and a training of two short epochs."""

import dataclasses
from pathlib import Path

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dataset as ds

from src.model_utils.config import Config, load_config
from src.runtime import Device

CPU = Device("CPU")
WEIGHT, BIAS, FIXED = np.float32([1.0, -2.0]), np.float32([0.5]), np.float32([7.0])


class TinyDetector(nn.Cell):
    """Six losses of a weight w, a bias b and a parameter that is not trained.

    The means over the batch of the image and of the boxes give x and the aim t, 2 values each. The parts have weights
    other than 1, so that only the first two outputs have the gradient computed below.
    """

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(WEIGHT), name="backbone.weight")
        self.bias = Parameter(Tensor(BIAS), name="rcnn.bias")
        self.fixed = Parameter(Tensor(FIXED), name="backbone.fixed", requires_grad=False)

    def construct(self, image, image_shape, box, label, valid):
        x, aim = image.mean(0), box.mean(0)
        rpn_cls, rpn_reg = (self.weight * x).sum(), ((self.weight - aim) ** 2).sum()
        rcnn_cls, rcnn_reg = self.fixed.sum(), (self.bias**2).sum()
        return (2 * rpn_cls**2 + 0.5 * rpn_reg, 0.1 * rcnn_cls + 3 * rcnn_reg, rpn_cls**2, rpn_reg, rcnn_cls, rcnn_reg)


def samples_of(count, seed=0):
    """Inputs x and aims t."""
    rng = np.random.default_rng(seed)
    return [(rng.uniform(-1, 1, 2).astype(np.float32), rng.uniform(-1, 1, 2).astype(np.float32)) for _ in range(count)]


def batch_of(x, aim, label=1.0):
    """A batch of two rows whose means are x and the aim."""
    shift = np.float32([[0.25], [-0.25]])
    return (
        Tensor(x + shift),
        Tensor(np.ones((2, 3), np.float32)),
        Tensor(aim + shift),
        Tensor(np.full(2, label, np.float32)),
        Tensor(np.ones(2, bool)),
    )


def train_data(samples, labels=None):
    """A data set of one batch of two rows per sample, in order, with the columns of the real one.

    The image ids of the batches are 100 and 101, 200 and 201, and so on.
    """
    rows = []
    for k, (x, aim) in enumerate(samples):
        label = 1.0 if labels is None else labels[k]
        for row, shift in enumerate(np.float32([0.25, -0.25])):
            rows.append((x + shift, np.ones(3, np.float32), aim + shift, np.float32(label), True, 100 * (k + 1) + row))
    names = ["image", "image_shape", "box", "label", "valid_num", "image_id"]
    return ds.GeneratorDataset(rows, names, shuffle=False, num_parallel_workers=1).batch(2, drop_remainder=True)


def short_run(folder: Path) -> Config:
    """Two epochs of a few steps; checkpoints go below the folder."""
    return dataclasses.replace(
        load_config(["--compile_cache_path="]),
        epoch_size=2,
        batch_size=2,
        base_lr=0.08,
        warmup_step=2,
        warmup_ratio=0.5,
        weight_decay=0.1,
        milestones=(1,),
        save_checkpoint_path=str(folder / "out"),
    )


def saved_names(config, rank=0):
    folder = Path(config.save_checkpoint_path) / f"ckpt_{rank}"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def read_events(folder):
    """Scalars of TensorBoard's files: (tag, step) -> value."""
    from tensorboardX.proto.event_pb2 import Event

    scalars = {}
    for path in Path(folder).iterdir():
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")  # length, its checksum, record, its checksum
            event = Event.FromString(data[12 : 12 + length])
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    return scalars

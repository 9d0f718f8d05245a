"""Models with the inputs and outputs of the detector, small enough for the MindSpore Lite that the tests have.

MindSpore Lite 2.0 knows MindIR version 1 and the operators of its day; MindSpore 2.10 writes version 3. The networks
here keep to operators both know (Reshape, Add, Conv2D, Cast, Greater), so their files load once the version says 1.
"""

import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train import mind_ir_pb2

HEIGHT, WIDTH = 64, 128
NEWEST_READABLE_VERSION = 1


class SmallDetector(nn.Cell):
    """Boxes shifted by the image's mean, labels and mask that show the metadata.

    Args:
        boxes (np.ndarray): (1, 4, 5) float32, one row for each number of the metadata.
        mean_weight (float): weight of the mean over pixels, summed over channels, that is added to all of `boxes`.
        label_weight (float): labels are the metadata times this.
        label_type (ms.dtype): of the second output.
        with_mask (bool): whether there is a third output, metadata > 1.5.
    """

    def __init__(self, boxes, *, mean_weight=0.0, label_weight=1.0, label_type=ms.int32, with_mask=True):
        super().__init__()
        weight = np.full((1, 3, HEIGHT, WIDTH), mean_weight / (HEIGHT * WIDTH), np.float32)
        self.mean = nn.Conv2d(3, 1, (HEIGHT, WIDTH), pad_mode="valid", has_bias=False, weight_init=Tensor(weight))
        self.boxes = Tensor(boxes)
        self.label_weight = Tensor([label_weight], ms.float32)
        self.label_type = label_type
        self.limit = Tensor([1.5], ms.float32)
        self.with_mask = with_mask

    def construct(self, image, metadata):
        rows = ops.reshape(metadata, (-1, 4, 1))
        boxes = ops.add(self.boxes, ops.reshape(self.mean(image), (-1, 1, 1)))
        labels = ops.cast(ops.mul(rows, self.label_weight), self.label_type)
        if self.with_mask:
            return boxes, labels, ops.greater(rows, self.limit)
        return boxes, labels


def export(path: Path, network: nn.Cell, *, batch: int = 1, version: int = NEWEST_READABLE_VERSION) -> Path:
    """Write a network as MINDIR and set the version its file claims."""
    network.set_train(False)
    inputs = Tensor(np.zeros((batch, 3, HEIGHT, WIDTH), np.float32)), Tensor(np.zeros((batch, 4), np.float32))
    with tempfile.TemporaryDirectory() as folder:  # MindSpore refuses spaces and quotes in the path
        ms.export(network, *inputs, file_name=f"{folder}/model.mindir", file_format="MINDIR")
        model = mind_ir_pb2.ModelProto.FromString(Path(folder, "model.mindir").read_bytes())
    model.mind_ir_version = version
    path.write_bytes(model.SerializeToString())
    return path

"""Makes the files below fixtures/ with PyTorch and torchvision, which the tests themselves do without.

    python tests/unit/weights/make_fixtures.py

Run it in an environment that has both, such as the one of benchmarks/run.sh; the files are part of the repository.
"""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision

FOLDER = Path(__file__).parent / "fixtures"


class Command:
    """An object that runs a command when it is unpickled: makes a file called HARM in the working folder."""

    def __reduce__(self):
        return os.system, ("touch HARM",)


def tensors() -> OrderedDict:
    """Every kind of number and of view that files of weights hold."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(5, 6, generator=generator)
    return OrderedDict(
        float32=torch.randn(3, 4, generator=generator),
        float16=torch.randn(4, generator=generator).half(),
        bfloat16=torch.randn(4, generator=generator).bfloat16(),
        float64=torch.randn(2, generator=generator).double(),
        int64=torch.arange(7),
        uint8=torch.arange(3, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(3),
        empty=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2, generator=generator)),
        transposed=matrix.t()[1:4],
        row_of_another=matrix[2],
    )


def main() -> None:
    """Write all files."""
    values = tensors()
    expected = {
        name: value.detach().float() if name == "bfloat16" else value.detach() for name, value in values.items()
    }
    np.savez(FOLDER / "expected.npz", **{name: value.numpy() for name, value in expected.items()})
    torch.save(values, FOLDER / "today.pth")
    torch.save(
        {"state_dict": values, "meta": {"epoch": 3}}, FOLDER / "before_1_6.pth", _use_new_zipfile_serialization=False
    )
    torch.save({"weight": torch.ones(2), "other": Command()}, FOLDER / "harm.pth")
    torch.save({"other": Command()}, FOLDER / "harm_before_1_6.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), FOLDER / "whole_module.pth")
    for protocol in (2, 5):
        content = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, "__author__": "somebody"}
        (FOLDER / f"numpy_{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    (FOLDER / "harm.pkl").write_bytes(pickle.dumps({"model": Command()}))
    models = {
        "fasterrcnn_resnet50_fpn": torchvision.models.detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None
        ),
        "resnet50": torchvision.models.resnet50(),
    }
    names = {
        model: {name: list(value.shape) for name, value in net.state_dict().items()} for model, net in models.items()
    }
    (FOLDER / "torchvision_names.json").write_text(json.dumps(names, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Export a trained detector as MINDIR, AIR or ONNX.

    python export.py --ckpt_file=faster_rcnn.ckpt --file_format=ONNX --file_name=faster_rcnn

MINDIR and AIR files hold the operators of `device_target`, an ONNX file is the same for every device. MINDIR and AIR
files take batches of `test_batch_size`, ONNX files any number of images. The file is loaded again and compared with
the network before it takes its name.
"""

import sys
from collections.abc import Sequence

from src.model_utils.config import Config
from src.runtime import run, run_configured


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit code 0."""
    return run_configured(export_file, argv, model_keys=["ckpt_file", "file_name"])


def export_file(config: Config) -> None:
    """Export `ckpt_file` as `file_name`."""
    from src.deploy.exporter import export_detector, with_export_device
    from src.runtime import init_device

    config = with_export_device(config)
    init_device(config)
    export_detector(config)


if __name__ == "__main__":
    sys.exit(run(main))

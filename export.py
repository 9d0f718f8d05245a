"""Export a trained detector as MINDIR, AIR or ONNX.

    python export.py --ckpt_file=faster_rcnn.ckpt --file_format=ONNX --file_name=faster_rcnn

MINDIR and AIR files hold the operators of `device_target`, an ONNX file is the same for every device. MINDIR and AIR
files take batches of `test_batch_size`, ONNX files any number of images. The file is loaded again and compared with
the network before it takes its name.
"""

import logging
import sys
from collections.abc import Sequence

from src.runtime import prepare_process, run

LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit code 0."""
    prepare_process()  # before anything imports MindSpore
    from src.deploy.exporter import export_detector, with_export_device
    from src.model_utils.config import describe, load_config
    from src.model_utils.config_checks import check_model_flags
    from src.model_utils.device_adapter import job
    from src.runtime import init_device

    config = load_config(argv)
    check_model_flags(config, "--ckpt_file", "ckpt_file", "file_name")
    for line in describe(config):
        LOGGER.info(line)
    with job(config) as config:
        config = with_export_device(config)
        init_device(config)
        export_detector(config)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

"""Detect objects in images or videos: drawn copies, and every detection in a JSON or CSV file.

python predict.py --model=faster_rcnn.ckpt --input=photos --score_thr=0.5
python predict.py --model=faster_rcnn.onnx --input='photos/**/*.jpg' --results=csv
python predict.py --model=faster_rcnn.mindir --input=street.mp4
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from src.model_utils.config import Config, load_config
from src.model_utils.config_checks import check_model_flags
from src.runtime import prepare_process, run, version_parser

LOGGER = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into the flags of this program and those of the configuration."""
    parser = _parser()
    arguments, flags = parser.parse_known_args(argv)
    if len(arguments.input) > 1:
        parser.error("--input is given twice; a folder or a pattern in quotes stands for several inputs")
    arguments.input = arguments.input[0]
    return arguments, flags


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output_dir",
        default="predictions",
        metavar="FOLDER",
        help="Where drawn copies and results go. It is made if it does not exist, files of the same "
        "names are replaced, and it may not hold the inputs. (default: %(default)s)",
    )
    parser.add_argument(
        "--score_thr",
        type=_score,
        default=0.5,
        metavar="SCORE",
        help="Detections with a lower score are neither drawn nor listed. Below the threshold inside "
        "the model (test_score_thr, 0.05) it changes nothing. (default: %(default)s)",
    )
    parser.add_argument(
        "--results",
        choices=("json", "csv"),
        default="json",
        help="The kind of file that lists the detections. (default: %(default)s)",
    )
    parser.add_argument(
        "--picture_format",
        choices=("jpg", "png"),
        default="jpg",
        help="The format of drawn images; videos become MP4 without sound. (default: %(default)s)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        parents=[version_parser()],
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other flags are those of the configuration, see python train.py --help. The model's file knows "
        "its classes,\nits image size and all else it was trained with; --img_width, --img_height and the "
        "thresholds of a .ckpt may\nbe changed. The device is the best that is there, unless --device_target "
        "names one.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="FILE",
        help="The detector: a .ckpt, .onnx or .mindir file, "
        "or a Faster R-CNN of torchvision, mmdetection or detectron2 (.pth, .pkl, .safetensors).",
    )
    parser.add_argument(
        "--input",
        required=True,
        action="append",
        metavar="WHAT",
        help="An image; a video, told by its suffix; a folder, of which all images are taken but "
        "not those of folders in it, nor videos; or a pattern in quotes, such as "
        "'photos/**/*.jpg', of which all files are taken.",
    )
    _add_output_flags(parser)
    return parser


def _score(argument: str) -> float:
    value = float(argument)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{argument} is not between 0 and 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Detect as the command line says; returns the exit code 0 when at least one image could be read."""
    prepare_process()  # before anything imports MindSpore
    arguments, flags = parse_arguments(argv)
    config = load_config(flags)
    check_model_flags(config, "--model")
    if config.enable_modelarts:  # job works in another folder; what is read lies in this one
        arguments.model, arguments.input = (str(Path(path).absolute()) for path in (arguments.model, arguments.input))
    from src.model_utils.device_adapter import job

    with job(config) as config:
        predict(arguments, config)
    return 0


def predict(arguments: argparse.Namespace, config: Config) -> None:
    """Detect in `arguments.input` with `arguments.model`."""
    from src.common.files import check_writable
    from src.deploy.model_file import load_model
    from src.predict.image_sources import find_inputs, output_paths
    from src.predict.prediction import Predictor
    from src.runtime import init_device, with_available_device

    inputs, left_out = find_inputs(arguments.input)
    targets = output_paths(inputs, Path(arguments.output_dir), f".{arguments.picture_format}")
    output_dir = check_writable(arguments.output_dir)
    config = with_available_device(config)
    init_device(config)
    predictor = Predictor(load_model(arguments.model, config), output_dir, arguments.score_thr, left_out)
    predictor.run(inputs, targets)
    results = predictor.write_results(arguments.results)
    LOGGER.info("%s; drawn copies in %s, results in %s", predictor.summary(), output_dir, results)


if __name__ == "__main__":
    sys.exit(run(main))

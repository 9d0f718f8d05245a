"""Train Faster R-CNN.

python train.py --config_path=default_config.yaml --device_target=CPU --coco_root=COCO --pre_trained=RESNET.ckpt
python train.py --help
"""

import logging
import sys
from collections.abc import Sequence

from src.runtime import prepare_process, run

LOGGER = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the configuration says; see the README for the commands."""
    # MindSpore reads the environment when it is imported, so its users are imported after it is prepared.
    prepare_process()
    from src.convert_checkpoint import load_pretrained, pretrained_config
    from src.data.data_paths import check_training_lists
    from src.dataset import create_train_dataset, ensure_mindrecord
    from src.FasterRcnn import build_detector
    from src.model_utils.config import describe, load_config
    from src.model_utils.device_adapter import job
    from src.network_define import check_start, train
    from src.runtime import init_device, with_available_device
    from src.training.run_files import find_old_run

    config = load_config(argv)
    for line in describe(config):
        LOGGER.info(line)
    with job(config) as config:
        check_start(config)
        check_training_lists(config)
        old_run = find_old_run(config)
        config = with_available_device(config)
        device = init_device(config)
        config = pretrained_config(config)
        network = load_pretrained(build_detector(config, device.rank), config.pre_trained, finetune=config.finetune)
        records = ensure_mindrecord(config, training=True, local_rank=device.local_rank)
        dataset = create_train_dataset(
            config, records, rank=device.rank, num_shards=device.num_devices, with_image_id=True
        )
        evaluate = evaluation(config, network) if config.run_eval and device.rank == 0 else None
        old_run.set_aside(device)
        train(network, dataset, config, device, evaluate)
    return 0


def evaluation(config, network):
    """A function that evaluates the network as it is and returns its AP."""
    from src.evaluation.scoring import Evaluation
    from src.util import DetectionCell

    data = Evaluation(config)
    # Built once: a graph is compiled for every cell.
    cell = DetectionCell(network)
    return lambda: data.score(cell)["AP"]


if __name__ == "__main__":
    sys.exit(run(main))

"""Train Faster R-CNN.

python train.py --device_target=CPU --coco_root=COCO --coco_classes=auto --pre_trained=RESNET.ckpt
python train.py --device_target=CPU --coco_root=COCO --coco_classes=auto --recipe=scratch
python train.py --help
"""

import sys
from collections.abc import Sequence

from src.model_utils.config import Config
from src.runtime import run, run_configured


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the configuration says; see the README for the commands."""
    return run_configured(train_detector, argv)


def train_detector(config: Config) -> None:
    """Train a detector, with evaluations between epochs if the configuration asks for them."""
    from src.convert_checkpoint import load_pretrained, pretrained_config
    from src.data.class_names import with_classes
    from src.data.data_paths import check_training_lists
    from src.dataset import create_train_dataset, ensure_mindrecord
    from src.evaluation.scoring import network_scorer
    from src.FasterRcnn import build_detector
    from src.network_define import check_start, train
    from src.runtime import init_device, with_available_device
    from src.training.run_files import find_old_run

    check_start(config)
    check_training_lists(config)
    old_run = find_old_run(config)
    config = with_available_device(config)
    device = init_device(config)
    config = with_classes(config, training=True)
    config = pretrained_config(config)
    network = build_detector(config, device.rank)
    load_pretrained(network, config.pre_trained, config.finetune, config)
    records = ensure_mindrecord(config, training=True, local_rank=device.local_rank)
    dataset = create_train_dataset(config, records, rank=device.rank, num_shards=device.num_devices, with_image_id=True)
    evaluate = network_scorer(network, config) if config.run_eval and device.rank == 0 else None
    old_run.set_aside(device)
    train(network, dataset, config, device, evaluate)


if __name__ == "__main__":
    sys.exit(run(main))

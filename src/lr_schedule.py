"""Learning rates as pure functions: a list with one value per step."""

import math
from collections.abc import Sequence

from src.model_utils.config import Config

BASE_IMAGES = 16  # images per step that base_lr is meant for: 8 devices, 2 images each


def scaled_base_lr(base_lr: float, num_devices: int, batch_size: int) -> float:
    """Learning rate of a run: ``base_lr`` is meant for BASE_IMAGES images per step.

    Args:
        base_lr (float): the configured rate, > 0.
        num_devices (int): devices that train together.
        batch_size (int): images per device and step.

    Returns:
        float: base_lr * num_devices * batch_size / BASE_IMAGES (linear scaling, Goyal et al. 2017).
    """
    return base_lr * num_devices * batch_size / BASE_IMAGES


def dynamic_lr(lr: float, steps_per_epoch: int, epoch_size: int, warmup_step: int, warmup_ratio: float) -> list[float]:
    """Linear warm-up, then a cosine that ends one epoch after the training does (published behaviour).

    Args:
        lr (float): peak rate.
        steps_per_epoch, epoch_size (int): length of the training.
        warmup_step (int): steps of the warm-up (w), >= 0.
        warmup_ratio (float): share of the peak at step 0 (r).

    Returns:
        list[float]: steps_per_epoch * epoch_size values; step i has lr * (r + (1 - r) * i / w) below w, then
        lr * (1 + cos(pi * (i - w) / T)) / 2 with T = steps_per_epoch * (epoch_size + 1).
    """
    period = steps_per_epoch * (epoch_size + 1)
    rates = []
    for step in range(steps_per_epoch * epoch_size):
        if step < warmup_step:
            rates.append(lr * (warmup_ratio + (1 - warmup_ratio) * step / warmup_step))
        else:
            rates.append(lr * (1 + math.cos(math.pi * (step - warmup_step) / period)) / 2)
    return rates


def multistep_lr(
    lr: float,
    steps_per_epoch: int,
    epoch_size: int,
    milestones: Sequence[int],
    warmup_step: int = 0,
    warmup_ratio: float = 1.0,
) -> list[float]:
    """A tenth of the rate from the first step of every milestone on, with or without a linear warm-up.

    Args:
        lr (float): rate of the first epoch.
        steps_per_epoch, epoch_size (int): length of the training.
        milestones (Sequence[int]): epochs, counted from 0.
        warmup_step (int): steps of the warm-up (w), >= 0; the published schedule has none.
        warmup_ratio (float): share of the rate at step 0 (r); step i below w has the share r + (1 - r) * i / w.

    Returns:
        list[float]: steps_per_epoch * epoch_size values.
    """
    rates = []
    for epoch in range(epoch_size):
        passed = sum(epoch >= milestone for milestone in milestones)
        rates += [lr * 0.1**passed] * steps_per_epoch
    for step in range(min(warmup_step, len(rates))):
        rates[step] *= warmup_ratio + (1 - warmup_ratio) * step / warmup_step
    return rates


def learning_rates(config: Config, steps_per_epoch: int, num_devices: int) -> list[float]:
    """Learning rates of a configuration.

    Args:
        config (Config): ``base_lr``, ``lr_type``, ``epoch_size``, ``batch_size``, ``accumulate_steps`` and the
            schedule's own keys.
        steps_per_epoch (int): steps of one device in an epoch.
        num_devices (int): devices that train together.

    Returns:
        list[float]: one value per step of the training.
    """
    lr = scaled_base_lr(config.base_lr, num_devices * config.accumulate_steps, config.batch_size)
    if config.lr_type == "multistep":
        return multistep_lr(lr, steps_per_epoch, config.epoch_size, config.milestones)
    if config.lr_type == "multistep_warmup":
        return multistep_lr(
            lr, steps_per_epoch, config.epoch_size, config.milestones, config.warmup_step, config.warmup_ratio
        )
    return dynamic_lr(lr, steps_per_epoch, config.epoch_size, config.warmup_step, config.warmup_ratio)

"""Learning rates against the formulas of the published system, worked out by hand or in numpy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.lr_schedule import dynamic_lr, learning_rates, multistep_lr, scaled_base_lr
from src.model_utils.config import load_config

LENGTHS = {"steps_per_epoch": st.integers(1, 20), "epoch_size": st.integers(1, 8)}


def test_dynamic_by_hand():
    # 2 epochs of 4 steps: T = 4 * (2 + 1) = 12. Warm-up: 0.16 * (1/16 + 15/16 * i/2). Then 0.08 * (1 + cos) of
    # 0, 15, 30, 45, 60 and 75 degrees.
    expected = [0.01, 0.085, 0.16, 0.15727407, 0.14928203, 0.13656854, 0.12, 0.10070552]
    assert dynamic_lr(0.16, 4, 2, 2, 0.0625) == pytest.approx(expected, rel=1e-6)


def test_dynamic_without_warmup_starts_at_the_peak_and_never_reaches_zero():
    # T = 3 * 2 = 6: cosines of 0, 30 and 60 degrees.
    assert dynamic_lr(0.02, 3, 1, 0, 0.0625) == pytest.approx([0.02, 0.0186602540, 0.015])


def test_dynamic_warmup_longer_than_the_training_is_the_start_of_the_ramp():
    # 0.5 * (0.2 + 0.8 * i / 8)
    assert dynamic_lr(0.5, 3, 1, 8, 0.2) == pytest.approx([0.1, 0.15, 0.2])


def test_dynamic_at_the_published_size():
    """COCO on 8 devices with batch 2: 7393 steps an epoch, 12 epochs, base rate 0.04."""
    rates = dynamic_lr(0.04, 7393, 12, 500, 0.0625)
    period = 7393 * 13
    assert len(rates) == 7393 * 12
    assert rates[0] == pytest.approx(0.0025)
    assert rates[250] == pytest.approx(0.04 * (0.0625 + 0.9375 / 2))
    assert rates[499] == pytest.approx(0.04 * (0.0625 + 0.9375 * 499 / 500))
    assert rates[500] == 0.04
    assert rates[-1] == pytest.approx(0.04 * (1 + np.cos(np.pi * (7393 * 12 - 1 - 500) / period)) / 2)


@settings(max_examples=60, deadline=None)
@given(lr=st.floats(1e-4, 1), warmup=st.integers(0, 200), ratio=st.floats(1e-6, 1), **LENGTHS)
def test_dynamic_follows_the_formula(lr, steps_per_epoch, epoch_size, warmup, ratio):
    i = np.arange(steps_per_epoch * epoch_size)
    period = steps_per_epoch * (epoch_size + 1)
    ramp = lr * (ratio + (1 - ratio) * i / max(warmup, 1))
    cosine = lr * (1 + np.cos(np.pi * (i - warmup) / period)) / 2
    rates = dynamic_lr(lr, steps_per_epoch, epoch_size, warmup, ratio)
    np.testing.assert_allclose(rates, np.where(i < warmup, ramp, cosine), rtol=1e-9, atol=1e-15)
    assert min(rates) > 0


def test_multistep_with_warmup_by_hand():
    # Shares 0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3 of the rate of the step, which drops at step 2.
    rates = multistep_lr(0.5, 2, 2, (1,), 3, 0.2)
    assert rates == pytest.approx([0.1, 0.5 * 0.466666667, 0.05 * 0.733333333, 0.05])
    assert multistep_lr(0.5, 2, 1, (), 8, 0.2) == pytest.approx([0.1, 0.15])


def test_multistep_by_hand():
    rates = multistep_lr(0.5, 2, 4, (1, 3))
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.05, 0.05, 0.005, 0.005])


def test_multistep_published_milestones():
    rates = np.array(multistep_lr(0.02, 3, 12, (8, 11))).reshape(12, 3)
    np.testing.assert_allclose(rates[:8], 0.02)
    np.testing.assert_allclose(rates[8:11], 0.002)
    np.testing.assert_allclose(rates[11:], 0.0002)


@settings(max_examples=60, deadline=None)
@given(milestones=st.lists(st.integers(0, 10), max_size=4, unique=True), **LENGTHS)
def test_multistep_drops_at_the_first_step_of_each_milestone(milestones, steps_per_epoch, epoch_size):
    expected = np.ones(steps_per_epoch * epoch_size)
    for milestone in milestones:
        expected[milestone * steps_per_epoch :] *= 0.1
    np.testing.assert_allclose(multistep_lr(1.0, steps_per_epoch, epoch_size, sorted(milestones)), expected)


@pytest.mark.parametrize(
    "base_lr, devices, batch, expected",
    [
        (0.02, 8, 2, 0.02),  # what base_lr is meant for
        (0.02, 1, 2, 0.0025),
        (0.02, 1, 16, 0.02),
        (0.016, 4, 1, 0.004),
        (0.02, 16, 4, 0.08),
    ],
)
def test_base_lr_is_for_sixteen_images_a_step(base_lr, devices, batch, expected):
    assert scaled_base_lr(base_lr, devices, batch) == pytest.approx(expected)


@pytest.mark.parametrize(
    "lr_type, expected",
    [
        # 0.32 * 2 devices * 4 images / 16 = 0.16
        ("dynamic", [0.01, 0.085, 0.16, 0.15727407, 0.14928203, 0.13656854, 0.12, 0.10070552]),
        ("multistep", [0.16] * 4 + [0.016] * 4),
    ],
)
def test_learning_rates_of_a_configuration(lr_type, expected):
    config = dataclasses.replace(
        load_config([]),
        base_lr=0.32,
        batch_size=4,
        epoch_size=2,
        lr_type=lr_type,
        warmup_step=2,
        warmup_ratio=0.0625,
        milestones=(1,),
    )
    assert learning_rates(config, steps_per_epoch=4, num_devices=2) == pytest.approx(expected, rel=1e-6)


def test_scaling_uses_devices_and_batch_of_the_run():
    config = dataclasses.replace(load_config([]), base_lr=0.02, batch_size=2, epoch_size=1, warmup_step=0)
    assert learning_rates(config, 5, 8)[0] == pytest.approx(0.02)
    assert learning_rates(config, 5, 1)[0] == pytest.approx(0.0025)


def test_the_configuration_chooses_multistep_with_warmup_and_scales_by_accumulated_batches():
    config = load_config(["--lr_type=multistep_warmup", "--milestones=[1]", "--epoch_size=2", "--base_lr=0.8"])
    config = dataclasses.replace(config, warmup_step=2, warmup_ratio=0.5, batch_size=2, accumulate_steps=3)
    # 0.8 * 1 device * 2 images * 3 steps / 16 = 0.3
    assert learning_rates(config, 2, 1) == pytest.approx([0.15, 0.225, 0.03, 0.03])

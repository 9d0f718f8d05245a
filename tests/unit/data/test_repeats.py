"""Repeat-factor sampling: factors by hand, and what an epoch's list must be whatever is drawn."""

import numpy as np
import pytest

from src.data.repeats import class_factors, epoch_length, epoch_rows, image_factors

# ten images; classes in 5, 1 and none of them
HAS_CLASS = np.zeros((10, 3), bool)
HAS_CLASS[:5, 0] = True
HAS_CLASS[4, 1] = True
FACTORS = np.array([1.0, 1.0, 1.25, 2.0, 2.6, 1.25, 3.0, 1.0])  # 13.1


def test_factors_of_classes():
    shares, factors = class_factors(HAS_CLASS, 0.4)
    np.testing.assert_allclose(shares, [0.5, 0.1, 0])
    np.testing.assert_allclose(factors, [1, 2, 1])  # sqrt(0.4 / 0.5) < 1, sqrt(0.4 / 0.1), no image to repeat


def test_an_image_has_the_largest_factor_of_its_classes():
    assert image_factors(HAS_CLASS, np.array([1.5, 2.0, 9.0])).tolist() == [1.5] * 4 + [2.0] + [1.0] * 5


def test_without_rare_classes_every_image_comes_once():
    _, factors = class_factors(HAS_CLASS, 0.1)
    of_images = image_factors(HAS_CLASS, factors)
    assert epoch_length(of_images) == 10
    rows, repeats = epoch_rows(of_images, 1, 0)
    assert sorted(rows) == list(range(10))
    assert not repeats.any()


@pytest.mark.parametrize(
    ("factors", "length"), [([1.0, 1.25, 1.25], 4), ([1.0, 1.2, 1.2], 3), ([2.0, 1.0], 3), (FACTORS, 13)]
)
def test_an_epoch_has_the_rounded_sum_of_the_factors(factors, length):
    factors = np.array(factors)
    assert epoch_length(factors) == length
    assert {len(epoch_rows(factors, seed, epoch)[0]) for seed in range(5) for epoch in range(20)} == {length}


def test_images_come_as_often_as_their_factors_say():
    """Of 0.25 + 0.6 + 0.25 = 1.1 one is drawn: each fraction counts by 1 / 1.1."""
    counts = np.array([np.bincount(epoch_rows(FACTORS, 3, epoch)[0], minlength=8) for epoch in range(2000)])
    whole = np.floor(FACTORS).astype(int)
    assert (counts >= whole).all()
    assert (counts <= whole + (whole < FACTORS)).all()
    # four standard deviations of a share of 2000 are at most 0.045
    np.testing.assert_allclose(counts.mean(axis=0), whole + (FACTORS - whole) / 1.1, atol=0.045)


def test_more_than_one_fraction_is_drawn():
    factors = np.full(40, 1.25)
    counts = np.array([np.bincount(epoch_rows(factors, 0, epoch)[0], minlength=40) for epoch in range(2000)])
    assert (counts.sum(axis=1) == 50).all()
    assert counts.max() == 2
    np.testing.assert_allclose(counts.mean(axis=0), 1.25, atol=0.045)


def test_each_time_of_an_image_has_its_number():
    rows, repeats = epoch_rows(FACTORS, 1, 5)
    for image in range(8):
        numbers = sorted(repeats[rows == image])
        assert numbers == list(range(len(numbers)))


def test_the_list_depends_on_seed_and_epoch_alone():
    lists = {
        (seed, epoch): tuple(epoch_rows(FACTORS, seed, epoch)[0].tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(set(lists.values())) == 9
    assert all(tuple(epoch_rows(FACTORS, *key)[0].tolist()) == found for key, found in lists.items())
    assert all(list(found) != sorted(found) for found in lists.values())

"""Repeat-factor sampling: images with rare classes come several times in an epoch (Gupta, Dollar, Girshick 2019).

A class c in a share f(c) of the images has the factor r(c) = max(1, sqrt(t / f(c))) for the threshold t, and an image
the largest factor of its classes. All functions are pure: an epoch's list depends on the factors, the seed and the
number of the epoch alone, so every process of a run and a resumed training find the same.
"""

import math

import numpy as np

_STREAM = 1  # keeps these random numbers apart from those of the images, which begin with the same seed and epoch


def class_factors(has_class: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """How rare each class is, and how often it asks for its images.

    Args:
        has_class (np.ndarray): (N, K) bool, whether image n has a box of class k.
        threshold (float): t, 0..1: the share below which classes are repeated.

    Returns:
        tuple[np.ndarray, np.ndarray]: shares f (K,) float64, 0..1, and factors r (K,) float64, at least 1; 1 for a
        class without images.
    """
    shares = has_class.mean(axis=0)
    with np.errstate(divide="ignore"):
        factors = np.maximum(1.0, np.sqrt(threshold / shares))
    return shares, np.where(shares > 0, factors, 1.0)


def image_factors(has_class: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """How often each image comes on average: by the largest factor of its classes, 1 without any.

    Args:
        has_class (np.ndarray): (N, K) bool.
        factors (np.ndarray): (K,), of the classes.

    Returns:
        np.ndarray: (N,) float64, at least 1.
    """
    return np.where(has_class, factors, 1.0).max(axis=1, initial=1.0)


def epoch_length(factors: np.ndarray) -> int:
    """Images of every epoch: the sum of the factors (N,) of the images, rounded."""
    return math.floor(factors.sum() + 0.5)


def epoch_rows(factors: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of an epoch in their order.

    Every image comes as often as the whole part of its factor says. Of the fractions as many are drawn as fill the
    epoch, by systematic sampling: fractions lie side by side in a random order, and images are taken at equal
    distances. So the epoch's length is the same each time, and an image is drawn with its fraction as probability
    (but for the rounding of their sum).

    Args:
        factors (np.ndarray): (N,) float64, at least 1, of the images.
        seed (int): of the run.
        epoch (int): counted from 0.

    Returns:
        tuple[np.ndarray, np.ndarray]: (S,) int64 numbers of images, S of `epoch_length`, and (S,) int64, how many
        times the same image has come before: 0 for its first time.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=(_STREAM,)))
    times = np.floor(factors).astype(np.int64)
    num_drawn = epoch_length(factors) - int(times.sum())
    order = rng.permutation(len(factors))
    ends = np.cumsum((factors - times)[order])
    if num_drawn:
        # held to the last end, which is set: rounding must neither lose nor add an image
        ends = np.append(np.minimum(ends[:-1] * (num_drawn / ends[-1]), num_drawn), num_drawn)
        times[order] += np.diff(np.floor(ends + rng.random()), prepend=0).astype(np.int64)
    rows = np.repeat(np.arange(len(factors)), times)
    repeats = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    shuffled = rng.permutation(len(rows))
    return rows[shuffled], repeats[shuffled]

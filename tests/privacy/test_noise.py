"""Noise of the operating system: normal, independent, and never the same twice."""

import numpy as np
import pytest

from ist_fed.privacy import noise


def test_it_is_standard_normal() -> None:
    """Moments, tails and the largest gap from the normal distribution (Kolmogorov), beyond 1 in a million."""
    from math import erf

    count = 200_001
    sample = noise.normal(count)
    assert sample.shape == (count,)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((sample**power).mean() - moment) < 5 * (spread / count) ** 0.5, power
    points = np.sort(sample)[:: count // 2000]
    law = np.array([(1 + erf(x / 2**0.5)) / 2 for x in points])
    reached = np.searchsorted(np.sort(sample), points) / count
    assert np.abs(law - reached).max() < 2.7 / count**0.5


def test_neighbours_are_independent() -> None:
    sample = noise.normal(1 << 19)  # more than one piece
    half = len(sample) // 2
    for lag in (1, half // 2, half):
        assert abs(np.corrcoef(sample[:-lag], sample[lag:])[0, 1]) < 5 / (len(sample) - lag) ** 0.5


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_any_number_can_be_had_and_no_two_are_alike(count: int) -> None:
    assert len(noise.normal(count)) == count
    assert count == 0 or noise.normal(count)[0] != noise.normal(count)[0]


def test_coins_and_draws_are_fair() -> None:
    tries = 20_000
    assert noise.takes_part(1.0)
    share = sum(noise.takes_part(0.3) for _ in range(tries)) / tries
    assert abs(share - 0.3) < 5 * (0.21 / tries) ** 0.5
    counts = np.bincount([noise.draw(5) for _ in range(tries)], minlength=5)
    assert ((counts - tries / 5) ** 2 / (tries / 5)).sum() < 45  # chi-squared, 4 degrees

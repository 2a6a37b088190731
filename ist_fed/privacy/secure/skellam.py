"""Skellam noise from the operating system's random numbers, drawn so that it is known how exactly.

A Skellam variable is the difference of two Poisson variables of one mean; the sum of independent ones is one again, so
that noise which members add apart is Skellam noise in their sum. Its probabilities, e⁻ᵛ Iₙ(v) at variance v, are worked
out with Debye's expansion of the Bessel function Iₙ (DLMF 10.41.3). What is drawn is drawn by rejection: a block of
numbers from a table of whole-number weights, a number in it, and whether to keep it.

How exactly: with variance from 1024 on, the probability of each number within `TAIL` standard deviations is right to a
relative error below 1e-12, which changes a privacy loss by no more than that for each number of an update; the rest,
together below 1e-27, is never drawn.
"""

import os
from functools import lru_cache
from math import ceil, pi, sqrt

import numpy as np

from ist_fed.privacy.secure.masks import keystream

TAIL = 12
"""Standard deviations beyond which nothing is drawn; that much would come with probability below 1e-27."""

LEAST_VARIANCE = 1024.0
"""From here on the expansion is exact enough."""

_CHUNK = 1 << 15  # candidates at a time; what is made of them on the way stays in a processor's cache
_WEIGHT = 48  # bits of a table's weights, and so of the draw that looks one up


def log_pmf(numbers: np.ndarray, variance: float) -> np.ndarray:
    """Natural logarithm of the probability of whole numbers.

    Args:
        numbers: as float64.
        variance: at least 1024.
    """
    ratio = numbers / variance
    root = np.sqrt(1 + ratio * ratio)
    radius = variance * root
    # r − v − n·asinh(n/v), without the difference of large numbers
    exponent = numbers * (ratio / (1 + root) - np.arcsinh(ratio))
    p2, back = (ratio / root) ** 2, 1 / radius
    first = back * (3 - 5 * p2) / 24
    second = back**2 * (81 - p2 * (462 - 385 * p2)) / 1152
    third = back**3 * (30375 - p2 * (369603 - p2 * (765765 - 425425 * p2))) / 414720
    found: np.ndarray = exponent - 0.5 * np.log(2 * pi * radius) + np.log1p(first + second + third)
    return found


def draw(variance: float, count: int) -> np.ndarray:
    """Independent Skellam variables, from a key of the operating system's, which ChaCha20 makes longer.

    Args:
        variance: at least 1024.
        count: how many.

    Returns:
        int64.
    """
    table, random = _table(variance), keystream(os.urandom(32))
    drawn, have = np.empty(count, np.int64), 0
    zeros = bytes(24 * _CHUNK)
    while have < count:
        words = np.frombuffer(random.update(zeros), dtype="<u8").reshape(3, _CHUNK)
        kept = table.kept(*words)[: count - have]
        drawn[have : have + kept.size] = kept
        have += kept.size
    return drawn


class _Table:
    """Blocks of equal width within ± `TAIL` standard deviations, and an alias table (Vose 1991) of whole weights."""

    def __init__(self, variance: float) -> None:
        self._variance, deviation = variance, sqrt(variance)
        self._bits = max(0, int(deviation / 16).bit_length() - 1)
        width = 1 << self._bits
        half = ceil(TAIL * deviation / width)
        self._columns = (2 * half - 1).bit_length()
        self._first = -half * width
        starts = self._first + width * np.arange(1 << self._columns, dtype=np.float64)
        highest = np.where(starts >= 0, starts, starts + width - 1)  # the number in a block nearest to 0
        logs = np.where(np.arange(starts.size) < 2 * half, log_pmf(highest, variance), -np.inf)
        weights = _whole(np.exp(logs - logs.max()), (1 << self._columns) << _WEIGHT)
        self._threshold, self._alias = _aliases(weights, 1 << _WEIGHT)
        present = np.array([float(weight) for weight in weights])
        with np.errstate(divide="ignore"):
            self._log_weight = np.log(present)
        # the least factor by which weights are nowhere below probabilities
        self._log_factor = float((logs[present > 0] - self._log_weight[present > 0]).max())

    def kept(self, where: np.ndarray, within: np.ndarray, whether: np.ndarray) -> np.ndarray:
        """Numbers out of three random words each; fewer than words, for some are rejected."""
        column = (where >> np.uint64(64 - self._columns)).astype(np.int64)
        low = (where & np.uint64((1 << _WEIGHT) - 1)).astype(np.int64)
        block = np.where(low < self._threshold[column], column, self._alias[column])
        offset = (within & np.uint64((1 << self._bits) - 1)).astype(np.int64)
        numbers = self._first + (block << self._bits) + offset
        chance = np.exp(
            log_pmf(numbers.astype(np.float64), self._variance) - self._log_weight[block] - self._log_factor
        )
        kept: np.ndarray = numbers[(whether >> np.uint64(11)) * 2.0**-53 < chance]
        return kept


@lru_cache(maxsize=8)
def _table(variance: float) -> _Table:
    if not LEAST_VARIANCE <= variance < 2.0**56:
        raise ValueError(f"the variance of Skellam noise here is from 1024 to 2^56, but is {variance}")
    return _Table(variance)


def _whole(weights: np.ndarray, total: int) -> list[int]:
    """Whole weights of this sum, close to the given ones, and at least 1 where those are not 0."""
    scale = (total - weights.size) / float(weights.sum())
    whole = [ceil(weight * scale) for weight in weights.tolist()]
    whole[int(weights.argmax())] += total - sum(whole)
    return whole


def _aliases(weights: list[int], room: int) -> tuple[np.ndarray, np.ndarray]:
    """For each column, up to where a draw stays in it, and where it goes else."""
    rest, alias = list(weights), list(range(len(weights)))
    small = [at for at, weight in enumerate(rest) if weight < room]
    large = [at for at, weight in enumerate(rest) if weight >= room]
    while small and large:
        low, high = small.pop(), large.pop()
        alias[low] = high
        rest[high] -= room - rest[low]
        (small if rest[high] < room else large).append(high)
    return np.array(rest), np.array(alias)

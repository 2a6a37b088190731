"""Chance from the operating system: it has no seed, so no configuration can repeat it."""

import os
import secrets

import numpy as np

_AT_ONCE = 1 << 18
_SUMMED = 4


def normal(count: int) -> np.ndarray:
    """Standard normal numbers in float64, each the scaled sum of four.

    One alone could be told apart by the last bits that a float can take (Mironov 2012); guessing four takes too long.

    Source: Box and Muller 1958; Holohan and Braghin, ESORICS 2021, for the sum.
    """
    made = np.empty(count)
    for start in range(0, count, _AT_ONCE):
        some = made[start : start + _AT_ONCE]
        some[:] = sum(_box_muller(len(some)) for _ in range(_SUMMED)) / _SUMMED**0.5
    return made


def _box_muller(count: int) -> np.ndarray:
    half = (count + 1) // 2
    words = np.frombuffer(os.urandom(16 * half), dtype=np.uint64).reshape(2, half) >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((words[0] + np.uint64(1)) * 2.0**-53))
    angle = 2 * np.pi * 2.0**-53 * words[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def takes_part(probability: float) -> bool:
    """A coin of the operating system; never likelier than `probability`."""
    return secrets.randbelow(1 << 53) < int(probability * (1 << 53))


def draw(choices: int) -> int:
    """One of so many, uniformly."""
    return secrets.randbelow(choices)


def taken(count: int, probability: float) -> np.ndarray:
    """Which of so many are drawn, each for itself; never likelier than `probability`."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (words < np.uint64(int(probability * (1 << 53)))).nonzero()[0]

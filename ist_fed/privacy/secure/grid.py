"""Updates as whole numbers: clipped, put on a grid, and back.

Numbers are rounded to the nearest point of the grid and not at random. A random choice would be unbiased, but may
lengthen an update by √L steps, so that more noise would be needed; rounding to the nearest lengthens it by at most
√L/2 steps, and an update is clipped shorter by just that before, so that no rounded one is longer than the clip norm
(triangle inequality). The grid is so fine, about 2⁻²² of the clip norm, that the error, half a step a number, is below
that of float32 for all that matters.
"""

from dataclasses import dataclass
from math import frexp, ldexp, sqrt

import numpy as np

from ist_fed.errors import SecureError
from ist_fed.privacy.secure.limits import bound_of, threshold_of
from ist_fed.privacy.secure.skellam import LEAST_VARIANCE, TAIL

_ROOM = 1 << 29
"""Largest sum. A quarter of what fits in 32 bits, so that noise which is no sum is seen: each of its numbers passes
with probability 1/4 only."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How updates become whole numbers.

    Args:
        step: between two points; a power of two.
        clip: largest norm of an update.
        length: numbers in it.
        variance: of a member's noise, in squared steps.
        bound: largest whole number, noise and all.
    """

    step: float
    clip: float
    length: int
    variance: float
    bound: int

    def quantise(self, update: np.ndarray) -> np.ndarray:
        """An update, clipped, as whole numbers.

        Args:
            update: float32 or float64, one dimension.

        Returns:
            int64; its norm is at most `clip / step`.

        Raises:
            SecureError: a number in it is not finite, it is of another length, or the grid is too coarse for it.
        """
        longest = self.clip - self.step * sqrt(self.length) / 2
        if not longest > 0:
            raise SecureError(
                f"on a grid an update is shorter than {self.clip:g}, but rounding alone may lengthen it so"
            )
        if update.shape != (self.length,):
            raise SecureError(f"an update has {self.length} numbers, as announced, but this one has {update.size}")
        update = update.astype(np.float64)
        norm = float(np.linalg.norm(update))
        if not norm < float("inf"):
            raise SecureError("an update is finite, but this one is not; lower the learning rate")
        scale = min(1.0, longest / norm) if norm else 1.0
        update *= scale / self.step
        whole: np.ndarray = np.rint(update, out=update).astype(np.int64)
        return whole

    def mean(self, total: np.ndarray, members: int) -> np.ndarray:
        """The mean update out of the sum of whole numbers, float64."""
        mean: np.ndarray = total * (self.step / members)
        return mean


def fit_grid(*, clip: float, noise: float, length: int, members: int, threshold: int | None = None) -> Grid:
    """The finest grid on which the sum of all members' updates has room.

    Args:
        clip: largest norm of an update.
        noise: standard deviation of the noise in the sum, in clip norms, when only `threshold` members are left.
        length: numbers in an update.
        members: who may take part, k.
        threshold: how many are there at least; by default more than two thirds.

    Raises:
        ValueError: there is no such grid.
    """
    threshold = threshold_of(members) if threshold is None else threshold
    share = noise / sqrt(threshold)  # of each member, in clip norms
    steps = (_ROOM / members - 2) / (1 + TAIL * share)  # in a clip norm
    mantissa, exponent = frexp(clip / steps)
    step = ldexp(1.0, exponent - (mantissa == 0.5))  # the next power of two
    variance = (share * clip / step) ** 2
    if step * sqrt(length) > clip or (noise and variance < LEAST_VARIANCE):
        raise ValueError(
            f"an update of {length} numbers from {members} members does not fit in 32 bits with noise {noise}: split "
            f"the cohort, or choose noise between 0.001 and 10"
        )
    bound = bound_of(clip=clip, grid=step, variance=variance)
    return Grid(step=step, clip=clip, length=length, variance=variance, bound=bound)

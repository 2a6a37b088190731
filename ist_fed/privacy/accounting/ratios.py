"""How much likelier one release is with a client than without it: the law of that ratio on a grid, never too mild.

Whatever privacy costs is an expectation of a convex function of the ratio R under the law Q of releases without the
client: δ is E(R − e^ε)⁺ if the client is taken away, and E(1 − e^ε R)⁺ if it is added. So a mass that lies between two
points of the grid is moved to both of them, such that its mean stays. That spreads R out, and no such expectation
becomes smaller; nor does it for sums and products of independent ratios, each spread out (convex order: Shaked and
Shanthikumar, Stochastic Orders, 3.A), nor for rounds composed (Zhu, Dong and Wang, AISTATS 2022). What it adds is of
second order in the grid's step. For one Gaussian release it is "connect the dots" (Doroshenko et al., PoPETs 2022).
"""

from dataclasses import dataclass
from math import ceil, erfc, exp, expm1, floor, log, sqrt

import numpy as np

from ist_fed.privacy.accounting.events import Step

Vector = np.ndarray

_FINE = 0.02  # a step of the grid, beside the standard deviation of one round's loss; adds about 1e-4 to ε, relatively
_MOST = 8192  # points of the grid on which sums are taken; blocks beyond about 50 get a coarser one
_FAR = 8.7  # standard deviations; beyond lies less than 1e-17, which is counted as lost


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """A law of the ratio; points are e^(step·(low + i)).

    Args:
        step: of the grid, in the ratio's logarithm.
        low: number of the first point.
        masses: of the points, without the client.
        zero: mass of the ratio 0, without the client: such releases show that it is not there.
        lost: what is left of the mass with the client: such releases show that it is there.
    """

    step: float
    low: int
    masses: Vector
    zero: float
    lost: float

    @property
    def logs(self) -> Vector:
        """The points' logarithms."""
        return self.step * (self.low + np.arange(len(self.masses)))


def finest(step: Step) -> float:
    """The step of the grid that suits a release."""
    return max(_FINE / (step.noise * sqrt(step.blocks)), _span(step) / _MOST)


def ratio(step: Step) -> Ratio:
    """The law of (1 − q) + q·V·mean(Wᵢ), as in `moments`."""
    grid = finest(step)
    law = _repeated(_log_normal(-log(step.blocks), step.noise**-2, grid), step.blocks)
    if step.shared:
        law = _product(law, _log_normal(0.0, step.shared, grid))
    return law if step.sampling == 1 else _sampled(law, step.sampling)


def regrid(law: Ratio, step: float) -> Ratio:
    """The same on another grid."""
    return _spread(law.logs, law.masses, step, zero=law.zero, lost=law.lost)


def _span(step: Step) -> float:
    """From the least to the largest logarithm that is looked at."""
    apart = [step.noise**-2, *filter(None, [step.shared])]
    return log(step.blocks) + sum(variance + 2 * _FAR * sqrt(variance) for variance in apart)


def _log_normal(log_mean: float, variance: float, grid: float) -> Ratio:
    """Of e^N with N normal of this variance and E e^N = e^`log_mean`; to that mean, N is shifted by the variance."""
    width = sqrt(variance)
    low = floor((log_mean - variance / 2 - _FAR * width) / grid)
    high = ceil((log_mean + variance / 2 + _FAR * width) / grid)
    edges = grid * np.arange(low, high + 1)
    without = (edges - log_mean + variance / 2) / width
    within = without - width
    masses = _between(without)
    moments = _between(within) * np.exp(log_mean - edges[:-1])  # ratio to the left edge, times mass
    right = np.clip((moments - masses) / expm1(grid), 0.0, masses)
    points = np.append(masses - right, 0.0)
    points[1:] += right
    below = _below(within[0]) * exp(log_mean - edges[0])  # at the first point, and the rest of that mass at 0
    points[0] += below
    zero = max(0.0, _below(without[0]) - below) + _below(-without[-1])
    return Ratio(step=grid, low=low, masses=points, zero=zero, lost=exp(log_mean) * _below(-within[-1]))


def _below(x: float) -> float:
    """The normal distribution function."""
    return erfc(-x / sqrt(2)) / 2


def _between(edges: Vector) -> Vector:
    """Normal mass between neighbours, taken from the nearer tail."""
    left, right = (np.array([_below(sign * edge) for edge in edges.tolist()]) for sign in (1, -1))
    middle = edges[1:] <= 0
    masses: Vector = np.where(middle, left[1:] - left[:-1], right[:-1] - right[1:])
    return masses


def _repeated(law: Ratio, count: int) -> Ratio:
    """The sum of `count` independent ones, by doubling."""
    result: Ratio | None = None
    while True:
        if count & 1:
            result = law if result is None else _sum(result, law)
        count >>= 1
        if not count:
            assert result is not None
            return result
        law = _sum(law, law)


def _sum(one: Ratio, other: Ratio) -> Ratio:
    """Of two independent ones. Where the second point lies `apart` from the first, the sum lies `above` that."""
    grid, gap = one.step, expm1(one.step)
    low = min(one.low, other.low)
    high = max(one.low + len(one.masses), other.low + len(other.masses))
    masses = np.zeros(high - low + ceil(log(2) / grid) + 1)
    masses[one.low - low :][: len(one.masses)] += other.zero * one.masses
    masses[other.low - low :][: len(other.masses)] += one.zero * other.masses
    shift = other.low - one.low
    for apart in range(shift - len(one.masses) + 1, shift + len(other.masses)):
        first = max(0, shift - apart)  # of `one`; its partner in `other` is at first + apart - shift
        last = min(len(one.masses), len(other.masses) + shift - apart)
        pairs = one.masses[first:last] * other.masses[first + apart - shift : last + apart - shift]
        above = np.logaddexp(0.0, grid * apart) / grid
        right = expm1(grid * (above - floor(above))) / gap
        at = one.low + first - low + floor(above)
        masses[at : at + len(pairs)] += (1 - right) * pairs
        masses[at + 1 : at + 1 + len(pairs)] += right * pairs
    return Ratio(step=grid, low=low, masses=masses, zero=one.zero * other.zero, lost=one.lost + other.lost)


def _product(one: Ratio, other: Ratio) -> Ratio:
    """Of two independent ones: sums of logarithms stay on the grid."""
    zero = one.zero + other.zero - one.zero * other.zero
    masses = np.convolve(one.masses, other.masses)
    return Ratio(step=one.step, low=one.low + other.low, masses=masses, zero=zero, lost=one.lost + other.lost)


def _sampled(law: Ratio, q: float) -> Ratio:
    """Of (1 − q) + q·R, on a grid that is finer by q, as its losses are smaller."""
    logs = np.append(np.log1p(q * np.expm1(law.logs)), np.log1p(-q))
    return _spread(logs, np.append(law.masses, law.zero), law.step * q, zero=0.0, lost=q * law.lost)


def _spread(logs: Vector, masses: Vector, step: float, *, zero: float, lost: float) -> Ratio:
    """Masses at any ratios, moved to the neighbouring points."""
    left = np.floor(logs / step)
    right = np.expm1(logs - step * left) / expm1(step)
    low = int(left.min())
    at = left.astype(np.int64) - low
    points = np.bincount(at, masses * (1 - right), at.max() + 2) + np.bincount(at + 1, masses * right, at.max() + 2)
    return Ratio(step=step, low=low, masses=points, zero=zero, lost=lost)

"""What a round of Skellam noise costs: Rényi divergences, summed over rounds, as (ε, δ)."""

from collections.abc import Mapping
from math import inf, log, sqrt
from typing import NamedTuple

from ist_fed.privacy.secure.grid import Grid

ORDERS = (*range(2, 65), *range(72, 513, 8), *range(576, 4097, 64))


def skellam_rdp(order: int, *, variance: float, l2: float, l1: float) -> float:
    """Upper bound on the Rényi divergence of a whole-number vector plus Skellam noise, when the vector changes.

    D_α ≤ α Δ₂²/(2μ) + min( ((2α−1) Δ₂² + 6 Δ₁)/(4μ²), 3 Δ₁/(2μ) ); the first term is the Gaussian's.

    Args:
        order: α, a whole number from 2.
        variance: μ, of the noise in the sum, in each coordinate.
        l2: Δ₂, largest Euclidean norm of the change.
        l1: Δ₁, largest sum of absolute changes.

    Raises:
        ValueError: the bound does not hold for such an order or variance.

    Source: Agarwal, Kairouz, Liu, The Skellam mechanism for differentially private federated learning, NeurIPS 2021,
    theorem 3.5 and corollary 3.6; compared with the divergence itself in the tests.
    """
    if order != int(order) or order < 2 or not variance > 0 or l2 < 0 or l1 < 0:
        raise ValueError("the Skellam bound is for whole orders from 2 and a positive variance")
    beyond = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return float(order * l2**2 / (2 * variance) + beyond)


class Release(NamedTuple):
    """One round as it counts for a member.

    Args:
        variance: of the noise in the sum, in squared steps of the grid: that of as many members as must be there.
        l2: largest norm of an update, in steps. Rounding is in it.
        length: numbers in an update.
    """

    variance: float
    l2: float
    length: int

    def rdp(self, order: int) -> float:
        """The divergence when one member's update is replaced by zero; without noise infinite.

        Of whole numbers, the sum of absolute values is no larger than that of squares.
        """
        if not self.variance:
            return inf
        l1 = min(sqrt(self.length) * self.l2, self.l2 * self.l2)
        return skellam_rdp(order, variance=self.variance, l2=self.l2, l1=l1)


def release(grid: Grid, threshold: int) -> Release:
    """A round on a grid, with the noise of `threshold` members, the fewest whose noise is in the sum."""
    return Release(variance=threshold * grid.variance, l2=grid.clip / grid.step, length=grid.length)


def epsilon(releases: Mapping[Release, int], delta: float) -> float:
    """ε of so many releases of each kind at δ, against whoever sees the sums; without noise infinite.

    Every round counts in full: the aggregator knows who takes part, so that nothing is amplified.

    Source of the conversion: Canonne, Kamath, Steinke, The discrete Gaussian for differential privacy, NeurIPS 2020,
    proposition 12.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is between 0 and 1, but is {delta}")
    if not any(releases.values()):
        return 0.0
    found = (
        sum(count * each.rdp(order) for each, count in releases.items() if count)
        + log((order - 1) / order)
        - (log(delta) + log(order)) / (order - 1)
        for order in ORDERS
    )
    return max(0.0, float(min(found)))

"""What a round of Skellam noise costs: Rényi divergences, summed over rounds, as (ε, δ)."""

from math import inf, log, sqrt

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


def round_rdp(grid: Grid, threshold: int, order: int) -> float:
    """The divergence of one round, when one member's update is replaced by zero.

    The noise counted is that of `threshold` members, as many as must be there. Rounding is in it: the norm of what is
    summed is at most that of the clip. Of whole numbers, the sum of absolute values is no larger than that of squares.

    Args:
        grid: of the round.
        threshold: fewest members whose noise is in the sum.
        order: of the divergence.
    """
    l2 = grid.clip / grid.step
    return skellam_rdp(order, variance=threshold * grid.variance, l2=l2, l1=min(sqrt(grid.length) * l2, l2 * l2))


def epsilon(grid: Grid, threshold: int, rounds: int, delta: float) -> float:
    """ε of so many rounds at δ, against whoever sees the sums; without noise infinite.

    Every round counts in full: the aggregator knows who takes part, so that nothing is amplified.

    Source of the conversion: Canonne, Kamath, Steinke, The discrete Gaussian for differential privacy, NeurIPS 2020,
    proposition 12.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is between 0 and 1, but is {delta}")
    if not grid.variance:
        return inf
    found = (
        rounds * round_rdp(grid, threshold, order) + log((order - 1) / order) - (log(delta) + log(order)) / (order - 1)
        for order in ORDERS
    )
    return max(0.0, float(min(found)))

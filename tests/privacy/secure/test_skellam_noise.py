"""Skellam noise: its probabilities, how it is drawn, what it costs; each against the definition."""

from fractions import Fraction
from math import inf, log, sqrt

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from ist_fed.privacy.secure.accounting import ORDERS, epsilon, release, skellam_rdp
from ist_fed.privacy.secure.grid import fit_grid
from ist_fed.privacy.secure.skellam import LEAST_VARIANCE, TAIL, _aliases, _table, _whole, draw, log_pmf

# --- Probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1024.0, 3000.5, 1e4])
def test_the_probabilities_are_those_of_the_bessel_function(variance: float) -> None:
    with mpmath.workdps(40):
        for deviations in (0, 0.1, 1, 5, 12):
            number = int(deviations * sqrt(variance))
            exact = mpmath.log(mpmath.besseli(number, variance)) - variance
            found = log_pmf(np.array([float(number), -float(number)]), variance)
            assert abs(float(exact - float(found[0]))) < 2e-13
            assert found[0] == found[1]


def test_at_large_variance_they_are_a_gaussian_of_that_variance_on_whole_numbers() -> None:
    numbers = np.array([0.0, 1e6, -3e6])
    expected = norm.logpdf(numbers, scale=sqrt(1.3e12))
    assert np.abs(log_pmf(numbers, 1.3e12) - expected).max() < 1e-10


def test_what_is_never_drawn_is_as_improbable_as_said() -> None:
    """Chernoff: P(|X| ≥ x) ≤ 2 exp(−v h(x/v)), h(y) = y asinh y − √(1+y²) + 1; worst at the least variance."""
    y = TAIL / sqrt(LEAST_VARIANCE)
    assert log(2) - LEAST_VARIANCE * (y * np.arcsinh(y) - sqrt(1 + y * y) + 1) < log(1e-27)


@pytest.mark.parametrize("variance", [1024.0, 7777.0])
def test_the_table_gives_every_number_its_probability(variance: float) -> None:
    """Exactly, by fractions: the chance of a number's block, of the number in it, and of its being kept."""
    table = _table(variance)
    columns, room, width = 1 << table._columns, 1 << 48, 1 << table._bits
    chance = [Fraction(0)] * columns
    for column, (threshold, alias) in enumerate(zip(table._threshold.tolist(), table._alias.tolist(), strict=True)):
        chance[column] += Fraction(threshold, room * columns)
        chance[alias] += Fraction(room - threshold, room * columns)
    assert sum(chance) == 1
    blocks = [column for column in range(columns) if chance[column]]
    numbers = np.array([table._first + block * width + offset for block in blocks for offset in range(width)])
    block_of = np.repeat(np.array(blocks), width)
    logs = log_pmf(numbers.astype(float), variance)
    kept = np.exp(logs - table._log_weight[block_of] - table._log_factor)
    assert kept.max() <= 1 + 1e-12
    drawn = np.array([float(chance[block] / width) for block in block_of]) * kept
    likely = logs > log(1e-30)
    error = np.abs(drawn[likely] / drawn.sum() / np.exp(logs[likely]) - 1)
    assert error.max() < 1e-12
    assert kept[np.abs(numbers) < 3 * sqrt(variance)].mean() > 0.8


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8).filter(lambda weights: sum(weights) > 0.01))
def test_an_alias_table_keeps_every_weight(weights: list[float]) -> None:
    whole = _whole(np.array(weights), 8 << 20)
    assert sum(whole) == 8 << 20
    assert all((weight > 0) == (given_ > 0) for weight, given_ in zip(whole, weights, strict=True))
    threshold, alias = _aliases(whole, 1 << 20)
    back = threshold.tolist()
    for column, other in enumerate(alias.tolist()):
        back[other] += (1 << 20) - int(threshold[column])
    assert back == whole


# --- Draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1024.0, 4321.0, 2.0**40])
def test_draws_are_distributed_so(variance: float) -> None:
    """χ² over 100 cells of about equal probability; a false alarm once in 10¹⁰ runs."""
    count, cells = 200_000, 100
    drawn = draw(variance, count)
    edges = np.unique(np.floor(norm.ppf(np.arange(1, cells) / cells) * sqrt(variance)))
    found = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(edges) + 1)
    reach = int(13 * sqrt(variance))
    if variance < 1e5:
        numbers = np.arange(-reach, reach + 1)
        cumulative = np.cumsum(np.exp(log_pmf(numbers.astype(float), variance)))
        below = cumulative[(edges + reach).astype(int)]
    else:
        below = norm.cdf((edges + 0.5) / sqrt(variance))
    expected = count * np.diff(np.concatenate([[0.0], below, [1.0]]))
    assert ((found - expected) ** 2 / expected).sum() < chi2.isf(1e-10, len(edges))


def test_sums_of_draws_have_the_variance_of_the_sum() -> None:
    count, members = 100_000, 7
    total = sum(draw(2000.0, count) for _ in range(members))
    ratio = total.var() / (members * 2000)
    assert abs(ratio - 1) < 6.7 * sqrt(2 / count)  # 6.7 σ: once in 10¹¹


def test_draws_are_never_the_same() -> None:
    assert not np.array_equal(draw(1e6, 100), draw(1e6, 100))


@pytest.mark.parametrize("variance", [0.0, 1023.0, 2.0**57, inf])
def test_a_variance_that_cannot_be_drawn_exactly_is_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="from 1024"):
        draw(variance, 1)


# --- Its cost ---------------------------------------------------------------------------------------------------------


def divergence(order: int, variance: float, change: int) -> float:
    """The Rényi divergence of a shift by `change`, from the definition, to twenty digits; the larger direction."""
    with mpmath.workdps(40):
        reach = int(14 * sqrt(variance)) + 40 + order * change
        pmf = {n: mpmath.besseli(abs(n), variance) for n in range(reach + change + 1)}
        total = mpmath.fsum(
            pmf[abs(n - change)] ** order * pmf[abs(n)] ** (1 - order) for n in range(-reach, reach + 1)
        )
        return float((mpmath.log(total) - variance) / (order - 1))


GOLDEN = {
    (2, 4.0, 1): 0.2457213156,
    (2, 25.0, 3): 0.3573409859,
    (4, 25.0, 3): 0.6939406945,
    (8, 100.0, 5): 0.9691942773,
    (16, 200.0, 6): 1.374901814,
}
"""Worked out apart, with no Bessel function: from sums of products of Poisson probabilities, to forty digits."""


@pytest.mark.parametrize(("order", "variance", "change"), GOLDEN)
def test_the_bound_is_above_the_divergence_and_close(order: int, variance: float, change: int) -> None:
    exact = divergence(order, variance, change)
    assert exact == pytest.approx(GOLDEN[order, variance, change], abs=1e-9)
    bound = skellam_rdp(order, variance=variance, l2=change, l1=change)
    assert exact <= bound <= (1.25 if variance >= 25 else 1.6) * exact


@pytest.mark.parametrize("order", [2, 3, 6, 12])
@pytest.mark.parametrize("variance", [0.5, 2.0, 9.0, 40.0])
@pytest.mark.parametrize("change", [1, 2, 6])
def test_the_bound_is_never_below_the_divergence(order: int, variance: float, change: int) -> None:
    assert divergence(order, variance, change) <= skellam_rdp(order, variance=variance, l2=change, l1=change)


def test_several_coordinates_add_up() -> None:
    """Of a vector the divergence is the sum of its coordinates', and the bound of its norms is above that."""
    vector = [3, 1, 1, 2]
    exact = sum(divergence(5, 30.0, change) for change in vector)
    l2, l1 = sqrt(sum(change**2 for change in vector)), sum(vector)
    assert exact <= skellam_rdp(5, variance=30.0, l2=l2, l1=l1) <= 1.15 * exact


@given(
    st.integers(2, 100), st.floats(1, 1e12), st.floats(0, 1e4), st.floats(0, 1e6), st.floats(1, 3), st.integers(0, 9)
)
def test_more_noise_costs_less_and_longer_updates_more(
    order: int, variance: float, l2: float, l1: float, factor: float, more: int
) -> None:
    cost = skellam_rdp(order, variance=variance, l2=l2, l1=l1)
    assert skellam_rdp(order, variance=factor * variance, l2=l2, l1=l1) <= cost * (1 + 1e-12)
    assert skellam_rdp(order, variance=variance, l2=factor * l2, l1=factor * l1) >= cost * (1 - 1e-12)
    assert skellam_rdp(order + more, variance=variance, l2=l2, l1=l1) >= cost


@pytest.mark.parametrize("order", [1, 1.5, 0])
def test_orders_for_which_nothing_is_proved_are_refused(order: float) -> None:
    with pytest.raises(ValueError, match="whole orders from 2"):
        skellam_rdp(order, variance=1.0, l2=1.0, l1=1.0)  # type: ignore[arg-type]


def test_on_a_fine_grid_a_round_costs_what_the_gaussian_does() -> None:
    """ε of T rounds at s = σ/C against the exact Gaussian's by the same conversion: within a tenth of a percent."""
    grid = fit_grid(clip=1.0, noise=2.0, length=10_000, members=20)
    rounds, delta = 100, 1e-5
    gaussian = min(
        rounds * order / (2 * 2.0**2) + log((order - 1) / order) - (log(delta) + log(order)) / (order - 1)
        for order in ORDERS
    )
    assert gaussian == pytest.approx(35.13, abs=0.1)  # s = 2, q = 1, d = 1, T = 100
    found = epsilon({release(grid, 14): rounds}, delta)
    assert gaussian <= found <= 1.001 * gaussian


def test_the_noise_counted_is_that_of_the_fewest_who_may_be_left() -> None:
    grid = fit_grid(clip=1.0, noise=1.0, length=1000, members=20, threshold=14)
    assert 14 * grid.variance * grid.step**2 == pytest.approx(1.0)
    assert release(grid, 14).rdp(2) == pytest.approx(1.0, rel=1e-3)  # αΔ²/(2μ)
    assert epsilon({release(fit_grid(clip=1.0, noise=0.0, length=10, members=5), 4): 1}, 1e-5) == inf

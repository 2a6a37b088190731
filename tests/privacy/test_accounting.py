"""The accountant against pinned values, other packages, enumeration and quadrature; and the laws that ε obeys."""

import time
from itertools import product
from math import factorial, inf, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting import (
    Composed,
    Event,
    Gaussian,
    Partition,
    Repeated,
    Sampled,
    Step,
    calibrate,
    delta_of,
    epsilon,
    epsilon_of,
    steps_of,
)
from ist_fed.privacy.accounting.moments import add, remove

DELTA = 1e-5

BLOCKS = (1, 2, 4, 8)

RENYI = {
    (1, 1.0): (110.13, 72.14, 45.86, 29.58),
    (1, 0.1): (7.973, 5.337, 3.599, 2.376),
    (2, 1.0): (35.13, 23.41, 15.14, 10.05),
    (2, 0.1): (2.587, 1.715, 1.148, 0.775),
    (5, 1.0): (10.80, 7.13, 4.79, 3.22),
    (5, 0.1): (0.835, 0.567, 0.387, 0.264),
}
"""(s, q) → ε of 100 rounds by Rényi divergences for 1, 2, 4 and 8 blocks, worked out apart from this code."""


def rounds(noise: float, blocks: int, sampling: float = 1.0, count: int = 100, shared: float = 0.0) -> Event:
    part = Partition(blocks, Gaussian(noise), Gaussian(shared) if shared else None)
    return Repeated(count, Sampled(sampling, part))


# --- Pinned values and other packages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "sampling"), RENYI)
def test_the_bounds_are_the_pinned_ones(noise: float, sampling: float) -> None:
    """To 1e-3, or to the digits that are pinned where these are fewer."""
    for blocks, pinned in zip(BLOCKS, RENYI[noise, sampling], strict=True):
        digits = 2 if pinned > 3 and sampling == 1 else 3
        found = epsilon(rounds(noise, blocks, sampling), DELTA)
        assert abs(found - pinned) <= 0.5001 * 10**-digits, (blocks, found)


@pytest.mark.parametrize(("noise", "sampling"), [(0.7, 0.3), (1.0, 1.0), (2.0, 0.05), (8.0, 0.5)])
def test_without_a_partition_it_agrees_with_dp_accounting(noise: float, sampling: float) -> None:
    """To five digits, on the orders that both look at."""
    dp = pytest.importorskip("dp_accounting")
    orders = range(2, 257)
    theirs = dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    theirs.compose(dp.PoissonSampledDpEvent(sampling, dp.GaussianDpEvent(noise)), 100)
    assert epsilon(rounds(noise, 1, sampling), DELTA) == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-5)


# --- Divergences against brute force ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "blocks"), [(2, 2), (3, 5), (5, 4), (6, 3)])
@pytest.mark.parametrize("noise", [0.8, 3.0])
@pytest.mark.parametrize("shared", [0.0, 0.1])
def test_moments_are_the_multinomial_sum(order: int, blocks: int, noise: float, shared: float) -> None:
    """E (mean W)^α by counting all ways to pick a block α times; each Wᵏ has the moment e^((k²−k)/(2s²))."""
    total = 0.0
    for counts in product(range(order + 1), repeat=blocks):
        if sum(counts) == order:
            ways = factorial(order) / prod(factorial(k) for k in counts)
            total += ways * np.exp(sum((k * k - k) / (2 * noise**2) for k in counts))
    moment = np.log(total / blocks**order) + (order**2 - order) / 2 * shared
    found = remove(Step(noise=noise, blocks=blocks, shared=shared), 8)[order - 2]
    assert found == pytest.approx(moment / (order - 1), rel=1e-12)


def expected(noise: float, sampling: float, order: float, shared: float | None = None) -> float:
    """log E ((1−q) + qY)^−(α−1) / (α−1) by a plain sum over two normal variables."""
    power = order - 1
    second = shared**0.5 if shared else 1 / noise
    x, y = (np.linspace(-13 - 2 * power * scale, 13, 2500) for scale in (1 / noise, second))
    one, two = np.exp(x / noise - noise**-2 / 2), np.exp(y * second - second**2 / 2)
    weights = np.exp(-(x[:, None] ** 2 + y**2) / 2) * (x[1] - x[0]) * (y[1] - y[0]) / (2 * np.pi)
    ratio = one[:, None] * two if shared else (one[:, None] + two) / 2
    return float(np.log((weights * (1 - sampling + sampling * ratio) ** -power).sum()) / power)


@pytest.mark.parametrize(
    ("noise", "sampling", "order"), [(1, 1.0, 2), (1, 1.0, 5.5), (2, 0.3, 4), (2, 1.0, 20), (0.7, 0.5, 3), (5, 0.1, 40)]
)
def test_adding_two_blocks_agrees_with_two_dimensional_quadrature(noise: float, sampling: float, order: float) -> None:
    found = add(Step(noise=noise, blocks=2, sampling=sampling), order)
    assert found == pytest.approx(expected(noise, sampling, order), rel=1e-8)


@pytest.mark.parametrize(
    ("noise", "sampling", "shared", "order"),
    [(2, 0.3, 0.25, 4), (5, 0.1, 0.01, 20), (1, 0.9, 1.0, 8), (2, 1.0, 0.5, 6)],
)
def test_what_everyone_adds_agrees_with_two_dimensional_quadrature(
    noise: float, sampling: float, shared: float, order: float
) -> None:
    found = add(Step(noise=noise, sampling=sampling, shared=shared), order)
    assert found == pytest.approx(expected(noise, sampling, order, shared), rel=1e-7)
    merged = Step(noise=(noise**-2 + shared) ** -0.5, sampling=sampling)  # for one block it is one longer vector
    assert remove(Step(noise=noise, sampling=sampling, shared=shared), 9) == pytest.approx(remove(merged, 9), rel=1e-9)


def test_one_block_and_everyone_is_the_plain_gaussian_both_ways() -> None:
    for order in (2, 3, 17):
        assert add(Step(noise=1.3), order) == pytest.approx(order / (2 * 1.3**2), rel=1e-10)
        assert remove(Step(noise=1.3), 20)[order - 2] == pytest.approx(order / (2 * 1.3**2), rel=1e-12)


@given(st.floats(0.3, 8), st.integers(1, 9))
@settings(max_examples=25)
def test_the_exact_moments_lie_below_the_cheap_bound_and_meet_it_at_order_two(noise: float, blocks: int) -> None:
    orders = np.arange(2, 17)
    exponent = np.minimum(orders / (2 * noise**2), 700)
    cheap = np.log1p(np.expm1(exponent) / blocks)
    # (b) bounds the divergence of order α by the largest likelihood ratio to the power α − 1, which is (α − 1)R_α.
    exact = remove(Step(noise=noise, blocks=blocks), 16)
    assert exact[0] == pytest.approx(cheap[0], rel=1e-9)
    assert (exact <= cheap * (1 + 1e-9)).all()


# --- Laws -------------------------------------------------------------------------------------------------------------

noises, samplings, counts = st.floats(0.4, 20), st.floats(0.01, 1), st.integers(1, 500)


@given(noises, st.integers(1, 12), samplings, counts)
@settings(max_examples=12)
def test_epsilon_grows_with_rounds_sampling_and_clip_and_falls_with_blocks(
    noise: float, blocks: int, sampling: float, count: int
) -> None:
    base = epsilon(rounds(noise, blocks, sampling, count), DELTA)
    slack = 1 + 1e-9
    assert base <= epsilon(rounds(noise, blocks, sampling, count + 1), DELTA) * slack
    assert base <= epsilon(rounds(noise, blocks, min(1.0, 1.1 * sampling), count), DELTA) * slack
    assert base <= epsilon(rounds(noise / 1.1, blocks, sampling, count), DELTA) * slack
    assert base * slack >= epsilon(rounds(noise, blocks + 1, sampling, count), DELTA)
    assert base <= epsilon(rounds(noise, blocks, sampling, count, shared=20.0), DELTA) * slack


@given(noises, st.integers(1, 8), samplings)
@settings(max_examples=20)
def test_adding_costs_no_more_than_removing_or_is_counted(noise: float, blocks: int, sampling: float) -> None:
    """ε is at least what either direction alone proves at any one order."""
    step = Step(noise=noise, blocks=blocks, sampling=sampling)
    claim = epsilon_of({step: 10}, DELTA)
    for order in (2, 4, 9):
        one_way = 10 * add(step, order) + np.log1p(-1 / order) - (np.log(DELTA) + np.log(order)) / (order - 1)
        if claim.order == order and claim.direction == "add":
            assert claim.epsilon == pytest.approx(max(0.0, one_way))
    assert claim.epsilon >= 0


def test_delta_and_epsilon_are_each_others_inverse() -> None:
    steps = steps_of(rounds(2, 4, 0.1))
    assert delta_of(steps, epsilon_of(steps, DELTA).epsilon) == pytest.approx(DELTA, rel=1e-6)


def test_releases_compose_in_any_grouping() -> None:
    one, other = Sampled(0.2, Partition(4, Gaussian(1.0))), Gaussian(3.0)
    apart = Composed((Repeated(2, one), other, Repeated(3, one)))
    assert steps_of(apart) == steps_of(Composed((Repeated(5, Composed((one,))), other)))
    assert epsilon(apart, DELTA) > max(epsilon(Repeated(5, one), DELTA), epsilon(other, DELTA))
    assert epsilon(Repeated(0, one), DELTA) == 0


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_the_calibrated_noise_is_enough_and_hardly_more(target: float) -> None:
    noise = calibrate(lambda z: rounds(z, 4, 0.25), target, DELTA)
    assert epsilon(rounds(noise, 4, 0.25), DELTA) <= target
    assert epsilon(rounds(noise / 1.0005, 4, 0.25), DELTA) > target


@pytest.mark.parametrize("shared", [0.0, 30.0])
def test_ten_thousand_rounds_take_less_than_a_second(shared: float) -> None:
    """The one test that measures time, for the accountant's promise: also where nothing was kept from before."""
    remove.cache_clear()
    add.cache_clear()
    began = time.perf_counter()
    for blocks in (1, 7, 64):
        assert 0 < epsilon(rounds(6.13, blocks, 0.037, 10_000, shared), DELTA) < inf
    assert (time.perf_counter() - began) / 3 < 1


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: steps_of(Sampled(0.1, Sampled(0.1, Gaussian(1.0)))), "no proof"),
        (lambda: steps_of(Sampled(0.1, Repeated(3, Gaussian(1.0)))), "no proof"),
        (lambda: steps_of(Partition(2, Sampled(0.5, Gaussian(1.0)))), "no proof"),
        (lambda: steps_of("Laplace"), "no proof"),
        (lambda: Gaussian(0.0), "noise multiplier must be positive"),
        (lambda: Gaussian(inf), "noise multiplier must be positive"),
        (lambda: Partition(0, Gaussian(1.0)), "at least one block"),
        (lambda: Partition(2.0, Gaussian(1.0)), "at least one block"),
        (lambda: Sampled(0.0, Gaussian(1.0)), "probability above 0"),
        (lambda: Sampled(1.5, Gaussian(1.0)), "probability above 0"),
        (lambda: Repeated(-1, Gaussian(1.0)), "whole number of times"),
        (lambda: epsilon(Gaussian(1.0), 0.0), "delta must lie"),
        (lambda: epsilon(Gaussian(1.0), 1.0), "delta must lie"),
        (lambda: epsilon(Gaussian(0.001), DELTA), "protects nobody"),
        (lambda: calibrate(Gaussian, 0.0, DELTA), "positive and finite"),
    ],
)
def test_what_has_no_proof_gets_no_number(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PrivacyError, match=message):
        make()

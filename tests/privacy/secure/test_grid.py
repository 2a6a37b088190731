"""Updates on the grid: how long they may be, and how far from what they were."""

from math import frexp, sqrt

import numpy as np
import pytest
from cohort import replace, terms
from hypothesis import example, given
from hypothesis import strategies as st

from ist_fed.errors import SecureError
from ist_fed.privacy.secure import Grid, fit_grid
from ist_fed.privacy.secure.limits import bound_of, check_terms
from ist_fed.privacy.secure.skellam import TAIL


@given(st.integers(0, 1 << 30), st.floats(1e-6, 1e3), st.sampled_from(["normal", "one", "tiny", "half"]))
def test_no_update_is_longer_than_the_clip_norm(seed: int, size: float, shape: str) -> None:
    grid = fit_grid(clip=0.7, noise=0.0, length=50, members=6)
    rng = np.random.default_rng(seed)
    update = {
        "normal": rng.standard_normal(50) * size,
        "one": np.eye(50)[seed % 50] * size,
        "tiny": rng.standard_normal(50) * size * grid.step,
        "half": (rng.integers(-9, 9, 50) + 0.5) * grid.step,
    }[shape].astype(np.float32)
    given_ = update.copy()
    whole = grid.quantise(update)
    assert np.array_equal(update, given_)
    assert whole.dtype == np.int64
    assert (whole.astype(object) ** 2).sum() <= (grid.clip / grid.step) ** 2
    assert np.abs(whole).max() <= grid.bound
    if np.linalg.norm(update.astype(float)) < grid.clip - grid.step * sqrt(50):
        assert np.abs(whole * grid.step - update).max() <= grid.step / 2


@given(st.floats(1e-3, 1e3), st.one_of(st.just(0.0), st.floats(1e-2, 8)), st.integers(1, 10**6), st.integers(3, 200))
def test_the_sum_has_room_and_the_grid_is_as_fine_as_it_can_be(
    clip: float, noise: float, length: int, members: int
) -> None:
    grid = fit_grid(clip=clip, noise=noise, length=length, members=members)
    assert frexp(grid.step)[0] == 0.5
    assert members * grid.bound < 1 << 29
    assert 2 * members * (grid.bound + 4) > 1 << 28  # half the step would not fit
    assert grid.bound >= clip / grid.step + TAIL * sqrt(grid.variance) - 1


@given(
    st.integers(2, 60),
    st.floats(-900, 100).map(lambda power: 2.0**power),
    st.floats(0.1, 1e6),
    st.sampled_from([0.0, 1.0, 1e-6, 1e-170, 1e30]),
    st.integers(0, 1 << 30),
)
@example(2, 2.0**-600, 100.0, 1e-170, 0)
def test_no_terms_that_a_member_takes_let_an_update_be_longer_than_is_counted(
    length: int, step: float, steps: float, size: float, seed: int
) -> None:
    """Whatever a server says: `steps` is what the budget takes for the norm."""
    update = np.random.default_rng(seed).standard_normal(length) * size
    said = terms(5, length, grid=step, clip=steps * step, bound=1 << 28)
    grid = Grid(step=said.grid, clip=said.clip, length=length, variance=0.0, bound=said.bound)
    try:
        check_terms(said, 3)
    except SecureError:
        return
    whole = grid.quantise(update)
    assert float((whole.astype(float) ** 2).sum()) <= steps**2 * (1 + 1e-12)
    assert np.abs(whole).max() <= bound_of(clip=said.clip, grid=step, variance=0.0)


@given(st.floats(1e-3, 1e3), st.one_of(st.just(0.0), st.floats(1e-2, 8)), st.integers(1, 10**6), st.integers(3, 200))
def test_members_take_every_grid_that_fits(clip: float, noise: float, length: int, members: int) -> None:
    grid = fit_grid(clip=clip, noise=noise, length=length, members=members)
    fields = {"grid": grid.step, "clip": grid.clip, "variance": grid.variance, "bound": grid.bound}
    check_terms(terms(members, length, **fields), 3)


def test_an_update_on_too_coarse_a_grid_or_of_another_length_is_refused() -> None:
    grid = Grid(step=1.0, clip=1.0, length=4, variance=0.0, bound=1)
    with pytest.raises(SecureError, match="rounding alone may lengthen it"):
        grid.quantise(np.full(4, 1e-3))
    with pytest.raises(SecureError, match="has 4 numbers, as announced, but this one has 3"):
        replace(grid, step=0.1).quantise(np.zeros(3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="split the cohort"):
        fit_grid(clip=1.0, noise=0.0, length=10**11, members=4000)
    with pytest.raises(ValueError, match=r"between 0\.001 and 10"):
        fit_grid(clip=1.0, noise=1e-7, length=10, members=10)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(SecureError, match="finite"):
        fit_grid(clip=1.0, noise=0.0, length=2, members=5).quantise(np.array([1.0, value]))

"""How much each client should hold."""

from collections.abc import Callable
from math import inf, isclose, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.capacity import adapted, largest_depth, largest_share, narrowed, share

SIZES = {"hidden1": 300, "hidden2": 77}


# --- What fits --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100_000))
def test_the_largest_share_is_the_last_that_fits(room: int) -> None:
    """Of all 1024ths, tried one by one; memory like that of a layer between two hidden ones."""

    def fits(sizes: dict[str, int]) -> bool:
        return sizes["hidden1"] * sizes["hidden2"] + sizes["hidden1"] <= room

    fitting = [part / 1024 for part in range(1, 1025) if fits(narrowed(SIZES, part / 1024))]
    assert largest_share(SIZES, fits) == max(fitting, default=0.0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 400))
def test_as_many_blocks_as_fit_whichever_they_are(weights: list[int], room: int) -> None:
    """Against all choices of that many, and of one more."""
    needs = {f"block{n}": weight for n, weight in enumerate(weights)}
    sizes = {"wide": 300, **dict.fromkeys(needs, 1)}

    def total(held: dict[str, int]) -> int:
        assert held["wide"] == 300
        return 20 + sum(needs[block] for block in needs if held[block])

    limit = largest_depth(sizes, list(needs), total, room)
    most = int(limit * len(weights))
    costliest = sorted(weights, reverse=True)
    assert most == 0 or 20 + sum(costliest[:most]) <= room
    assert most == len(weights) or 20 + sum(costliest[: most + 1]) > room
    assert most / len(weights) <= limit <= 1
    assert (limit == 1) == (most == len(weights))


def test_what_fits_whole_is_asked_once() -> None:
    asked = []
    assert largest_share(SIZES, lambda sizes: not asked.append(sizes)) == 1.0
    assert asked == [SIZES]


@given(st.floats(0, 1))
def test_a_narrowed_subnet_holds_no_more_than_its_share_but_one_unit(part: float) -> None:
    for axis, units in narrowed(SIZES, part).items():
        assert units == 1 or units <= part * SIZES[axis] < units + 1


def test_the_share_of_a_subnet_is_the_mean_over_the_axes() -> None:
    assert share({"hidden1": range(150), "hidden2": range(77)}, SIZES) == 0.75
    assert share({"hidden1": range(30)}, SIZES) == pytest.approx(0.55)  # an axis left out is held whole
    blocks = {**SIZES, "block1": 1, "block2": 1, "block3": 1, "block4": 1}
    assert (
        share({"block1": range(0), "block2": range(1), "hidden1": range(300)}, blocks) == 0.75
    )  # whole but for blocks


# --- Time -------------------------------------------------------------------------------------------------------------

positive = st.floats(1e-3, 1e3)
clients = st.lists(st.tuples(positive, positive, st.floats(1e-3, 1)), min_size=1, max_size=8)


def shares_of(capacities: list[float]) -> list[float]:
    return [capacity / sum(capacities) for capacity in capacities]


@given(clients)
def test_the_update_is_the_formula_within_its_bounds(clients: list[tuple[float, float, float]]) -> None:
    capacities, seconds, shares = (list(column) for column in zip(*clients, strict=True))
    speeds = [share / time**0.5 for share, time in zip(shares, seconds, strict=True)]
    for old, new, speed in zip(capacities, adapted(capacities, shares, seconds), speeds, strict=True):
        wanted = speed / sum(speeds) * sum(capacities)
        assert isclose(new, min(max(wanted, old / 2), 2 * old), rel_tol=1e-9)


@pytest.mark.parametrize(
    "seconds",
    [
        lambda a, b, s: a * s * s,  # arithmetic between hidden layers
        lambda a, b, s: b * s,  # of the first and the last layer, and the link
        lambda a, b, s: a * s * s + b * s,
    ],
)
@given(clients=st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=8))
def test_rounds_come_to_take_everyone_as_long(
    seconds: Callable[[float, float, float], float], clients: list[tuple[float, float]]
) -> None:
    capacities = [1.0] * len(clients)
    for _ in range(40):
        held = shares_of(capacities)
        times = [seconds(a, b, s) for (a, b), s in zip(clients, held, strict=True)]
        capacities = adapted(capacities, held, times)
    assert max(times) < 1.001 * min(times)


def test_a_cohort_learns_the_speed_of_each_and_not_of_its_slowest() -> None:
    """Two clients hold the share of the weaker; the one that is four times as fast is worth twice as much."""
    assert adapted([1.0, 1.0], [0.5, 0.5], [4.0, 1.0]) == pytest.approx([2 / 3, 4 / 3])


@pytest.mark.parametrize("missing", [0.0, -1.0, nan, inf])
def test_without_a_measurement_a_capacity_stays(missing: float) -> None:
    assert adapted([1.0, 5.0, 2.0], [0.1, 0.1, 0.1], [1.0, missing, 1.0]) == [1.5, 5.0, 1.5]
    assert adapted([1.0, 5.0], [0.1, 0.1], [missing, missing]) == [1.0, 5.0]
    assert adapted([], [], []) == []


def test_one_wild_measurement_moves_nobody_by_more_than_a_factor_of_two() -> None:
    for wild in (1e-300, 1e300):
        new = adapted([1.0, 2.0, 3.0], [0.2, 0.3, 0.5], [1.0, wild, 1.0])
        assert all(old / 2 <= value <= 2 * old for old, value in zip([1.0, 2.0, 3.0], new, strict=True))

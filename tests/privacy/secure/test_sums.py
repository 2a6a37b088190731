"""The law of secure sums: what comes out is the plain sum of what survivors put in, exactly, or nothing."""

import sys

import numpy as np
import pytest
from cohort import Cohort, terms
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.errors import SmallCohort
from ist_fed.privacy.secure.limits import threshold_of


def updates(cohort: Cohort, seed: int) -> dict[str, np.ndarray]:
    rng, bound = np.random.default_rng(seed), cohort.terms.bound
    drawn = {name: rng.integers(-bound, bound + 1, cohort.terms.length) for name in cohort.members}
    drawn["m0"][0], drawn["m0"][-1] = bound, -bound
    return drawn


@given(
    st.integers(3, 9).flatmap(
        lambda members: st.tuples(
            st.just(members),
            st.dictionaries(st.integers(0, members - 1), st.integers(0, 5), max_size=members),
            st.integers(1, 300),
            st.integers(0, 1 << 30),
        )
    )
)
@settings(max_examples=30, deadline=None)
def test_the_sum_is_the_plain_sum_whoever_drops_out(drawn: tuple[int, dict[int, int], int, int]) -> None:
    members, lost, length, seed = drawn
    cohort = Cohort(terms(members, length))
    given_ = updates(cohort, seed)
    steps = {f"m{number}": step for number, step in lost.items()}
    enough = members - sum(step <= 4 for step in lost.values()) >= threshold_of(members)
    if not enough:
        with pytest.raises(SmallCohort):
            cohort.run(given_, steps)
        return
    total, count = cohort.run(given_, steps)
    survivors = [name for name in cohort.members if steps.get(name, 5) > 2]
    assert count == len(survivors)
    assert np.array_equal(total, sum(given_[name] for name in survivors))


def test_k_minus_t_may_go_after_sharing_and_no_more() -> None:
    spare = 10 - threshold_of(10)
    assert spare == 3
    cohort = Cohort(terms(10))
    given_ = updates(cohort, 1)
    total, count = cohort.run(given_, {"m1": 2, "m4": 3, "m7": 4})
    assert count == 9
    assert np.array_equal(total, sum(update for name, update in given_.items() if name != "m1"))
    for step in (2, 3, 4):
        cohort = Cohort(terms(10))
        with pytest.raises(SmallCohort, match="at least 7"):
            cohort.run(updates(cohort, 2), dict.fromkeys(("m0", "m1", "m2", "m3"), step))


def test_the_aggregator_holds_one_vector_however_many_come() -> None:
    cohort = Cohort(terms(5, 1000))
    cohort.until(3)
    held = [value for value in vars(cohort.aggregator).values() if isinstance(value, np.ndarray)]
    assert [array.nbytes for array in held] == [4000]


def test_bytes_up_are_within_two_percent_of_the_update() -> None:
    """k = 20 and a million numbers, by the formula of the codec; and 260·k bytes beside them."""
    cohort = Cohort(terms(20, 50_000))
    boxes = cohort.share(cohort.advertise())
    name = "m3"
    advert, shares = cohort.aggregator._adverts[name], cohort.aggregator._shares[cohort.aggregator._places[name]]
    cohort.members[name].receive(boxes[name], model=cohort.terms.model, order=cohort.terms.order)
    masked = cohort.members[name].mask(np.zeros(50_000, np.int64)).pack()
    beside = len(advert.pack()) + len(shares.pack()) + 69 + 20 * 68  # the vote, and a share of everyone
    assert len(masked) <= 4 * 50_000 + 64
    assert beside <= 260 * 20 + 1000
    assert 4 * 10**6 + 64 + beside <= 1.02 * 4 * 10**6
    assert sys.getsizeof(masked) < 1.02 * 4 * 50_000

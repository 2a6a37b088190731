"""Clients that do not fit in memory all at once."""

from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from ist_fed.cohort import Assignment
from ist_fed.engines.chunks import Part, chunk, cut

COHORTS = st.lists(st.integers(1, 60), min_size=1, max_size=12)


def parts_of(cohorts: list[int]) -> list[Part]:
    ends = [sum(cohorts[: at + 1]) for at in range(len(cohorts))]
    asked = cast(Assignment, SimpleNamespace())
    return [(asked, tuple(range(end - size, end))) for end, size in zip(ends, cohorts, strict=True)]


def calls(cohorts: list[int], most: int) -> list[list[tuple[int, ...]]]:
    left, made = cut(parts_of(cohorts), most), []
    while left:
        now = chunk(left, most)
        made.append([nodes for _, nodes in now])
        left = left[len(now) :]
    return made


@given(cohorts=COHORTS, most=st.integers(1, 100))
def test_everyone_trains_once_and_no_call_takes_more_than_fit(cohorts: list[int], most: int) -> None:
    made = calls(cohorts, most)
    assert sorted(node for call in made for nodes in call for node in nodes) == list(range(sum(cohorts)))
    for call in made:
        longest = max(map(len, call))  # shorter ones are filled up to it
        assert longest * len(call) <= most
        assert min(map(len, call)) >= 0.75 * longest


@given(clients=st.integers(1, 500), most=st.integers(1, 100))
def test_calls_for_one_cohort_are_as_few_and_as_even_as_can_be(clients: int, most: int) -> None:
    sizes = [len(nodes) for call in calls([clients], most) for nodes in call]
    assert len(sizes) == -(-clients // most)
    assert max(sizes) - min(sizes) <= 1


def test_cohorts_are_shared_out_evenly() -> None:
    assert [len(call) for call in calls([100] * 10, 838)] == [5, 5]
    assert [len(call) for call in calls([100] * 10, 419)] == [4, 3, 3]


def test_one_by_one_takes_one_part() -> None:
    parts = parts_of([3, 2])
    assert chunk(parts, 0) == parts[:1]

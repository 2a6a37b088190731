"""Overlapping subnets: every unit has the same number of holders, to the unit, and all pairs of groups meet alike."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.errors import RuleError
from ist_fed.rules import Disjoint, Node, Overlapping
from ist_fed.rules.plan import Plan
from ist_fed.seeds import generator

seeds = st.integers(0, 1 << 32)


def holders_of(plan: Plan, axis: str, size: int) -> list[int]:
    """How many groups hold each unit; alike groups are one subnet, held by the cohorts of all."""
    counts = torch.zeros(size, dtype=torch.int64)
    for units, cohort in zip(plan.subnets, plan.cohorts, strict=True):
        counts[units[axis]] += len(cohort)
    return counts.tolist()


@settings(max_examples=30)
@given(st.integers(1, 7), st.data(), st.integers(60, 130), seeds)
def test_every_unit_has_exactly_as_many_holders_as_asked(
    groups: int, data: st.DataObject, size: int, seed: int
) -> None:
    holders = data.draw(st.integers(1, groups))
    nodes = [Node(i, float(data.draw(st.integers(1, 8)))) for i in range(groups)]
    sizes = {"a": size, "b": size + 7}
    plan = Overlapping(groups=groups, holders=holders, min_units=1)(1, nodes, sizes, generator(seed))
    for axis, units in sizes.items():
        assert holders_of(plan, axis, units) == [holders] * units
        assert sum(len(held[axis]) for held in plan.values()) == holders * units


def test_a_unit_with_one_holder_is_the_papers_rule() -> None:
    nodes, sizes = [Node(i, 1.0 + i % 3) for i in range(12)], {"a": 90, "b": 64}
    one, other = (
        rule(1, nodes, sizes, generator(3)) for rule in (Overlapping(groups=4, holders=1), Disjoint(groups=4))
    )
    assert sorted(map(len, one.cohorts)) == sorted(map(len, other.cohorts))
    shares = [sorted(len(units["a"]) for units in plan.subnets) for plan in (one, other)]
    assert shares[0] == shares[1]


def test_as_many_holders_as_groups_is_everything_to_everyone_as_one_cohort() -> None:
    plan = Overlapping(groups=3, holders=3)(1, [Node(i) for i in range(7)], {"a": 40}, generator(0))
    assert len(plan.subnets) == 1
    assert len(plan.cohorts[0]) == 7
    assert plan.subnets[0]["a"].tolist() == list(range(40))


def test_every_two_groups_meet_equally_often() -> None:
    """Of n groups of r holders two share size · r(r − 1) / (n(n − 1)) units; two units share as many groups."""
    groups, holders, size, draws = 5, 2, 30, 300
    groups_meet, units_meet = np.zeros((groups, groups)), np.zeros((size, size))
    for seed in range(draws):
        nodes = [Node(i) for i in range(groups)]
        plan = Overlapping(groups=groups, holders=holders, min_units=1)(1, nodes, {"a": size}, generator(seed))
        held = np.zeros((groups, size))
        for row, units in zip(held, plan.subnets, strict=True):
            row[units["a"]] = 1
        groups_meet += held @ held.T
        units_meet += held.T @ held
    apart = ~np.eye(groups, dtype=bool)
    assert groups_meet[apart] / draws == pytest.approx(
        size * holders * (holders - 1) / (groups * (groups - 1)), abs=0.45
    )
    share = size * holders // groups
    together = groups * share * (share - 1) / (size * (size - 1))
    apart = ~np.eye(size, dtype=bool)
    assert units_meet[apart].mean() / draws == pytest.approx(together)
    assert np.abs(units_meet[apart] / draws - together).max() < 5 * np.sqrt(together / draws)


def test_a_limit_takes_from_one_what_the_others_then_hold() -> None:
    nodes = [Node(0, 1.0, 0.25), Node(1), Node(2), Node(3)]
    plan = Overlapping(groups=4, holders=2)(1, nodes, {"a": 120}, generator(0))
    assert {node: len(units["a"]) for node, units in plan.items()} == {0: 30, 1: 70, 2: 70, 3: 70}


def test_with_fewer_clients_than_groups_some_groups_rest() -> None:
    plan = Overlapping(groups=6, holders=2, min_units=1)(1, [Node(i) for i in range(4)], {"a": 60}, generator(0))
    assert [len(units["a"]) for units in plan.subnets] == [20] * 4
    assert max(Counter(unit for units in plan.subnets for unit in units["a"].tolist()).values()) == 2


def test_what_cannot_be_held_so_often_says_what_is_missing() -> None:
    with pytest.raises(
        RuleError, match=r"hold all 100 units of axis 'a' 3 times, but the memory of 4 groups holds 200"
    ):
        Overlapping(groups=4, holders=3)(1, [Node(i, 1.0, 0.5) for i in range(4)], {"a": 100}, generator(0))
    with pytest.raises(
        RuleError, match=r"has 20 units, each held 2 times, for 4 groups; use at most 2 groups, widen 'a' to 32,"
    ):
        Overlapping(groups=4, holders=2)(1, [Node(0)], {"a": 20}, generator(0))
    with pytest.raises(
        RuleError, match="holders must be at least 1 and at most as many as there are groups, but are 5 of 4"
    ):
        Overlapping(groups=4, holders=5)

"""Balanced groups: neighbouring axes' units meet exactly once a cycle, and over cycles no two are favoured."""

from itertools import combinations, pairwise
from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.rules import Balanced, Disjoint, Node, Plan, Rule, plan_round

seeds = st.integers(0, 1 << 32)


def plans(rule: Rule, nodes: list[Node], sizes: dict[str, int], rounds: range, seed: int = 0) -> list[Plan]:
    return [plan_round(rule, round, nodes, sizes, seed) for round in rounds]


def met(plans: list[Plan], one: str, other: str, sizes: dict[str, int]) -> np.ndarray:
    """In how many subnets each unit of one axis stood together with each of the other."""
    counts = np.zeros((sizes[one], sizes[other]), dtype=int)
    for plan in plans:
        for units in plan.subnets:
            counts[np.ix_(units[one], units[other])] += 1
    return counts


@settings(max_examples=30)
@given(st.integers(1, 9), st.lists(st.integers(9, 40), min_size=2, max_size=5), st.integers(0, 3), seeds)
def test_neighbouring_axes_meet_exactly_once_in_a_cycle(groups: int, units: list[int], cycle: int, seed: int) -> None:
    """So `groups` rounds train every weight between them: whatever the sizes, also where they do not divide."""
    sizes = {f"h{number}": size for number, size in enumerate(units)}
    nodes = [Node(i) for i in range(groups)]
    rounds = range(cycle * groups + 1, (cycle + 1) * groups + 1)
    dealt = plans(Balanced(groups=groups, min_units=1), nodes, sizes, rounds, seed)
    for (at, one), (to, other) in combinations(enumerate(sizes), 2):
        if gcd(to - at, groups) == 1:
            assert (met(dealt, one, other, sizes) == 1).all()


@settings(max_examples=30)
@given(st.integers(2, 6), st.lists(st.floats(0.5, 2), min_size=6, max_size=9), st.integers(40, 80), seeds)
def test_groups_are_disjoint_cover_every_axis_and_follow_capacities_in_each_round(
    groups: int, capacities: list[float], size: int, seed: int
) -> None:
    nodes, sizes = [Node(i, capacity) for i, capacity in enumerate(capacities)], {"a": size, "b": size + 11}
    plan_shares = []
    for round in range(1, 2 * groups):
        plan = plan_round(Balanced(groups=groups, min_units=1), round, nodes, sizes, seed)
        for axis, units in sizes.items():
            assert torch.cat([held[axis] for held in plan.subnets]).sort().values.tolist() == list(range(units))
        plan_shares.append({node.id: len(plan[node.id]["a"]) for node in nodes})
    paper = Disjoint(groups=groups, min_units=1)
    # The same cohorts' shares, as the paper's rule deals them; equal clients may change places.
    expected = sorted(len(units["a"]) for units in plan_round(paper, 1, nodes, sizes, seed).subnets)
    for round in range(1, 2 * groups):
        plan = plan_round(Balanced(groups=groups, min_units=1), round, nodes, sizes, seed)
        assert sorted(len(units["a"]) for units in plan.subnets) == expected


def test_one_round_less_cannot_do() -> None:
    """The lower bound: a round of n equal groups trains 1/n of the weights, whoever deals."""
    groups, sizes, nodes = 5, {"a": 30, "b": 20}, [Node(i) for i in range(5)]
    for rule in (Balanced(groups=groups, min_units=1), Disjoint(groups=groups, min_units=1)):
        for plan in plans(rule, nodes, sizes, range(1, 12)):
            assert met([plan], "a", "b", sizes).sum() == 600 / groups
        left = (met(plans(rule, nodes, sizes, range(1, groups)), "a", "b", sizes) == 0).mean()
        assert left >= 1 / groups - 1e-12


def test_random_groups_need_several_times_as_many_rounds() -> None:
    """After r rounds (1 − 1/n)^r are left of them; the last weight of 64 · 64 is expected after n·ln(4096) rounds."""
    groups, sizes, nodes = 8, {"a": 64, "b": 64}, [Node(i) for i in range(8)]
    needed = []
    for rule in (Balanced(groups=groups, min_units=1), Disjoint(groups=groups, min_units=1)):
        dealt = plans(rule, nodes, sizes, range(1, 161))
        counts = np.stack([met([plan], "a", "b", sizes) for plan in dealt]).cumsum(axis=0)
        needed.append(1 + int((counts > 0).all(axis=(1, 2)).argmax()))
    assert needed[0] == groups
    assert needed[1] > 5 * groups
    assert needed[1] == pytest.approx(groups * np.log(64 * 64), rel=0.5)


def test_no_pair_and_no_client_is_favoured() -> None:
    """In every round of a cycle two units meet, and a client holds a unit, as often as of random groups."""
    groups, sizes, draws = 3, {"a": 6, "b": 9}, 400
    nodes = [Node(i) for i in range(groups)]
    for round in (2, 4):
        together, own = np.zeros((6, 9)), np.zeros((groups, 6))
        for seed in range(draws):
            plan = plan_round(Balanced(groups=groups, min_units=1), round, nodes, sizes, seed)
            together += met([plan], "a", "b", sizes)
            for node, units in plan.items():
                own[node, units["a"]] += 1
        assert together / draws == pytest.approx(1 / groups, abs=0.1)
        assert own / draws == pytest.approx(1 / groups, abs=0.1)


def test_a_client_moves_on_to_other_units_and_the_next_cycle_cuts_anew() -> None:
    groups, sizes, nodes = 4, {"a": 32, "b": 32, "c": 32}, [Node(i) for i in range(4)]
    first, second = (
        plans(Balanced(groups=groups, min_units=1), nodes, sizes, span) for span in (range(1, 5), range(5, 9))
    )
    blocks = [{tuple(units["a"].tolist()) for plan in cycle for units in plan.subnets} for cycle in (first, second)]
    assert [len(cut) for cut in blocks] == [groups, groups]
    assert blocks[0] != blocks[1]
    for before, after in pairwise(first):
        assert all(not set(before[node.id]["a"].tolist()) & set(after[node.id]["a"].tolist()) for node in nodes)
    for node in nodes:
        assert {unit for plan in first for unit in plan[node.id]["a"].tolist()} == set(range(32))


def test_unequal_clients_meet_most_weights_in_a_cycle_and_soon_all() -> None:
    groups, sizes = 6, {"a": 120, "b": 90}
    nodes = [Node(i, capacity) for i, capacity in enumerate([1.0, 1.3, 0.8, 2.0, 1.0, 0.7])]
    counts = met(plans(Balanced(groups=groups, min_units=1), nodes, sizes, range(1, groups + 1)), "a", "b", sizes)
    assert (counts > 0).mean() > 0.75  # random groups: 1 − (1 − Σ share²)⁶ ≈ 0.72
    counts = met(plans(Balanced(groups=groups, min_units=1), nodes, sizes, range(1, 4 * groups + 1)), "a", "b", sizes)
    assert (counts > 0).mean() > 0.99


def test_a_limit_holds_in_every_round_of_a_cycle() -> None:
    nodes = [Node(0, 1.0, 0.2), *(Node(i) for i in range(1, 4))]
    for plan in plans(Balanced(groups=4, min_units=4), nodes, {"a": 41, "b": 30}, range(1, 9)):
        assert {node: len(units["a"]) for node, units in plan.items()}[0] == 8
        assert len(plan[0]["b"]) == 6


def test_a_client_that_leaves_changes_no_units_during_a_cycle() -> None:
    sizes, rule = {"a": 30, "b": 21}, Balanced(groups=3, min_units=1)
    everyone, fewer = ([Node(i) for i in range(count)] for count in (7, 5))
    stayed = plans(rule, everyone, sizes, range(1, 4))
    left = [stayed[0], *plans(rule, fewer, sizes, range(2, 4))]
    assert (met(left, "a", "b", sizes) == 1).all()

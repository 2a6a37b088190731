"""What every rule owes, whatever it decides. A new rule is tested by standing in `RULES`."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.arrays import arrays_of
from ist_fed.axes import infer
from ist_fed.errors import RuleError
from ist_fed.models import mlp
from ist_fed.rules import RULES, Node, Plan, Rule
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract

ARGUMENTS: dict[str, dict[str, Any]] = {"disjoint": {"groups": 4, "min_units": 2}}
"""Arguments of the rules that need some."""

GOLDEN_SIZES = {"hidden1": 24, "hidden2": 17}

rounds = st.integers(1, 10_000)
seeds = st.integers(0, 1 << 32)
ids = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9, unique=True)
nodes_of_any_capacity = ids.flatmap(
    lambda ids: st.tuples(*(st.builds(Node, st.just(id), st.floats(0.5, 2)) for id in ids)).map(list)
)
any_sizes = st.dictionaries(st.sampled_from(["hidden1", "heads0", "c3"]), st.integers(32, 70), min_size=1)


every_rule = pytest.mark.parametrize(
    "rule", [make(**ARGUMENTS.get(name, {})) for name, make in RULES.items()], ids=RULES
)


def content(plan: Plan) -> list[tuple[tuple[int, ...], dict[str, list[int]]]]:
    """A plan as values that compare."""
    parts = zip(plan.cohorts, plan.subnets, strict=True)
    return [(cohort, {axis: held.tolist() for axis, held in units.items()}) for cohort, units in parts]


@every_rule
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_every_node_holds_some_units_of_every_axis(
    rule: Rule, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    plan = rule(round, nodes, sizes, generator(seed))
    assert sorted(plan) == sorted(node.id for node in nodes)
    assert len(plan) == len(nodes)
    assert len(plan.subnets) == len(plan.cohorts)
    assert all(plan.cohorts), "a cohort of nobody"
    for units in plan.subnets:
        assert list(units) == list(sizes)  # in the factory's order
        for axis, held in units.items():
            assert held.dtype == torch.int64
            assert len(held) >= 1
            assert bool((held.diff() > 0).all()), "sorted, each once"
            assert 0 <= held[0] <= held[-1] < sizes[axis]


@every_rule
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_nodes_of_one_cohort_hold_the_very_same_units(
    rule: Rule, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    plan = rule(round, nodes, sizes, generator(seed))
    for number, cohort in enumerate(plan.cohorts):
        for node in cohort:
            assert plan[node] is plan.subnets[number]
            assert plan.subnet_of(node) == number


@every_rule
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_a_rule_is_a_pure_function_of_its_arguments(
    rule: Rule, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    """The same arguments give the same plan, whatever was asked before; none is changed, nor any global stream."""
    before = copy.deepcopy((nodes, sizes)), np.random.get_state(), torch.get_rng_state()
    plan = rule(round, nodes, sizes, generator(seed))
    rule(round + 1, nodes[::-1], sizes, generator(seed + 1))
    assert content(rule(round, nodes, sizes, generator(seed))) == content(plan)
    assert ((nodes, sizes), str(np.random.get_state())) == (before[0], str(before[1]))
    assert torch.equal(torch.get_rng_state(), before[2])


@every_rule
@settings(max_examples=10)
@given(nodes_of_any_capacity, seeds)
def test_a_plan_can_be_cut_and_merged(rule: Rule, nodes: list[Node], seed: int) -> None:
    build, sizes = mlp(5, 3), {"hidden1": 32, "hidden2": 40}
    arrays, axes = arrays_of(build(**sizes)), infer(build, sizes)
    plan, merge = rule(1, nodes, sizes, generator(seed)), Merge(arrays, axes)
    for node, units in plan.items():
        merge.add(units, extract(arrays, axes, units), weight=1.0 + node % 7)
    assert all(torch.equal(array, arrays[name]) for name, array in merge.result().items())


@every_rule
def test_a_node_that_holds_nothing_is_not_in_the_plan(rule: Rule) -> None:
    plan = rule(1, [Node(1), Node(2)], {"hidden1": 64}, generator(0))
    assert 3 not in plan
    with pytest.raises(KeyError):
        plan[3]


@every_rule
@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "at least one client"),
        ([Node(1), Node(2), Node(1)], "an id occurs twice"),
        ([Node(1), Node(2, 0.0)], "capacity must be positive, but node 2 reports 0.0"),
        ([Node(1, -1.0)], "capacity must be positive"),
        ([Node(1, float("nan"))], "capacity must be positive"),
        ([Node(1, float("inf"))], "capacity must be positive"),
        ([Node(1, 1.0, -0.1)], "limit must lie between 0 and 1, but node 1 reports -0.1"),
        ([Node(1, 1.0, 1.1)], "limit must lie between 0 and 1"),
        ([Node(1, 1.0, float("nan"))], "limit must lie between 0 and 1"),
    ],
)
def test_nodes_that_no_rule_can_plan_for_are_refused(rule: Rule, nodes: list[Node], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        rule(1, nodes, {"hidden1": 64}, generator(0))


@pytest.mark.parametrize("name", RULES)
def test_plans_are_the_pinned_ones(name: str, golden: Callable[[str, Any], None]) -> None:
    """The same bytes on any machine: two rounds, six nodes of unequal capacity."""
    rule = RULES[name](**ARGUMENTS.get(name, {}))
    nodes = [Node(100 + i, capacity) for i, capacity in enumerate([1.0, 0.5, 2.0, 1.0, 1.5, 1.0])]
    plans = [rule(round, nodes, GOLDEN_SIZES, generator(7, round, "assign")) for round in (1, 2)]
    as_json = [[{"nodes": list(cohort), "units": units} for cohort, units in content(plan)] for plan in plans]
    golden(f"plan_{name}", as_json)

"""What every rule owes, whatever it decides. A new rule is tested by standing in `RULES`."""

import copy
from collections.abc import Callable, Mapping
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.arrays import arrays_of
from ist_fed.axes import infer, parse
from ist_fed.errors import RuleError
from ist_fed.models import mlp, resnet
from ist_fed.rules import RULES, Blocks, Node, Plan, Rule
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract

ARGUMENTS: dict[str, dict[str, Any]] = {
    "disjoint": {"groups": 4, "min_units": 2},
    "balanced": {"groups": 4, "min_units": 2},
    "overlapping": {"groups": 5, "holders": 2, "min_units": 2},
    "independent": {"share": 0.4, "min_units": 2},
    "nested": {"min_units": 2},
    "fjord": {"min_units": 2},
    "rolling": {"share": 0.4, "min_units": 2},
    "least_trained": {"share": 0.4, "min_units": 2},
    "private": {"groups": 3, "min_units": 2},
    "lease": {"groups": 12, "min_units": 2},
    "blocks": {"groups": 3, "min_depth": 2},
}
"""Arguments of every rule that needs some, or whose defaults are for wider networks."""

MIN_UNITS = 2
HEED_LIMITS = [name for name in RULES if name not in ("full", "blocks")]  # how blocks do is in test_blocks.py

GOLDEN_SIZES = {"hidden1": 24, "hidden2": 17}

rounds = st.integers(1, 10_000)
seeds = st.integers(0, 1 << 32)
ids = st.integers(0, 2**64 - 1)


def lists_of_nodes(limits: st.SearchStrategy[float]) -> st.SearchStrategy[list[Node]]:
    """Up to nine nodes of any capacity."""
    one = st.builds(Node, ids, st.floats(0.5, 2), limits)
    return st.lists(one, min_size=1, max_size=9, unique_by=lambda node: node.id)


nodes_of_any_capacity = lists_of_nodes(st.just(1.0))
nodes_of_any_limit = lists_of_nodes(st.floats(0.03, 1))
any_sizes = st.dictionaries(st.sampled_from(["hidden1", "heads0", "c3"]), st.integers(32, 70), min_size=1)


def dealt_by(rule: Rule, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """The sizes of a network that the rule can deal out; blocks are axes of one unit."""
    return {**sizes, **dict.fromkeys([f"block{n}" for n in range(1, 6)], 1)} if isinstance(rule, Blocks) else sizes


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
    sizes = dealt_by(rule, sizes)
    plan = rule(round, nodes, sizes, generator(seed))
    assert sorted(plan) == sorted(node.id for node in nodes)
    assert len(plan) == len(nodes)
    assert len(plan.subnets) == len(plan.cohorts)
    assert all(plan.cohorts), "a cohort of nobody"
    for units in plan.subnets:
        assert list(units) == list(sizes)  # in the factory's order
        for axis, held in units.items():
            assert held.dtype == torch.int64
            assert len(held) >= (1 if sizes[axis] > 1 else 0)  # a block is held or not
            assert bool((held.diff() > 0).all()), "sorted, each once"
            assert all(0 <= unit < sizes[axis] for unit in held.tolist())


@every_rule
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_nodes_of_one_cohort_hold_the_very_same_units(
    rule: Rule, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    plan = rule(round, nodes, dealt_by(rule, sizes), generator(seed))
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
    sizes = dealt_by(rule, sizes)
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
    if isinstance(rule, Blocks):
        build, sizes = resnet(1, 3, (4,)), dict(dealt_by(rule, {f"mid{n}": 3 for n in range(1, 6)}))
    arrays, axes = arrays_of(build(**sizes)), infer(build, sizes)
    plan, merge = rule(1, nodes, sizes, generator(seed)), Merge(arrays, axes)
    for node, units in plan.items():
        merge.add(units, extract(arrays, axes, units), weight=1.0 + node % 7)
    assert all(torch.equal(array, arrays[name]) for name, array in merge.result().items())


@every_rule
@settings(max_examples=20)
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_no_two_subnets_of_a_plan_are_the_same(
    rule: Rule, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    """What is the same is cut once: its nodes are one cohort."""
    subnets = [units for _, units in content(rule(round, nodes, dealt_by(rule, sizes), generator(seed)))]
    assert all(one != other for one, other in combinations(subnets, 2))


@pytest.mark.parametrize("name", HEED_LIMITS)
@settings(max_examples=20)
@given(rounds, nodes_of_any_limit, any_sizes, seeds)
def test_a_limit_is_a_hard_bound_and_min_units_too(
    name: str, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    try:
        plan = RULES[name](**ARGUMENTS[name])(round, nodes, sizes, generator(seed))
    except RuleError:
        return  # rather than to break a bound
    for node in nodes:
        for axis, held in plan[node.id].items():
            assert MIN_UNITS <= len(held) <= node.limit * sizes[axis]


@pytest.mark.parametrize("name", [name for name in HEED_LIMITS if name != "fjord"])
@settings(max_examples=20)
@given(rounds, nodes_of_any_capacity, any_sizes, seeds)
def test_the_stronger_client_does_not_hold_less(
    name: str, round: int, nodes: list[Node], sizes: Mapping[str, int], seed: int
) -> None:
    """But for one unit where shares are rounded so that they add up."""
    plan = RULES[name](**ARGUMENTS[name])(round, nodes, sizes, generator(seed))
    for weak, strong in permutations(nodes, 2):
        if weak.capacity < strong.capacity:
            assert all(len(plan[strong.id][axis]) >= len(plan[weak.id][axis]) - 1 for axis in sizes)


@pytest.mark.parametrize("name", HEED_LIMITS)
def test_what_cannot_be_held_is_refused_in_a_sentence(name: str) -> None:
    rule = RULES[name](**{**ARGUMENTS[name], "min_units": 16})
    with pytest.raises(RuleError, match=r"min_units=16 units of every axis, but axis 'h' has 12 units.*widen 'h' to"):
        rule(1, [Node(1)], {"big": 640, "h": 12}, generator(0))
    with pytest.raises(RuleError, match="the memory of node 7 holds 6 of axis 'h'; leave it out, raise its budget"):
        rule(1, [Node(1), Node(7, 1.0, 0.1)], {"h": 64}, generator(0))


@pytest.mark.parametrize("name", HEED_LIMITS)
def test_fields_out_of_their_range_are_refused(name: str) -> None:
    for key in ARGUMENTS[name].keys() | {"min_units"}:
        with pytest.raises(RuleError, match=f"{key}.* but (is|are) .*-1"):
            RULES[name](**{**ARGUMENTS[name], key: -1})


@every_rule
@settings(max_examples=10)
@given(nodes_of_any_capacity, seeds)
def test_a_coordinate_becomes_the_weighted_mean_of_its_holders(rule: Rule, nodes: list[Node], seed: int) -> None:
    """The oracle: sums over masks at the wide network's size. Nobody's coordinate keeps its bits."""
    sizes = dealt_by(rule, {"a": 32, "b": 40})
    blocks = [axis for axis, size in sizes.items() if size == 1]
    axes, rng = {"w": parse("a b"), "v": parse("(2 b) .")}, np.random.default_rng(seed)
    axes |= {block: parse(f"{block}: b") for block in blocks}
    arrays = {"w": torch.from_numpy(rng.standard_normal((32, 40))), "v": torch.from_numpy(rng.standard_normal((80, 3)))}
    arrays |= {block: torch.from_numpy(rng.standard_normal(40)) for block in blocks}
    total = {name: torch.zeros_like(array) for name, array in arrays.items()}
    weights = {name: torch.zeros_like(array) for name, array in arrays.items()}
    merge, plan = Merge(arrays, axes), rule(1, nodes, sizes, generator(seed))
    for number, (_, units) in enumerate(plan.items()):
        grids = {
            "w": torch.meshgrid(units["a"], units["b"], indexing="ij"),
            "v": (torch.cat([units["b"], 40 + units["b"]]),),
            **{block: (units["b"],) for block in blocks if len(units[block])},
        }
        weight, part = 1.0 + number % 3, extract(arrays, axes, units)
        assert part.keys() == grids.keys()
        part = {name: value + float(rng.standard_normal()) for name, value in part.items()}
        for name, grid in grids.items():
            total[name][grid] += weight * part[name]
            weights[name][grid] += weight
        merge.add(units, part, weight)
    for name, merged in merge.result().items():
        held = weights[name] > 0
        assert torch.allclose(merged[held], total[name][held] / weights[name][held], rtol=1e-12, atol=1e-12)
        assert torch.equal(merged[~held], arrays[name][~held])


@every_rule
def test_a_node_that_holds_nothing_is_not_in_the_plan(rule: Rule) -> None:
    plan = rule(1, [Node(1), Node(2)], dealt_by(rule, {"hidden1": 64}), generator(0))
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
    plans = [rule(round, nodes, dealt_by(rule, GOLDEN_SIZES), generator(7, round, "assign")) for round in (1, 2)]
    as_json = [[{"nodes": list(cohort), "units": units} for cohort, units in content(plan)] for plan in plans]
    golden(f"plan_{name}", as_json)

"""Whole blocks: each is dealt, to one group unless they are too few; everything else everyone holds."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.errors import RuleError
from ist_fed.rules import RULES, Blocks, Node, Plan
from ist_fed.seeds import generator

seeds = st.integers(0, 1 << 32)
DEEP = dict.fromkeys([f"block{n}" for n in range(1, 9)], 1)


def sizes_with(blocks: int) -> dict[str, int]:
    return {"wide": 7, **dict.fromkeys([f"block{n}" for n in range(blocks)], 1)}


def held(plan: Plan, node: int) -> set[str]:
    return {axis for axis, units in plan[node].items() if axis != "wide" and len(units)}


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 20), seeds)
def test_every_block_is_dealt_and_as_few_times_as_can_be(groups: int, least: int, blocks: int, seed: int) -> None:
    sizes, nodes = sizes_with(blocks), [Node(id) for id in range(groups)]
    rule = Blocks(groups=groups, min_depth=least)
    if blocks < least:
        with pytest.raises(RuleError, match=f"at least min_depth={least} blocks, but the network has {blocks} that"):
            rule(1, nodes, sizes, generator(seed))
        return
    plan = rule(1, nodes, sizes, generator(seed))
    depths = [len(held(plan, node.id)) for node in nodes]
    times = Counter(block for node in nodes for block in held(plan, node.id))
    assert len(times) == blocks
    assert sum(depths) == max(blocks, groups * least)
    assert min(depths) >= least
    assert max(times.values()) - min(times.values()) <= 1  # once, unless groups * least are more than there are
    assert max(depths) - min(depths) <= 1  # clients are alike
    assert all(torch.equal(plan[node.id]["wide"], torch.arange(7)) for node in nodes)


@given(st.lists(st.floats(0.3, 3), min_size=4, max_size=4), st.lists(st.floats(0, 1), min_size=4, max_size=4), seeds)
def test_depths_follow_capacities_within_what_fits(capacities: list[float], limits: list[float], seed: int) -> None:
    nodes = [Node(n, *both) for n, both in enumerate(zip(capacities, limits, strict=True))]
    most = [int(limit * 8) for limit in limits]
    if min(most) < 1 or sum(most) < 8:
        with pytest.raises(RuleError, match=r"the memory of (node \d+ holds 0 of 8; leave it|4 groups holds \d+ \()"):
            Blocks(groups=4)(1, nodes, DEEP, generator(seed))
        return
    plan = Blocks(groups=4)(1, nodes, DEEP, generator(seed))
    depths = [len(held(plan, node.id)) for node in nodes]
    assert sum(depths) == 8
    assert all(1 <= depth <= bound for depth, bound in zip(depths, most, strict=True))
    for (weak, depth), (strong, other) in pairwise(
        sorted(zip(capacities, zip(depths, most, strict=True), strict=True))
    ):
        assert weak == strong or other[0] >= min(depth[0], other[1]) - 1


def test_clients_form_cohorts_and_groups_of_nobody_rest() -> None:
    plan = Blocks(groups=2)(1, [Node(id) for id in range(7)], DEEP, generator(0))
    assert sorted(map(len, plan.cohorts)) == [3, 4]
    alone = Blocks(groups=4)(1, [Node(5)], DEEP, generator(0))
    assert len(held(alone, 5)) == 2


def test_blocks_meet_in_every_way_as_rounds_go_by() -> None:
    """Two of eight at a time, drawn anew: each pair about as often as another."""
    nodes = [Node(id) for id in range(4)]
    plans = [Blocks(groups=4)(round, nodes, DEEP, generator(3, round)) for round in range(1, 701)]
    pairs = Counter(frozenset(held(plan, node.id)) for plan in plans for node in nodes)
    assert len(pairs) == 28
    assert all(60 < times < 145 for times in pairs.values())  # 100 on average, 9.3 its standard deviation
    assert {axis: sum(axis in held(plan, 0) for plan in plans) for axis in DEEP}.keys() == DEEP.keys()


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(RuleError, match="the network has 0 that can be left out; make blocks axes of one unit"):
        Blocks(groups=2)(1, [Node(1)], {"hidden1": 64}, generator(0))


def test_fields_out_of_their_range_are_refused() -> None:
    for fields in ({"groups": 0}, {"groups": 2, "min_depth": 0}):
        with pytest.raises(RuleError, match="groups and min_depth must be at least 1"):
            Blocks(**fields)


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("blocks", "full")])
def test_other_rules_refuse_to_cut_a_block_or_give_it_to_everyone(name: str) -> None:
    given = {"disjoint": 2, "balanced": 2, "overlapping": 2, "private": 2, "lease": 2}
    fields = {"groups": given[name]} if name in given else {}
    sizes, nodes = {"wide": 64, **DEEP}, [Node(1), Node(2)]
    with pytest.raises(RuleError, match="'block1' has one unit, which is a whole block; use the rule 'blocks'"):
        RULES[name](**fields, **({"holders": 1} if name == "overlapping" else {}))(1, nodes, sizes, generator(0))
    if name not in given:
        plan = RULES[name](min_units=1)(1, nodes, sizes, generator(0))
        assert all(len(units[block]) == 1 for units in plan.subnets for block in DEEP)


def test_full_gives_every_block_to_everyone() -> None:
    assert held(RULES["full"]()(1, [Node(1)], DEEP, generator(0)), 1) == DEEP.keys()

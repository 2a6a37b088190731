"""HeteroFL, FjORD and FedRolex: prefixes by tier, prefixes of a drawn width, windows that roll."""

import numpy as np
import pytest
import torch

from ist_fed.rules import Fjord, Nested, Node, Plan, Rolling, plan_round
from ist_fed.rules.full import Full
from ist_fed.seeds import generator

SIZES = {"a": 64, "b": 160}


def widths(plan: Plan) -> dict[int, tuple[int, ...]]:
    return {node: tuple(len(held) for held in units.values()) for node, units in plan.items()}


# --- HeteroFL ---------------------------------------------------------------------------------------------------------


def test_a_client_holds_the_widest_tier_that_it_is_strong_enough_for() -> None:
    nodes = [Node(0, 8.0), Node(1, 4.0), Node(2, 3.9), Node(3, 2.0), Node(4, 0.1), Node(5, 8.0, 0.3), Node(6, 8.0)]
    plan = Nested(tiers=4, min_units=2)(1, nodes, SIZES, generator(0))
    assert widths(plan) == {
        0: (64, 160), 6: (64, 160), 1: (32, 80), 2: (16, 40), 3: (16, 40), 5: (16, 40), 4: (8, 20)
    }  # fmt: skip
    assert plan.cohorts == ((0, 6), (1,), (2, 3, 5), (4,))  # the widest first
    for units in plan.subnets:
        assert all(held.tolist() == list(range(len(held))) for held in units.values())


def test_below_the_last_tier_the_limit_decides() -> None:
    plan = Nested(tiers=2, min_units=2)(1, [Node(0), Node(1, 1.0, 0.2), Node(2, 0.01)], SIZES, generator(0))
    assert widths(plan) == {0: (64, 160), 1: (12, 32), 2: (32, 80)}


def test_tiers_are_the_same_in_every_round() -> None:
    nodes = [Node(i, float(1 + i)) for i in range(6)]
    plans = [plan_round(Nested(), round, nodes, SIZES, seed=round) for round in (1, 2, 30)]
    assert widths(plans[0]) == widths(plans[1]) == widths(plans[2])


def test_equal_clients_average_the_whole_network() -> None:
    nodes = [Node(i) for i in range(3)]
    (one,), (other,) = (rule(1, nodes, SIZES, generator(0)).subnets for rule in (Nested(), Full()))
    assert all(torch.equal(one[axis], other[axis]) for axis in SIZES)


# --- FjORD ------------------------------------------------------------------------------------------------------------


def test_a_width_is_drawn_evenly_up_to_the_clients_largest() -> None:
    nodes = [Node(0, 10.0), Node(1, 6.0), Node(2, 10.0, 0.45), Node(3, 0.1)]
    drawn: dict[int, list[int]] = {node.id: [] for node in nodes}
    for round in range(1, 1201):
        plan = plan_round(Fjord(levels=5, min_units=2), round, nodes, {"a": 50}, seed=0)
        for node, units in plan.items():
            assert units["a"].tolist() == list(range(len(units["a"])))
            drawn[node].append(len(units["a"]))
    possible = {0: [10, 20, 30, 40, 50], 1: [10, 20, 30], 2: [10, 20], 3: [10]}
    for node, seen in drawn.items():
        assert sorted(set(seen)) == possible[node]
        shares = [seen.count(width) / len(seen) for width in possible[node]]
        assert shares == pytest.approx([1 / len(possible[node])] * len(shares), abs=0.06)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.1  # each draws for itself


def test_a_client_below_the_first_width_holds_what_it_can() -> None:
    plan = Fjord(levels=2, min_units=2)(1, [Node(0, 1.0, 0.25)], {"a": 64}, generator(0))
    assert widths(plan) == {0: (16,)}


# --- FedRolex ---------------------------------------------------------------------------------------------------------


def test_a_window_rolls_by_one_unit_and_wraps_around() -> None:
    nodes, rule, sizes = [Node(0, 2.0), Node(1, 1.0)], Rolling(share=0.5, min_units=1), {"a": 8, "b": 6}
    held = [plan_round(rule, round, nodes, sizes, seed=0) for round in range(1, 9)]
    assert held[0][0]["a"].tolist() == [0, 1, 2, 3]
    assert held[0][1]["a"].tolist() == [0, 1]
    assert held[1][0]["a"].tolist() == [1, 2, 3, 4]
    assert held[5][0]["a"].tolist() == [0, 5, 6, 7]
    assert held[4][0]["b"].tolist() == [0, 4, 5]
    assert held[6][0]["b"].tolist() == held[0][0]["b"].tolist()


def test_in_as_many_rounds_as_units_each_is_held_equally_often() -> None:
    nodes, sizes = [Node(0, 2.0), Node(1, 1.0)], {"a": 24}
    counts = torch.zeros(2, 24, dtype=torch.int64)
    for round in range(1, 25):
        for node, units in plan_round(Rolling(share=0.5, min_units=1), round, nodes, sizes, seed=0).items():
            counts[node, units["a"]] += 1
    assert counts[0].tolist() == [12] * 24
    assert counts[1].tolist() == [6] * 24


def test_the_strongest_hold_the_share_and_others_less_within_their_limits() -> None:
    nodes = [Node(0, 4.0), Node(1, 2.0), Node(2, 4.0, 0.3), Node(3, 4.0), Node(4, 0.001)]
    plan = Rolling(share=0.5)(7, nodes, SIZES, generator(0))
    assert widths(plan) == {0: (32, 80), 3: (32, 80), 2: (19, 48), 1: (16, 40), 4: (16, 16)}
    assert plan.cohorts == ((0, 3), (2,), (1,), (4,))

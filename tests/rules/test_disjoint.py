"""Law 5, partition: groups are disjoint and cover every axis; shares follow capacities; in time everyone meets all."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.errors import RuleError
from ist_fed.rules import Disjoint, Node, Plan, plan_round
from ist_fed.seeds import generator

capacities = st.lists(st.integers(1, 8).map(float), min_size=1, max_size=12)
group_counts = st.integers(1, 5)
seeds = st.integers(0, 1 << 32)


def nodes_of(capacities: list[float]) -> list[Node]:
    return [Node(10 + i, capacity) for i, capacity in enumerate(capacities)]


def plan_of(rule: Disjoint, count: int, sizes: dict[str, int], round: int = 1, seed: int = 0) -> Plan:
    return rule(round, nodes_of([1.0] * count), sizes, generator(seed, round, "assign"))


@given(group_counts, capacities, st.integers(200, 300), st.integers(200, 300), seeds, st.booleans())
def test_groups_are_disjoint_and_cover_every_axis(
    groups: int, capacities: list[float], one: int, other: int, seed: int, rotate: bool
) -> None:
    """All of them when each group is held; none twice in any case."""
    rule = Disjoint(groups=groups, min_units=1, keep=3, rotate=rotate)
    nodes = nodes_of(capacities)
    sizes = {"hidden1": one, "hidden2": other}
    plan = rule(1, nodes, sizes, generator(seed))
    assert len(plan.subnets) == min(groups, len(nodes))
    for axis, size in sizes.items():
        dealt = torch.cat([units[axis] for units in plan.subnets])
        assert len(dealt.unique()) == len(dealt)
        assert len(nodes) < groups or len(dealt) == size


@given(group_counts, capacities, st.integers(200, 300), seeds)
def test_shares_follow_the_capacities_to_the_unit(groups: int, capacities: list[float], size: int, seed: int) -> None:
    """By largest remainders: an oracle in fractions, for groups that are all held."""
    nodes = nodes_of(capacities + [1.0] * (groups - len(capacities)))
    plan = Disjoint(groups=groups, min_units=1)(1, nodes, {"h": size}, generator(seed))
    weakest = [min(nodes[id - 10].capacity for id in cohort) for cohort in plan.cohorts]
    quotas = [Fraction(size) * Fraction(capacity) / sum(map(Fraction, weakest)) for capacity in weakest]
    shares = [len(units["h"]) for units in plan.subnets]
    assert sum(shares) == size
    assert all(int(quota) <= share <= int(quota) + 1 for quota, share in zip(quotas, shares, strict=True))
    remainders = [(quota % 1, share > quota) for quota, share in zip(quotas, shares, strict=True)]
    up, down = [r for r, raised in remainders if raised], [r for r, raised in remainders if not raised and r]
    assert not up or not down or min(up) >= max(down)


@given(group_counts, capacities, seeds)
def test_cohorts_are_even_and_of_like_capacity(groups: int, capacities: list[float], seed: int) -> None:
    nodes = nodes_of(capacities)
    plan = Disjoint(groups=groups, min_units=1)(1, nodes, {"h": 300}, generator(seed))
    counts = [len(cohort) for cohort in plan.cohorts]
    assert max(counts) - min(counts) <= 1
    held = [[nodes[id - 10].capacity for id in cohort] for cohort in plan.cohorts]
    assert all(min(stronger) >= max(weaker) for stronger, weaker in pairwise(held))


@given(st.integers(1, 6), st.integers(1, 4))
def test_with_fewer_clients_than_groups_some_groups_rest(count: int, more: int) -> None:
    """Each client still holds one group's share, no more: what it can hold does not grow when others leave."""
    groups = count + more
    plan = plan_of(Disjoint(groups=groups, min_units=1), count, {"h": 12 * groups})
    assert [len(units["h"]) for units in plan.subnets] == [12] * count
    assert [len(cohort) for cohort in plan.cohorts] == [1] * count


def test_axes_are_cut_independently() -> None:
    """Were they cut alike, a unit would meet the same units of the next layer in every round."""
    plan = plan_of(Disjoint(groups=2, min_units=1), 2, {"hidden1": 64, "hidden2": 64})
    assert plan.subnets[0]["hidden1"].tolist() != plan.subnets[0]["hidden2"].tolist()


@pytest.mark.parametrize("count", [2, 4, 8])
def test_in_time_every_client_meets_every_unit(count: int) -> None:
    rule, sizes = Disjoint(groups=4, min_units=1), {"h": 16}
    met: dict[int, set[int]] = {10 + i: set() for i in range(count)}
    for round in range(1, 61):
        for node, units in plan_of(rule, count, sizes, round).items():
            met[node] |= set(units["h"].tolist())
    assert all(units == set(range(16)) for units in met.values())  # missed with probability 16·count·(3/4)^60 < 1e-5


def test_every_pair_of_clients_comes_to_share_a_subnet() -> None:
    """Cohorts are drawn anew: with equal capacities no two clients are kept apart."""
    rule, met = Disjoint(groups=3, min_units=1), set()
    for round in range(60):
        for cohort in plan_of(rule, 6, {"h": 30}, round).cohorts:
            met |= {frozenset(pair) for pair in combinations(cohort, 2)}
    assert len(met) == 15


def test_a_unit_falls_to_each_client_equally_often() -> None:
    """Capacities equal: unit 0's holder over 2000 rounds is uniform (chi-squared, 3 degrees, beyond 1 in 10 000)."""
    rule, rounds = Disjoint(groups=4, min_units=1), 2000
    holders = Counter(
        node for round in range(rounds) for node, units in plan_of(rule, 4, {"h": 8}, round).items() if 0 in units["h"]
    )
    assert sum((n - rounds / 4) ** 2 / (rounds / 4) for n in holders.values()) < 21.1


def test_a_hidden_weight_stays_untouched_with_the_known_probability() -> None:
    """(1 − 1/n)^R after R rounds for any pair of units of two layers. Source: Yuan et al., 2022."""
    groups, rounds, size = 4, 6, 64
    touched = torch.zeros(size, size, dtype=torch.bool)
    for round in range(rounds):
        for units in plan_of(Disjoint(groups=groups, min_units=1), groups, {"a": size, "b": size}, round).subnets:
            touched[units["a"][:, None], units["b"]] = True
    assert abs(float((~touched).float().mean()) - (1 - 1 / groups) ** rounds) < 0.01


# --- Draws that are kept ----------------------------------------------------------------------------------------------

FOR_EVER = 1000


def planned(rule: Disjoint, count: int, sizes: dict[str, int], rounds: int) -> list[Plan]:
    return [plan_round(rule, round, nodes_of([1.0] * count), sizes, seed=0) for round in range(1, rounds + 1)]


@pytest.mark.parametrize("count", [2, 4, 7, 8])
def test_while_a_draw_is_kept_groups_stay_and_clients_move_on(count: int) -> None:
    groups = 4
    rule, sizes = Disjoint(groups=groups, min_units=1, keep=FOR_EVER), {"a": 18, "b": 9}
    held: dict[int, list[tuple[int, ...]]] = {10 + i: [] for i in range(count)}
    for plan in planned(rule, count, sizes, groups):
        for node, units in plan.items():
            held[node].append(tuple(units["a"].tolist()))
    everything = {group for groups_met in held.values() for group in groups_met}
    assert len(everything) == groups  # the same four in every round
    assert all(not set(one) & set(other) for one, other in combinations(everything, 2))
    for groups_met in held.values():
        assert len(set(groups_met)) == groups  # a client keeps none, and has met all in as many rounds as groups


def test_without_rotation_a_client_keeps_its_group_until_the_next_draw() -> None:
    rule = Disjoint(groups=4, min_units=1, keep=3, rotate=False)
    plans = planned(rule, 8, {"a": 20}, 6)
    units = [{node: tuple(held["a"].tolist()) for node, held in plan.items()} for plan in plans]
    assert units[0] == units[1] == units[2] != units[3] == units[4] == units[5]


def test_a_draw_kept_for_ever_never_trains_the_weights_between_groups() -> None:
    touched = torch.zeros(8, 8, dtype=torch.bool)
    for plan in planned(Disjoint(groups=2, min_units=1, keep=FOR_EVER), 2, {"a": 8, "b": 8}, 20):
        for units in plan.subnets:
            touched[units["a"][:, None], units["b"]] = True
    assert touched.float().mean() == 0.5


def test_a_kept_draw_never_gives_a_weak_client_a_strong_ones_share() -> None:
    rule, nodes = Disjoint(groups=2, min_units=1, keep=4), nodes_of([3.0, 1.0])
    for round in range(1, 9):
        shares = {node: len(units["h"]) for node, units in plan_round(rule, round, nodes, {"h": 64}, seed=0).items()}
        assert shares == {10: 48, 11: 16}


# --- Bounds -----------------------------------------------------------------------------------------------------------


def bounded(size: int, weights: list[float], least: int, most: list[int]) -> list[float]:
    """The oracle: shares in proportion to the weights, each cut off at its bounds, at the level where they fill up."""
    low, high = 0.0, 2 * size / min(weights)
    for _ in range(200):
        level = (low + high) / 2
        cut = [min(max(level * weight, least), top) for weight, top in zip(weights, most, strict=True)]
        low, high = (level, high) if sum(cut) < size else (low, level)
    return cut


limited = st.lists(st.tuples(st.integers(1, 40).map(float), st.integers(1, 16).map(lambda n: n / 16)), min_size=1)


@given(limited, st.integers(30, 300), st.integers(1, 5), seeds)
def test_shares_follow_capacities_within_what_a_subnet_needs_and_its_holder_can_hold(
    clients: list[tuple[float, float]], size: int, min_units: int, seed: int
) -> None:
    nodes = [Node(i, capacity, limit) for i, (capacity, limit) in enumerate(clients)]
    rule = Disjoint(groups=len(nodes), min_units=min_units)
    most = {node.id: int(node.limit * size) for node in nodes}
    possible = sum(most.values()) >= size >= len(nodes) * min_units and min(most.values()) >= min_units
    if not possible:
        with pytest.raises(RuleError):
            rule(1, nodes, {"h": size}, generator(seed))
        return
    plan = rule(1, nodes, {"h": size}, generator(seed))
    shares = {node: len(units["h"]) for node, units in plan.items()}
    assert sum(shares.values()) == size
    ids = list(shares)
    exact = bounded(size, [nodes[id].capacity for id in ids], min_units, [most[id] for id in ids])
    for id, quota in zip(ids, exact, strict=True):
        assert min_units <= shares[id] <= most[id]
        assert abs(shares[id] - quota) < 1 + 1e-6


def test_what_a_client_cannot_hold_goes_to_those_with_room_in_proportion() -> None:
    nodes = [Node(0, 4.0, 0.25), Node(1, 2.0), Node(2, 1.0)]
    plan = Disjoint(groups=3, min_units=1)(1, nodes, {"h": 120}, generator(0))
    assert {node: len(units["h"]) for node, units in plan.items()} == {0: 30, 1: 60, 2: 30}


def test_a_weak_client_gets_min_units() -> None:
    plan = Disjoint(groups=2)(1, nodes_of([10.0, 1.0]), {"h": 100}, generator(0))
    assert {node: len(units["h"]) for node, units in plan.items()} == {10: 84, 11: 16}


def test_a_cohort_holds_what_its_smallest_client_can() -> None:
    nodes = [Node(0, 1.0, 0.25), Node(1), Node(2, 1.0, 0.25), Node(3)]
    plan = Disjoint(groups=2, min_units=1)(1, nodes, {"a": 64, "b": 32}, generator(0))
    assert [sorted(cohort) for cohort in plan.cohorts] == [[1, 3], [0, 2]]  # clients of like limits meet
    assert [[len(units["a"]), len(units["b"])] for units in plan.subnets] == [[48, 24], [16, 8]]


def test_what_nobody_can_hold_rests() -> None:
    plan = Disjoint(groups=2, min_units=1)(1, [Node(0, 1.0, 0.125)], {"h": 64}, generator(0))
    assert [len(units["h"]) for units in plan.subnets] == [8]


# --- What is refused --------------------------------------------------------------------------------------------------


def test_more_groups_than_units_says_what_would_do() -> None:
    with pytest.raises(RuleError) as refused:
        plan_of(Disjoint(groups=8, min_units=16), 8, {"hidden1": 512, "hidden2": 100})
    assert str(refused.value) == (
        "every subnet needs at least min_units=16 units of every axis, but axis 'hidden2' has 100 units for 8 groups; "
        "use at most 6 groups, widen 'hidden2' to 128, or lower min_units"
    )


def test_what_the_message_proposes_would_do() -> None:
    plan_of(Disjoint(groups=6, min_units=16), 8, {"hidden2": 100})
    plan_of(Disjoint(groups=8, min_units=16), 8, {"hidden2": 128})


@pytest.mark.parametrize(("groups", "min_units"), [(0, 1), (-1, 1), (1, 0)])
def test_no_groups_and_no_units_are_refused(groups: int, min_units: int) -> None:
    with pytest.raises(RuleError, match="at least 1"):
        Disjoint(groups=groups, min_units=min_units)


def test_a_kept_draw_lets_every_cohort_train_every_subnet_before_the_next() -> None:
    rule, sizes, nodes = Disjoint(groups=4, min_units=1, keep=4), {"a": 32, "b": 20}, nodes_of([1.0] * 8)
    plans = [plan_round(rule, round, nodes, sizes, seed=3) for round in range(1, 9)]
    for rounds in (plans[:4], plans[4:]):
        subnets = [tuple(tuple(units["a"].tolist()) for units in plan.subnets) for plan in rounds]
        assert len(set(subnets)) == 1
        for node in nodes:
            assert {tuple(plan[node.id]["a"].tolist()) for plan in rounds} == set(subnets[0])
        assert len({frozenset(map(frozenset, plan.cohorts)) for plan in rounds}) == 1  # who trains together stays
    assert not plans[0].subnets[0]["a"].equal(plans[4].subnets[0]["a"])


def test_a_kept_draw_outlives_a_client_that_leaves() -> None:
    rule, sizes = Disjoint(groups=3, min_units=1, keep=3), {"a": 30}
    before = plan_round(rule, 1, nodes_of([1.0] * 7), sizes, seed=0)
    after = plan_round(rule, 2, nodes_of([1.0] * 5), sizes, seed=0)
    assert [units["a"].tolist() for units in before.subnets] == [units["a"].tolist() for units in after.subnets]


def test_keeping_a_draw_for_one_round_is_the_paper() -> None:
    nodes, sizes = nodes_of([1.0] * 4), {"a": 32}
    one, two = (plan_round(Disjoint(groups=4, min_units=1), round, nodes, sizes, seed=0) for round in (1, 2))
    assert not one.subnets[0]["a"].equal(two.subnets[0]["a"])


def test_a_network_that_does_not_fit_says_what_is_missing_and_what_would_do() -> None:
    nodes = [Node(i, 1.0, 0.25) for i in range(5)]
    with pytest.raises(RuleError) as refused:
        Disjoint(groups=3, min_units=1)(1, nodes, {"h": 100}, generator(0))
    assert str(refused.value) == (
        "the clients must together hold all 100 units of axis 'h', but the memory of 3 groups holds 75, 25 too few "
        "(group by group: [25, 25, 25]); use 5 groups, which hold 125, raise the clients' budgets, lower batch_size, "
        "or narrow 'h'"
    )
    Disjoint(groups=5, min_units=1)(1, nodes, {"h": 100}, generator(0))  # what it proposes would do
    with pytest.raises(RuleError, match=r"25 too few .*; add clients and groups, raise the clients' budgets"):
        Disjoint(groups=3, min_units=1)(1, nodes[:3], {"h": 100}, generator(0))


def test_a_client_whose_memory_is_too_small_for_min_units_is_named() -> None:
    with pytest.raises(RuleError, match=r"min_units=16 units of every axis, but the memory of node 1 holds 9 of axis"):
        Disjoint(groups=2)(1, [Node(0), Node(1, 1.0, 0.0900001)], {"h": 100}, generator(0))

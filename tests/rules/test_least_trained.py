"""Hetero-AsyncDrop: counts stay level, what was left behind comes first, and goes to the fastest."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ist_fed.coverage import count_trained, untrained
from ist_fed.rules import LeastTrained, Node, Plan, plan_round

SIZES = {"a": 60, "b": 45}


def after(plan: Plan, trained: dict[str, Tensor], silent: frozenset[int] = frozenset()) -> dict[str, Tensor]:
    """The counts once everybody but the silent has replied."""
    counts = {axis: held.clone() for axis, held in trained.items()}
    for units, cohort in zip(plan.subnets, plan.cohorts, strict=True):
        if not silent.issuperset(cohort):
            count_trained(counts, units)
    return counts


@settings(max_examples=25)
@given(
    st.floats(0.1, 1), st.lists(st.floats(0.3, 3), min_size=1, max_size=7), st.integers(0, 4), st.integers(0, 1 << 32)
)
def test_as_long_as_all_reply_counts_differ_by_one_at_most(
    share: float, capacities: list[float], groups: int, seed: int
) -> None:
    rule, trained = LeastTrained(share=share, groups=groups, min_units=2), untrained(SIZES)
    nodes = [Node(i, capacity) for i, capacity in enumerate(capacities)]
    for round in range(1, 8):
        trained = after(plan_round(rule, round, nodes, SIZES, seed, trained), trained)
        if share < 1:  # subnets that hold everything are one cohort, and count once
            assert all(int(counts.max() - counts.min()) <= 1 for counts in trained.values())


def test_what_did_not_come_back_goes_to_the_fastest() -> None:
    rule, nodes = LeastTrained(share=0.3, min_units=2), [Node(0, 1.0), Node(1, 1.0), Node(2, 1.2), Node(3, 1.0)]
    plan = plan_round(rule, 1, nodes, SIZES, 0, untrained(SIZES))
    assert all(len(torch.cat([units[axis] for units in plan.subnets]).unique()) == SIZES[axis] for axis in SIZES)
    trained = after(plan, untrained(SIZES), silent=frozenset({3}))
    fastest = plan_round(rule, 2, nodes, SIZES, 0, trained)[2]
    for axis, counts in trained.items():
        lost = set(torch.nonzero(counts == 0).flatten().tolist())
        assert lost
        assert lost <= set(plan[3][axis].tolist())
        assert lost <= set(fastest[axis].tolist())


def test_the_fastest_choose_first() -> None:
    trained = {"a": torch.arange(60), "b": torch.arange(45).flip(0)}
    nodes = [Node(0, 1.0), Node(1, 4.0), Node(2, 2.0)]
    plan = plan_round(LeastTrained(share=0.4, min_units=2), 9, nodes, SIZES, 0, trained)
    assert plan[1]["a"].tolist() == list(range(24))
    assert plan[1]["b"].tolist() == list(range(27, 45))
    assert plan.cohorts == ((1,), (2,), (0,))


def test_equals_are_drawn_evenly() -> None:
    held = torch.zeros(20)
    for seed in range(800):
        plan = plan_round(LeastTrained(share=0.25, min_units=2), 1, [Node(0)], {"a": 20}, seed, untrained({"a": 20}))
        held[plan[0]["a"]] += 1
    assert float((held / 800 - 0.25).abs().max()) < 0.07


def test_counts_are_an_argument_and_are_not_changed() -> None:
    rule, trained = LeastTrained(share=0.5, min_units=2), {"a": torch.arange(60), "b": torch.arange(45)}
    plan_round(rule, 1, [Node(i) for i in range(4)], SIZES, 0, trained)
    assert trained["a"].tolist() == list(range(60))
    one, other = (plan_round(rule, 1, [Node(0)], SIZES, 0, counts) for counts in (None, untrained(SIZES)))
    assert torch.equal(one[0]["a"], other[0]["a"])  # before the first round

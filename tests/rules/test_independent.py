"""Federated Dropout: draws of one round do not depend on each other, and each is even."""

import numpy as np
import pytest

from ist_fed.rules import Independent, Node
from ist_fed.seeds import generator


def test_a_unit_falls_to_each_client_independently_of_the_others() -> None:
    size, draws = 12, 1500
    held = np.zeros((draws, 2, size), dtype=bool)
    for seed in range(draws):
        plan = Independent(share=0.25, min_units=1)(1, [Node(0), Node(1)], {"a": size}, generator(seed))
        for client in (0, 1):
            held[seed, client, plan[client]["a"]] = True
    assert held.sum(axis=2).min() == held.sum(axis=2).max() == 3
    assert held.mean(axis=0) == pytest.approx(0.25, abs=0.05)
    both = (held[:, 0] & held[:, 1]).mean(axis=0)
    assert both == pytest.approx(0.25**2, abs=0.03)


def test_axes_are_drawn_independently() -> None:
    met, draws = np.zeros((8, 8)), 1500
    for seed in range(draws):
        units = Independent(share=0.5, min_units=1)(1, [Node(0)], {"a": 8, "b": 8}, generator(seed))[0]
        met[np.ix_(units["a"], units["b"])] += 1
    assert met / draws == pytest.approx(0.25, abs=0.06)


def test_shares_follow_capacities_and_limits() -> None:
    nodes = [Node(0, 2.0), Node(1, 1.0), Node(2, 2.0, 0.125), Node(3, 0.1)]
    plan = Independent(share=0.5)(1, nodes, {"a": 200, "b": 400}, generator(0))
    widths = {node: (len(units["a"]), len(units["b"])) for node, units in plan.items()}
    assert widths == {0: (100, 200), 1: (50, 100), 2: (25, 50), 3: (16, 16)}


def test_a_draw_may_serve_a_cohort() -> None:
    nodes = [Node(i, 1.0 + i % 2) for i in range(9)]
    plan = Independent(share=0.5, groups=3)(1, nodes, {"a": 64}, generator(0))
    assert [len(cohort) for cohort in plan.cohorts] == [3, 3, 3]
    assert [len(units["a"]) for units in plan.subnets] == [32, 16, 16]  # of its weakest client
    assert len(Independent(groups=20)(1, nodes, {"a": 64}, generator(0)).subnets) == 9


def test_everything_is_one_cohort() -> None:
    plan = Independent(share=1.0)(1, [Node(i) for i in range(5)], {"a": 64}, generator(0))
    assert plan.cohorts == (tuple(sorted(plan.cohorts[0], key=plan.cohorts[0].index)),)
    assert len(plan) == 5

"""Plans drawn again are those of training, and what is read off them is true."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from written import SCENARIO, WriteRun

from ist_fed import infer
from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.coverage import Coverage
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.report.curves import lines_of
from ist_fed.report.holdings import blocks_as_units, expected_coverage, held, lack_blocks, plans_of, summarise
from ist_fed.report.network import Network, network_of
from ist_fed.report.units import mosaic
from ist_fed.rules import RULES, Plan
from ist_fed.run import Run
from ist_fed.scenario import Record
from ist_fed.tasks.digits import Digits


def fake(*subnets: dict[str, list[int]]) -> Plan:
    units = tuple({axis: torch.tensor(index) for axis, index in subnet.items()} for subnet in subnets)
    return Plan(subnets=units, cohorts=tuple((number,) for number in range(len(subnets))))


DRAWN_AGAIN = [
    {"name": "disjoint", "groups": 3, "min_units": 2},
    {"name": "full"},
    {"name": "overlapping", "groups": 5, "holders": 2, "min_units": 2},
    {"name": "fjord", "min_units": 2},
]


@pytest.mark.parametrize("rule", DRAWN_AGAIN)
def test_plans_drawn_again_are_those_of_training(rule: dict[str, Any]) -> None:
    scenario = replace(SCENARIO, sizes=tiny.SIZES, rule=rule, seed=1)
    run = tiny.federate(tiny.Tiny(), scenario.make_rule(), clients=5, rounds=4)
    lines = [{"round": r.round, "clients": r.clients, "capacities": r.capacities} for r in run.reports]
    for again, used in zip(plans_of(scenario, lines), run.plans, strict=True):
        assert again.cohorts == used.cohorts  # in this process, a node's id is the client's number
        for one, other in zip(again.subnets, used.subnets, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[axis], other[axis]) for axis in one)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "disjoint": {"groups": 2, "keep": 2},
    "balanced": {"groups": 2},
    "private": {"groups": 2},
    "overlapping": {"groups": 4, "holders": 2, "min_units": 8},
    "least_trained": {"share": 0.35, "min_units": 4},
    "blocks": {"groups": 2},
}
BLOCKS = {"mid1": 3, "mid2": 4, "mid3": 2, "mid4": 5, "block1": 1, "block2": 1, "block4": 1}

DEALT = [name for name in RULES if name != "lease"]  # what is lent has no rounds to be drawn again


@pytest.mark.parametrize("rule", [{"name": name, **ARGUMENTS.get(name, {})} for name in DEALT])
def test_a_trained_runs_units_are_drawn_again_to_the_last(tmp_path: Path, rule: dict[str, Any]) -> None:
    """Also of rules that keep draws or count: what the plans cover is what training counted."""
    by_blocks = rule["name"] == "blocks"
    sizes, options = (BLOCKS, {"model": "resnet"}) if by_blocks else ({"hidden1": 32, "hidden2": 48}, {})
    scenario = replace(SCENARIO, sizes=sizes, rule=rule, clients=5, local_steps=1, rounds=5, device="cpu")
    scenario = replace(scenario, options=options)
    run = Run.create(tmp_path / "run", replace(scenario, record=Record(tensorboard=False, evaluate_every=5)))
    simulate(run)
    lines = lines_of(run)
    build = Digits(**options).build
    coverage = Coverage(arrays_of(build_on_meta(build, sizes)), infer(build, sizes), sizes)
    for line, plan in zip(lines, plans_of(scenario, lines), strict=True):
        for units in plan.subnets:
            coverage.mark(units)
        assert coverage.fraction() == line["coverage"]
    assert tiny.same(coverage.state(), run.restore().coverage)


def test_what_a_client_did_not_bring_back_is_not_counted_when_plans_are_drawn_again() -> None:
    scenario = replace(SCENARIO, sizes={"h": 40}, rule={"name": "least_trained", "share": 0.5, "min_units": 2})
    line = {"clients": [0, 1], "capacities": [1.0, 2.0], "refused": [{"client": 0, "reason": ""}]}
    first, second = plans_of(scenario, [{"round": 1, **line}, {"round": 2, **line}])
    assert second[1]["h"].tolist() == [unit for unit in range(40) if unit not in first[1]["h"].tolist()]
    line["refused"] = []
    counted = plans_of(scenario, [{"round": 1, **line}, {"round": 2, **line}])[1]
    left = set(range(40)) - set(first[0]["h"].tolist()) - set(first[1]["h"].tolist())
    assert left <= set(counted[1]["h"].tolist())
    assert set(first[0]["h"].tolist()) - set(counted[1]["h"].tolist())


def test_plans_are_drawn_again_with_what_clients_could_hold() -> None:
    scenario = replace(SCENARIO, sizes={"h": 64}, rule={"name": "disjoint", "groups": 2, "min_units": 2})
    (plan,) = plans_of(scenario, [{"round": 1, "clients": [0, 1], "capacities": [1.0, 1.0], "limits": [0.25, 1.0]}])
    assert {client: len(units["h"]) for client, units in plan.items()} == {0: 16, 1: 48}


def test_an_axis_left_out_of_a_subnet_is_held_whole() -> None:
    assert held(fake({"a": [1]}, {}), "a", 3).tolist() == [[False, True, False], [True, True, True]]


def test_summary_of_disjoint_overlapping_and_whole_subnets() -> None:
    sizes = {"a": 4, "b": 4}
    halves = fake({"a": [0, 1], "b": [2, 3]}, {"a": [2, 3], "b": [0, 1]})
    others = fake({"a": [0, 2], "b": [2, 3]}, {"a": [1, 3], "b": [0, 1]})
    summary = summarise([halves, halves], sizes, None)
    assert (summary.disjoint, summary.redrawn, summary.whole, summary.seen) == (True, False, False, 0.5)
    summary = summarise([halves, others], sizes, None)
    assert (summary.disjoint, summary.redrawn, summary.seen) == (True, True, 5 / 8)
    nested = fake({}, {"a": [0], "b": [0]})
    summary = summarise([nested], sizes, None)
    assert (summary.disjoint, summary.whole, summary.always_whole) == (False, True, False)
    assert summary.units == (0.25, 1.0)
    assert summarise([fake({})], sizes, None).always_whole


def test_expected_coverage_is_the_mean_of_measured_coverage(write_run: WriteRun) -> None:
    network = network_of(SCENARIO)
    measured, expected = [], []
    for seed in range(30):
        run = write_run(f"seed{seed}", seed=seed)
        lines = lines_of(run)
        measured.append([line["coverage"] for line in lines])
        expected.append(expected_coverage(run.scenario, lines, plans_of(run.scenario, lines), network))
    assert expected[0] == pytest.approx(expected[1])  # of equal groups it does not depend on the draw
    share = {key: count / sum(network.coordinates.values()) for key, count in network.coordinates.items()}
    pairs = share["hidden2", "hidden1"]
    assert expected[0] == pytest.approx([1 - pairs * (1 - 1 / 4) ** r for r in range(1, 7)])
    assert np.mean(measured, axis=0) == pytest.approx(np.array(expected[0]), abs=0.004)


def test_expected_coverage_counts_what_was_merged_only(write_run: WriteRun) -> None:
    run = write_run(rounds=1)
    (plan,) = plans_of(run.scenario, lines_of(run))
    refused = [{"client": client, "reason": ""} for client in plan.cohorts[2]]
    (line,) = lines_of(run)
    network = network_of(run.scenario)
    (value,) = expected_coverage(run.scenario, [{**line, "refused": refused}], [plan], network)
    build = Digits().build
    coverage = Coverage(arrays_of(build_on_meta(build, SCENARIO.sizes)), infer(build, SCENARIO.sizes), SCENARIO.sizes)
    for number in (0, 1, 3):
        coverage.mark(plan.subnets[number])
    assert value == pytest.approx(coverage.fraction())
    one_of_two = [{"client": plan.cohorts[2][0], "reason": ""}]
    (value,) = expected_coverage(run.scenario, [{**line, "refused": one_of_two}], [plan], network)
    assert value == pytest.approx(line["coverage"])


def test_while_a_draw_is_kept_no_more_is_expected_of_it(write_run: WriteRun) -> None:
    """Two draws of three rounds cover what two rounds do that are dealt anew."""
    network = network_of(SCENARIO)
    anew, kept = (write_run(f"keep{keep}", rule={**SCENARIO.rule, "keep": keep}) for keep in (1, 3))
    once, twice = expected_coverage(anew.scenario, lines_of(anew), plans_of(anew.scenario, lines_of(anew)), network)[:2]
    lines, plans = lines_of(kept), plans_of(kept.scenario, lines_of(kept))
    assert expected_coverage(kept.scenario, lines, plans, network) == pytest.approx([once] * 3 + [twice] * 3)
    # What one client did not bring back, the next one does.
    lines[0]["refused"] = [{"client": client, "reason": ""} for client in plans[0].cohorts[1]]
    less, *others = expected_coverage(kept.scenario, lines, plans, network)
    assert less < once
    assert others == pytest.approx([once] * 2 + [twice] * 3)


def test_nothing_is_expected_of_other_rules_nor_of_shares_that_move_while_a_draw_is_kept(write_run: WriteRun) -> None:
    def expected(folder: str, capacity: float, **rule: Any) -> list[float] | None:
        run = write_run(folder, rule=rule)
        lines = [{**line, "capacities": [capacity, *[1.0] * 7]} for line in lines_of(run)]
        return expected_coverage(run.scenario, lines, plans_of(run.scenario, lines), network_of(run.scenario))

    assert expected("full", 1.0, name="full") is None
    assert expected("kept", 2.0, name="disjoint", groups=4, keep=2) is None
    assert expected("anew", 2.0, name="disjoint", groups=4) is not None


def test_a_subnets_parameters_are_those_of_the_narrow_network() -> None:
    network = Network(Digits(), SCENARIO.sizes)
    narrow = Digits().build(hidden1=16, hidden2=24)
    assert network.parameters({"hidden1": 16, "hidden2": 24}) == sum(p.numel() for p in narrow.parameters())
    assert network.bytes == sum(array.nbytes for array in arrays_of(Digits().build(**SCENARIO.sizes)).values())


def test_a_tile_has_the_colours_of_its_holders() -> None:
    plan = fake({"a": [0, 1]}, {"a": [1, 2]}, {"a": [1]})
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    image = mosaic([plan], "a", 4, np.arange(4), colours, np.zeros(3))
    assert image.sum(axis=1).tolist() == [[12, 0, 0], [4, 4, 4], [0, 12, 0], [0, 0, 0]]


def test_blocks_are_shown_as_the_units_of_one_axis_and_what_all_hold_is_not() -> None:
    sizes = {"block1": 1, "wide": 6, "block2": 1, "thin": 4, "block3": 1}
    none, some = torch.arange(0), torch.tensor([1, 2])
    plan = Plan(
        subnets=({"block1": none, "thin": some}, {"block2": none, "block3": torch.arange(1), "wide": torch.arange(6)}),
        cohorts=((0,), (1, 2)),
    )
    assert lack_blocks([plan], sizes)
    (shown,), seen = blocks_as_units([plan], sizes)
    assert seen == {"thin": 4, "blocks": 3}
    assert shown.cohorts == plan.cohorts
    units = [{axis: held.tolist() for axis, held in subnet.items()} for subnet in shown.subnets]
    assert units == [{"thin": [1, 2], "blocks": [1, 2]}, {"blocks": [0, 2]}]
    assert not lack_blocks([Plan(subnets=({"block1": torch.arange(1)},), cohorts=((0,),))], sizes)

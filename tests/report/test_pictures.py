"""Pictures can be drawn of anything that a run can be."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from written import SCENARIO, WriteRun

import ist_fed.report
from ist_fed.report.canvas import DARK, LIGHT, Picture, Theme, draw, png
from ist_fed.report.curves import lines_of
from ist_fed.report.figures import PHASES, phases, pictures
from ist_fed.report.network import network_of
from ist_fed.report.one_round import one_round_picture
from ist_fed.report.units import units_picture
from ist_fed.rules import Plan

Sizes = dict[str, int]


def assert_drawn(picture: Picture, theme: Theme = LIGHT) -> None:
    figure = picture.draw(theme)
    figure.set_dpi(40)
    assert png(figure).startswith(b"\x89PNG")
    assert picture.alt


def plan(sizes: Sizes, subnets: int, share: float, seed: int = 0) -> Plan:
    """Independent random subnets: they overlap, and leave units to nobody."""
    rng = np.random.default_rng(seed)
    draw = {axis: max(1, int(size * share)) for axis, size in sizes.items()}
    units = [
        {axis: torch.from_numpy(np.sort(rng.permutation(sizes[axis])[:n])) for axis, n in draw.items()}
        for _ in range(subnets)
    ]
    return Plan(subnets=tuple(units), cohorts=tuple((number,) for number in range(subnets)))


@pytest.mark.parametrize(
    ("sizes", "subnets", "share"),
    [
        ({"a": 1}, 1, 1.0),
        ({"a": 3, "b": 2000}, 1, 1.0),
        ({"a": 300}, 8, 0.1),
        ({f"axis_with_a_long_name_{number}": 30 for number in range(6)}, 9, 0.5),
        ({"a": 4000, "b": 16}, 40, 0.02),
    ],
)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_any_plan_can_be_drawn(sizes: Sizes, subnets: int, share: float, theme: Theme) -> None:
    plans = [plan(sizes, subnets, share, seed) for seed in range(3)]
    assert_drawn(one_round_picture(1, plans[0], sizes, None), theme)
    assert_drawn(units_picture([1, 2, 3], plans, sizes), theme)


def test_a_network_tells_the_share_of_the_weights() -> None:
    assert_drawn(one_round_picture(1, plan(SCENARIO.sizes, 2, 0.5), SCENARIO.sizes, network_of(SCENARIO)))


EXTREMES: dict[str, dict[int, dict[str, Any]]] = {
    "as usual": {},
    "nothing evaluated": {0: {"accuracy": ..., "loss": ...}},
    "nothing finite": {0: {"accuracy": float("nan"), "loss": float("inf"), "train_loss": float("nan")}},
    "losses below zero": {0: {"loss": -3.0, "train_loss": -2.5}},
    "no bytes": {0: {"bytes_down": 0, "bytes_up": 0}},
    "no seconds": {0: {"seconds": {}}},
    "slow start": {1: {"seconds": {"train": 90.0, "wait": 95.0}}},
    "perfect": {0: {"accuracy": 1.0, "coverage": 1.0}},
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("rounds", [1, 6])
def test_any_metrics_can_be_drawn(write_run: WriteRun, extreme: str, rounds: int) -> None:
    lines = lines_of(write_run(rounds=rounds, lines=EXTREMES[extreme]))
    for picture in pictures(lines, None, None):
        assert_drawn(picture)


def test_hostile_names_are_drawn_as_they_stand(write_run: WriteRun) -> None:
    metric, sizes = "_$\\frac{</svg>😀", {"$_{": 64}
    lines = lines_of(write_run(rounds=1, lines={0: {"metric": metric, metric: 0.5}}))
    assert_drawn(pictures(lines, None, None)[0])
    assert_drawn(one_round_picture(1, plan(sizes, 2, 0.5), sizes, None))
    assert_drawn(units_picture([1], [plan(sizes, 2, 0.5)], sizes))


def test_the_same_picture_is_the_same_bytes_and_dark_is_another() -> None:
    picture = units_picture([1], [plan({"a": 20}, 2, 0.5)], {"a": 20})
    drawn = draw(picture)
    assert drawn == draw(picture)
    assert drawn.light != drawn.dark


def test_expected_coverage_and_the_whole_networks_bytes_are_drawn(write_run: WriteRun) -> None:
    lines = lines_of(write_run())
    for picture in pictures(lines, [0.5] * len(lines), 10_000_000):
        assert_drawn(picture)


def test_phases_add_up_to_the_wall_clock() -> None:
    seconds = {"assign": 1.0, "extract": 2.0, "wait": 10.0, "train": 4.0, "merge": 3.0, "evaluate": 5.0, "record": 6.0}
    one_by_one = dict(zip(PHASES, phases({"seconds": seconds}), strict=True))
    assert one_by_one["other"] == 3.0
    assert sum(one_by_one.values()) == 1 + 2 + 10 + 5 + 6
    together = dict(zip(PHASES, phases({"seconds": {**seconds, "train": 70.0}}), strict=True))
    assert (together["train"], together["other"]) == (7.0, 0.0)
    assert sum(together.values()) == 1 + 2 + 10 + 5 + 6


def test_no_global_state_is_touched(write_run: WriteRun) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    for picture in pictures(lines_of(write_run(rounds=2)), None, None):
        assert_drawn(picture)
    assert dict(matplotlib.rcParams) == before
    for path in Path(ist_fed.report.__file__).parent.glob("*.py"):
        assert not re.search(r"pyplot|rcParams|matplotlib\.use", path.read_text(encoding="utf-8"))

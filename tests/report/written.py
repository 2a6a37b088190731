"""Runs on disk, written line by line without training."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ist_fed import infer
from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.coverage import Coverage
from ist_fed.rules import Node, plan_round
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.tasks.digits import Digits

SCENARIO = Scenario(
    name="x",
    task="digits",
    sizes={"hidden1": 64, "hidden2": 96},
    rule={"name": "disjoint", "groups": 4},
    clients=8,
    rounds=6,
    local_steps=10,
    seed=5,
)
SECONDS = {"assign": 0.01, "extract": 0.02, "wait": 0.7, "train": 0.5, "merge": 0.1, "evaluate": 0.03, "record": 0.04}
WriteRun = Callable[..., Run]
"""`write`, its folder given by the fixture `write_run`."""


def make_line(scenario: Scenario, round: int, marks: Coverage, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A round's line as training would write it: its coverage is that of the round's own plan."""
    clients = list(range(scenario.clients))
    plan = plan_round(scenario.make_rule(), round, list(map(Node, clients)), scenario.sizes, scenario.seed)
    for units in plan.subnets:
        marks.mark(units)
    line = {
        "round": round,
        "metric": "accuracy",
        "accuracy": 1 - 0.5**round,
        "loss": 1 / round,
        "train_loss": 2 / round,
        "lr": 0.1,
        "bytes_down": 8000 + round,
        "bytes_up": 8000,
        "clients": clients,
        "capacities": [1.0] * len(clients),
        "merged": len(clients),
        "refused": [],
        "coverage": marks.fraction(),
        "seconds": dict(SECONDS),
    }
    return {key: value for key, value in {**line, **changes}.items() if value is not ...}


def write(
    folder: Path,
    name: str = "x",
    rounds: int | None = None,
    lines: Mapping[int, Mapping[str, Any]] | None = None,
    model: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Run:
    """A run of so many rounds.

    Args:
        folder: in which the run's own is made.
        name: of the run's own.
        rounds: finished; None means all.
        lines: round → what is different in its line; of 0, in every line. `...` leaves a key out.
        model: of `model.json`.
        changes: of the scenario.
    """
    scenario = replace(SCENARIO, **changes)
    run = Run.create(folder / name, scenario)
    build = (Digits(**scenario.options) if scenario.task == "digits" else Digits()).build
    coverage = Coverage(arrays_of(build_on_meta(build, scenario.sizes)), infer(build, scenario.sizes), scenario.sizes)
    for round in range(1, (scenario.rounds if rounds is None else rounds) + 1):
        different = {**(lines or {}).get(0, {}), **(lines or {}).get(round, {})}
        run.record(make_line(scenario, round, coverage, different))
    if model is not None:
        run.save_model({}, model)
    return run

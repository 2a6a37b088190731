"""Runs that tests hold beside each other: given subnets or by messages, never stopped or taken up again."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from ist_fed import rules, wire
from ist_fed.batched import Way
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid, one_by_one
from ist_fed.errors import Interrupted
from ist_fed.round import RoundReport
from ist_fed.run import Run
from ist_fed.scenario import Record, Scenario
from ist_fed.tasks import Task
from ist_fed.worker import Worker

DIGITS = Scenario(
    name="x",
    task="digits",
    sizes={"hidden1": 32, "hidden2": 32},
    rule={"name": "disjoint", "groups": 2},
    clients=2,
    rounds=3,
    local_steps=2,
    device="cpu",
    record=Record(checkpoint_every=1, tensorboard=False),
)


def local_grid(task: Task, clients: int, only: Way | None = "one by one", *, memory: int | None = None) -> LocalGrid:
    """Honest clients that are given their subnets."""

    def worker(client: int) -> Worker:
        return Worker(task, task.client_data(client, clients), client=client)

    return LocalGrid(clients, worker, task, torch.device("cpu"), only=only, memory=memory)


def train_on(
    grid: InProcessGrid, task: Task, rule: rules.Rule, rounds: int = 2, **options: object
) -> list[RoundReport]:
    """The reports of rounds on a grid; the rest is as in `tiny.federate`."""
    reports = list[RoundReport]()
    made = tiny.strategy(task, rule, on_round=reports.append, **options)
    made.start(grid, wire.to_record(tiny.initial(task, made.sizes)), rounds)
    return reports


def whole(folder: Path, scenario: Scenario) -> Run:
    """A run from its first round to its last."""
    run = Run.create(folder, scenario)
    one_by_one(run)
    return run


def resumed(folder: Path, scenario: Scenario, stop: int = 1) -> Run:
    """The same, but stopped after round `stop` and opened again."""
    run = Run.create(folder, scenario)
    with pytest.raises(Interrupted):
        one_by_one(run, on_line=lambda line: run.ask_to_stop(line["round"] == stop))
    run = Run.open(folder)
    one_by_one(run, resume=True)
    return run


def model_of(run: Run) -> dict[str, Tensor]:
    """The final network."""
    return load_file(run.folder / "model.safetensors")

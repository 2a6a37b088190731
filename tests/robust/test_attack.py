"""Whole runs in which one of five clients of each cohort lies, over messages and without."""

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid
from ist_fed.federation import federate
from ist_fed.rules import Node, plan_round
from ist_fed.run import Run
from ist_fed.scenario import Scenario, load_scenario
from ist_fed.tasks import load_task
from ist_fed.train import Training
from ist_fed.worker import Worker

# One draw for the whole run, so that those who meet in a cohort stay together while they move from block to block.
SMALL = "clients=20 rounds=5 local_steps=10 sizes.hidden1=96 sizes.hidden2=96 rule.groups=4 rule.keep=5"
QUIET = "training.schedule=constant record.evaluate_every=5 record.tensorboard=false device=cpu"


class Liar(Worker):
    """Trains, and then sends a hundred times the opposite of what it learnt."""

    def local_steps(self, model: nn.Module, training: Training, **how: Any) -> tuple[float, float]:
        before = [array.detach().clone() for array in model.parameters()]
        said = super().local_steps(model, training, **how)
        with torch.no_grad():
            for first, array in zip(before, model.parameters(), strict=True):
                array.copy_(first - 100 * (array - first))
        return said


def scenario(*changes: str) -> Scenario:
    return load_scenario("scenarios/digits.toml", [*SMALL.split(), *QUIET.split(), *changes])


def cohorts() -> tuple[tuple[int, ...], ...]:
    """Who meets whom, all run long."""
    made = scenario()
    return plan_round(made.make_rule(), 1, [Node(id) for id in range(20)], made.sizes, made.seed).cohorts


@cache
def liars() -> frozenset[int]:
    """The first client of each cohort of five."""
    assert [len(cohort) for cohort in cohorts()] == [5] * 4
    return frozenset(cohort[0] for cohort in cohorts())


def lines(
    folder: Path, *changes: str, lying: Collection[int] = (), direct: bool = True, resume: bool = False
) -> list[dict[str, Any]]:
    """A run's lines of metrics."""
    made = scenario(*changes)
    task, device = load_task(made.task, made.options), torch.device("cpu")

    def worker(client: int) -> Worker:
        kind = Liar if client in lying else Worker
        return kind(task, task.client_data(client, made.clients), client=client, device=device)

    grid = LocalGrid(20, worker, task, device, only="one by one") if direct else InProcessGrid(20, worker)
    run = Run.open(folder, made) if resume else Run.create(folder, made)
    federate(grid, run, resume=resume)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_fifth_of_liars_ruins_the_mean_and_not_the_median(tmp_path: Path) -> None:
    honest = lines(tmp_path / "honest")[-1]["accuracy"]
    mean = lines(tmp_path / "mean", lying=liars())[-1]["accuracy"]
    median = lines(tmp_path / "median", "robust.merge=median", lying=liars())[-1]["accuracy"]
    trimmed = lines(tmp_path / "trimmed", "robust.merge=trimmed", lying=liars())[-1]["accuracy"]
    assert honest > 0.9
    assert mean < 0.5
    assert min(median, trimmed) > honest - 0.02


def test_a_bound_on_norms_refuses_liars_by_name(tmp_path: Path) -> None:
    made = lines(tmp_path / "bound", "robust.norm_bound=3.0", lying=liars())
    for line in made:
        assert {refused["client"] for refused in line["refused"]} == liars()
        assert all("times as long as is usual" in refused["reason"] for refused in line["refused"])
        assert line["merged"] == 16
        assert line["bytes_up"] * 20 == line["bytes_down"] * 16
    assert made[-1]["accuracy"] > 0.9


def test_a_cohort_of_liars_is_found_out_by_leaving_its_block_out(tmp_path: Path) -> None:
    cohort = set(next(cohort for cohort in cohorts() if 0 in cohort))
    for line in lines(tmp_path / "loss", "robust.loss_margin=0.1", "rounds=2", lying=cohort):
        assert {refused["client"] for refused in line["refused"]} == cohort
        assert all("on the server's examples" in refused["reason"] for refused in line["refused"])
    assert line["accuracy"] > 0.8


@pytest.mark.parametrize("change", ["robust.merge=median", "robust.norm_bound=3.0"])
def test_messages_and_assignments_give_the_same_bits(tmp_path: Path, change: str) -> None:
    runs = [lines(tmp_path / str(direct), change, "rounds=2", lying=liars(), direct=direct) for direct in (True, False)]
    models = [(tmp_path / str(direct) / "model.safetensors").read_bytes() for direct in (True, False)]
    assert models[0] == models[1]
    for one, other in zip(*runs, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    keys = ["robust.norm_bound=3.0", "record.checkpoint_every=2"]
    whole = lines(tmp_path / "whole", *keys, "rounds=3", lying=liars())
    lines(tmp_path / "parts", *keys, "rounds=2", lying=liars())
    parts = lines(tmp_path / "parts", *keys, "rounds=3", lying=liars(), resume=True)
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "parts" / "model.safetensors"
    ).read_bytes()
    assert [line["update_length"] for line in whole] == [line["update_length"] for line in parts]

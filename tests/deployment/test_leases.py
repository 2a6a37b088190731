"""Leases over gRPC and TLS, with real processes, one of which is killed."""

import signal
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from pathlib import Path

import pytest
import torch
from federation import Local
from safetensors.torch import load_file

from ist_fed.arrays import arrays_of
from ist_fed.engines.deployment import deploy
from ist_fed.federation import initial_arrays
from ist_fed.run import Run
from ist_fed.scenario import Record, Scenario
from ist_fed.tasks import load_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # busy machines are slow

SCENARIO = Scenario(
    name="leases",
    task="digits",
    sizes={"hidden1": 64, "hidden2": 64},
    rule={"name": "lease", "groups": 3, "min_units": 4},
    clients=3,
    rounds=5,
    local_steps=3,
    device="cpu",
    record=Record(checkpoint_every=1, tensorboard=False),
)


def subnet() -> dict[str, torch.Tensor]:
    """As one client borrows it: a third of what is lent, three quarters of every axis."""
    task = load_task(SCENARIO.task, SCENARIO.options)
    return arrays_of(task.build(hidden1=16, hidden2=16))


def test_clients_borrow_return_and_borrow_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", SCENARIO)
    deploy(run)
    lines = run.metrics()
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    assert not any(line["refused"] for line in lines)
    assert all(line["merged"] >= 3 for line in lines)  # more where several come back at once
    (size,) = {line["bytes_up"] / line["merged"] for line in lines}
    assert size == sum(array.nbytes for array in subnet().values())
    assert {client for line in lines for client in line["clients"]} == {0, 1, 2}
    assert all(isfinite(line["train_loss"]) for line in lines)
    covered = [line["coverage"] for line in lines]
    assert all(before <= after for before, after in pairwise(covered))
    assert covered[-1] > 0.25  # of one lease's weights; each of three clients holds a quarter of the units at a time
    before = initial_arrays(SCENARIO, load_task(SCENARIO.task, SCENARIO.options))
    after = load_file(run.folder / "model.safetensors")
    moved = (before["1.weight"] != after["1.weight"]).any(dim=1)
    assert moved.float().mean() > 0.5


def test_a_client_that_is_killed_loses_its_lease_and_its_units_are_lent_on(tmp_path: Path) -> None:
    local = Local(tmp_path, clients=3)
    try:
        path = tmp_path / "leases.toml"
        anew = {**SCENARIO.rule, "keep": 1}  # so that what is covered grows as long as anything is lent
        path.write_text(replace(SCENARIO, rule=anew, rounds=15, local_steps=1000).to_toml())
        server = local.server(scenario=path)
        clients = [local.client(number) for number in range(3)]
        local.wait(lambda: local.lines(), 600)
        clients[2].send_signal(signal.SIGKILL)
        local.wait(lambda: server.poll() is not None, 600)
        assert server.returncode == 0, local.log("server.log")[-3000:]
        lines = local.lines()
        assert [line["round"] for line in lines] == list(range(1, 16))
        (lost,) = [refused for line in lines for refused in line["refused"]]
        assert lost["client"] == 2
        assert "nothing was heard of it" in lost["reason"]
        assert all(line["merged"] >= 2 for line in lines)
        after = lines[1 + next(at for at, line in enumerate(lines) if line["refused"]) :]
        assert after
        assert {client for line in after for client in line["clients"]} == {0, 1}
        assert lines[-1]["coverage"] > 0.9  # the units that it held are trained by others
    finally:
        local.close()

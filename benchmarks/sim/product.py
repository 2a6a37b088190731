"""A round in the product, by one of its engines.

python -m sim.product '{"only": "factored", "rule": "ist", "clients": 100}'
"""

import logging
import time
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.engines.local import LocalGrid
from ist_fed.models import mlp
from ist_fed.round import RoundReport
from ist_fed.tasks import Task
from ist_fed.tasks.task import Batch
from ist_fed.train import Training
from ist_fed.worker import Worker
from sim.workload import (
    BATCH,
    GROUPS,
    HIDDEN,
    INPUTS,
    LR,
    OUTPUTS,
    SAMPLES,
    SEED,
    STEPS,
    data,
    difference,
    enough,
    order,
    peak_mb,
    report,
    start,
    synchronise,
)

DEFAULTS: dict[str, Any] = {
    "rule": "fedavg",
    "clients": 100,
    "only": None,
    "memory": None,
    "device": "cpu",
    "threads": 1,
    "samples": SAMPLES,
    "inputs": INPUTS,
    "outputs": OUTPUTS,
    "hidden": HIDDEN,
    "groups": GROUPS,
    "min_units": 1,
    "norm": "none",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "steps": STEPS,
    "batch": BATCH,
    "check": False,
    "warm_up": 2,
}
"""What an order may say, and what is meant when it does not."""


class Noise(Task):
    """Noise of some size for every client, and a perceptron that is to learn it."""

    def __init__(self, asked: dict[str, Any]) -> None:
        sizes = {key: asked[key] for key in ("samples", "inputs", "outputs")}
        self._x, self._y = data(asked["clients"], asked["device"], **sizes)
        self._build = mlp(asked["inputs"], asked["outputs"], asked["norm"])

    def build(self, **sizes: int) -> nn.Module:
        return self._build(**sizes)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        return TensorDataset(self._x[client], self._y[client])

    def test_data(self) -> Dataset[Batch]:
        return TensorDataset(self._x[0], self._y[0])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]).argmax(1) == batch[1]).float().mean()


class Enough(Exception):
    """The rounds that were to be timed have been."""


class Watch:
    """Notes when rounds end, and ends the run when there are enough."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked, self._marks = asked, list[float]()
        self.off = float("nan")

    def __call__(self, round: RoundReport) -> None:
        if round.round == 1 and self._asked["check"]:
            self.off = difference(round.arrays, self._asked["clients"], self._asked["rule"])
        synchronise(self._asked["device"])
        self._marks.append(time.perf_counter())
        if enough(self.seconds):
            raise Enough

    @property
    def seconds(self) -> list[float]:
        """Of each round that counts; evaluation and recording are not part of it."""
        return [after - before for before, after in pairwise(self._marks[self._asked["warm_up"] - 1 :])]


class Said(logging.Handler):
    """What the engine says it picked."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def strategy(asked: dict[str, Any], task: Noise, watch: Watch) -> IndependentSubnetTraining:
    disjoint = rules.Disjoint(groups=asked["groups"], min_units=asked["min_units"])
    return IndependentSubnetTraining(
        build=task.build,
        sizes=sizes(asked),
        rule=rules.Full() if asked["rule"] == "fedavg" else disjoint,
        local_steps=asked["steps"],
        training=Training(
            lr=LR, momentum=asked["momentum"], weight_decay=asked["weight_decay"], batch_size=asked["batch"]
        ),
        seed=SEED,
        on_round=watch,
    )


def sizes(asked: dict[str, Any]) -> dict[str, int]:
    return {"hidden1": asked["hidden"], "hidden2": asked["hidden"]}


def main() -> None:
    asked = DEFAULTS | order()
    torch.set_num_threads(asked["threads"])
    said = Said()
    engine = logging.getLogger("ist_fed.engine")
    engine.setLevel(logging.INFO)
    engine.addHandler(said)
    task, watch, device = Noise(asked), Watch(asked), torch.device(asked["device"])
    clients = asked["clients"]

    def worker(client: int) -> Worker:
        return Worker(task, task.client_data(client, clients), client=client, device=device)

    grid = LocalGrid(clients, worker, task, device, only=asked["only"], memory=asked["memory"])
    torch.manual_seed(0)
    first = start(clients)["weights"] if asked["check"] else arrays_of(task.build(**sizes(asked)))
    try:
        strategy(asked, task, watch).start(grid, wire.to_record(first), 10**9)
    except Enough:
        report(watch.seconds, peak=peak_mb(asked["device"]), difference=watch.off, said=said.lines)


if __name__ == "__main__":
    main()

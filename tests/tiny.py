"""A task that trains in milliseconds, on real torch, and the plain loop that its results are compared with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.engines.inprocess import Handler, InProcessGrid
from ist_fed.models import mlp
from ist_fed.round import RoundReport
from ist_fed.seeds import generator
from ist_fed.tasks import Batch, Task
from ist_fed.train import Training
from ist_fed.worker import Worker

# Flower sets these in the processes it starts; a Message cannot be made without them.
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

INPUTS, CLASSES = 12, 3
SIZES = {"hidden1": 12, "hidden2": 20}
TRAINING = Training(lr=0.1, batch_size=8)


@dataclass(frozen=True, kw_only=True)
class Tiny(Task):
    """Three classes told from 12 numbers by a fixed linear map; each client draws its own examples.

    Args:
        norm: of the MLP.
        dropout: after the first hidden layer.
        examples: of each client.
        poisoned: clients whose data hold a NaN.
        calibrated: whether the server holds calibration data.
    """

    norm: str = "batch"
    dropout: float = 0.0
    examples: int = 30
    poisoned: Sequence[int] = ()
    calibrated: bool = True

    def build(self, **sizes: int) -> nn.Module:
        model = mlp(INPUTS, CLASSES, self.norm)(**sizes)
        return nn.Sequential(*model[:4], nn.Dropout(self.dropout), *model[4:]) if self.dropout else model

    def client_data(self, client: int, clients: int) -> TensorDataset:
        inputs, targets = _draw(self.examples, client)
        if client in self.poisoned:
            inputs[:, 0] = torch.nan
        return TensorDataset(inputs, targets)

    def test_data(self) -> TensorDataset:
        return TensorDataset(*_draw(50, 1000))

    def calibration_data(self) -> TensorDataset | None:
        return TensorDataset(*_draw(40, 1001)) if self.calibrated else None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]).argmax(dim=1) == batch[1]).float().mean()


def _draw(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([7, seed])
    inputs = rng.standard_normal((examples, INPUTS))
    truth = np.random.default_rng(7).standard_normal((INPUTS, CLASSES))
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor((inputs @ truth).argmax(axis=1))


def initial(task: Task, sizes: Mapping[str, int] = SIZES, seed: int = 3) -> dict[str, Tensor]:
    """The wide network's first state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: array.clone() for name, array in arrays_of(task.build(**sizes)).items()}


def plain_steps(
    model: nn.Module,
    data: TensorDataset,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    steps: int,
    rng: np.random.Generator,
) -> list[float]:
    """A training loop as anyone would write it, with nothing of ours in it; returns the losses."""
    inputs, targets = data.tensors
    size = min(batch_size, len(inputs))
    order, at, losses = rng.permutation(len(inputs)), 0, []
    model.train()
    for _ in range(steps):
        if at + size > len(inputs):
            order, at = rng.permutation(len(inputs)), 0
        batch = order[at : at + size]
        at += size
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def plain_sgd(
    model: nn.Module, data: TensorDataset, training: Training, steps: int, rng: np.random.Generator
) -> list[float]:
    """The same with an optimiser that starts afresh."""
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=training.momentum)
    return plain_steps(model, data, optimizer, training.batch_size, steps, rng)


# --- A federation whose clients can be made to misbehave --------------------------------------------------------------


@dataclass
class Client:
    """A worker whose answer to an order passes through a function.

    Args:
        worker: the honest client.
        train: `train(worker, message)`, what it does instead of `worker.train(message)`.
        query: the same for the question who it is.
    """

    worker: Worker
    train_instead: Callable[[Worker, Message], Message] = Worker.train
    query_instead: Callable[[Worker, Message], Message] = Worker.query

    def train(self, message: Message) -> Message:
        return self.train_instead(self.worker, message)

    def query(self, message: Message) -> Message:
        return self.query_instead(self.worker, message)


@dataclass
class Spy:
    """A rule that remembers its plans."""

    rule: rules.Rule
    plans: list[rules.Plan] = field(default_factory=list)

    def __call__(
        self, round: int, nodes: Sequence[rules.Node], sizes: Mapping[str, int], rng: np.random.Generator
    ) -> rules.Plan:
        self.plans.append(self.rule(round, nodes, sizes, rng))
        return self.plans[-1]


@dataclass
class Run:
    """What a test sees of a run."""

    strategy: IndependentSubnetTraining
    plans: list[rules.Plan]
    reports: list[RoundReport]
    before: dict[str, Tensor]

    @property
    def after(self) -> dict[str, Tensor]:
        return self.reports[-1].arrays


def handlers(
    task: Task, clients: int, instead: Mapping[int, Callable[[Worker, Message], Message]] | None = None
) -> Callable[[int], Handler]:
    """Honest workers, but for the clients whose training is done `instead`."""

    def make(client: int) -> Handler:
        worker = Worker(task, task.client_data(client, clients), client=client)
        return Client(worker, (instead or {}).get(client, Worker.train))

    return make


def strategy(
    task: Task,
    rule: rules.Rule,
    *,
    sizes: Mapping[str, int] = SIZES,
    local_steps: int = 5,
    training: Training = TRAINING,
    seed: int = 1,
    **options: object,
) -> IndependentSubnetTraining:
    return IndependentSubnetTraining(
        build=task.build, sizes=sizes, rule=rule, local_steps=local_steps, training=training, seed=seed, **options
    )


def federate(
    task: Task,
    rule: rules.Rule,
    clients: int,
    *,
    rounds: int = 1,
    timeout: float = 3600,
    instead: Mapping[int, Callable[[Worker, Message], Message]] | None = None,
    grid: Callable[[int, Callable[[int], Handler]], Grid] = InProcessGrid,
    **options: object,
) -> Run:
    """Train the tiny task on `clients` clients in this process."""
    spy, reports = Spy(rule), []
    seen = rule if "privacy" in options else spy  # a private run's draws are for nobody's eyes
    made = strategy(task, seen, on_round=reports.append, **options)
    before = initial(task, made.sizes)
    made.start(grid(clients, handlers(task, clients, instead)), wire.to_record(before), rounds, timeout)
    return Run(made, spy.plans, reports, before)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, _bits(a)) == (b.dtype, b.shape, _bits(b)) for a, b in ((one[n], other[n]) for n in one)
    )


def _bits(array: Tensor) -> bytes:
    return array.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""


def stream(seed: int, round: int, client: int) -> np.random.Generator:
    """The stream from which a client draws its order of examples."""
    return generator(seed, round, "batches", client)

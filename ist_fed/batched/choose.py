"""Which way to train the clients of a round, by what it costs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from ist_fed.batched.probe import Use, factorable, probe
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training

Way = Literal["one by one", "stacked", "factored"]

LARGE = 300_000
"""Parameters from which on stacking does not pay on a processor: no client's weights stay in its cache from the forward
pass to the update, as they do one by one."""

UPDATE = 150
"""What it costs to hold a weight for a client for one step, in floating-point operations that the same time allows:
its gradient is written, it and its optimiser's state are read and written, and none of it stays in a cache."""


@dataclass(frozen=True)
class Job:
    """What clients have in common that are trained at once.

    Args:
        sizes: of the subnet.
        batch: examples in a step.
        examples: of a client, at most.
        steps: of a round.
        training: how.
    """

    sizes: tuple[tuple[str, int], ...]
    batch: int
    examples: int
    steps: int
    training: Training


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to train.

    Args:
        way: in words.
        at_once: how many clients at once; 0 is one by one.
        factored: the linear layers whose weights are kept as factors.
        in_data: the one that is written in terms of the examples; empty if none is.
        why: what speaks against another way; empty if only what it costs.
    """

    way: Way
    at_once: int = 0
    factored: frozenset[str] = frozenset()
    in_data: str = ""
    why: str = ""

    def __str__(self) -> str:
        """In words."""
        how = f"{self.way}, up to {self.at_once} at once" if self.at_once else self.way
        return f"{how}: {self.why}" if self.why else how


def pays(layer: nn.Linear, rows: int, steps: int) -> bool:
    """Whether a layer is cheaper as factors.

    They take 2 (steps · rows)² (in + out) operations more, and save steps · in · out updates of weights.

    Args:
        layer: the layer of one client.
        rows: that it is called with in a step, such as the examples of a batch.
        steps: of a round.
    """
    inputs, outputs = layer.in_features, layer.out_features
    return 2 * steps * rows**2 * (inputs + outputs) < UPDATE * inputs * outputs


def pays_in_data(layer: nn.Linear, job: Job) -> bool:
    """Whether the first layer is cheaper in terms of the examples, of which there are no more than inputs.

    What the starting weights make of them, and the mean, take 2 operations for each example and weight, and a step
    2 for each two examples and output; saved are 6 for each example of a batch and weight, and the updates.
    """
    inputs, outputs, seen = layer.in_features, layer.out_features, job.steps * job.batch
    took = 4 * job.examples * outputs * (inputs + seen)
    return job.examples <= inputs and took < (6 * seen + UPDATE * job.steps) * inputs * outputs


def choose(
    model: nn.Module,
    task: Task,
    batch: Batch | None,
    job: Job,
    memory: int,
    only: Way | None = None,
    *,
    factors: bool = True,
) -> Choice:
    """The cheapest way.

    Args:
        model: the network of one client; its buffers are changed.
        task: gives the loss.
        batch: of one client; None if it has no example.
        job: what is to be trained.
        memory: bytes that clients trained at once may take.
        only: the one way allowed; in `factored` whatever can be factored is, whether it pays or not. With state that
            travels nothing can: factors tell how weights moved since the round began, a momentum began before.
        factors: whether anything may be factored.
    """
    if only == "one by one" or batch is None:
        return Choice(way="one by one")
    layers = factorable(model)
    seen = probe(model, task, batch)
    training = job.training
    can = factors and training.optimizer == "sgd" and not training.carried and only != "stacked"
    use = seen if can else Use()
    reader = use.reader if use.reader and pays_in_data(layers[use.reader], job) else ""
    chosen = frozenset(
        name for name, rows in use.rows.items() if name != reader and (only or pays(layers[name], rows, job.steps))
    )
    if not only and not chosen and not reader and not batch[0].is_cuda and _parameters(model) > LARGE:
        return Choice(way="one by one")
    size = _bytes(layers, use, job, chosen, reader)
    kept = sum(parameter.nbytes for parameter in model.parameters())
    kept -= sum(layers[name].weight.nbytes for name in (*chosen, *filter(None, [reader])))
    given = sum(part.nbytes for part in batch[bool(reader) :])  # who has the examples at hand is given targets only
    size += _STATE[job.training.optimizer] * kept + 4 * given + _KEPT * seen.made
    way: Way = "factored" if chosen or reader else "stacked"
    return Choice(way=way, at_once=max(1, memory // size), factored=chosen, in_data=reader)


_KEPT = 2  # what is made of images is kept for the backward pass, whose own is as large again at its peak
_STATE = {"sgd": 4, "adam": 5, "adamw": 5}  # a stacked weight's gradient, optimiser's state and what is made on the way


def _bytes(layers: Mapping[str, nn.Linear], use: Use, job: Job, chosen: Collection[str], reader: str) -> int:
    """What the factors of one client take."""
    size = 0
    for name in chosen:
        layer = layers[name]
        size += 3 * job.steps * use.rows[name] * (layer.in_features + layer.out_features) * layer.weight.itemsize
    if reader:
        layer, tables = layers[reader], 4 if job.training.momentum or job.training.weight_decay else 3
        size += job.examples * (tables * layer.out_features + job.examples) * layer.weight.itemsize
    return size


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

"""Which way to train the clients of a round, by what it costs."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training

Way = Literal["one by one", "stacked", "factored"]

UPDATE = 150
"""What it costs to hold a weight for a client for one step, in floating-point operations that the same time allows:
its gradient is written, it and its optimiser's state are read and written, and none of it stays in a cache."""


@dataclass(frozen=True)
class Job:
    """What clients have in common that are trained at once.

    Args:
        sizes: of the subnet.
        batch: examples in a step.
        steps: of a round.
        training: how.
    """

    sizes: tuple[tuple[str, int], ...]
    batch: int
    steps: int
    training: Training


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to train.

    Args:
        way: in words.
        at_once: how many clients at once; 0 is one by one.
        factored: the linear layers whose weights are kept as factors.
    """

    way: Way
    at_once: int = 0
    factored: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """In words."""
        return f"{self.way}, up to {self.at_once} at once" if self.at_once else self.way


def factorable(model: nn.Module) -> dict[str, nn.Linear]:
    """Linear layers that stand in the network once, with weights of their own."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and name}
    return {
        name: layer for name, layer in found.items() if owners[id(layer.weight)] == 1 and layer.weight.requires_grad
    }


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


def choose(model: nn.Module, task: Task, batch: Batch | None, job: Job, memory: int, only: Way | None = None) -> Choice:
    """The cheapest way.

    Args:
        model: the network of one client; its buffers are changed.
        task: gives the loss.
        batch: of one client; None if it has no example.
        job: what is to be trained.
        memory: bytes that clients trained at once may take.
        only: the one way allowed; in `factored` whatever can be factored is, whether it pays or not.
    """
    if only == "one by one" or batch is None:
        return Choice(way="one by one")
    rows = _rows(model, task, batch) if job.training.optimizer == "sgd" and only != "stacked" else {}
    layers = {name: layer for name, layer in factorable(model).items() if name in rows}
    chosen = frozenset(name for name, layer in layers.items() if only or pays(layer, rows[name], job.steps))
    state = {"sgd": 3 + (job.training.momentum > 0), "adam": 5, "adamw": 5}[job.training.optimizer]
    kept = sum(parameter.nbytes for parameter in model.parameters())
    size = 0
    for name in chosen:
        layer = layers[name]
        kept -= layer.weight.nbytes
        width = (layer.in_features + layer.out_features) * layer.weight.itemsize
        size += 3 * job.steps * rows[name] * width  # as they came, end to end, and as they are multiplied
    size += state * kept + 4 * sum(part.nbytes for part in batch)
    return Choice(way="factored" if chosen else "stacked", at_once=max(1, memory // size), factored=chosen)


def _rows(model: nn.Module, task: Task, batch: Batch) -> dict[str, int]:
    """Linear layer → rows that it is called with in a step; those called more than once are left out."""
    seen: dict[str, list[int]] = {}

    def watch(name: str) -> RemovableHandle:
        return model.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output: seen.setdefault(name, []).append(inputs[0].numel() // inputs[0].shape[-1])
        )

    handles = [watch(name) for name in factorable(model)]
    try:
        with torch.no_grad(), seeded(0):
            task.loss(model, batch)
    except Exception:  # it is said when the client trains
        seen.clear()
    for handle in handles:
        handle.remove()
    return {name: calls[0] for name, calls in seen.items() if len(calls) == 1}

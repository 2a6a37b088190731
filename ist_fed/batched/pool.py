"""The examples of many clients, once on a device, and their batches as one gather."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ist_fed.arrays import is_finite
from ist_fed.batched.draws import Draws
from ist_fed.batched.indata import Examples
from ist_fed.batches import fetch, first_batches, length
from ist_fed.flat import in_one_run
from ist_fed.seeds import generators
from ist_fed.tasks.task import Batch

_AGAIN = 8
"""Examples that are read twice: one alone may by chance be drawn the same both times."""


def _read(data: Dataset[Batch], examples: int, device: torch.device) -> Batch:
    """All examples; nothing has been drawn by it if they turn out to be random.

    Raises:
        ValueError: they are drawn anew whenever they are asked for.
    """
    draws = Draws(data)
    part = fetch(data, np.arange(examples), device)
    random = draws.moved()
    if not random:  # from no generator that is known, at least
        again = fetch(data, np.arange(min(examples, _AGAIN)), device)
        random = not all(map(_is_alike, part, again))
    if random:
        draws.undo()
        raise ValueError("its examples are drawn at random whenever they are asked for")
    return part


def _is_alike(part: Tensor, again: Tensor) -> bool:
    first = part[: len(again)]
    return first.shape == again.shape and bool(((first == again) | (first.isnan() & again.isnan())).all())


class Pool:
    """Grows as clients are first asked for. Tensors that lie one behind another already, or are not needed so, are not
    copied.

    Args:
        device: where the examples live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: dict[int, Batch] = {}  # of each client that has examples
        self._joined: dict[int, Tensor] = {}  # inputs as 0 and targets as 1, all clients' together, once asked for
        self._starts: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._size = 0
        self._kind: list[tuple[torch.Size, torch.dtype]] | None = None
        # Of each client's examples with one another, and where in it each one's begin.
        self._products, self._places = torch.empty(0, device=device), dict[int, int]()

    def add(self, client: int, data: Dataset[Batch]) -> None:
        """Take a client's examples in.

        Raises:
            ValueError: they are not finite inputs and targets, of another shape or dtype than those of the clients
                before, or drawn anew whenever they are asked for; nothing was taken in.
        """
        examples = length(data)
        if type(data) is TensorDataset:
            part = tuple(tensor.to(self._device) for tensor in data.tensors)
        elif examples:
            part = _read(data, examples, self._device)
        else:
            part = ()
        if examples and len(part) != 2:
            raise ValueError(f"an example of it is not inputs and targets, but of {len(part)} parts")
        if not all(map(is_finite, part)):  # even one that is never drawn would spoil sums with the others
            raise ValueError("its examples are not all finite")
        if examples and self._kind not in (None, kind := [(each.shape[1:], each.dtype) for each in part]):
            raise ValueError(f"examples of {kind} do not stand beside those of {self._kind}")
        self._starts[client], self._lengths[client] = self._size, examples
        if examples:
            self._kind = kind
            self._parts[client] = (part[0], part[1])
            self._joined.clear()
            self._size += examples

    def __contains__(self, client: int) -> bool:
        return client in self._starts

    def examples(self, client: int) -> int:
        """How many a client has."""
        return self._lengths[client]

    def orders(self, clients: Sequence[int], size: int, steps: int, seed: int, round: int | Sequence[int]) -> Tensor:
        """Which examples each client takes in each step, as it would draw them alone: steps × clients × examples.

        All clients draw for one round, or each for its own.
        """
        rounds = [round] * len(clients) if isinstance(round, int) else round
        orders = np.empty((steps, len(clients), size), dtype=np.int64)
        streams = generators(seed, [(each, "batches", client) for each, client in zip(rounds, clients, strict=True)])
        for at, (client, rng) in enumerate(zip(clients, streams, strict=True)):
            orders[:, at] = first_batches(self._lengths[client], size, steps, rng)
        orders += np.array([self._starts[client] for client in clients])[:, None]
        return torch.from_numpy(orders).to(self._device)

    def batch(self, order: Tensor) -> Batch:
        """The examples of one step: clients × examples × …"""
        inputs, targets = (self._all(which).index_select(0, order.flatten()) for which in (0, 1))
        return inputs.view(*order.shape, *inputs.shape[1:]), targets.view(*order.shape, *targets.shape[1:])

    def in_data(self, clients: Sequence[int], orders: Tensor) -> Examples:
        """The examples of clients, their products, and the same orders numbered within each client."""
        self.multiply(clients)
        rows = [self._parts[client][0].flatten(1) for client in clients]
        first, places = (
            torch.tensor([of[client] for client in clients], device=self._device) for of in (self._starts, self._places)
        )
        lengths = [self._lengths[client] for client in clients]
        return Examples(rows, lengths, self._products, places, orders - first[:, None])

    def multiply(self, clients: Sequence[int]) -> None:
        """Work out the products of each client's examples with one another, once and for all.

        Of all clients that will be asked for, if they are known: where more come later all products are copied.
        """
        new = [client for client in dict.fromkeys(clients) if client not in self._places]
        if not new:
            return
        rows, before = {client: self._parts[client][0].flatten(1) for client in new}, self._products
        room = sum(len(rows[client]) ** 2 for client in new)
        self._products = rows[new[0]].new_empty(len(before) + room)
        self._products[: len(before)] = before
        end = len(before)
        for client, own in rows.items():
            self._places[client], end = end, end + len(own) ** 2
            torch.mm(own, own.mT, out=self._products[self._places[client] : end].view(len(own), -1))

    def batch_in_data(self, order: Tensor) -> Batch:
        """As `batch`, but for the inputs, of which there is only the shape."""
        inputs, targets = next(iter(self._parts.values()))[0], self._all(1)
        shape = inputs.new_zeros(1).expand(*order.shape, *inputs.shape[1:])
        return shape, targets.index_select(0, order.flatten()).view(*order.shape, *targets.shape[1:])

    def one(self, client: int, size: int) -> Batch:
        """Copies of a client's first examples, for whoever gives them to the task's own code, which may change them."""
        inputs, targets = self._parts[client]
        return inputs[:size].clone(), targets[:size].clone()

    def _all(self, which: int) -> Tensor:
        """The inputs or the targets of all clients, one client's behind another's."""
        if which not in self._joined:
            parts = [part[which] for part in self._parts.values()]
            whole = self._joined[which] = in_one_run(parts).view(-1, *parts[0].shape[1:])
            for client, part in self._parts.items():  # of which no copy is kept
                own = whole[self._starts[client] : self._starts[client] + self._lengths[client]]
                self._parts[client] = (own, part[1]) if which == 0 else (part[0], own)
        return self._joined[which]

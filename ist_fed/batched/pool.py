"""The examples of many clients, once on a device, and their batches as one gather."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ist_fed.batched.indata import Examples
from ist_fed.batches import fetch, first_batches, length
from ist_fed.seeds import generator
from ist_fed.tasks.task import Batch


class Pool:
    """Grows as clients are first asked for.

    Args:
        device: where the examples live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[Batch] = []
        self._whole: Batch | None = None
        self._starts: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._size = 0
        self._kind: list[tuple[torch.Size, torch.dtype]] | None = None
        self._products: dict[int, Tensor] = {}

    def add(self, client: int, data: Dataset[Batch]) -> None:
        """Take a client's examples in.

        Raises:
            ValueError: they are of another shape or dtype than those of the clients before.
        """
        examples = length(data)
        if type(data) is TensorDataset:
            part = tuple(tensor.to(self._device) for tensor in data.tensors)
        elif examples:
            part = fetch(data, np.arange(examples), self._device)
        else:
            part = ()
        if examples and self._kind not in (None, kind := [(each.shape[1:], each.dtype) for each in part]):
            raise ValueError(f"examples of {kind} do not stand beside those of {self._kind}")
        self._starts[client], self._lengths[client] = self._size, examples
        if examples:
            self._kind = kind
            self._parts.append((part[0], part[1]))
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
        for at, (client, its_round) in enumerate(zip(clients, rounds, strict=True)):
            rng = generator(seed, its_round, "batches", client)
            orders[:, at] = first_batches(self._lengths[client], size, steps, rng)
        orders += np.array([self._starts[client] for client in clients])[:, None]
        return torch.from_numpy(orders).to(self._device)

    def batch(self, order: Tensor) -> Batch:
        """The examples of one step: clients × examples × …"""
        inputs, targets = (part.index_select(0, order.flatten()) for part in self._examples())
        return inputs.view(*order.shape, *inputs.shape[1:]), targets.view(*order.shape, *targets.shape[1:])

    def in_data(self, clients: Sequence[int], orders: Tensor) -> Examples:
        """The examples of clients, their products, and the same orders numbered within each client."""
        inputs = self._examples()[0].flatten(1)
        rows = [inputs[self._starts[client] : self._starts[client] + self._lengths[client]] for client in clients]
        most = max(len(of_one) for of_one in rows)
        products = inputs.new_zeros(len(clients), most, most)
        for client, of_one, product in zip(clients, rows, products, strict=True):
            if client not in self._products:
                self._products[client] = of_one @ of_one.mT
            product[: len(of_one), : len(of_one)] = self._products[client]
        starts = torch.tensor([self._starts[client] for client in clients], device=self._device)
        once = orders.shape[0] * orders.shape[2] <= min(len(of_one) for of_one in rows)
        return Examples(rows, products, orders - starts[:, None], once)

    def batch_in_data(self, order: Tensor) -> Batch:
        """As `batch`, but for the inputs, of which there is only the shape."""
        inputs, targets = self._examples()
        shape = inputs.new_zeros(1).expand(*order.shape, *inputs.shape[1:])
        return shape, targets.index_select(0, order.flatten()).view(*order.shape, *targets.shape[1:])

    def one(self, client: int, size: int) -> Batch:
        """A client's first examples."""
        whole, start = self._examples(), self._starts[client]
        return whole[0][start : start + size], whole[1][start : start + size]

    def _examples(self) -> Batch:
        if self._parts or self._whole is None:
            parts = ([self._whole] if self._whole else []) + self._parts
            self._whole = (torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
            self._parts = []
        return self._whole

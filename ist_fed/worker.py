"""What a client does with one message: unpack, build, train, pack."""

import logging
import time

import torch
from flwr.app import Message
from torch import nn
from torch.utils.data import Dataset

from ist_fed import wire
from ist_fed.arrays import Arrays, arrays_of, build_on_meta
from ist_fed.batches import length
from ist_fed.errors import IstFedError, TaskError, WireError
from ist_fed.evaluate import network
from ist_fed.seeds import generator
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training, train

logger = logging.getLogger("ist_fed")

_Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class Worker:
    """One client: its task, its data, its device. No result depends on what it did before.

    Args:
        task: gives the factory and the loss.
        data: the client's private examples.
        client: its number among the clients; it names its stream of random draws.
        capacity: how much it can hold, relative to the others.
        device: where it trains.
    """

    def __init__(
        self,
        task: Task,
        data: Dataset[Batch],
        *,
        client: int,
        capacity: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not (client >= 0 and 0 < capacity < float("inf")):
            raise TaskError(
                f"a client has a number from 0 and a positive capacity, but this one has {client} and {capacity}"
            )
        self._task, self._data, self._device = task, data, torch.device(device)
        self._shapes: tuple[dict[str, int], _Shapes] = ({}, {})  # of the last sizes, which are mostly those of the next
        self._profile = wire.Profile(client=client, examples=length(data), capacity=float(capacity))

    def query(self, message: Message) -> Message:
        """Say who this client is."""
        return wire.profile_answer(self._profile, reply_to=message)

    def train(self, message: Message) -> Message:
        """Train the subnet of an order; what goes wrong in training is said in the reply, in words."""
        try:
            return self._follow(wire.open_order(message), message)
        except IstFedError as error:
            reason = str(error)
        except Exception as error:  # of the task's own code, or of the device
            logger.exception("client %d could not train", self._profile.client)
            reason = f"{type(error).__name__}: {error}"
        return wire.refusal_message(reason, reply_to=message)

    def _follow(self, order: wire.Order, message: Message) -> Message:
        try:
            training = Training(**order.training)
        except TypeError as error:
            raise WireError(
                f"this client cannot train as ordered: {error}; server and client must run the same version of ist_fed"
            ) from error
        except ValueError as error:
            raise WireError(f"this client cannot train as ordered: {error}") from error
        rng = generator(order.seed, order.round, "batches", self._profile.client)
        model = self._network(order.sizes, order.arrays)
        started = time.perf_counter()
        loss = train(model, self._task, self._data, training, lr=order.lr, steps=order.local_steps, rng=rng)
        seconds = time.perf_counter() - started
        return wire.reply_message(order, arrays_of(model), loss=loss, seconds=seconds, reply_to=message)

    def _network(self, sizes: dict[str, int], arrays: Arrays) -> nn.Module:
        """Build the subnet; before any memory is taken, check that it is as large as what was sent."""
        if sizes != self._shapes[0]:
            self._shapes = (sizes, _shapes(arrays_of(build_on_meta(self._task.build, sizes))))
        own, sent = self._shapes[1], _shapes(arrays)
        differing = sorted(name for name in own.keys() | sent.keys() if own.get(name) != sent.get(name))
        if differing:
            name = differing[0]
            raise WireError(
                f"the subnet sent must be the network that this client builds at sizes {dict(sizes)}, but they differ "
                f"in {len(differing)} arrays, first '{name}': {_described(sent.get(name))} was sent and "
                f"{_described(own.get(name))} is built; give server and client the same task and [options]"
            )
        return network(self._task, sizes, arrays, self._device)


def _shapes(arrays: Arrays) -> _Shapes:
    return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}


def _described(array: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "none" if array is None else f"{array[0]} {str(array[1]).removeprefix('torch.')}"

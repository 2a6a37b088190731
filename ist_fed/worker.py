"""What a client does with one message: unpack, build, train, pack."""

import time

import torch
from flwr.app import Message
from torch.utils.data import Dataset

from ist_fed import wire
from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.errors import IstFedError, WireError
from ist_fed.seeds import generator
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training, length, train


class Worker:
    """One client: its task, its data, its device. It keeps nothing from round to round.

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
        self._task, self._data, self._device = task, data, torch.device(device)
        self._profile = wire.Profile(client=client, examples=length(data), capacity=float(capacity))

    def query(self, message: Message) -> Message:
        """Say who this client is."""
        return wire.profile_answer(self._profile, reply_to=message)

    def train(self, message: Message) -> Message:
        """Train the subnet of an order; what goes wrong in training is said in the reply, in words."""
        try:
            order = wire.open_order(message)
            return self._follow(order, message)
        except IstFedError as error:
            return wire.refusal_message(str(error), reply_to=message)

    def _follow(self, order: wire.Order, message: Message) -> Message:
        try:
            training = Training(**order.training)
        except (TypeError, ValueError) as error:
            raise WireError(f"this client cannot train as ordered: {error}") from error
        rng = generator(order.seed, order.round, "batches", self._profile.client)
        model = self._task.build(**order.sizes).to(self._device)
        load_arrays(model, order.arrays)
        started = time.perf_counter()
        loss = train(model, self._task, self._data, training, lr=order.lr, steps=order.local_steps, rng=rng)
        seconds = time.perf_counter() - started
        return wire.reply_message(order, arrays_of(model), loss=loss, seconds=seconds, reply_to=message)

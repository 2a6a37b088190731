"""What a client does with one message: unpack, build, train, pack."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from math import nan
from traceback import format_tb
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed import wire
from ist_fed.arrays import Arrays, arrays_of, build_on_meta, load_arrays
from ist_fed.batches import length
from ist_fed.budget import Budget
from ist_fed.errors import IstFedError, SecureError, TaskError, TrainingError, WireError, words
from ist_fed.evaluate import network
from ist_fed.flat import Flat
from ist_fed.optimizer_state import no_state, split_state, trainable
from ist_fed.privacy.example import Guard
from ist_fed.privacy.secure import Member
from ist_fed.rescale import scaled_inputs
from ist_fed.secrecy import Secrecy
from ist_fed.seeds import generator
from ist_fed.tasks.task import Task
from ist_fed.train import AMP, Amp, Training, train

logger = logging.getLogger("ist_fed")

_SECURE_ONLY = (
    "this client takes part in secure rounds only, for its operator gave it a signing key, but the server asks for its "
    "update in the clear; set privacy.mode = 'secure' in the scenario, or start the client without --signer"
)
_NOT_SECURE = (
    "a secure round is for clients with a signing key, but this one has none; start it with --signer NAME.sign.pem"
)

_Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


class Worker:
    """One client: its task, its data, its device. No result depends on what it did before.

    Args:
        task: gives the factory and the loss.
        data: the client's private examples.
        client: its number among the clients; it names its stream of random draws.
        capacity: how much it can hold, relative to the others.
        device: where it trains.
        amp: mixed precision, `bf16` or `fp16`; its own choice, which the server does not see.
        memory: bytes that its training may take at the peak; None takes what is free when an order comes, and 0 sets
            no bound and does without the estimate.
        member: who it is in secure rounds; it then answers no order in the clear. None takes part in plain rounds only.
        guard: trains in its place where examples are private; it says no loss, and takes no `amp`.

    Attributes:
        data: the client's private examples.
        link: bytes a second between it and the server, as last measured by whoever carries its messages; 0 if nobody
            did.
        ahead: what whoever carries its messages has trained for it already, with others' subnets at once, given the
            order that came; None from it, or in its place, lets the client train. In secure rounds, for one order.
    """

    def __init__(
        self,
        task: Task,
        data: Dataset[Any],
        *,
        client: int,
        capacity: float = 1.0,
        device: torch.device | str = "cpu",
        amp: Amp | None = None,
        memory: int | None = 0,
        member: Member | None = None,
        guard: Guard | None = None,
    ) -> None:
        if not (client >= 0 and 0 < capacity < float("inf")):
            raise TaskError(
                f"a client has a number from 0 and a positive capacity, but this one has {client} and {capacity}"
            )
        if amp not in (None, *AMP) or (memory is not None and memory < 0):
            raise TaskError(
                f"amp must be bf16, fp16 or None, and memory not negative, but they are {amp!r} and {memory}"
            )
        self._task, self.data, self._device = task, data, torch.device(device)
        if guard is not None and amp is not None:
            raise TaskError(f"steps on private examples are in float32, but this client's amp is {amp}; leave it out")
        self._amp, self._guard = amp, guard
        self._budget = Budget(task, data, memory, device=self._device, amp=amp, apart=guard is not None)
        self._secrecy = Secrecy(member, self._trained) if member else None
        self.link = 0.0
        self.ahead: Callable[[wire.Order], Arrays | None] | None = None
        self._step_seconds = 0.0
        self._told: set[str] = set()
        self._shapes: tuple[object, _Shapes] = (None, {})  # of the last order, which are mostly those of the next
        self._profile = wire.Profile(client=client, examples=length(data), capacity=float(capacity))

    def query(self, message: Message) -> Message:
        """Say who this client is, and, if the server says what is to be trained, how much of it it can hold."""
        return wire.profile_answer(self.profile(wire.open_question(message)), reply_to=message)

    def profile(self, question: wire.Question | None) -> wire.Profile:
        """The same where no message has to travel."""
        memory, limit = self._budget.allowance(), 1.0
        if question is not None and self._budget.is_bound:
            with suppress(IstFedError):  # what is wrong is said when there is an order
                limit = self._budget.limit(question.sizes, _training_of(question.training), memory)
        # How long its steps take, a secure client tells nobody: not even that they came to an end.
        seconds = 0.0 if self._secrecy else self._step_seconds
        return replace(self._profile, memory=memory, limit=limit, step_seconds=seconds, link=float(self.link))

    def train(self, message: Message) -> Message:
        """Train the subnet of an order; what goes wrong in training is said in the reply, in words."""
        try:
            return self._follow(message)
        except Exception as error:
            return wire.refusal_message(reason_of(error, self._profile.client, self._told), reply_to=message)

    def _follow(self, message: Message) -> Message:
        step = wire.open_step(message)
        if step is not None and self._secrecy is not None:
            return self._secrecy.answer(step, message)
        if step is not None or self._secrecy is not None:
            raise SecureError(_NOT_SECURE if step else _SECURE_ONLY)
        order = wire.open_order(message, take=True)
        model, state = self._network(order)
        order = replace(order, arrays=Flat((), ()))  # they are in the network now, and their memory is needed
        loss, seconds = self._train(model, state, order)
        arrays, told = {**arrays_of(model), **state}, self._guard.told if self._guard else None
        return wire.reply_message(order, arrays, loss=loss, seconds=seconds, epsilon=told, reply_to=message)

    def _network(self, order: wire.Order) -> tuple[nn.Module, dict[str, Tensor]]:
        """The subnet of an order, once it is known to be this task's, and small enough; see `opened`."""
        training = _training_of(order.training)
        self._check_arrays(order.sizes, order.arrays, training.carried)
        self._budget.check(order.sizes, training, self._profile.client)
        return opened(self._task, order.sizes, order.arrays, training, self._device)

    def _train(self, model: nn.Module, state: dict[str, Tensor], order: wire.Order) -> tuple[float, float]:
        return self.local_steps(
            model,
            _training_of(order.training),
            seed=order.seed,
            round=order.round,
            lr=order.lr,
            steps=order.local_steps,
            scales=order.scales,
            state=state,
        )

    def _trained(self, order: wire.Order) -> nn.Module:
        model, state = self._network(order)
        ahead, self.ahead = self.ahead, None
        trained = ahead(order) if ahead else None
        if trained is None:
            self._train(model, state, order)
        else:
            load_arrays(model, trained)
        return model

    def local_steps(
        self,
        model: nn.Module,
        training: Training,
        *,
        seed: int,
        round: int,
        lr: float,
        steps: int,
        scales: Mapping[str, float] | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> tuple[float, float]:
        """Train a network and its optimiser's state, in place; the mean loss, NaN if private, and the seconds.

        Raises:
            TrainingError: there is no example, or a loss or a weight is not finite.
        """
        rng = generator(seed, round, "batches", self._profile.client)
        started = time.perf_counter()
        with scaled_inputs(model, scales or {}):
            if self._guard is None:
                loss = train(
                    model, self._task, self.data, training, lr=lr, steps=steps, rng=rng, amp=self._amp, state=state
                )
            elif state:
                raise TrainingError("steps on private examples carry no state of the optimiser; let it start fresh")
            else:
                self._guard.train(model, self._task, self.data, training, lr=lr, steps=steps, round=round)
                loss = nan
        seconds = time.perf_counter() - started
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._step_seconds = seconds / steps / max(1, parameters) * 1e6
        return loss, seconds

    def _check_arrays(self, sizes: dict[str, int], arrays: Arrays, slots: tuple[str, ...]) -> None:
        """Before any memory is taken: is the network as large as what was sent?"""
        if (sizes, slots) != self._shapes[0]:
            model = build_on_meta(self._task.build, sizes)
            self._shapes = ((sizes, slots), _shapes({**arrays_of(model), **no_state(trainable(model), slots)}))
        own, sent = self._shapes[1], _shapes(arrays)
        differing = sorted(name for name in own.keys() | sent.keys() if own.get(name) != sent.get(name))
        if differing:
            name = differing[0]
            raise WireError(
                f"the subnet sent must be the network that this client builds at sizes {dict(sizes)}, but they differ "
                f"in {len(differing)} arrays, first '{name}': {_described(sent.get(name))} was sent and "
                f"{_described(own.get(name))} is built; give server and client the same task and [options]"
            )


def opened(
    task: Task, sizes: Mapping[str, int], arrays: Arrays, training: Training, device: torch.device
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network of a subnet and its optimiser's state, on the device where they are to be trained.

    Both are copied; the network is not if nobody else has its arrays.
    """
    own, state = split_state(arrays, training.carried)
    fresh = isinstance(arrays, Flat) and arrays.fresh
    return network(task, sizes, own, device, adopt=fresh), {
        key: array.to(device, copy=True) for key, array in state.items()
    }


def reason_of(error: Exception, client: int, told: set[str]) -> str:
    """Why a client did not train, in words.

    Args:
        error: what was raised, by the task's own code, say: then the log gets its traceback, as it does of an error
            that is a sentence with `--debug` only.
        client: whom it happened to.
        told: tracebacks that the log has already, for the next round, or client, most often fails at the same place.
    """
    known = isinstance(error, IstFedError)
    if (where := "".join(format_tb(error.__traceback__))) not in told:
        told.add(where)
        logger.log(logging.DEBUG if known else logging.ERROR, "client %d could not train", client, exc_info=error)
    return str(error) if known else words(error)


def _training_of(fields: dict[str, Any]) -> Training:
    try:
        return Training(**fields)
    except TypeError as error:
        raise WireError(
            f"this client cannot train as ordered: {error}; server and client must run the same version of ist_fed"
        ) from error
    except ValueError as error:
        raise WireError(f"this client cannot train as ordered: {error}") from error


def _shapes(arrays: Arrays) -> _Shapes:
    return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}


def _described(array: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "none" if array is None else f"{array[0]} {str(array[1]).removeprefix('torch.')}"

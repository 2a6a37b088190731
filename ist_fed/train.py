"""Local steps on one network. Nothing here knows of subnets."""

from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import arrays_of, device_of
from ist_fed.batches import batches, fetch, length
from ist_fed.batchnorm import has_batch_norm
from ist_fed.errors import TrainingError
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a client takes a local step. The optimiser starts afresh every round.

    Args:
        optimizer: `sgd`, `adam` or `adamw`, torch's own.
        lr: learning rate of the first round.
        momentum: of SGD, 0 to 1; the other optimisers ignore it.
        weight_decay: as torch defines it for the optimiser.
        batch_size: examples in one step; a client that has fewer uses all it has.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
        schedule: learning rate over rounds: `constant`, or `cosine` from `lr` down to zero after the last round.
        warmup: rounds in which the learning rate rises linearly to `lr`.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    clip_norm: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(sorted(OPTIMIZERS))}, but is {self.optimizer!r}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant or cosine, but is {self.schedule!r}")
        for key, least in (("batch_size", 1), ("warmup", 0)):
            if type(value := getattr(self, key)) is not int or value < least:
                raise ValueError(f"{key} must be a whole number, at least {least}, but is {value!r}")
        for key in ("lr", "momentum", "weight_decay", "clip_norm"):
            if type(value := getattr(self, key)) not in (int, float) or not (isfinite(value) and value >= 0):
                raise ValueError(f"{key} must be a finite number, not negative, but is {value!r}")
        if self.lr == 0:
            raise ValueError("lr must be positive, but is 0")
        if self.momentum >= 1:
            raise ValueError(f"momentum must be less than 1, but is {self.momentum}")


def learning_rate(training: Training, round: int, rounds: int) -> float:
    """The learning rate of round `round` (from 1) of `rounds`."""
    rate = training.lr * min(1.0, round / (training.warmup + 1))
    if training.schedule == "cosine":
        rate *= (1 + cos(pi * (round - 1) / max(1, rounds))) / 2
    return rate


def train(
    model: nn.Module,
    task: Task,
    data: Dataset[Batch],
    training: Training,
    *,
    lr: float,
    steps: int,
    rng: np.random.Generator,
) -> float:
    """Take `steps` local steps, changing `model` in place.

    Args:
        model: on the device where it is to be trained.
        task: gives the loss.
        data: the client's examples.
        training: optimiser, batch size, clipping.
        lr: the learning rate of this round.
        steps: local steps; every one of them counts.
        rng: draws the order of the examples.

    Returns:
        The mean loss over the steps.

    Raises:
        TrainingError: there is no example, or a loss or a weight is not finite; the message says at which step.
    """
    device = device_of(model)
    optimizer = _optimizer(model, training, lr)
    order = batches(length(data), training.batch_size, rng)
    losses: list[Tensor] = []  # on the device, so that it need not wait for each
    model.train()
    (own,) = rng.spawn(1)  # for dropout and the like; the order of the examples is as it would be without
    with seeded(int(own.integers(1 << 62)), device):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = _loss(model, task, fetch(data, next(order), device))
            loss.backward()  # type: ignore[no-untyped-call]
            if training.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
    return _finite_mean(model, torch.stack(losses).double())


def _loss(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    try:
        return task.loss(model, batch)
    except ValueError as error:
        if len(batch[0]) == 1 and has_batch_norm(model):
            raise TrainingError(
                "BatchNorm needs at least two examples in a batch, but there is one; give the client more examples, "
                "raise batch_size, or use LayerNorm"
            ) from error
        raise


def _optimizer(model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": lr, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        options["momentum"] = training.momentum
    return OPTIMIZERS[training.optimizer](model.parameters(), **options)


def _finite_mean(model: nn.Module, losses: Tensor) -> float:
    """The mean of the losses, once they and the weights they led to are known to be finite."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise TrainingError(
            f"the loss must stay finite, but is {float(losses[step])} at local step {step + 1} of {len(losses)}; "
            f"look for NaN in the data, or lower the learning rate"
        )
    for name, array in arrays_of(model).items():
        if not array.isfinite().all():
            raise TrainingError(
                f"weights must stay finite, but '{name}' is not after {len(losses)} local steps; look for NaN in the "
                f"data, or lower the learning rate"
            )
    return float(losses.mean())

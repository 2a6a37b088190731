"""Local steps on one network, the statistics of an assembled one, and its evaluation. Nothing here knows of subnets."""

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import swa_utils
from torch.utils.data import Dataset, TensorDataset, default_collate

from ist_fed.arrays import Arrays, arrays_of, load_arrays
from ist_fed.errors import TrainingError
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
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}, but is '{self.optimizer}'")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine', but is '{self.schedule}'")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.batch_size >= 1):
            raise ValueError(
                f"lr must be positive, momentum in [0, 1) and batch_size at least 1, but they are "
                f"{self.lr}, {self.momentum} and {self.batch_size}"
            )
        if min(self.weight_decay, self.clip_norm, self.warmup) < 0:
            raise ValueError("weight_decay, clip_norm and warmup must not be negative")


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
    losses = torch.zeros(steps, device=device)
    model.train()
    with _own_randomness(device, rng):
        for step in range(steps):
            optimizer.zero_grad()
            loss = task.loss(model, fetch(data, next(order), device))
            loss.backward()  # type: ignore[no-untyped-call]
            if training.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            losses[step] = loss.detach()
    _check_finite(model, losses)
    return float(losses.mean())


@contextmanager
def _own_randomness(device: torch.device, rng: np.random.Generator) -> Iterator[None]:
    """Dropout and the like draw from the client's stream, and the process's own generator is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.integers(1 << 62)))
        yield


def _optimizer(model: nn.Module, training: Training, lr: float) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": lr, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        options["momentum"] = training.momentum
    return OPTIMIZERS[training.optimizer](model.parameters(), **options)


def _check_finite(model: nn.Module, losses: Tensor) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise TrainingError(
            f"the loss must stay finite, but is {float(losses[bad[0]])} at local step {int(bad[0]) + 1} of "
            f"{len(losses)}; look for NaN in the data, or lower the learning rate"
        )
    for name, array in arrays_of(model).items():
        if not array.isfinite().all():
            raise TrainingError(
                f"weights must stay finite, but '{name}' is not after {len(losses)} local steps; lower the learning rate"
            )


def batches(examples: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of one batch after another, without end: shuffled epochs whose incomplete last batch is left out."""
    if examples == 0:
        raise TrainingError("a client needs at least one example to train on, but its share is empty")
    size = min(size, examples)
    while True:
        order = rng.permutation(examples)
        for start in range(0, examples - size + 1, size):
            yield order[start : start + size]


def fetch(data: Dataset[Batch], index: np.ndarray, device: torch.device) -> Batch:
    """The examples at `index` as one batch on `device`."""
    if isinstance(data, TensorDataset):  # one gather for each tensor, where a DataLoader would take them one by one
        batch = data[torch.from_numpy(index)]
    else:
        batch = default_collate([data[i] for i in index.tolist()])
    return cast(Batch, tuple(part.to(device) for part in batch))


def length(data: Dataset[Batch]) -> int:
    """How many examples a map-style dataset has."""
    return len(cast(Sized, data))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's arrays live."""
    return next(iter(arrays_of(model).values())).device


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Dataset[Batch], batch_size: int = 1024) -> dict[str, float]:
    """Mean loss and metric over `data`, in evaluation mode.

    Returns:
        `{"loss": …, task.metric: …}`.
    """
    device = device_of(model)
    model.eval()
    loss = score = 0.0
    for index in _in_order(length(data), batch_size):
        batch = fetch(data, index, device)
        loss += float(task.loss(model, batch)) * len(index)
        score += float(task.score(model, batch)) * len(index)
    examples = max(1, length(data))
    return {"loss": loss / examples, task.metric: score / examples}


def recalibrate(model: nn.Module, data: Dataset[Batch], batch_size: int = 1024) -> None:
    """Estimate the BatchNorm statistics of an assembled network afresh, in place, in one pass over `data`.

    A subnet's statistics are those of a narrower network, so no merge of them is right. A model without BatchNorm is
    left as it is.

    Args:
        model: the assembled network; it is called on the first element of each batch.
        data: examples like the clients', held by the server.
        batch_size: larger is closer to the statistics of the whole.
    """
    device = device_of(model)
    loader = (fetch(data, index, device) for index in _in_order(length(data), batch_size))
    swa_utils.update_bn(loader, model, device=device)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has statistics to recalibrate."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def served(task: Task, sizes: Mapping[str, int], arrays: Arrays, device: torch.device) -> nn.Module:
    """The assembled network, recalibrated: what is evaluated, saved and served.

    Raises:
        TrainingError: the model has BatchNorm, and the task holds no calibration data.
    """
    model = task.build(**sizes).to(device)
    load_arrays(model, arrays)
    if has_batch_norm(model):
        data = task.calibration_data()
        if data is None or length(data) == 0:
            raise TrainingError(
                "a BatchNorm model needs calibration data to be evaluated after a merge, but the task's "
                "calibration_data() gives none; return some, or use LayerNorm"
            )
        recalibrate(model, data)
    return model


def _in_order(examples: int, size: int) -> Iterator[np.ndarray]:
    # Parts of equal length: BatchNorm cannot take a last batch of one.
    return iter(np.array_split(np.arange(examples), max(1, ceil(examples / size))))

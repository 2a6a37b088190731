"""Local steps on one network, the statistics of an assembled one, and its evaluation. Nothing here knows of subnets."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from math import ceil, cos, isfinite, pi
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from ist_fed.arrays import Arrays, arrays_of, load_arrays
from ist_fed.errors import TaskError, TrainingError
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


def batches(examples: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of one batch after another, without end: shuffled epochs whose incomplete last batch is left out.

    Raises:
        TrainingError: there is no example.
    """
    if examples == 0:
        raise TrainingError(
            "a client needs at least one example to train on, but its share is empty; give it data or leave it out"
        )
    size = min(size, examples)
    while True:
        order = rng.permutation(examples)
        for start in range(0, examples - size + 1, size):
            yield order[start : start + size]


def fetch(data: Dataset[Batch], index: np.ndarray, device: torch.device) -> Batch:
    """The examples at `index` as one batch on `device`."""
    if type(data) is TensorDataset:  # one gather for each tensor, where a DataLoader would take them one by one
        batch = data[torch.from_numpy(index)]
    else:
        batch = default_collate([data[i] for i in index.tolist()])
    return cast(Batch, tuple(part.to(device) for part in batch))


def length(data: Dataset[Batch]) -> int:
    """How many examples a map-style dataset has.

    Raises:
        TaskError: it does not say.
    """
    try:
        return len(cast(Sized, data))
    except (TypeError, NotImplementedError) as error:
        raise TaskError(
            f"a task's data must be map-style datasets, with a length, but {type(data).__name__} has none; read an "
            f"iterable one into a list or a TensorDataset"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where a model's arrays live."""
    return next(iter(arrays_of(model).values())).device


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Dataset[Batch], batch_size: int = 1024) -> dict[str, float]:
    """Mean loss and metric over `data`, in evaluation mode.

    Returns:
        `{"loss": …, task.metric: …}`.

    Raises:
        TrainingError: there is no example.
    """
    examples = length(data)
    if examples == 0:
        raise TrainingError("an evaluation needs at least one example, but the data are empty; give it test data")
    device = device_of(model)
    model.eval()
    loss = score = 0.0
    for index in _in_order(examples, batch_size):
        batch = fetch(data, index, device)
        loss += float(task.loss(model, batch)) * len(index)
        score += float(task.score(model, batch)) * len(index)
    return {"loss": loss / examples, task.metric: score / examples}


@torch.no_grad()
def recalibrate(model: nn.Module, data: Dataset[Batch], batch_size: int = 1024) -> None:
    """Estimate the BatchNorm statistics of an assembled network afresh, in place, in one pass over `data`.

    A subnet's statistics are those of a narrower network, so no merge of them is right. All else is in evaluation
    mode meanwhile: dropout draws nothing. A model without BatchNorm is left as it is.

    Args:
        model: the assembled network, called on the first element of each batch; left in evaluation mode.
        data: examples like the clients', held by the server.
        batch_size: the statistics are exact for the first layer if all of `data` is one batch, and the mean over
            batches otherwise.

    Raises:
        TrainingError: there are fewer than two examples.
    """
    model.eval()
    norms = _norms(model)
    if not norms:
        return
    if length(data) < 2:
        raise TrainingError(
            f"BatchNorm statistics need at least two examples, but there are {length(data)}; calibrate with more"
        )
    device, momenta = device_of(model), [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, where a number would forget the first
        norm.train()
    for index in _in_order(length(data), max(2, batch_size)):
        model(fetch(data, index, device)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The modules that keep running statistics of their batches."""
    found = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in found if norm.track_running_stats]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has statistics to recalibrate."""
    return bool(_norms(model))


def network(task: Task, sizes: Mapping[str, int], arrays: Arrays, device: torch.device) -> nn.Module:
    """The task's network at these sizes, holding `arrays`; its first weights do not disturb the process's generator.

    Raises:
        AxesError: the arrays are not those of this network.
    """
    with seeded(0):  # so that a buffer which is drawn but does not travel is the same everywhere
        model = task.build(**sizes)
    load_arrays(model, arrays)
    return model.to(device)


def served(task: Task, sizes: Mapping[str, int], arrays: Arrays, device: torch.device) -> nn.Module:
    """The assembled network, recalibrated and in evaluation mode: what is evaluated, saved and served.

    Raises:
        TrainingError: the model has BatchNorm, and the task holds no calibration data.
    """
    model = network(task, sizes, arrays, device)
    if has_batch_norm(model):
        data = task.calibration_data()
        if data is None or length(data) < 2:
            raise TrainingError(
                f"a BatchNorm model needs at least two calibration examples to be evaluated after a merge, but the "
                f"task's calibration_data() gives {'none' if data is None else length(data)}; return some, or use "
                f"LayerNorm"
            )
        recalibrate(model, data)
    return model.eval()


def _in_order(examples: int, size: int) -> Iterator[np.ndarray]:
    # Parts of equal length: BatchNorm cannot take a last batch of one.
    return iter(np.array_split(np.arange(examples), ceil(examples / size)))

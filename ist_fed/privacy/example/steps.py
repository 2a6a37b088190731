"""Local steps of DP-SGD."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import arrays_of, device_of
from ist_fed.batches import fetch, length
from ist_fed.errors import PrivacyError, TrainingError
from ist_fed.privacy import noise
from ist_fed.privacy.example.settings import check_network
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import OPTIMIZERS, Training, optimizer_options

_ROUNDING = 1e-2

Draw = Callable[[int, float], np.ndarray]
"""`draw(examples, rate)`: the indices of the examples that are in a step's batch."""


def sample_rate(examples: int, batch_size: int) -> float:
    """The probability with which an example is in a batch, so that a batch has `batch_size` on average.

    Raises:
        TrainingError: there is no example.
    """
    if examples == 0:
        raise TrainingError("a client needs at least one example to train on, but its share is empty; give it data")
    return min(1.0, batch_size / examples)


def train_privately(
    model: nn.Module,
    task: Task,
    data: Dataset[Batch],
    training: Training,
    *,
    max_grad_norm: float,
    noise_multiplier: float,
    lr: float,
    steps: int,
    draw: Draw = noise.taken,
) -> None:
    """Take `steps` local steps of DP-SGD, changing `model` in place. Nothing else of the examples is told, no loss.

    Each step takes each example with the same probability, independently (Poisson sampling, by chance of the operating
    system); clips every example's gradient to `max_grad_norm`; adds noise to their sum; divides by the number of
    examples that are expected; and lets the optimiser step. A batch may be empty: then the step is noise alone. A large
    one is worked through in pieces of `batch_size`, so that memory has a bound.

    Args:
        model: on the device where it is to be trained.
        task: gives the loss, which must be the mean of the examples' own.
        data: the client's examples.
        training: optimiser and batch size; `clip_norm` bounds the noisy gradient.
        max_grad_norm: of one example.
        noise_multiplier: over `max_grad_norm`.
        lr: learning rate.
        steps: how many.
        draw: the batches, for tests.

    Raises:
        PrivacyError: the network mixes examples, or Opacus is not installed.
        TrainingError: there is no example, or weights are no longer finite.

    Source: Abadi et al., CCS 2016.
    """
    check_network(model)
    from opacus.grad_sample import GradSampleModule

    from ist_fed.privacy.example.optimizer import SecretOptimizer

    rate, device = sample_rate(length(data), training.batch_size), device_of(model)
    optimizer = SecretOptimizer(
        OPTIMIZERS[training.optimizer](model.parameters(), **optimizer_options(training, lr)),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=rate * length(data),
    )
    model.train()
    hooked = GradSampleModule(model)
    try:
        with _quiet():
            seen = False
            for _ in range(steps):
                index = draw(length(data), rate)
                pieces = np.array_split(index, max(1, -(-len(index) // training.batch_size)))
                for at, piece in enumerate(pieces, 1):
                    optimizer.zero_grad()
                    _gradients(model, task, data, piece, device)
                    if len(piece) and not seen:
                        _check_whole(model)
                        seen = True
                    optimizer.signal_skip_step(at < len(pieces))
                    if optimizer.pre_step():
                        if training.clip_norm:
                            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
                        optimizer.original_optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        hooked.to_standard_module()
    if any(array.is_floating_point() and not bool(array.isfinite().all()) for array in arrays_of(model).values()):
        raise TrainingError("weights must stay finite, but are not; lower the learning rate")


def _gradients(model: nn.Module, task: Task, data: Dataset[Batch], index: np.ndarray, device: torch.device) -> None:
    """Leave every example's gradient beside each parameter."""
    if len(index):
        task.loss(model, fetch(data, index, device)).backward()  # type: ignore[no-untyped-call]
        return
    for parameter in model.parameters():
        parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]


def _check_whole(model: nn.Module) -> None:
    """Do the examples' gradients make up the batch's? Hooks on layers do not see weights that are used elsewhere."""
    for name, parameter in model.named_parameters():
        apart, whole = getattr(parameter, "grad_sample", None), parameter.grad
        if apart is None or whole is None or not _alike(apart.mean(0), whole):
            raise PrivacyError(
                f"gradients of single examples cannot be had for this network: '{name}' is not used, or "
                f"outside its own layer, or the loss is not the mean of the examples'"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Within rounding; what is not finite says nothing."""
    apart = float((one - other).norm() / (1e-30 + other.norm()))
    return not apart > _ROUNDING


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of hooks on layers whose inputs have no gradient, such as every first one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield

"""Local steps of DP-SGD."""

import secrets
from collections.abc import Callable

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from ist_fed.arrays import arrays_of, device_of
from ist_fed.batches import first_readable, length
from ist_fed.errors import TrainingError
from ist_fed.privacy import noise
from ist_fed.privacy.example.apart import check_apart, quiet
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import OPTIMIZERS, Training, optimizer_options

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
    spend: Callable[[], None] = lambda: None,
) -> None:
    """Take `steps` local steps of DP-SGD, changing `model` in place. Nothing else of the examples is told, no loss.

    Each step takes each example with the same probability, independently (Poisson sampling, by chance of the operating
    system); clips every example's gradient to `max_grad_norm`; adds noise to their sum; divides by the number of
    examples that are expected; and lets the optimiser step. A batch may be empty: then the step is noise alone. A large
    one is worked through in pieces of `batch_size`, so that memory has a bound. An example that fails counts as
    nothing.

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
        spend: called once it is known that this network can be trained so, before an example is looked at.

    Raises:
        PrivacyError: the network mixes examples, or Opacus is not installed.
        TrainingError: there is no example, or weights are no longer finite, which follows from the noisy sums alone.
        TaskError: no example can be read.

    Source: Abadi et al., CCS 2016.
    """
    rate, device = sample_rate(length(data), training.batch_size), device_of(model)
    check_apart(model, task, first_readable(data, device))
    spend()
    from ist_fed.privacy.example.gradients import Gradients
    from ist_fed.privacy.example.optimizer import SecretOptimizer

    optimizer = SecretOptimizer(
        OPTIMIZERS[training.optimizer](model.parameters(), **optimizer_options(training, lr)),
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=rate * length(data),
    )
    model.train()
    gradients = Gradients(model, task, data)
    try:
        # Dropout is drawn for each example of a batch after the other: who could repeat that would see who was in it.
        with quiet(), seeded(secrets.randbits(62), device):
            for _ in range(steps):
                index = draw(length(data), rate)
                pieces = np.array_split(index, max(1, -(-len(index) // training.batch_size)))
                for at, piece in enumerate(pieces, 1):
                    optimizer.zero_grad()
                    gradients(piece)
                    optimizer.signal_skip_step(at < len(pieces))
                    if optimizer.pre_step():
                        if training.clip_norm:
                            nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
                        optimizer.original_optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    finally:
        gradients.close()
    if any(array.is_floating_point() and not bool(array.isfinite().all()) for array in arrays_of(model).values()):
        raise TrainingError("weights must stay finite, but are not; lower the learning rate")

"""Examples of a dataset as batches on a device."""

import logging
from collections.abc import Iterator, Sequence, Sized
from math import ceil
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ist_fed.errors import TaskError, TrainingError, raised
from ist_fed.tasks.task import Batch

logger = logging.getLogger("ist_fed")


def batches(examples: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices of one batch after another, without end: shuffled epochs whose incomplete last batch is left out.

    Raises:
        TrainingError: there is no example.
    """
    if examples == 0:
        raise TrainingError(
            "a client needs at least one example to train on, but its share is empty; give it data or leave it out"
        )
    while True:
        yield from first_batches(examples, size, examples // min(size, examples), rng)


def first_batches(examples: int, size: int, steps: int, rng: np.random.Generator) -> np.ndarray:
    """The indices of the first batches, steps × examples of a batch; `examples` is at least one."""
    size = min(size, examples)
    each = examples // size
    if steps <= each:
        return rng.permutation(examples)[: steps * size].reshape(steps, size)
    epochs = [rng.permutation(examples)[: each * size].reshape(each, size) for _ in range(ceil(steps / each))]
    return np.concatenate(epochs)[:steps]


def fetch(data: Dataset[Batch], index: np.ndarray, device: torch.device) -> Batch:
    """The examples at `index` as one batch on `device`.

    Raises:
        TaskError: an example is not a tuple of what tensors can be made of.
    """
    if type(data) is TensorDataset:  # one gather for each tensor, where a DataLoader would take them one by one
        batch = data[torch.from_numpy(index)]
    else:
        batch = _collated([data[i] for i in index.tolist()])
    return cast(Batch, tuple(part.to(device) for part in batch))


def first_readable(data: Dataset[Batch], device: torch.device) -> Batch:
    """The first example that can be read, as a batch of one; for its shape.

    Raises:
        TaskError: none can be; why not, of the first, is in the log alone, for it may tell of the example.
    """
    failed: Exception | None = None
    for at in range(length(data)):
        try:
            return fetch(data, np.array([at]), device)
        except Exception as error:
            failed = failed or error
    if failed is not None:
        logger.error("none of %d examples can be read; of the first: %s", length(data), raised(failed))
    raise TaskError(
        "the data must hold at least one example that can be read, to take its shape from, but they hold none; where "
        "they lie, the log says why"
    ) from failed


def _collated(examples: list[Any]) -> Sequence[Tensor]:
    try:
        batch = None if isinstance(examples[0], Tensor) else default_collate(examples)
    except TypeError:  # of what torch makes no tensor of
        batch = None
    if isinstance(batch, tuple | list) and all(isinstance(part, Tensor) for part in batch):
        return batch
    first = examples[0]
    kinds = ", ".join(type(part).__name__ for part in first) if isinstance(first, tuple | list) else ""
    raise TaskError(
        f"an example must be a tuple of two tensors, inputs and target, but a task's dataset gives a "
        f"{type(first).__name__}{f' of {kinds}' if kinds else ''}; return (inputs, target) from its __getitem__, as a "
        f"TensorDataset(inputs, targets) does"
    )


def length(data: Dataset[Batch]) -> int:
    """How many examples a map-style dataset has.

    Raises:
        TaskError: it does not say, or gives its examples otherwise than by number.
    """
    if isinstance(data, DataLoader | IterableDataset):
        name, remedy = type(data).__name__, "read it into a list or a TensorDataset"
        if isinstance(data, DataLoader):
            remedy = "return its dataset, for batches are made of it as training.batch_size says"
        raise TaskError(
            f"a task's data must be map-style datasets, with a length, but {name} gives one thing after another; "
            f"{remedy}"
        )
    try:
        return len(cast(Sized, data))
    except (TypeError, NotImplementedError) as error:
        raise TaskError(
            f"a task's data must be map-style datasets, with a length, but {type(data).__name__} has none; read an "
            f"iterable one into a list or a TensorDataset"
        ) from error


def in_order(examples: int, size: int) -> Iterator[np.ndarray]:
    """Indices of batches that hold every example once, in order."""
    # Parts of equal length: BatchNorm cannot take a last batch of one.
    return iter(np.array_split(np.arange(examples), ceil(examples / size)))

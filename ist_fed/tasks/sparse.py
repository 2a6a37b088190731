"""Sparse examples with several labels each: as arrays of one shape, and what is asked of a network with many labels."""

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed.models.softmax import best_label, cross_entropy
from ist_fed.models.wide_output import WideOutput, packed
from ist_fed.tasks.task import Batch


def examples(features: tuple[np.ndarray, np.ndarray], labels: np.ndarray) -> Dataset[Batch]:
    """Examples side by side, as `wide_output` takes them.

    Args:
        features: their numbers and values, each `(examples, most features of one)`; filled up with value 0.
        labels: `(examples, most labels of one)`; filled up with −1.
    """
    index, values = (torch.from_numpy(np.ascontiguousarray(part)) for part in features)
    inputs = packed(index, values.to(torch.float32))
    return cast(Dataset[Batch], TensorDataset(inputs, torch.from_numpy(labels.astype(np.int64))))


def padded(starts: np.ndarray, flat: np.ndarray, rows: np.ndarray, most: int, fill: float) -> np.ndarray:
    """What belongs to each of some rows, side by side: rows × as many as the longest has, but not more than `most`.

    Args:
        starts: where each row's entries begin in `flat`, and at last where they end.
        flat: entries of all rows, one behind another.
        rows: which ones.
        most: entries of a row that are taken, the first.
        fill: what stands where a row has no more.
    """
    counts = (starts[rows + 1] - starts[rows])[:, None]
    column = np.arange(max(1, min(most, counts.max(initial=0))))
    there = column < counts
    made = np.full(there.shape, fill, dtype=flat.dtype)
    made[there] = flat[(starts[rows][:, None] + column)[there]]
    return made


def largest(
    starts: np.ndarray, index: np.ndarray, values: np.ndarray, rows: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and values of the features of some rows, `padded`; of a row with too many, the largest values."""
    counts = np.diff(starts)
    index, values = index.copy(), values.copy()
    for row in rows[counts[rows] > most].tolist():
        here = slice(starts[row], starts[row + 1])
        order = np.argsort(-np.abs(values[here]), kind="stable")
        index[here], values[here] = index[here][order], values[here][order]
    return padded(starts, index, rows, most, 0), padded(starts, values, rows, most, 0)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of an example's labels, each of which should get an equal share of the chances."""
    model = cast(WideOutput, model)
    return cross_entropy(model.hidden(batch[0]), model.head.weight, model.head.bias, batch[1])


def score(model: nn.Module, batch: Batch) -> Tensor:
    """Precision at 1: the share of examples whose best label is one of theirs."""
    model = cast(WideOutput, model)
    best = best_label(model.hidden(batch[0]), model.head.weight, model.head.bias)
    right: Tensor = (batch[1] == best[:, None]).any(dim=1)
    return right.float().mean()

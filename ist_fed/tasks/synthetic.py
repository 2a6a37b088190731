"""Examples of any shape and number, drawn when they are asked for: to measure with, where data do not matter."""

from dataclasses import dataclass
from math import isfinite
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models import mlp, wide_output
from ist_fed.models.norm import Norm
from ist_fed.seeds import generator
from ist_fed.tasks import sparse
from ist_fed.tasks.partition import check_client
from ist_fed.tasks.task import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Synthetic(Task):
    """Classes whose examples scatter around a prototype. No table of classes is kept: a prototype is a hash.

    Dense: the prototype of a class is a vector of ±1, and an example is that and Gaussian noise; the network is an MLP.
    Sparse: the prototype of a class is `nonzeros` features. An example has one or several classes, and takes each of
    its features from one of them in turn, or at random with the chance `noise`; the network is a `wide_output`.

    Args:
        features: of an example.
        classes: how many.
        examples: of each client.
        test_examples: held out.
        noise: dense: its standard deviation; sparse: the chance that a feature means nothing, 0 to 1.
        nonzeros: features of an example that are not zero; 0 makes examples dense.
        labels: classes of an example; several only if sparse.
        norm: of the network: `batch`, `layer` or `none`.
        seed: of all draws.
    """

    features: int = 64
    classes: int = 10
    examples: int = 500
    test_examples: int = 1000
    noise: float = 0.5
    nonzeros: int = 0
    labels: int = 1
    norm: Norm = "layer"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of their range."""
        least = {"features": 1, "classes": 2, "examples": 1, "test_examples": 1, "nonzeros": 0, "labels": 1, "seed": 0}
        for option, smallest in least.items():
            if type(value := getattr(self, option)) is not int or value < smallest:
                raise TaskError(f"{option} must be a whole number, at least {smallest}, but is {value!r}")
        most = 1 if self.nonzeros else float("inf")
        if type(self.noise) not in (int, float) or not (isfinite(self.noise) and 0 <= self.noise <= most):
            raise TaskError(f"noise must be a number from 0, of sparse examples to 1, but is {self.noise!r}")
        if self.labels > max(1, self.nonzeros):
            raise TaskError(
                f"an example has one label, or as many as it has features, but labels is {self.labels} and nonzeros "
                f"{self.nonzeros}"
            )
        self._factory()

    def _factory(self) -> Build:
        if self.nonzeros:
            return wide_output(self.features, self.classes, self.norm)
        return mlp(self.features, self.classes, self.norm)

    def build(self, **sizes: int) -> nn.Module:
        """An MLP, or of sparse examples a `wide_output`."""
        return self._factory()(**sizes)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """One client's own draws; they are the same whatever the number of clients."""
        check_client(client, clients)
        return self._draw(self.examples, "client", client)

    def test_data(self) -> Dataset[Batch]:
        """Draws of nobody's."""
        return self._draw(self.test_examples, "test")

    def calibration_data(self) -> Dataset[Batch] | None:
        """256 others."""
        return self._draw(256, "calibration")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy; of sparse examples the mean over their labels."""
        return sparse.loss(model, batch) if self.nonzeros else functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Share of examples whose best class is one of theirs."""
        if self.nonzeros:
            return sparse.score(model, batch)
        right: Tensor = model(batch[0]).argmax(dim=1) == batch[1]
        return right.float().mean()

    def _draw(self, examples: int, *path: int | str) -> Dataset[Batch]:
        rng = generator(self.seed, "synthetic", *path)
        labels = rng.integers(self.classes, size=(examples, self.labels))
        if not self.nonzeros:
            inputs = 1.0 - 2.0 * (_hash(self.seed, labels, np.arange(self.features)) & 1)
            inputs += self.noise * rng.standard_normal(inputs.shape)
            made = torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels[:, 0])
            return cast(Dataset[Batch], TensorDataset(*made))
        place = np.arange(self.nonzeros)
        index = (_hash(self.seed, labels[:, place % self.labels], place) % self.features).astype(np.int64)
        nothing = rng.random(index.shape) < self.noise
        index = np.where(nothing, rng.integers(self.features, size=index.shape), index)
        values = np.full(index.shape, self.nonzeros**-0.5, dtype=np.float32)
        return sparse.examples((index, values), labels)


def _hash(seed: int, classes: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A random number of 64 bits for each class and place, which are broadcast.

    Source: Steele, Lea & Flood, OOPSLA 2014 (the finaliser of SplitMix64).
    """
    x = np.uint64(seed) ^ (classes.astype(np.uint64) << np.uint64(32)) ^ place.astype(np.uint64)
    x = x * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))

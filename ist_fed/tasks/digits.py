"""Handwritten digits: the 1797 images of 8×8 pixels that come with scikit-learn. Real data, no download."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.norm import Norm
from ist_fed.models.resnet import Order
from ist_fed.tasks.classification import Classification
from ist_fed.tasks.images import Model, image_network
from ist_fed.tasks.partition import Split, check_client, check_split, partition
from ist_fed.tasks.task import Batch

_TEST, _CALIBRATION = 360, 256  # of 1797; the clients share the other 1181


@dataclass(frozen=True, kw_only=True)
class Digits(Classification):
    """Ten classes, 8×8 pixels.

    The split into test, calibration and training is fixed. Pixels are scaled to 0..1.

    Args:
        model: `mlp`, with one hidden layer for each size of the scenario and images as rows of 64; `cnn`, with sizes
            `conv1`, … and `hidden1`, …; or `resnet`, with stages of 16 and 32 channels and one block for each size.
        norm: normalisation of the network: `batch`, `layer` or `none`.
        order: of a resnet's blocks, `standard` or `preactivation`.
        partition: how the training images are dealt out to clients: `iid`, `dirichlet` or `sorted`.
        alpha: concentration of the Dirichlet draw.
        partition_seed: of the deal; it is not the scenario's seed, so that runs with several seeds share their data.
    """

    model: Model = "mlp"
    norm: Norm = "batch"
    order: Order = "standard"
    partition: Split = "iid"
    alpha: float = 0.5
    partition_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options out of their range, here and not when the first client asks for its data."""
        self._network()
        check_split(self.partition, self.alpha, self.partition_seed)

    def build(self, **sizes: int) -> nn.Module:
        """The network, with 10 outputs."""
        return self._network()(**sizes)

    def _network(self) -> Build:
        return image_network(self.model, (1, 8, 8), 10, self.norm, order=self.order)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """One client's share of the training images."""
        check_client(client, clients)
        shares = _shares(clients, self.partition, self.alpha, self.partition_seed)
        return self._shaped(*_subset(_split()[2][shares[client]]))

    def local_data(self, path: Path) -> Dataset[Batch]:
        """A client's own images: a `.npz` file with `images` (n × 64, or n × 8 × 8, from 0 to 16) and `labels` (n)."""
        return self._shaped(*_read(path))

    def test_data(self) -> Dataset[Batch]:
        """The 360 test images."""
        return self._shaped(*_subset(_split()[0]))

    def calibration_data(self) -> Dataset[Batch] | None:
        """256 images that are in neither."""
        return self._shaped(*_subset(_split()[1]))

    def _shaped(self, images: Tensor, labels: Tensor) -> Dataset[Batch]:
        """As the network takes them."""
        return cast(Dataset[Batch], TensorDataset(images if self.model == "mlp" else images.view(-1, 1, 8, 8), labels))


def _read(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, BadZipFile) as error:
        raise TaskError(
            f"digits are read from a .npz file with 'images' and 'labels', but '{path}': {error}"
        ) from error
    if images.ndim < 2 or images[0].size != 64 or labels.shape != images.shape[:1] or images.dtype.kind not in "fiu":
        raise TaskError(
            f"in '{path}' images must be numbers, n × 64 or n × 8 × 8, and labels n, but they are {images.dtype} "
            f"{images.shape} and {labels.shape}"
        )
    whole = labels.dtype.kind in "iu" and len(labels) > 0 and set(labels.tolist()) <= set(range(10))
    if not (whole and 0 <= images.min() <= images.max() <= 16):
        raise TaskError(
            f"in '{path}' there must be pixels from 0 to 16 and labels from 0 to 9, but there are others, or none"
        )
    scaled = torch.from_numpy(images.reshape(len(images), 64) / 16).to(torch.float32)
    return scaled, torch.from_numpy(labels.astype(np.int64))


@cache
def _images() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TaskError("task 'digits' needs scikit-learn: pip install 'ist-fed[tasks]'") from error
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target, dtype=torch.int64)


@cache
def _split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the test, the calibration and the training images."""
    order = np.random.default_rng(0).permutation(len(_images()[1]))
    test, calibration, training = np.split(order, [_TEST, _TEST + _CALIBRATION])
    return test, calibration, training


@cache
def _shares(clients: int, split: Split, alpha: float, seed: int) -> list[np.ndarray]:
    return partition(_images()[1].numpy()[_split()[2]], clients, split, alpha, seed)


def _subset(index: np.ndarray) -> Batch:
    images, labels = _images()
    return images[index], labels[index]

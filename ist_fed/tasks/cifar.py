"""CIFAR-10 and CIFAR-100: 60 000 colour images of 32×32 pixels, which the user brings in their binary version."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

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
from ist_fed.tasks.source import Source
from ist_fed.tasks.task import Batch

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Version:
    """How one of the two is stored, and the mean and deviation of its training images' channels, from 0 to 1."""

    source: Source
    labels: int  # bytes before the pixels, the last of which is the class
    training: tuple[str, ...]
    test: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


_VERSIONS = {
    10: _Version(
        source=Source(
            title="CIFAR-10",
            folder="cifar-10-batches-bin",
            get="the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html",
        ),
        labels=1,
        training=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        mean=(0.4914, 0.4822, 0.4465),
        deviation=(0.2470, 0.2435, 0.2616),
    ),
    100: _Version(
        source=Source(
            title="CIFAR-100",
            folder="cifar-100-binary",
            get="the binary version, cifar-100-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html",
        ),
        labels=2,
        training=("train.bin",),
        test="test.bin",
        mean=(0.5071, 0.4865, 0.4409),
        deviation=(0.2673, 0.2564, 0.2762),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cifar(Classification):
    """Ten or a hundred classes; images stay bytes in memory, and the network's first layer makes numbers of them.

    The server holds the test images, and a tenth of the training images, at most 1000, for calibration; the clients
    share the others. Images are trained on as they are: they are not flipped or shifted at random.

    Args:
        path: folder of the binary version; by default the one in `IST_FED_DATA`.
        classes: 10 or 100.
        model: `resnet`, with one block for each size; `cnn`, with sizes `conv1`, … and `hidden1`, …; or `mlp`.
        widths: channels of a resnet's stages.
        order: of a resnet's blocks, `standard` or `preactivation`.
        norm: normalisation of the network: `batch`, `layer` or `none`.
        partition: how the training images are dealt out to clients: `iid`, `dirichlet` or `sorted`.
        alpha: concentration of the Dirichlet draw.
        partition_seed: of the deal; it is not the scenario's seed, so that runs with several seeds share their data.
    """

    path: str = ""
    classes: Literal[10, 100] = 10
    model: Model = "resnet"
    widths: Sequence[int] = (16, 32, 64)
    order: Order = "standard"
    norm: Norm = "batch"
    partition: Split = "iid"
    alpha: float = 0.5
    partition_seed: int = 0

    paths = ("path",)

    def __post_init__(self) -> None:
        """Refuse options out of their range, here and not when the first client asks for its data."""
        if type(self.classes) is not int or self.classes not in _VERSIONS:
            raise TaskError(f"there are CIFAR-10 and CIFAR-100, so classes must be 10 or 100, but is {self.classes!r}")
        if type(self.path) is not str:
            raise TaskError(f"path must be a folder's, in quotes, but is {self.path!r}")
        self._network()
        check_split(self.partition, self.alpha, self.partition_seed)

    def build(self, **sizes: int) -> nn.Module:
        """The network; it takes images as bytes, `(examples, 3, 32, 32)`."""
        version = _VERSIONS[self.classes]
        return nn.Sequential(_Pixels(version.mean, version.deviation), self._network()(**sizes))

    def _network(self) -> Build:
        return image_network(self.model, _SHAPE, self.classes, self.norm, self.widths, self.order)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """One client's share of the training images."""
        check_client(client, clients)
        images, labels = self._training()
        index = _training_split(len(labels))[1]
        shares = _shares(self._folder(), self.classes, clients, self.partition, self.alpha, self.partition_seed)
        mine = index[shares[client]]
        return _dataset(images[mine], labels[mine])

    def local_data(self, path: Path) -> Dataset[Batch]:
        """A client's own images: a `.bin` file of the same format, or a folder of such files."""
        files = sorted(path.glob("*.bin")) if path.is_dir() else [path]
        if not files:
            raise TaskError(
                f"a client's own images are .bin files of {_VERSIONS[self.classes].source.title}'s binary version, but "
                f"there is none in '{path}'"
            )
        return _dataset(*_read(files, self.classes))

    def test_data(self) -> Dataset[Batch]:
        """The test images."""
        return _dataset(*_test(self._folder(), self.classes))

    def calibration_data(self) -> Dataset[Batch] | None:
        """Training images that no client has."""
        images, labels = self._training()
        index = _training_split(len(labels))[0]
        return _dataset(images[index], labels[index])

    def _folder(self) -> Path:
        return _VERSIONS[self.classes].source.find(self.path)

    def _training(self) -> tuple[np.ndarray, np.ndarray]:
        return _training(self._folder(), self.classes)


class _Pixels(nn.Module):
    """Bytes to numbers of mean 0 and deviation 1."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        # Constants, not state: they neither travel nor are saved.
        for name, values in (("mean", mean), ("deviation", deviation)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        mean, deviation = self.get_buffer("mean"), self.get_buffer("deviation")
        return (images.to(mean.dtype) - mean) / deviation


def _dataset(images: np.ndarray, labels: np.ndarray) -> Dataset[Batch]:
    return cast(Dataset[Batch], TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)))


@cache
def _training(folder: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return _read([folder / name for name in _VERSIONS[classes].training], classes)


@cache
def _test(folder: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return _file(folder / _VERSIONS[classes].test, classes)


@cache
def _training_split(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the calibration images, and of those that clients share."""
    order = np.random.default_rng(0).permutation(examples)
    held = max(2, min(1000, examples // 10))
    return order[:held], order[held:]


@cache
def _shares(folder: Path, classes: int, clients: int, split: Split, alpha: float, seed: int) -> list[np.ndarray]:
    labels = _training(folder, classes)[1]
    return partition(labels[_training_split(len(labels))[1]], clients, split, alpha, seed)


def _read(files: Sequence[Path], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as bytes, `(examples, 3, 32, 32)`, and their labels."""
    parts = [_file(file, classes) for file in files]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _file(file: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    version = _VERSIONS[classes]
    title, record = version.source.title, version.labels + _PIXELS
    try:
        data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise TaskError(f"{title} is read from '{file}', which cannot be read: {error.strerror}") from error
    whole, over = divmod(len(data), record)
    if over or not whole:
        raise TaskError(
            f"a file of {title} is records of {record} bytes, at least one, but '{file}' has {len(data)} bytes, {over} "
            f"after {whole} whole records; it is cut off, or of another format: unpack the binary version again"
        )
    records = data.reshape(whole, record)
    labels = records[:, version.labels - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise TaskError(
            f"labels of {title} are 0 to {classes - 1}, but record {wrong[0]} (from 0) of '{file}' says "
            f"{labels[wrong[0]]}; the file is damaged, or of another format: unpack the binary version again"
        )
    return records[:, version.labels :].reshape(whole, *_SHAPE).copy(), labels

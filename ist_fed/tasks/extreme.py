"""Amazon-670k, or any other file of the Extreme Classification Repository: which labels of very many fit an example."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models import wide_output
from ist_fed.models.norm import Norm
from ist_fed.tasks import sparse
from ist_fed.tasks.partition import check_client
from ist_fed.tasks.repository import Points, read_points
from ist_fed.tasks.source import Source
from ist_fed.tasks.task import Batch, Task

_SOURCE = Source(
    title="Amazon-670K, or another data set of bags of words,",
    folder="amazon-670k",
    get="it from the Extreme Classification Repository (http://manikvarma.org/downloads/XC/XMLRepository.html)",
)


@dataclass(frozen=True, kw_only=True)
class Extreme(Task):
    """Sparse examples with several labels each; a `wide_output` with a hidden layer for each size of the scenario.

    Points are dealt out one after another, to the clients in turn; those without a label are left out. What is measured
    is precision at 1.

    Args:
        path: folder of the data set; by default the one in `IST_FED_DATA`.
        train: file in it to train on.
        test: file in it to test on.
        features: how many there are, as the header of the files says.
        labels: the same.
        train_points: points of the file that are read, the first; 0 reads all.
        test_points: the same of the test, for every one takes as long as the scores of all labels.
        features_each: features of an example that are used, those with the largest values.
        labels_each: labels of an example that are used, the first.
        norm: of the network: `batch`, `layer` or `none`.
    """

    path: str = ""
    train: str = "train.txt"
    test: str = "test.txt"
    features: int = 135_909
    labels: int = 670_091
    train_points: int = 0
    test_points: int = 2000
    features_each: int = 128
    labels_each: int = 16
    norm: Norm = "layer"

    metric = "precision_at_1"
    paths = ("path",)

    def __post_init__(self) -> None:
        """Refuse options out of their range."""
        least = {"features": 1, "labels": 2, "train_points": 0, "test_points": 0, "features_each": 1, "labels_each": 1}
        for option, smallest in least.items():
            if type(value := getattr(self, option)) is not int or value < smallest:
                raise TaskError(f"{option} must be a whole number, at least {smallest}, but is {value!r}")
        for option in ("train", "test"):
            name = Path(str(getattr(self, option)))
            if name.is_absolute() or ".." in name.parts:
                raise TaskError(
                    f"{option} must name a file in the data set's folder, but is '{name}'; set options.path"
                )
        self._factory()

    def _factory(self) -> Build:
        return wide_output(self.features, self.labels, self.norm)

    def build(self, **sizes: int) -> nn.Module:
        """A `wide_output` of sparse examples."""
        return self._factory()(**sizes)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """Every `clients`-th point of the training file."""
        check_client(client, clients)
        return self._examples(self._file(self.train), self.train_points, client, clients)

    def local_data(self, path: Path) -> Dataset[Batch]:
        """A client's own points: a file of the same format."""
        return self._examples(path, self.train_points)

    def test_data(self) -> Dataset[Batch]:
        """The first points of the test file."""
        return self._examples(self._file(self.test), self.test_points)

    def calibration_data(self) -> Dataset[Batch] | None:
        """The first 256 points of the test file, whose labels do not matter."""
        return self._examples(self._file(self.test), 256)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean cross-entropy of an example's labels."""
        return sparse.loss(model, batch)

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Share of examples whose best label is one of theirs."""
        return sparse.score(model, batch)

    def _file(self, name: str) -> Path:
        path = _SOURCE.find(self.path) / name
        if not path.is_file():
            raise TaskError(
                f"task 'extreme' reads '{path}', but it is not there; put {self.train} and {self.test} into that "
                f"folder, or name them in options.train and options.test"
            )
        return path

    def _examples(self, path: Path, limit: int, first: int = 0, step: int = 1) -> Dataset[Batch]:
        points = _points(path, limit)
        if (points.features, points.labels) != (self.features, self.labels):
            raise TaskError(
                f"client and server must agree on the network, of {self.features} features and {self.labels} labels, "
                f"but the header of '{path}' says {points.features} and {points.labels}; set options.features and "
                f"options.labels"
            )
        rows = np.flatnonzero(np.diff(points.label_starts))[first::step]
        if not len(rows):
            raise TaskError(f"an example has a label, but of the points of '{path}' there are too few that have one")
        return sparse.examples(
            sparse.largest(points.feature_starts, points.index, points.values, rows, self.features_each),
            sparse.padded(points.label_starts, points.labels_of, rows, self.labels_each, -1),
        )


@cache
def _points(path: Path, limit: int) -> Points:
    return read_points(path, limit or None)

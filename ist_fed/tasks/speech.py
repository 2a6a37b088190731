"""Google Speech Commands: 105 829 recordings of 35 words, which the user brings; the task of the paper."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.norm import Norm
from ist_fed.tasks.classification import Classification
from ist_fed.tasks.images import Model, image_network
from ist_fed.tasks.mel import BANDS, FRAMES
from ist_fed.tasks.partition import Split, check_client, check_split, partition
from ist_fed.tasks.recordings import Recordings, features_of, find_recordings, read_list
from ist_fed.tasks.source import Source
from ist_fed.tasks.task import Batch

# fmt: off
WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)
# fmt: on
"""The classes, in their order."""

_SOURCE = Source(
    title="Google Speech Commands",
    folder="speech_commands_v0.02",
    get="speech_commands_v0.02.tar.gz from http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
)
_CALIBRATION = 1024  # recordings of the validation list

Deal = Literal["speaker"] | Split


@dataclass(frozen=True, kw_only=True)
class Speech(Classification):
    """Which of 35 words is said, from 64 × 64 log-mel features.

    The server holds the recordings of `testing_list.txt`, and of `validation_list.txt` for calibration; the clients
    share the others. Features are made once and kept in `cache`.

    Args:
        path: folder of the data set; by default the one in `IST_FED_DATA`.
        cache: folder for features, 0.9 GB of all recordings; by default `ist_fed` in the user's cache folder.
        model: `mlp`, with one hidden layer for each size and features as rows of 4096; `cnn` or `resnet`, which take
            them as an image of one channel.
        norm: normalisation of the network: `batch`, `layer` or `none`.
        partition: how the training recordings are dealt out to clients: `speaker` gives each speaker's to one client,
            by a hash of the speaker that the file names give; `iid`, `dirichlet` or `sorted` by word.
        alpha: concentration of the Dirichlet draw.
        partition_seed: of the deal; it is not the scenario's seed, so that runs with several seeds share their data.

    Source: Warden, arXiv 1804.03209, 2018 (data); Yuan et al., PVLDB 15(8), 2022, section 5 (4096 features, 35 words).
    """

    path: str = ""
    cache: str = ""
    model: Model = "mlp"
    norm: Norm = "batch"
    partition: Deal = "speaker"
    alpha: float = 0.5
    partition_seed: int = 0

    paths = ("path", "cache")

    def __post_init__(self) -> None:
        """Refuse options out of their range, here and not when the first client asks for its data."""
        for key in ("path", "cache"):
            if type(value := getattr(self, key)) is not str:
                raise TaskError(f"{key} must be a folder's, in quotes, but is {value!r}")
        self._network()
        if self.partition not in ("speaker", *get_args(Split)):
            raise TaskError(
                f"partition must be one of speaker, {', '.join(get_args(Split))}, but is {self.partition!r}"
            )
        check_split("iid" if self.partition == "speaker" else self.partition, self.alpha, self.partition_seed)

    def build(self, **sizes: int) -> nn.Module:
        """The network, with 35 outputs."""
        return self._network()(**sizes)

    def _network(self) -> Build:
        return image_network(self.model, (1, FRAMES, BANDS), len(WORDS), self.norm)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """One client's share of the training recordings."""
        check_client(client, clients)
        mine = _shares(self._folder(), clients, self.partition, self.alpha, self.partition_seed)[client]
        if not len(mine):
            raise TaskError(
                f"every client needs the recordings of a speaker, but none of the speakers falls to client {client} of "
                f"{clients}; use fewer clients, or partition iid"
            )
        return self._dataset(mine)

    def local_data(self, path: Path) -> Dataset[Batch]:
        """A client's own recordings: a folder with folders of .wav files, named by their words."""
        found = find_recordings(path, WORDS)
        return self._shaped(features_of(found, self._cache()), found.labels)

    def test_data(self) -> Dataset[Batch]:
        """The recordings of `testing_list.txt`."""
        return self._dataset(_split(self._folder())[0])

    def calibration_data(self) -> Dataset[Batch] | None:
        """The first of a fixed order of those of `validation_list.txt`."""
        return self._dataset(_split(self._folder())[1])

    def _dataset(self, index: np.ndarray) -> Dataset[Batch]:
        folder = self._folder()
        return self._shaped(_features(folder, self._cache())[index], _recordings(folder).labels[index])

    def _shaped(self, features: np.ndarray, labels: np.ndarray) -> Dataset[Batch]:
        """As the network takes them."""
        inputs = torch.from_numpy(features.astype(np.float32))
        inputs = inputs if self.model == "mlp" else inputs.view(-1, 1, FRAMES, BANDS)
        return cast(Dataset[Batch], TensorDataset(inputs, torch.from_numpy(labels)))

    def _folder(self) -> Path:
        return _SOURCE.find(self.path)

    def _cache(self) -> Path:
        if self.cache:
            return Path(self.cache).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ist_fed"


@cache
def _recordings(folder: Path) -> Recordings:
    return find_recordings(folder, WORDS)


@cache
def _features(folder: Path, cache: Path) -> np.ndarray:
    return features_of(_recordings(folder), cache)


@cache
def _split(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the test, the calibration and the training recordings."""
    names = _recordings(folder).names
    place = {name: number for number, name in enumerate(names)}
    test, validation = (read_list(folder, f"{kind}_list.txt", place) for kind in ("testing", "validation"))
    calibration = np.random.default_rng(0).permutation(np.array(validation))[:_CALIBRATION]
    training = np.setdiff1d(np.arange(len(names)), np.array(test + validation))
    if not len(training):
        raise TaskError(f"'{folder}' must hold recordings to train on, but all are in its lists; unpack the data again")
    return np.array(test), calibration, training


@cache
def _shares(folder: Path, clients: int, deal: Deal, alpha: float, seed: int) -> list[np.ndarray]:
    recordings, training = _recordings(folder), _split(folder)[2]
    if deal != "speaker":
        return [training[share] for share in partition(recordings.labels[training], clients, deal, alpha, seed)]
    owners = np.array([_client_of(recordings, number, clients, seed) for number in training])
    return [training[owners == client] for client in range(clients)]


def _client_of(recordings: Recordings, number: int, clients: int, seed: int) -> int:
    speaker = recordings.speakers[number]
    if not speaker:
        raise TaskError(
            f"recordings are dealt out by speaker, but the name of '{recordings.folder / recordings.names[number]}' "
            f"says none; it must be like 0a7c2a8d_nohash_0.wav, or use partition iid"
        )
    return int.from_bytes(hashlib.sha256(f"{seed}/{speaker}".encode()).digest()[:8]) % clients

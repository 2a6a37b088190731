"""The next character of texts: the Python standard library's own sources, or any folder of text files."""

import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models import transformer
from ist_fed.models.transformer import Norm
from ist_fed.tasks.partition import check_client
from ist_fed.tasks.task import Batch, Task

Vocabulary = Literal["ascii", "bytes"]

_TESTED = 10  # one of so many files, by its name's hash
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}  # installed into the standard library, not of it


@dataclass(frozen=True, kw_only=True)
class Text(Task):
    """A transformer that reads characters; one block for each pair of sizes `heads0` and `ffn0`, `heads1` and `ffn1`.

    A file belongs to one client, or to the server as a test, by the hash of its path within the folder: the same files
    are dealt the same way everywhere. An example is `context` characters, and what follows each of them.

    Args:
        path: of the folder; by default the standard library of the Python that runs.
        suffix: of the files in it, at any depth, that are read.
        vocabulary: `ascii`, its 95 printable characters, the line break, the tab, and one token for all else; or
            `bytes`, 256 of them.
        context: characters of an example.
        characters: that a client reads, at most.
        test_characters: that the server tests on, at most.
        width: of the transformer's residual stream.
        head: features of one attention head.
        norm: `layer` or `rms`.
        tied: whether the output layer is the embedding of the characters.
    """

    path: str = ""
    suffix: str = ".py"
    vocabulary: Vocabulary = "ascii"
    context: int = 64
    characters: int = 200_000
    test_characters: int = 50_000
    width: int = 64
    head: int = 16
    norm: Norm = "layer"
    tied: bool = True

    paths = ("path",)

    def __post_init__(self) -> None:
        """Refuse options out of their range."""
        if self.vocabulary not in get_args(Vocabulary):
            raise TaskError(f"vocabulary must be one of {', '.join(get_args(Vocabulary))}, but is {self.vocabulary!r}")
        for option in ("context", "characters", "test_characters", "width", "head"):
            if type(value := getattr(self, option)) is not int or value < 1:
                raise TaskError(f"{option} must be a whole number, at least 1, but is {value!r}")
        self._build()

    def _build(self) -> Build:
        tokens = int(_tokens(self.vocabulary).max()) + 1
        return transformer(tokens, self.width, self.head, self.norm, self.tied)

    def build(self, **sizes: int) -> nn.Module:
        """A transformer of as many blocks as there are pairs of sizes."""
        return self._build()(**sizes)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        """The files of one client."""
        check_client(client, clients)
        folder = self._folder()
        files = [path for path, tested in _listed(folder, self.suffix) if not tested]
        if len(files) < clients:
            raise TaskError(
                f"every client needs a file of its own, but in '{folder}' there are {len(files)} named *{self.suffix} "
                f"to train on, for {clients} clients"
            )
        return self._examples(files[client::clients], self.characters, f"client {client}")

    def local_data(self, path: Path) -> Dataset[Batch]:
        """A client's own files: a folder, of which all files with the suffix are read, or one file of any name."""
        files = [path] if path.is_file() else [file for file, _ in _listed(path, self.suffix)]
        return self._examples(files, self.characters, f"'{path}'")

    def test_data(self) -> Dataset[Batch]:
        """The files that no client has."""
        folder = self._folder()
        files = [path for path, tested in _listed(folder, self.suffix) if tested]
        return self._examples(files, self.test_characters, f"the test, of every {_TESTED}th file in '{folder}',")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of every next character, in nats."""
        before, after = batch
        return functional.cross_entropy(model(before).flatten(0, 1), after.flatten())

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Share of characters that are foretold right."""
        before, after = batch
        right: Tensor = model(before).argmax(dim=-1) == after
        return right.float().mean()

    def _folder(self) -> Path:
        return Path(self.path or sysconfig.get_path("stdlib")).expanduser()

    def _examples(self, files: Iterable[Path], characters: int, whose: str) -> Dataset[Batch]:
        text = _tokens(self.vocabulary)[_read(files, characters)]
        examples = (len(text) - 1) // self.context
        if examples < 1:
            raise TaskError(
                f"an example is {self.context} characters and one to come, but {whose} has only {len(text)}; give more "
                f"text, allow more characters, or lower context"
            )
        used = examples * self.context
        before, after = (torch.from_numpy(part.reshape(examples, -1)) for part in (text[:used], text[1 : used + 1]))
        return cast(Dataset[Batch], TensorDataset(before, after))


@cache
def _listed(folder: Path, suffix: str) -> Sequence[tuple[Path, bool]]:
    """The folder's files in the order of their names' hashes, and whether each is for the test."""
    if not folder.is_dir():
        raise TaskError(f"texts are read from a folder, but there is none at '{folder}'; name one in options.path")
    names = []
    for above, below, files in os.walk(folder):
        below[:] = [name for name in below if name not in _FOREIGN]
        names += [Path(above, name).relative_to(folder).as_posix() for name in files if name.endswith(suffix)]
    if not names:
        raise TaskError(
            f"texts are read from files named *{suffix}, but in '{folder}' there are none; see options.suffix"
        )
    hashed = sorted((sha256(name.encode()).digest(), name) for name in names)
    return [(folder / name, digest[-1] % _TESTED == 0) for digest, name in hashed]


def _read(files: Iterable[Path], characters: int) -> np.ndarray:
    """The files one after another, as bytes, up to so many."""
    parts = []
    for path in files:
        if characters <= 0:
            break
        try:
            with path.open("rb") as file:
                part = file.read(characters)
        except OSError as error:
            raise TaskError(f"the text '{path}' cannot be read: {error.strerror}") from error
        if (zero := part.find(0)) >= 0:
            raise TaskError(
                f"a text has no zero byte, but '{path}' has one at byte {zero}: it is no text, or UTF-16; take it out "
                f"of the folder, or see options.suffix"
            )
        parts.append(part)
        characters -= len(part)
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


@cache
def _tokens(vocabulary: Vocabulary) -> np.ndarray:
    """The token of each byte."""
    if vocabulary == "bytes":
        return np.arange(256)
    shown = b"\n\t" + bytes(range(32, 127))
    table = np.full(256, len(shown))
    table[list(shown)] = np.arange(len(shown))
    return table

"""The checkpoints of a run: all that it needs to go on as if it had never stopped."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ist_fed import tensors
from ist_fed.errors import RunError
from ist_fed.files import write_atomically

logger = logging.getLogger("ist_fed")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Args:
        round: from 1; 0 is before the first.
        arrays: the wide network.
        coverage: what of it was trained.
        moments: of the server's optimiser.
        loans: what is lent out.
        travelling: what the clients' optimisers keep.
    """

    round: int
    arrays: dict[str, Tensor]
    coverage: dict[str, Tensor]
    moments: dict[str, Tensor] = field(default_factory=dict)
    loans: dict[str, Tensor] = field(default_factory=dict)
    travelling: dict[str, Tensor] = field(default_factory=dict)


class Checkpoints:
    """A folder of them.

    Args:
        folder: it exists, or nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stage(self, state: Checkpoint, keep: int) -> Callable[[], None]:
        """Write a checkpoint that does not count yet; what is returned makes it count, and writes very little.

        In between goes the round's line of metrics: a crash then leaves neither a checkpoint without its line, which
        nobody would ever write, nor a line that could not be written again.

        Args:
            state: after a round.
            keep: how many checkpoints, the newest, are kept once it counts.

        Raises:
            RunError: it cannot be written, by both; earlier ones are as they were.
        """
        all_of_it = {f"arrays/{name}": array for name, array in state.arrays.items()}
        all_of_it |= {f"coverage/{name}": marks for name, marks in state.coverage.items()}
        all_of_it |= {f"moments/{name}": moment for name, moment in state.moments.items()}
        all_of_it |= {f"loans/{name}": array for name, array in state.loans.items()}
        all_of_it |= {f"travelling/{name}": array for name, array in state.travelling.items()}
        stem = self._folder / f"round-{state.round:06d}"
        digest, size = hashlib.sha256(), 0

        def noted() -> Iterator[bytes | memoryview]:
            nonlocal size
            for piece in tensors.written(all_of_it):
                digest.update(piece)
                size += len(piece)
                yield piece

        write_atomically(stem.with_suffix(".safetensors"), noted())
        about = {"round": state.round, "sha256": digest.hexdigest(), "bytes": size}

        def count() -> None:
            write_atomically(stem.with_suffix(".json"), json.dumps(about).encode())
            self._drop_old(state.round, keep)

        return count

    def restore(self) -> Checkpoint:
        """The newest checkpoint that is whole.

        Raises:
            RunError: there is none.
        """
        problems = []
        for number in self.rounds():
            try:
                return _read_checkpoint(self._folder / f"round-{number:06d}", number)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("the checkpoint of round %d cannot be used (%s); trying the one before", number, error)
                problems.append(f"round {number}: {error}")
        raise RunError(
            f"a run is resumed from a checkpoint, but none in '{self._folder}' can be used "
            f"({'; '.join(problems) or 'there is none yet'}); start a new run"
        )

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, newest first."""
        matches = (re.fullmatch(r"round-(\d+)\.json", path.name) for path in self._folder.glob("round-*.json"))
        return sorted((int(match[1]) for match in matches if match), reverse=True)

    def _drop_old(self, newest: int, keep: int) -> None:
        """Keep the newest checkpoints up to `newest`: later ones could not be restored, or were given up."""
        kept = [number for number in self.rounds() if number <= newest][:keep]
        for path in sorted(self._folder.iterdir()):  # .json first: without it the other does not count
            match = re.fullmatch(r"round-(\d+)\.(json|safetensors)(\.tmp)?", path.name)
            if match and (int(match[1]) not in kept or match[3]):
                path.unlink()


def _read_checkpoint(stem: Path, number: int) -> Checkpoint:
    about = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    path = stem.with_suffix(".safetensors")
    if (size := path.stat().st_size) != about["bytes"]:
        raise ValueError(f"it has {size} bytes, but {about['bytes']} were written")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != about["sha256"]:
        raise ValueError("its bytes are not those that were written")
    if about["round"] != number:
        raise ValueError(f"it says that it is of round {about['round']}")
    kinds = ("arrays", "coverage", "moments", "loans", "travelling")
    parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for name, tensor in tensors.read(path).items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    return Checkpoint(number, *parts.values())

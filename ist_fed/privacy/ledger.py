"""What was spent, on disk before it is released: a line for each release, never taken back."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ist_fed.errors import PrivacyError, RunError
from ist_fed.files import append_durably, held_alone
from ist_fed.privacy.accounting import Step, epsilon_of

LEDGER = "privacy.jsonl"
"""Name of the file in a run's folder, and beside the runs of one server."""


class BudgetSpent(PrivacyError):
    """The next release would cost more than is left; nothing was released."""


class Ledger:
    """One or several files in which releases are counted, each against the same budget.

    A run that is taken up again releases some rounds anew; they count again. A file is only ever added to.

    Args:
        paths: the run's own file, and, where clients outlive a run, that of everything ever released from them.
        epsilon: the budget.
        delta: at which it holds.
    """

    def __init__(self, paths: Sequence[Path], *, epsilon: float, delta: float) -> None:
        self._files, self._budget, self._delta = [_File(path) for path in paths], epsilon, delta

    def epsilon(self) -> float:
        """What was spent in the dearest of the files."""
        return max(epsilon_of(file.read().steps, self._delta).epsilon for file in self._files)

    def check(self, step: Step) -> None:
        """Refuse a release that would cost more than is left; nothing is written.

        Raises:
            BudgetSpent: it would.
        """
        for file in self._files:
            before = file.read().steps
            after = epsilon_of(before + Counter([step]), self._delta).epsilon
            if after > self._budget:
                raise BudgetSpent(
                    f"a private run stops before its budget is overdrawn: one more release would bring epsilon to "
                    f"{after:.4g} of {self._budget:g} at delta {self._delta:g}, after {before.total()} in "
                    f"'{file.path}'. What was released stays released; only a larger privacy.epsilon, in a new run, "
                    f"allows more"
                )

    def spend(self, step: Step, about: Mapping[str, Any]) -> None:
        """Write a release down. Once this returns it may be made, and not before.

        Args:
            step: what is released.
            about: what else the line says.

        Raises:
            BudgetSpent: it would cost more than is left; nothing is written.
            RunError: it cannot be written; the release must not be made.
        """
        line = (json.dumps({**about, "step": step.to_json()}) + "\n").encode()
        with ExitStack() as held:
            files = sorted(self._files, key=lambda file: file.path)  # in one order: two runs cannot wait for each other
            locks = [held.enter_context(held_alone(file.path)) for file in files]
            self.check(step)
            for file, lock in zip(files, locks, strict=True):
                file.append(lock, line)

    def last(self, round: int) -> Mapping[str, Any] | None:
        """The last line of the run's own file about a round."""
        return self._files[0].read().rounds.get(round)


class _File:
    """One file, of which only what is new is read.

    Attributes:
        steps: how often each was released.
        rounds: the last line about each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.steps: Counter[Step] = Counter()
        self.rounds: dict[int, Mapping[str, Any]] = {}
        self._read = 0

    def read(self) -> "_File":
        """Take in new lines; a last one that is not whole was never released.

        Raises:
            RunError: a line cannot be read, or lines are gone.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(self._read)
                new = file.read() if size >= self._read else None
        except FileNotFoundError:
            new = None if self._read else b""
        except OSError as error:
            raise self._unknown(error.strerror or str(error)) from error
        if new is None:
            raise self._unknown("lines of it are gone")
        for line in new.split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
                self.steps[Step(**entry["step"])] += 1
                self.rounds[entry.get("round", 0)] = entry
            except (ValueError, TypeError, KeyError) as error:
                raise self._unknown(f"a line cannot be read: {line[:80]!r}") from error
            self._read += len(line) + 1
        return self

    def append(self, file: int, line: bytes) -> None:
        """Add a line after the last whole one, and wait until it is on the disk."""
        append_durably(file, self.path, self._read, line)

    def _unknown(self, reason: str) -> RunError:
        return RunError(
            f"'{self.path}' says what privacy was spent, but {reason}; while nobody knows that, nothing more is "
            f"released. Restore it from a backup"
        )

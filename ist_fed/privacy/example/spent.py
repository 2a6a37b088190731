"""What a client spent of its examples' privacy: a line on its own disk for every round, written before the round."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ist_fed.privacy.tally import Entries, Tally


class Steps(NamedTuple):
    """Steps of DP-SGD that are alike, as Opacus' accountants keep them."""

    noise_multiplier: float
    sample_rate: float
    steps: int


class Spent:
    """Counts steps of DP-SGD on one client's examples, whatever the run.

    Args:
        path: of the file.
        delta: at which epsilon is told.
    """

    def __init__(self, path: Path, delta: float) -> None:
        self._tally, self._delta = Tally(path, "the examples'"), delta

    def steps(self) -> list[Steps]:
        """What was counted so far.

        Raises:
            RunError: a line cannot be read.
        """
        return self._read(self._tally.entries())

    def epsilon(self) -> float:
        """Epsilon after all that was counted, by Opacus' accountant.

        Adjacent are data with and without one example; a step takes each example with the sample rate, independently.
        """
        return _epsilon(_together(self.steps()), self._delta)

    def add(self, steps: Steps, round: int, allow: Callable[[float], None]) -> float:
        """Count steps that are about to be taken. Once this returns they may be, and not before.

        Args:
            steps: these.
            round: of the run, for who reads the file.
            allow: given epsilon after them, raises if it is too much; no other process counts anything meanwhile.

        Returns:
            Epsilon after them.

        Raises:
            RunError: it cannot be written, or a line cannot be read; no step must be taken.
        """
        after = 0.0

        def check(before: Entries) -> None:
            nonlocal after
            after = _epsilon(_together([*self._read(before), steps]), self._delta)
            allow(after)

        self._tally.add({"round": round, **steps._asdict()}, check)
        return after

    def _read(self, entries: Entries) -> list[Steps]:
        try:
            return [_steps(entry) for entry in entries]
        except (ValueError, TypeError, KeyError) as error:
            raise self._tally.unknown(f"a line of it cannot be read ({error})") from error


def _steps(entry: Mapping[str, Any]) -> Steps:
    steps = Steps(float(entry["noise_multiplier"]), float(entry["sample_rate"]), int(entry["steps"]))
    if not (steps.noise_multiplier >= 0 and 0 < steps.sample_rate <= 1 and steps.steps >= 0):
        raise ValueError(f"it says {steps}")
    return steps


def _together(history: list[Steps]) -> tuple[Steps, ...]:
    """The same with steps that are alike added up, which composition does not mind and which is faster."""
    counts: dict[tuple[float, float], int] = {}
    for noise, rate, steps in history:
        counts[noise, rate] = counts.get((noise, rate), 0) + steps
    return tuple(Steps(noise, rate, steps) for (noise, rate), steps in counts.items() if steps)


@lru_cache(maxsize=256)  # clients of a simulation that have equally many examples ask the same
def _epsilon(history: tuple[Steps, ...], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [tuple(steps) for steps in history]
    with loose_bounds_allowed():
        return float(accountant.get_epsilon(delta=delta)) if history else 0.0


@contextmanager
def loose_bounds_allowed() -> Iterator[None]:
    """Opacus warns where more orders would tighten its bound; it is a bound all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is")
        yield

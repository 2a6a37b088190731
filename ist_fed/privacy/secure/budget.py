"""What a member lets its secure rounds tell about it, whatever a server says: counted on its own disk."""

from collections import Counter
from functools import partial
from math import inf
from pathlib import Path

from ist_fed.errors import SecureError
from ist_fed.privacy.secure.accounting import Release, epsilon
from ist_fed.privacy.secure.messages import Terms
from ist_fed.privacy.tally import Entries, Tally


class Budget:
    """Counts every update given away, of all runs and also after a restart.

    Args:
        path: of the file.
        allowed: the largest ε that its operator lets it spend; a round without noise is beyond any.
        delta: at which that holds.

    Raises:
        ValueError: they are not a budget.
    """

    def __init__(self, path: Path, *, allowed: float = inf, delta: float = 1e-5) -> None:
        if not allowed > 0 or not 0 < delta < 1:
            raise ValueError(f"epsilon is positive and delta between 0 and 1, but they are {allowed} and {delta}")
        self._tally, self.allowed, self._delta = Tally(path, "this client's"), allowed, delta

    def epsilon(self, *more: Release) -> float:
        """ε of all that was given away and, if it were, of more.

        Raises:
            RunError: the file cannot be read.
        """
        return self._epsilon(self._tally.entries(), *more)

    def check(self, terms: Terms) -> None:
        """Refuse a round that costs more than is left; nothing is written.

        Raises:
            SecureError: it does.
        """
        if self.allowed < inf:
            self._check(_release(terms), self._tally.entries())

    def spend(self, terms: Terms) -> None:
        """Count a round. Once this returns its update may be given away, and not before.

        Raises:
            SecureError: it costs more than is left; nothing is written.
            RunError: it cannot be written; nothing must be given away.
        """
        if terms.variance:
            release = _release(terms)
            check = partial(self._check, release) if self.allowed < inf else None
            self._tally.add({"run": terms.run.hex(), "round": terms.round, **release._asdict()}, check)
        else:
            self.check(terms)  # there is nothing to add up

    def _check(self, release: Release, before: Entries) -> None:
        if (after := self._epsilon(before, release)) > self.allowed:
            raise SecureError(
                f"a client gives no more away than its operator allows, epsilon {self.allowed:g} at delta "
                f"{self._delta:g}, but it would come to {after:.4g} with this round"
            )

    def _epsilon(self, before: Entries, *more: Release) -> float:
        releases = Counter(more)
        try:
            for entry in before:
                releases[Release(float(entry["variance"]), float(entry["l2"]), int(entry["length"]))] += 1
        except (KeyError, ValueError, TypeError) as error:
            raise self._tally.unknown(f"a line of it cannot be read ({error})") from error
        return epsilon(releases, self._delta)


def _release(terms: Terms) -> Release:
    return Release(variance=terms.threshold * terms.variance, l2=terms.clip / terms.grid, length=terms.length)

"""Trips of subnets to clients and back, in virtual time: which ends when."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np

_SAME = 1e-12  # relative difference of two moments that are one but for rounding


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A subnet goes to a client, is trained there, and comes back.

    Args:
        latency: seconds on the way, each way, however small the subnet.
        down: bits to the client.
        down_rate: most bits a second that the client's link takes in; 0 sets no bound.
        compute: seconds of training.
        up: bits back.
        up_rate: most bits a second that its link sends; 0 sets no bound.
    """

    latency: float = 0.0
    down: float = 0.0
    down_rate: float = 0.0
    compute: float = 0.0
    up: float = 0.0
    up_rate: float = 0.0

    @property
    def alone(self) -> float:
        """Seconds that it takes if nothing else is under way."""
        transfers = ((self.down, self.down_rate), (self.up, self.up_rate))
        return 2 * self.latency + self.compute + sum(bits / rate for bits, rate in transfers if rate)


class Traffic:
    """Trips under way at once; they share the server's own link fairly.

    Without a bound on that link a trip takes the sum of its parts. With one, transfers are a fluid: at every moment the
    link is shared so that the least of the rates is as large as it can be, none above its client's own (max-min
    fairness, near to what TCP does).

    Args:
        server_up: bits a second that leave the server; 0 sets no bound.
        server_down: bits a second that reach it; 0 sets no bound.
        now: seconds on the clock to begin with.

    Attributes:
        now: seconds on the clock.
    """

    def __init__(self, server_up: float = 0.0, server_down: float = 0.0, now: float = 0.0) -> None:
        self.now = now
        self._pipes = {"down": _Pipe(server_up), "up": _Pipe(server_down)}
        self._moments: list[tuple[float, int, Hashable, Trip, str]] = []
        self._numbers = count()  # of equal moments the one known first comes first

    def begin(self, key: Hashable, trip: Trip) -> None:
        """Send a subnet out now."""
        self._go(key, trip, "down", self.now + trip.latency)

    def wake(self, key: Hashable, at: float) -> None:
        """Let `key` be the next at a moment, though no subnet travels."""
        self._later(at, key, Trip(), "end")

    def next(self) -> Hashable | None:
        """Let the clock run until a trip ends, and say which; None if none is under way."""
        while True:
            pipe = min(self._pipes.values(), key=lambda pipe: pipe.due)
            if self._moments and self._moments[0][0] <= pipe.due:
                self.now, _, key, trip, stage = heappop(self._moments)
                if stage == "end":
                    return key
                rate, bits = (trip.down_rate, trip.down) if stage == "down" else (trip.up_rate, trip.up)
                self._pipes[stage].add((key, trip), bits, rate or inf, self.now)
            elif pipe.due < inf:
                self.now = pipe.due
                for key, trip in pipe.pop():
                    self._after(key, trip, "down" if pipe is self._pipes["down"] else "up", self.now)
            else:
                return None

    def _go(self, key: Hashable, trip: Trip, stage: str, at: float) -> None:
        """Begin a transfer: on a link that is bounded when it is time, else its end is known."""
        rate, bits = (trip.down_rate, trip.down) if stage == "down" else (trip.up_rate, trip.up)
        if self._pipes[stage].rate and bits:
            self._later(at, key, trip, stage)
        else:
            self._after(key, trip, stage, at + (bits / rate if rate else 0.0))

    def _after(self, key: Hashable, trip: Trip, stage: str, at: float) -> None:
        if stage == "down":
            self._go(key, trip, "up", at + trip.compute)
        else:
            self._later(at + trip.latency, key, trip, "end")

    def _later(self, at: float, key: Hashable, trip: Trip, stage: str) -> None:
        heappush(self._moments, (at, next(self._numbers), key, trip, stage))


def last_of(traffic: Traffic, trips: Iterable[Trip]) -> float:
    """When the last of trips that begin together ends."""
    for number, trip in enumerate(trips):
        traffic.begin(number, trip)
    while traffic.next() is not None:
        pass
    return traffic.now


class _Pipe:
    """A link that transfers share."""

    def __init__(self, rate: float) -> None:
        self.rate, self.due = rate, inf
        self._keys: list[tuple[Hashable, Trip]] = []
        self._left, self._own, self._speed = np.empty(0), np.empty(0), np.empty(0)
        self._at = 0.0

    def add(self, key: tuple[Hashable, Trip], bits: float, own: float, now: float) -> None:
        self._advance(now)
        self._keys.append(key)
        self._left, self._own = np.append(self._left, bits), np.append(self._own, own)
        self._share()

    def pop(self) -> list[tuple[Hashable, Trip]]:
        """What ends when the next is due."""
        ended = self._at + self._left / self._speed <= self.due * (1 + _SAME)
        self._advance(self.due)
        out = [key for key, over in zip(self._keys, ended, strict=True) if over]
        self._keys = [key for key, over in zip(self._keys, ended, strict=True) if not over]
        self._left, self._own = self._left[~ended], self._own[~ended]
        self._share()
        return out

    def _advance(self, now: float) -> None:
        self._left = np.maximum(self._left - (now - self._at) * self._speed, 0.0) if len(self._left) else self._left
        self._at = now

    def _share(self) -> None:
        self._speed = fair(self.rate, self._own)
        self.due = float((self._at + self._left / self._speed).min()) if self._keys else inf


def fair(rate: float, most: np.ndarray) -> np.ndarray:
    """Max-min fair shares of a rate, each at most its own.

    Args:
        rate: to be shared.
        most: of each; infinity sets no bound.
    """
    order = np.argsort(most, kind="stable")
    bounded = most[order]
    before = np.concatenate([[0.0], np.cumsum(bounded)[:-1]]) if len(most) else bounded
    level = (rate - before) / np.arange(len(most), 0, -1)  # what each of the rest gets if those before have their most
    full = np.flatnonzero(~(bounded <= level))
    shares: np.ndarray = most if not len(full) else np.minimum(most, level[full[0]])
    return shares

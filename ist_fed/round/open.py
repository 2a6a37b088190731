"""A round that is open: what was sent to whom, what came back, and what it cost."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite, nan
from typing import Protocol

from flwr.app import Message, Metadata
from torch import Tensor

from ist_fed import wire
from ist_fed.arrays import Arrays
from ist_fed.axes import Axes
from ist_fed.clock import Timed
from ist_fed.cohort import Outcome
from ist_fed.coverage import Coverage
from ist_fed.errors import RoundError, WireError
from ist_fed.places import Units
from ist_fed.robust import RobustMerge
from ist_fed.round.client import Client
from ist_fed.round.report import Refused, RoundReport, veiled
from ist_fed.subnet import Merge, MergeInPlace, extract_each

logger = logging.getLogger("ist_fed")

_NAMED = 10  # refused clients of one round that a warning each is worth; the report names all


class Accumulator(Protocol):
    """Takes parts of the wide network back; `Merge` is one."""

    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take one part; a `WireError` refuses it."""
        ...

    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Sent:
    client: Client
    units: Units
    nonce: str
    label: wire.Label
    message: Metadata  # its id is known only once the grid has pushed it


class Round:
    """A round that is open: remembers what was sent, merges what comes back, refuses what does not fit.

    Args:
        number: from 1.
        clients: everyone who is asked, in the rule's order.
        arrays: the wide network before the round; it is not changed, unless by `in_place`.
        axes: the table from `infer`.
        coverage: of the whole run; marked when the round is closed.
    """

    def __init__(
        self, number: int, clients: tuple[Client, ...], arrays: dict[str, Tensor], axes: Axes, coverage: Coverage
    ) -> None:
        self.number, self._clients, self._axes, self._coverage = number, clients, axes, coverage
        self._by_node = {client.node: client for client in clients}
        self._private = False
        self.robust: RobustMerge | None = None
        self.times: dict[int, tuple[Units, float]] = {}  # node → what it held, and the seconds that its round took
        self._merge: Accumulator = Merge(arrays, axes)
        self._pending: list[_Sent] = []
        self._refused: list[Refused] = []
        self._merged = 0
        self.before, self.held = arrays, dict[int, Units]()  # what it began with; the subnets of which one was merged
        self._wide: Arrays = arrays  # that subnets are cut from
        self._usual = 0
        self._losses: dict[int, float] = {}  # by the client's number, as are the sizes
        self._sizes: dict[int, int] = {}
        self._epsilons: dict[int, float] = {}
        self._bytes_up = 0
        self._bytes_down = 0
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def protect(self, merge: "Accumulator", held: Sequence[Units], size: int) -> None:
        """Let a private merge take the replies, and tell nothing of who took part.

        Args:
            merge: takes them instead.
            held: the units that may have been trained, which everyone may know.
            size: bytes that all clients together are sent on average.
        """
        self._private, self._merge = True, merge
        self.held = {id(units): units for units in held}
        self._usual = size

    def in_place(self) -> None:
        """Merge into the network itself; no unit may have two holders.

        The dictionary that it came in is emptied, so that nobody takes for the network before the round, or for one
        that a checkpoint may hold, what is partly trained.
        """
        self._wide = {name: array.contiguous() for name, array in self.before.items()}
        self.before.clear()
        self._merge = MergeInPlace(self._wide, self._axes)

    @property
    def is_in_place(self) -> bool:
        """Whether it merges into the network itself."""
        return isinstance(self._merge, MergeInPlace)

    def cut(self, subnets: Sequence[Units]) -> Iterator[Arrays]:
        """Cut the subnets that are sent, each when it is asked for."""
        if isinstance(self._merge, Merge):
            return self._merge.cut(subnets)
        return extract_each(self._wide, self._axes, subnets)

    def guard(self, merge: RobustMerge) -> None:
        """Let a robust merge take the replies; some it refuses only when all of them are there."""
        self.robust = merge

    def timed(self, phase: str) -> Timed:
        """Add the time spent inside to a phase."""
        return Timed(self._seconds, phase)

    def sent(self, node: int, units: Units, nonce: str, label: wire.Label, message: Message) -> None:
        """Remember an order; of the subnet only its label is kept."""
        client = self._by_node[node]
        self._pending.append(_Sent(client=client, units=units, nonce=nonce, label=label, message=message.metadata))
        self._bytes_down += label.size

    def take(self, message: Message) -> None:
        """Check one reply and merge it, or refuse it."""
        with self.timed("merge"):
            sent = self._asked(message)
            if sent is None:
                logger.warning("round %d: a reply that nobody waits for was ignored", self.number)
                return
            try:
                reply = wire.open_reply(message, round=self.number, nonce=sent.nonce, label=sent.label)
                self._add(sent.client, sent.units, reply.arrays, sent.client.weight)
            except WireError as error:
                self._refuse(sent.client, str(error))
                return
            self._count(sent, reply)

    def take_outcome(self, outcome: Outcome) -> None:
        """Merge what some nodes of a cohort made of their subnet, where nothing had to travel."""
        asked, trained = outcome.assignment, [node for node in outcome.nodes if node not in outcome.refused]
        down, up = outcome.traffic or (asked.size * len(outcome.nodes), asked.size * len(trained))
        self._bytes_down += down
        self._bytes_up += up
        self._merged += len(trained)
        self._seconds["train"] += outcome.seconds
        with self.timed("merge"):
            if outcome.arrays is not None:
                self._add(self._by_node[outcome.nodes[0]], asked.units, outcome.arrays, outcome.weight)
                self._hold(asked.units)
        for node, loss in zip(outcome.nodes, outcome.losses.tolist(), strict=True):
            if node in outcome.refused:
                self._refuse(self._by_node[node], outcome.refused[node])
                continue
            if isfinite(loss):
                self._losses[self._by_node[node].number] = loss
            self._sizes[self._by_node[node].number] = asked.size
            self.times[node] = (asked.units, outcome.seconds / len(outcome.nodes))

    def lost(self, node: int, reason: str) -> None:
        """Wait no longer for a node."""
        for sent in [sent for sent in self._pending if sent.client.node == node]:
            self._pending.remove(sent)
            self._refuse(sent.client, reason)

    def failed(self, node: int, size: int) -> None:
        """A client of the simulated network was sent its subnet, of so many bytes, and will never answer."""
        self._bytes_down += size
        self._refuse(self._by_node[node], "it dropped out of the simulated network")

    def close(self, min_replies: int) -> RoundReport:
        """Give up on what has not come, and say what the round did.

        Raises:
            RoundError: fewer than `min_replies` replies were merged.
        """
        for sent in self._pending:
            self._refuse(sent.client, "no reply came before the deadline")
            self.times[sent.client.node] = (sent.units, self._seconds["wait"])  # at least
        self._pending.clear()
        arrays = self._settled() if self.robust else None
        if len(self._refused) > _NAMED:
            logger.warning("round %d: %d more clients were refused", self.number, len(self._refused) - _NAMED)
        if self._merged < min_replies and not self._private:  # who took part decides nothing there
            reasons = Counter(refused.reason for refused in self._refused).most_common(3)
            said = "; ".join(f"{count} × {reason}" for reason, count in reasons) or "nobody was asked"
            raise RoundError(
                f"round {self.number} needs usable replies, at least {min_replies}, but {self._merged} of "
                f"{len(self._clients)} clients gave one: {said}"
            )
        with self.timed("merge"):
            arrays = self._merge.result() if arrays is None else arrays
            self._coverage.mark(*self.held.values())
        report = RoundReport(
            round=self.number,
            arrays=arrays,
            clients=tuple(client.number for client in self._clients),
            capacities=tuple(client.capacity for client in self._clients),
            limits=tuple(client.limit for client in self._clients),
            merged=self._merged,
            refused=tuple(self._refused),
            loss=fsum(self._losses.values()) / len(self._losses) if self._losses else nan,
            bytes_down=self._bytes_down,
            bytes_up=self._bytes_up,
            coverage=self._coverage.fraction(),
            seconds={"train": 0.0, **self._seconds},
            told={"example_epsilon": self._epsilons} if self._epsilons else {},
        )
        return veiled(report, self._usual) if self._private else report

    def _count(self, sent: _Sent, reply: wire.Reply) -> None:
        """Add one merged reply to what the round reports; its arrays are the merge's now, and are not kept here."""
        self._merged += 1
        self._bytes_up += reply.size
        self._sizes[sent.client.number] = reply.size
        self._hold(sent.units)
        if isfinite(reply.loss):
            self._losses[sent.client.number] = reply.loss
        if isfinite(reply.epsilon):
            self._epsilons[sent.client.number] = reply.epsilon
        if isfinite(reply.seconds):
            self._seconds["train"] += reply.seconds
            link = sent.client.link
            transfer = (sent.label.size + reply.size) / link if link else 0.0
            self.times[sent.client.node] = (sent.units, reply.seconds + transfer)

    def _add(self, client: Client, units: Units, part: Mapping[str, Tensor], weight: float) -> None:
        """Merge a subnet; `client` is who sent it, where it is one's and not the mean of several."""
        if self.robust is None:
            self._merge.add(units, part, weight)
        else:
            self.robust.add(units, part, weight, client.number)

    def _settled(self) -> dict[str, Tensor]:
        """What a robust merge comes to; those that it refuses do not count as merged."""
        assert self.robust is not None
        with self.timed("merge"):
            arrays = self.robust.result()
        for client in self._clients:
            if client.number in self.robust.refused:
                self._merged -= 1
                self._bytes_up -= self._sizes[client.number]
                self._losses.pop(client.number, None)
                self._refuse(client, self.robust.refused[client.number])
        self.held = {id(units): units for units in self.robust.held}
        return arrays

    def _hold(self, units: Units) -> None:
        self.held[id(units)] = units  # a cohort shares one object

    def _asked(self, message: Message) -> _Sent | None:
        """The order that a message answers; each is answered once."""
        for at, sent in enumerate(self._pending):
            if sent.message.message_id == message.metadata.reply_to_message_id:
                return self._pending.pop(at)
        return None

    def _refuse(self, client: Client, reason: str) -> None:
        self._refused.append(Refused(client.number, reason))
        level = logging.WARNING if len(self._refused) <= _NAMED else logging.DEBUG
        logger.log(level, "round %d: client %d: %s; its units keep their values", self.number, client.number, reason)

"""Leases in virtual time: who borrows what, and what becomes of it. No weight is looked at.

When a lease ends depends on sizes, clients and links alone. So a whole round of events is known before anything is
trained, and a run that goes on draws again what had happened before, instead of having stored it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ist_fed.network import Asked, Trip, Virtual
from ist_fed.round import Client
from ist_fed.rules import Grant, Lease, Leases, Node
from ist_fed.rules.lease import first_come, stream
from ist_fed.rules.plan import average_of_one

Fate = Literal["granted", "returned", "failed", "expired"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """Something that happened to a lease.

    Args:
        fate: what.
        client: whose lease it is.
        grant: the lease.
        at: virtual seconds.
    """

    fate: Fate
    client: Client
    grant: Grant
    at: float


class Schedule:
    """The events of a run, round by round.

    A client whose lease ended borrows again at once, unless it is absent: then it sits out one turn, as long as a trip
    of its own takes. A client that fails is missed when it would have been back. One that comes back after its lease
    expired is not listened to, and borrows again.

    Args:
        rule: by which units are lent.
        sizes: units of each axis of the full network.
        clients: who takes part, in the roster's order.
        virtual: the network that is simulated.
        seed: of every draw.
        asked: what a client is asked, given the sizes of its subnet.
    """

    def __init__(
        self,
        rule: Lease,
        sizes: Mapping[str, int],
        clients: Sequence[Client],
        virtual: Virtual,
        seed: int,
        asked: Callable[[Client, Mapping[str, int]], Asked],
    ) -> None:
        nodes = average_of_one([Node(client.node, client.capacity, client.limit) for client in clients])
        self._nodes = {node.id: node for node in nodes}
        self._clients = {client.node: client for client in clients}
        self._sizes, self._virtual, self._seed, self._asked = sizes, virtual, seed, asked
        self._turns = dict.fromkeys(self._clients, 0)
        self._waiting = deque(node.id for node in first_come(nodes, seed))
        self._traffic = virtual.traffic()
        self._ledger = Leases(rule=rule, sizes=sizes)
        self._failing: set[int] = set()
        self._stream = self._events()  # one for all rounds: it may stand between two events of one moment

    def round(self) -> list[Event]:
        """The next events, until as many leases have ended as there are clients; the last of them ends one."""
        events, ended = list[Event](), 0
        while ended < len(self._clients):
            events.append(next(self._stream))
            ended += events[-1].fate != "granted"
        return events

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._traffic.now

    @property
    def held(self) -> Mapping[int, Grant]:
        """Node → what it holds now."""
        return self._ledger.held

    def _events(self) -> Iterator[Event]:
        """Without end; whoever waits is served before the clock runs on."""
        while True:
            yield from self._serve()
            key = self._traffic.next()
            assert isinstance(key, tuple), "somebody is always under way, or comes back"
            what, node, number = key
            grant = self._ledger.held.get(node)
            mine = grant if grant is not None and grant.number == number else None
            if what == "expired":
                self._ledger, over = self._ledger.expire(self.now)
                yield from (self._event("expired", grant) for grant in over)
                continue
            self._waiting.append(node)
            if mine is None:
                continue  # it was absent, or its lease has expired
            self._ledger, _ = self._ledger.end(node)
            yield self._event("failed" if number in self._failing else "returned", mine)

    def _serve(self) -> Iterator[Event]:
        while self._waiting:
            node = self._waiting[0]
            client, turn = self._clients[node], self._turns[node] + 1
            if self._virtual.is_absent(turn, client.number):
                self._turns[node] = turn
                self._waiting.popleft()
                self._traffic.wake(("absent", node, 0), self.now + self._trip(node, None).alone)
                continue
            rng = stream(self._seed, self._ledger.granted + 1)
            self._ledger, grant = self._ledger.grant(self._nodes[node], self.now, rng)
            if grant is None:
                return
            self._turns[node] = turn
            self._waiting.popleft()
            if self._virtual.fails(turn, client.number):
                self._failing.add(grant.number)
            self._traffic.begin(("back", node, grant.number), self._trip(node, grant))
            self._traffic.wake(("expired", node, grant.number), grant.until)
            yield self._event("granted", grant)

    def _trip(self, node: int, grant: Grant | None) -> Trip:
        """The way of a lease to its client and back; without a lease, of one that it would like."""
        if grant is None:
            sizes = self._ledger.rule.wish(self._nodes[node], self._sizes)
        else:
            sizes = {axis: len(units) for axis, units in grant.units.items()}
        return self._virtual.trip(self._asked(self._clients[node], sizes))

    def _event(self, fate: Fate, grant: Grant) -> Event:
        return Event(fate=fate, client=self._clients[grant.node], grant=grant, at=self.now)

"""Lending by the server's clock, to clients that take their own time."""

import time
from collections import deque
from collections.abc import Iterator, Sequence

from ist_fed.arrays import Arrays
from ist_fed.cohort import Outcome
from ist_fed.exchange import Exchange
from ist_fed.lending.contract import Lending
from ist_fed.lending.courier import Courier
from ist_fed.lending.lender import Lender, lender_of
from ist_fed.round import Client, RoundReport
from ist_fed.rules import Grant, Leases, Node
from ist_fed.rules.lease import first_come, stream
from ist_fed.rules.plan import average_of_one

_LOOK_S = 1.0  # between two looks at who is connected


def in_real_time(lending: Lending, arrays: Arrays, first_round: int) -> Iterator[RoundReport]:
    """See `lend`."""
    clients = lending.roster.connected(lending.grid, lending.timeout)
    desk = _Desk(lending, lender_of(lending, arrays, clients), first_round)
    while True:
        desk.admit(clients)
        while desk.ended < max(1, len(clients)):
            desk.serve()
            desk.collect()
            if desk.idle:
                desk.admit(lending.roster.connected(lending.grid, lending.timeout))
        desk.ended = 0
        yield desk.lender.report(desk.round, None)
        desk.round += 1
        clients = lending.roster.here(lending.grid, lending.timeout)  # as many as are wanted are waited for once


class _Desk:
    """Lends to clients that wait, and takes back from those that come, by the server's clock."""

    def __init__(self, lending: Lending, lender: Lender, round: int) -> None:
        self.lender, self.round, self.ended = lender, round, 0
        self._lending, self._seed = lending, lending.conditions.seed
        # Numbers name streams of draws: what may have been granted before a run was taken up must not come again.
        self._ledger = Leases(rule=lending.rule, sizes=lending.sizes, granted=(round - 1) << 32)
        self._courier = Courier(lending.config, lending.rule.term)
        self._exchange = Exchange(lending.grid, self._lost)
        self._clients: dict[int, Client] = {}
        self._nodes: dict[int, Node] = {}
        self._waiting: deque[int] = deque()
        self._looked = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether nobody holds anything, and nobody could be lent something."""
        return not self._ledger.held and not self._waiting

    def admit(self, clients: Sequence[Client]) -> None:
        """These are connected now: whoever holds nothing waits to borrow."""
        self._clients = {client.node: client for client in clients}
        nodes = [Node(client.node, client.capacity, client.limit) for client in clients]
        self._nodes = {node.id: node for node in average_of_one(nodes)}
        self.lender.total = sum(client.weight for client in clients) or 1.0
        here = [node for node in self._waiting if node in self._nodes]
        new = [node for node in nodes if node.id not in self._ledger.held and node.id not in here]
        self._waiting = deque([*here, *(node.id for node in first_come(new, self._seed))])
        self._looked = time.monotonic()

    def serve(self) -> None:
        """Lend to those who wait, as long as there is enough."""
        messages = []
        while self._waiting:
            node = self._nodes[self._waiting[0]]
            rng = stream(self._seed, self._ledger.granted + 1)
            with self.lender.timed("assign"):
                self._ledger, grant = self._ledger.grant(node, time.monotonic(), rng)
            if grant is None:
                break
            client = self._clients[self._waiting.popleft()]
            messages.append(self._courier.order(self.lender.lend(grant, client, self.round)))
        if messages:
            self._exchange.push(messages)

    def collect(self) -> None:
        """Take back what has come, and see who is gone or late."""
        with self.lender.timed("wait"):
            self._ledger, over = self._ledger.expire(time.monotonic())
            for grant in over:  # whoever comes with it from now on is not listened to
                self._exchange.forget(grant.node)
                self._end(grant, "its lease expired before it returned")
            replies = self._exchange.pull()
            for reply in replies:
                if (outcome := self._courier.open(reply)) is not None:
                    self._take(outcome)
            self._exchange.rest(bool(replies))
        if time.monotonic() - self._looked > _LOOK_S:
            self.admit(self._lending.roster.here(self._lending.grid, self._lending.timeout))

    def _take(self, outcome: Outcome) -> None:
        (node,) = outcome.assignment.nodes
        self._ledger, _ = self._ledger.end(node)
        self.lender.take_back(outcome)
        self._free(node)

    def _lost(self, node: int, reason: str) -> None:
        self._ledger, grant = self._ledger.end(node)
        self._clients.pop(node, None)  # until the roster sees it again
        if grant is not None:
            self._end(grant, reason)

    def _end(self, grant: Grant, reason: str) -> None:
        self._courier.forget(grant.number)
        self.lender.give_up(grant.number, reason)
        self._free(grant.node)

    def _free(self, node: int) -> None:
        self.ended += 1
        if node in self._clients:
            self._waiting.append(node)

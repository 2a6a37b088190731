"""Leases as messages, for grids that are given those."""

from collections.abc import Iterator, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from ist_fed import wire
from ist_fed.cohort import Assignment, Outcome
from ist_fed.errors import WireError
from ist_fed.exchange import exchange


class Courier:
    """Packs assignments of one node each, and opens what comes back.

    Args:
        config: sent along with every order.
        ttl: seconds until an order lapses.
    """

    def __init__(self, config: ConfigRecord, ttl: float) -> None:
        self._config, self._ttl = config, ttl
        self._asked: dict[int, tuple[Assignment, str, wire.Label, Message]] = {}

    def order(self, asked: Assignment) -> Message:
        """The message that lends a subnet to its node."""
        parcel, nonce, (node,) = wire.pack(asked.arrays), wire.new_nonce(), asked.nodes
        message = wire.order_message(node, parcel, {**asked.order, "nonce": nonce}, self._config, ttl=self._ttl)
        self._asked[asked.round] = asked, nonce, parcel.label(), message
        return message

    def open(self, reply: Message) -> Outcome | None:
        """What a client made of its subnet, checked; None for a reply that nobody waits for."""
        for number, (asked, nonce, label, message) in self._asked.items():
            if message.metadata.message_id == reply.metadata.reply_to_message_id:
                del self._asked[number]
                try:
                    read = wire.open_reply(reply, round=number, nonce=nonce, label=label)
                except WireError as error:
                    return nothing(asked, str(error))
                return _outcome(asked, read)
        return None

    def forget(self, number: int) -> None:
        """An order that is not to be answered any more."""
        self._asked.pop(number, None)


def _outcome(asked: Assignment, read: wire.Reply) -> Outcome:
    seconds = read.seconds if np.isfinite(read.seconds) else 0.0
    losses = np.array([read.loss])
    return Outcome(assignment=asked, nodes=asked.nodes, losses=losses, seconds=seconds, arrays=read.arrays, weight=1.0)


def nothing(asked: Assignment, reason: str) -> Outcome:
    """What is left of a lease when its client did not do what was asked."""
    refused = dict.fromkeys(asked.nodes, reason)
    return Outcome(
        assignment=asked, nodes=asked.nodes, losses=np.array([np.nan]), seconds=0.0, refused=refused, arrays=None,
        weight=0.0,
    )  # fmt: skip


class ByMessages:
    """Carries assignments out over a grid that takes messages.

    Args:
        grid: where the nodes are.
        config: sent along with every order.
        timeout: seconds after which a reply is waited for no longer.
    """

    def __init__(self, grid: Grid, config: ConfigRecord, timeout: float) -> None:
        self._grid, self._config, self._timeout = grid, config, timeout

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        """Let every node train."""
        courier, lost = Courier(self._config, self._timeout), dict[int, str]()
        messages = [courier.order(asked) for asked in assignments]
        left = {asked.round: asked for asked in assignments}
        for reply in exchange(self._grid, [messages], self._timeout, lost.__setitem__):
            if (outcome := courier.open(reply)) is not None:
                del left[outcome.assignment.round]
                yield outcome
        for asked in left.values():
            yield nothing(asked, lost.get(asked.nodes[0], "no reply came before the deadline"))

"""Send messages and get the replies as they come."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from ist_fed.liveness import Liveness

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5  # between two questions for replies; Flower's own wait is three seconds


@runtime_checkable
class Waking(Protocol):
    """A grid that knows of a reply before it can be pulled."""

    def wait(self, seconds: float) -> bool:
        """Rest for so long at most; whether that ended because a reply is on its way."""
        ...


class Exchange:
    """Messages under way, and the nodes that owe a reply.

    Args:
        grid: where the nodes are.
        on_lost: called with a node that has gone, and how one can tell; its reply is waited for no longer.
    """

    def __init__(self, grid: Grid, on_lost: Callable[[int, str], None]) -> None:
        self._grid, self._on_lost = grid, on_lost
        self._liveness = Liveness(grid)
        self._owing: dict[str, int] = {}
        self._pushed = False
        self._pause = _FIRST_PAUSE_S
        self._sleep: Callable[[float], object] = grid.wait if isinstance(grid, Waking) else time.sleep

    @property
    def nodes(self) -> set[int]:
        """Those whose reply is waited for."""
        return set(self._owing.values())

    def push(self, messages: Sequence[Message]) -> None:
        """Send one message to each of some nodes."""
        if self._pushed:  # at first it has just looked
            self._liveness.expect(message.metadata.dst_node_id for message in messages)
        self._pushed = True
        keys = self._grid.push_messages(messages)
        pushed = zip(keys, messages, strict=True)
        self._owing |= {key: message.metadata.dst_node_id for key, message in pushed if key}

    def pull(self) -> list[Message]:
        """What has come."""
        replies = list(self._grid.pull_messages(set(self._owing)))
        for reply in replies:
            self._owing.pop(reply.metadata.reply_to_message_id, None)
        return replies

    def rest(self, replies: bool) -> None:
        """Look who has gone, and pause unless there were replies."""
        for node, reason in self._liveness.gone(self.nodes).items():
            self._on_lost(node, reason)
            self.forget(node)
        self._pause = _FIRST_PAUSE_S if replies else min(_LONGEST_PAUSE_S, 1.5 * self._pause)
        if self._owing and not replies and self._sleep(self._pause):
            self._pause = _FIRST_PAUSE_S

    def forget(self, node: int) -> None:
        """Wait no longer for a node."""
        self._owing = {key: other for key, other in self._owing.items() if other != node}


def exchange(
    grid: Grid, pushes: Iterable[list[Message]], timeout: float, on_lost: Callable[[int, str], None]
) -> Iterator[Message]:
    """Push messages, and yield replies as they arrive, until none is to be had any more or the time is up.

    Args:
        grid: where the nodes are.
        pushes: messages, one to each node; those of a list are pushed at once, before the next list is asked for, and
            taken out of it, for the grid holds them then.
        timeout: seconds after which no more replies are waited for.
        on_lost: called with a node that has gone, and how one can tell; its reply is waited for no longer.
    """
    under_way = Exchange(grid, on_lost)
    for messages in pushes:
        under_way.push(messages)
        messages.clear()
    deadline = time.monotonic() + timeout
    while under_way.nodes and time.monotonic() < deadline:
        replies = under_way.pull()
        yield from replies
        under_way.rest(bool(replies))

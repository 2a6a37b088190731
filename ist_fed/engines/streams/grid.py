"""A Grid whose large subnets travel beside its messages."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from ist_fed.device import trim_memory
from ist_fed.engines.streams.place import place
from ist_fed.engines.streams.service import Service
from ist_fed.liveness import Describing
from ist_fed.wire import Ticket, leave, lift, put_back

_BUSY_S = 0.5  # between two looks for clients that refuse, or have gone


@dataclass(frozen=True)
class _Given:
    """A ticket that a node was given."""

    name: str
    node: int
    until: float  # by the clock


class StreamingGrid(Grid):
    """Leaves tickets in messages that another grid carries, and puts what came for them back into the replies.

    Args:
        grid: carries the messages; one of Flower's, between processes.
        service: holds the bytes.
    """

    def __init__(self, grid: Grid, service: Service) -> None:
        self._grid, self._service = grid, service
        self._given: dict[str, _Given] = {}  # message → its ticket
        self._waited = set[str]()  # messages whose replies were asked for last, and are not there

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages, without what they hold of large subnets; what the same nodes were sent before is let go."""
        pushed = list(messages)
        self._forget({message.metadata.dst_node_id for message in pushed})
        given = [self._give(message) for message in pushed]
        names = list(self._grid.push_messages(pushed))
        for name, ticket in zip(names, given, strict=True):
            if ticket is not None:
                self._given[name] = ticket
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, whole."""
        self._waited = set(message_ids)
        replies = list(self._grid.pull_messages(self._waited))
        for reply in replies:
            self._waited.discard(reply.metadata.reply_to_message_id)
            ticket = self._given.pop(reply.metadata.reply_to_message_id, None)
            came = self._service.take(ticket.name) if ticket else None
            if came:
                trim_memory()
            if reply.has_content():
                put_back(reply.content, came)
        return replies

    def wait(self, seconds: float) -> bool:
        """Rest for so long; less once a subnet came, whose reply follows, and longer while none can: clients are busy
        with theirs, and each question whether one has answered would cost the SuperLink tens of milliseconds."""
        given = [self._given[name] for name in self._waited if name in self._given]
        busy = len(given) == len(self._waited) and not any(self._service.has_all(ticket.name) for ticket in given)
        woken = self._service.came.wait(max(seconds, _BUSY_S) if busy else seconds)
        self._service.came.clear()
        return woken

    def _give(self, message: Message) -> _Given | None:
        laid, meta = lift(message.content), message.metadata
        if laid is None:
            return None
        name = self._service.offer(laid)
        leave(message.content, Ticket(name, self._service.port, laid.size))
        return _Given(name, meta.dst_node_id, meta.created_at + meta.ttl)

    def _forget(self, nodes: set[int]) -> None:
        """Let go of what some nodes have been offered, and of what has lapsed."""
        now = time.time()
        for message, ticket in list(self._given.items()):
            if ticket.node in nodes or ticket.until < now:
                del self._given[message]
                self._service.take(ticket.name)

    # --- What the other grid does -------------------------------------------------------------------------------------

    def set_run(self, run: FlowerRun) -> None:
        """Of the other grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        """Of the other grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Of the other grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Of the other grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Of the other grid, which is between processes and knows more of its nodes than their ids."""
        return cast(Describing, self._grid).get_nodes()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Of the other grid: what is sent so travels in messages."""
        return self._grid.send_and_receive(messages, timeout=timeout)


@contextmanager
def streaming(grid: Grid) -> Iterator[Grid]:
    """A grid whose large subnets travel beside its messages, if the server was told where; else the grid itself."""
    if (where := place()) is None:
        yield grid
        return
    service = where.listen()
    try:
        yield StreamingGrid(grid, service)
    finally:
        service.close()

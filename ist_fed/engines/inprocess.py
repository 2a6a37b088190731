"""Clients in this process: no sockets, no Ray, nothing to start."""

import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Protocol

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

_CLIENT_RAISED = 2  # Flower's error code for an exception in a ClientApp


class Handler(Protocol):
    """What a client does with a message; `ist_fed.worker.Worker` is one."""

    def query(self, message: Message) -> Message:
        """Say who the client is."""
        ...

    def train(self, message: Message) -> Message:
        """Train the subnet of an order."""
        ...


class InProcessGrid(Grid):
    """A Flower Grid whose clients run one after another, each when its reply is pulled.

    Orders go through the same records as on the wire, so that what is counted and checked is the same.

    Args:
        clients: how many there are; their node ids are `0 … clients - 1`.
        handler: makes a client's handler; called once for each client, when it is first needed.
    """

    def __init__(self, clients: int, handler: Callable[[int], Handler]) -> None:
        self._nodes = range(clients)
        self._make, self._handlers = handler, dict[int, Handler]()
        self._inbox: dict[str, Message] = {}
        self._names = count(1)
        # Flower sets these in the processes it starts; a Message cannot be made without them.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: FlowerRun) -> None:
        """There is one run in this process and nothing to set."""

    @property
    def run(self) -> FlowerRun:
        """An empty description."""
        return FlowerRun.create_empty(run_id=1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's older way to make a message."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Every client, always."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until their replies are pulled; those of an earlier round that have lapsed are dropped."""
        now = time.time()
        self._inbox = {name: m for name, m in self._inbox.items() if now < m.metadata.created_at + m.metadata.ttl}
        names = []
        for message in messages:
            name = str(next(self._names))
            message.metadata.__dict__["_message_id"] = name  # as Flower's own grids do
            self._inbox[name] = message
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The next client's reply, in the order of pushing; one at a time, so that none waits in memory."""
        wanted = message_ids if isinstance(message_ids, set) else set(message_ids)
        name = next((name for name in self._inbox if name in wanted), None)
        return [] if name is None else [self._reply(self._inbox.pop(name))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies, in the order of the messages; nobody is waited for, so `timeout` does not matter."""
        return [reply for name in self.push_messages(messages) for reply in self.pull_messages([name])]

    def _reply(self, message: Message) -> Message:
        """Let the client work; whatever it raises becomes an error reply, as in Flower's own engines."""
        try:
            handler = self._handler(message.metadata.dst_node_id)
            handle = handler.query if message.metadata.message_type == MessageType.QUERY else handler.train
            return handle(message)
        except Exception as error:
            return Message(Error(_CLIENT_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)

    def _handler(self, node: int) -> Handler:
        if node not in self._handlers:
            self._handlers[node] = self._make(node)
        return self._handlers[node]

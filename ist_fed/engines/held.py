"""Calls that are held in the SuperLink until there is what they ask for; Flower says "nothing yet", and is asked again.

A client says in a call how long it may be held, and learns in the answer whether it was. Who does not ask, such as
Flower's SuperNode, is answered as ever. This relies on Flower's servicer of the Fleet API and two methods of its state.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from flwr.server.superlink.fleet.grpc_rere.fleet_servicer import FleetServicer
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

from ist_fed.engines.fleet import HELD, MAY_BE_HELD

_LONGEST_S = 10.0
_AT_ONCE = 500  # calls; Flower has a thousand threads to answer with


class Bells:
    """Wake whoever waits for a thing, when it has come.

    Attributes:
        waiting: thing → what is set when it comes, of everyone who waits for it.
    """

    def __init__(self) -> None:
        self.waiting: defaultdict[Hashable, list[threading.Event]] = defaultdict(list)
        self._lock = threading.Lock()

    def ring(self, thing: Hashable) -> None:
        """Say that a thing has come."""
        with self._lock:
            for event in self.waiting.get(thing, ()):
                event.set()

    @contextmanager
    def heard(self, thing: Hashable) -> Iterator[threading.Event]:
        """What is set when the thing comes."""
        event = threading.Event()
        with self._lock:
            self.waiting[thing].append(event)
        try:
            yield event
        finally:
            with self._lock:
                self.waiting[thing].remove(event)
                if not self.waiting[thing]:
                    del self.waiting[thing]


bells = Bells()
"""Of the SuperLink in this process: rung with a node's number for its messages, with an object's name for its bytes."""
_places = threading.BoundedSemaphore(_AT_ONCE)

Answer = Callable[[Any, Any, grpc.ServicerContext], Any]


def hold_calls() -> None:
    """Let the SuperLink of this process hold calls that ask for messages and objects."""
    store_message, store_object = SqlLinkState.store_message_and_object_tree, SqlLinkState.store_object

    def stored_message(self: Any, message: Any, *more: Any) -> Any:
        stored = store_message(self, message, *more)
        bells.ring(message.metadata.dst_node_id)
        return stored

    def stored_object(self: Any, run_id: int, session_id: Any, object_id: str, content: bytes) -> bool:
        stored = store_object(self, run_id, session_id, object_id, content)
        bells.ring(object_id)
        return stored

    SqlLinkState.store_message_and_object_tree = stored_message  # type: ignore
    SqlLinkState.store_object = stored_object  # type: ignore
    FleetServicer.PullMessages = held(  # type: ignore
        FleetServicer.PullMessages, lambda request: request.node.node_id, lambda answer: bool(answer.messages_list)
    )
    FleetServicer.PullObject = held(  # type: ignore
        FleetServicer.PullObject,
        lambda request: request.object_id,
        lambda answer: answer.object_available or not answer.object_found,
    )


def held(answer: Answer, thing_of: Callable[[Any], Hashable], has_come: Callable[[Any], bool]) -> Answer:
    """A call of a servicer that is held.

    Args:
        answer: the call as it is, which answers at once.
        thing_of: what a request asks for.
        has_come: whether an answer is worth giving; if not, the bell is waited for, and `answer` asked anew.
    """

    def call(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        seconds = _allowed(context)
        if not seconds or not _places.acquire(blocking=False):
            return answer(self, request, context)
        try:
            until = time.monotonic() + seconds
            context.set_trailing_metadata([(HELD, "1")])
            with bells.heard(thing_of(request)) as come:
                context.add_callback(come.set)  # the caller has hung up, or the SuperLink ends
                said = answer(self, request, context)
                while not has_come(said) and come.wait(until - time.monotonic()) and context.is_active():
                    come.clear()
                    said = answer(self, request, context)
            return said
        finally:
            _places.release()

    return call


def _allowed(context: grpc.ServicerContext) -> float:
    """Seconds for which a call may be held."""
    said = str(dict(context.invocation_metadata()).get(MAY_BE_HELD, ""))
    return min(int(said) / 1000, _LONGEST_S) if said.isascii() and said.isdigit() and len(said) < 6 else 0.0

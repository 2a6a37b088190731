"""Calls that the SuperLink holds, over real gRPC and Flower's own stub; messages are in a list, not a database."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.fleet_pb2_grpc import FleetServicer, FleetStub, add_FleetServicer_to_server
from flwr.proto.message_pb2 import Message
from flwr.proto.node_pb2 import Node

from ist_fed.engines import held
from ist_fed.engines.fleet import HELD, MAY_BE_HELD

MESSAGE = Message()


class Link(FleetServicer):  # type: ignore[misc]
    """Has messages for node 1, and counts how often it looks for them."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.looked = 0

    def look(self, request: PullMessagesRequest, context: grpc.ServicerContext) -> PullMessagesResponse:
        self.looked += 1
        there, self.messages = self.messages[:1], self.messages[1:]
        return PullMessagesResponse(messages_list=there)

    PullMessages = held.held(look, lambda request: request.node.node_id, lambda answer: bool(answer.messages_list))


@contextmanager
def connected() -> Iterator[tuple[Link, FleetStub, grpc.Server]]:
    link, server = Link(), grpc.server(ThreadPoolExecutor(8))
    add_FleetServicer_to_server(link, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(10)
        yield link, FleetStub(channel), server
    server.stop(None).wait()


def ask(stub: FleetStub, milliseconds: str | None, node: int = 1) -> tuple[int, bool, float]:
    """How many messages came, whether the call might have been held, and how long it took."""
    began, metadata = time.monotonic(), [] if milliseconds is None else [(MAY_BE_HELD, milliseconds)]
    request = PullMessagesRequest(node=Node(node_id=node))
    answer, call = stub.PullMessages.with_call(request, timeout=20, metadata=metadata)
    was_held = any(key == HELD for key, _ in call.trailing_metadata())
    return len(answer.messages_list), was_held, time.monotonic() - began


def until(true: Any) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("said", [None, "0", "soon", "-1", "1e3", "1" * 40])
def test_who_does_not_ask_to_be_held_is_answered_at_once(said: str | None) -> None:
    with connected() as (link, stub, _):
        assert ask(stub, said)[:2] == (0, False)
        assert link.looked == 1


def test_a_call_is_held_until_there_is_a_message() -> None:
    with connected() as (link, stub, _), ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, stub, "9000")
        until(lambda: link.looked == 1)
        held.bells.ring(2)  # somebody else's
        link.messages.append(MESSAGE)
        time.sleep(0.1)
        assert not asked.done()
        assert link.looked == 1
        held.bells.ring(1)
        count, was_held, seconds = asked.result(10)
        assert (count, was_held, link.looked) == (1, True, 2)
        assert seconds < 8


def test_what_is_there_comes_at_once_and_a_false_ring_does_not_end_it() -> None:
    with connected() as (link, stub, _), ThreadPoolExecutor() as pool:
        link.messages.append(MESSAGE)
        assert ask(stub, "9000")[0] == 1
        asked = pool.submit(ask, stub, "9000")
        until(lambda: link.looked == 2)
        held.bells.ring(1)  # another call of this node was quicker
        until(lambda: link.looked == 3)
        assert not asked.done()
        link.messages.append(MESSAGE)
        held.bells.ring(1)
        assert asked.result(10)[0] == 1


def test_when_its_time_is_up_a_call_says_that_it_was_held() -> None:
    with connected() as (link, stub, _):
        count, was_held, seconds = ask(stub, "200")
        assert (count, was_held, link.looked) == (0, True, 1)
        assert seconds >= 0.2


def test_no_more_are_held_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as (link, stub, _), ThreadPoolExecutor() as pool:
        taken = [held._places.acquire(blocking=False) for _ in range(held._AT_ONCE)]
        try:
            assert ask(stub, "9000")[:2] == (0, False)
        finally:
            held._places.release(len(taken))
        asked = pool.submit(ask, stub, "9000")
        until(lambda: link.looked == 2)
        link.messages.append(MESSAGE)
        held.bells.ring(1)
        assert asked.result(10)[:2] == (1, True)


def test_a_message_is_not_given_to_who_has_hung_up() -> None:
    with connected() as (link, stub, _):
        call = stub.PullMessages.future(PullMessagesRequest(node=Node(node_id=1)), metadata=[(MAY_BE_HELD, "9000")])
        until(lambda: link.looked == 1)
        call.cancel()
        until(lambda: not held.bells.waiting)  # it is held no longer
        link.messages.append(MESSAGE)
        held.bells.ring(1)
        assert ask(stub, "9000")[0] == 1


def test_a_server_that_stops_waits_for_no_held_call() -> None:
    with connected() as (link, stub, server), ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, stub, "9000")
        until(lambda: link.looked == 1)
        began = time.monotonic()
        server.stop(None).wait()
        with pytest.raises(grpc.RpcError):
            asked.result(10)
        until(lambda: not held.bells.waiting)
        assert time.monotonic() - began < 5

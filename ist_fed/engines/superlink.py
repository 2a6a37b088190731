"""Flower's SuperLink, with nine changes: `python -m ist_fed.engines.superlink …`.

- It logs whom it turned away and why; Flower tells the node only.
- Who signs a call is who it is about; Flower lets anyone activate the node of whoever's public key they name.
- Nodes are let in once there is a file `ADMITTED` in its folder; Flower lets in whom it knew when it was stopped.
- It looks for tasks that have gone silent once a second; Flower does with every call, which writes to the database.
- It writes down once a second how many bytes have travelled; Flower does with every object. Nothing but its own
  statistics needs to know, which may lack the last second of a SuperLink that was killed.
- Calls go to the database one after another: SQLite has one writer at a time, and lets the others sleep and try again
  for up to five seconds, after which they fail; a dozen clients so cost a third of a round, in sleeping and in
  connections opened and thrown away.
- The database takes a few megabytes of memory, where Flower's takes 64 for each connection and maps 256 more.
- Calls that ask for what is not there yet are held until it is, if the caller says so (`held.py`).
- What a ServerApp asks does not pass through the four layers that look after the Control API alone, which took a tenth
  of the processor time of small rounds.

This relies on two private names of Flower's interceptor, two of its state and two of its database.
"""

import gc
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from logging import WARNING
from pathlib import Path
from typing import Any

import grpc
from flwr.common import log
from flwr.server.superlink.fleet.grpc_rere import node_auth_server_interceptor as interceptor
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.sql_mixin import SqlMixin
from flwr.superlink.cli.flower_superlink import flower_superlink
from flwr.superlink.routers.control import middlewares
from sqlalchemy.orm import Session

from ist_fed.engines.held import hold_calls

_SELDOM_S = 1.0
_RUNTIME = "/v1/runtime/"  # where ServerApps ask

MARK = "turned a node away"

ADMITTED = "admitted"
"""File that says that the SuperLink knows who is approved, and who was revoked; a start needs a new one."""

Answer = Callable[[Any, grpc.ServicerContext], Any]


def guard() -> None:
    """Let the interceptor turn away whoever has no right to call, and log what it tells the node."""
    plain, wrapped = interceptor._unary_unary_rpc_terminator, interceptor.NodeAuthServerInterceptor._wrap_method_handler

    def terminator(message: str, code: Any = grpc.StatusCode.UNAUTHENTICATED) -> grpc.RpcMethodHandler:
        log(WARNING, "%s: %s", MARK, message)
        return plain(message, code)

    def wrap(self: Any, handler: grpc.RpcMethodHandler, key: bytes) -> grpc.RpcMethodHandler:
        made = wrapped(self, handler, key)
        return grpc.unary_unary_rpc_method_handler(
            _telling(_of_owner(made.unary_unary, key)),
            request_deserializer=made.request_deserializer,
            response_serializer=made.response_serializer,
        )

    interceptor._unary_unary_rpc_terminator = terminator
    interceptor.NodeAuthServerInterceptor._wrap_method_handler = wrap  # type: ignore


def _of_owner(answer: Answer, key: bytes) -> Answer:
    def owned(request: Any, context: grpc.ServicerContext) -> Any:
        if not Path(ADMITTED).exists():
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting: it does not know yet who is admitted")
        if getattr(request, "public_key", key) != key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid signature")
        return answer(request, context)

    return owned


def _telling(answer: Answer) -> Answer:
    def told(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return answer(request, context)
        except Exception:
            if context.code() is grpc.StatusCode.UNAUTHENTICATED:
                log(WARNING, "%s: %s", MARK, (context.details() or b"").decode())
            raise

    return told


def tidy_seldom() -> None:
    """Let the state look for silent tasks once a second at most."""
    tidy = SqlCoreState._cleanup_expired_task_tokens
    next_time = 0.0

    def seldom(self: SqlCoreState) -> None:
        nonlocal next_time
        if (now := time.monotonic()) >= next_time:
            next_time = now + _SELDOM_S
            tidy(self)

    SqlCoreState._cleanup_expired_task_tokens = seldom  # type: ignore[method-assign]


def count_seldom() -> None:
    """Let the state write down what has travelled once a second at most."""
    store, lock = SqlLinkState.store_traffic, threading.Lock()
    travelled: dict[int, list[int]] = {}  # run → bytes sent, bytes received
    next_time = 0.0

    def seldom(self: SqlLinkState, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        nonlocal next_time
        due = dict[int, list[int]]()
        with lock:
            sums = travelled.setdefault(run_id, [0, 0])
            sums[0], sums[1] = sums[0] + bytes_sent, sums[1] + bytes_recv
            if (now := time.monotonic()) >= next_time:
                next_time = now + _SELDOM_S
                due = travelled.copy()
                travelled.clear()
        for run, (sent, received) in due.items():
            store(self, run, bytes_sent=sent, bytes_recv=received)

    SqlLinkState.store_traffic = seldom  # type: ignore[method-assign]


def keep_little() -> None:
    """Let the database take little memory; the system keeps its file at hand anyway.

    Longer pages, of 64 KiB, carried a large subnet a tenth faster, and made small rounds a third slower.
    """
    sql_mixin.SQLITE_PRAGMAS = (*sql_mixin.SQLITE_PRAGMAS, ("cache_size", "-8000"), ("mmap_size", "0"))  # type: ignore


def one_by_one() -> None:
    """Let calls take turns at the database."""
    session, turn = SqlMixin.session, threading.RLock()  # a call may open a session within its own

    @contextmanager
    def in_turn(self: SqlMixin) -> Iterator[Session]:
        with turn, session(self) as opened:
            yield opened

    SqlMixin.session = in_turn  # type: ignore[method-assign]


def go_straight() -> None:
    """Let what a ServerApp asks go past the layers that look after the Control API alone."""
    for layer in (
        middlewares.ControlSensitiveResponseMiddleware,
        middlewares.ControlAuthenticationMiddleware,
        middlewares.ControlLicenseMiddleware,
        middlewares.ControlEventLogMiddleware,
    ):
        layer.__call__ = _past(layer.__call__)  # type: ignore


def _past(layer: Callable[[Any, Any, Any, Any], Awaitable[None]]) -> Callable[[Any, Any, Any, Any], Awaitable[None]]:
    async def past(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if str(scope.get("path", "")).startswith(_RUNTIME):
            await self.app(scope, receive, send)
        else:
            await layer(self, scope, receive, send)

    return past


if __name__ == "__main__":
    guard()
    tidy_seldom()
    count_seldom()
    one_by_one()
    keep_little()
    hold_calls()
    go_straight()
    gc.freeze()  # what is there now stays: nobody need look through it for what can go
    flower_superlink()

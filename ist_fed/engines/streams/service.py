"""The server's end of the streams: bytes that wait for whoever has a ticket, and bytes that came for one."""

import secrets
import threading
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from ist_fed.engines.streams.calls import AT, DOWN, MESSAGE, OPTIONS, SERVICE, SIZE, TICKET, UP
from ist_fed.errors import EngineError
from ist_fed.wire import PIECE, Laid

_AT_ONCE = 256  # streams; more wait their turn
_WAITING = 4096  # calls, with those that are under way; who is turned away for their number comes again
_LARGER = 4  # times what was sent may come back: masked numbers are of four bytes, where the network's may be of two
_UNKNOWN = "nobody waits for this ticket"


@dataclass
class _Held:
    """What belongs to one ticket."""

    down: Laid | None
    room: int  # bytes that may come
    up: bytearray | None = None
    got: int = 0  # bytes of it that came
    call: grpc.ServicerContext | None = None  # the newest, which alone goes on: an older is of a broken connection
    lock: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """Listens from when it is made until it is closed.

    Args:
        address: `host:port` on which it listens.
        certificate: with which it shows who it is, in PEM, and its private key; None speaks without TLS.

    Attributes:
        port: on which it listens.
        came: set when somebody has sent what there was to send; to be cleared by whoever waits for it.

    Raises:
        EngineError: it cannot listen there.
    """

    def __init__(self, address: str, certificate: tuple[Path, Path] | None) -> None:
        self._held: dict[str, _Held] = {}
        self.came = threading.Event()
        options = [
            *OPTIONS,
            ("grpc.so_reuseport", 0),  # else two processes may listen, and each gets half of the calls
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ]
        pool, handlers = ThreadPoolExecutor(_AT_ONCE, "stream"), [_Ticketed(self._handlers(), self._held)]
        self._server = grpc.server(pool, handlers, options=options, maximum_concurrent_rpcs=_WAITING)
        try:
            if certificate is None:
                self.port = self._server.add_insecure_port(address)
            else:
                chain, key = (path.read_bytes() for path in certificate)
                self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        except RuntimeError as error:
            raise EngineError(
                f"subnets are to travel on {address}, but it cannot be listened on, for another program does, say; "
                f"choose another port with `ist-fed server start --streams PORT`, or 0 to let them travel in messages"
            ) from error
        self._server.start()

    def close(self) -> None:
        """Break off what is under way, and listen no more."""
        self._server.stop(None).wait()
        self._held.clear()

    # --- For the server itself ----------------------------------------------------------------------------------------

    def offer(self, laid: Laid) -> str:
        """Hold the bytes of a subnet for whoever names the ticket that is returned."""
        name = secrets.token_hex(16)
        self._held[name] = _Held(laid, room=_LARGER * laid.size + PIECE)
        return name

    def has_all(self, name: str) -> bool:
        """Whether everything that is to come for a ticket is there."""
        held = self._held.get(name)
        return held is not None and held.up is not None and held.got == len(held.up)

    def take(self, name: str) -> bytearray | None:
        """What has come for a ticket, which is then worth nothing any more; None if that is not all."""
        held = self._held.pop(name, None)
        if held is None:
            return None
        with held.lock:
            call, came = held.call, held.up
            held.call = held.up = None
        if call is not None:
            call.cancel()  # it may be waiting for bytes, and hold a thread
        return came if came is not None and held.got == len(came) else None

    # --- For whoever calls --------------------------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        calls = {
            # Of a call with one request gRPC would wait for that in a thread, out of our reach.
            DOWN: grpc.stream_stream_rpc_method_handler(self._down),
            UP: grpc.stream_unary_rpc_method_handler(self._up),
        }
        return grpc.method_handlers_generic_handler(SERVICE, calls)

    def _down(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        held = self._of(context)
        first, laid = _number(next(requests, b"").decode("ascii", "replace"), context), held.down
        if laid is None or first >= laid.size:
            held.down = None  # they are there
        else:
            yield from laid.pieces(first, MESSAGE)

    def _up(self, pieces: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        held, said = self._of(context), dict(context.invocation_metadata())
        at, size = (_number(said.get(key, ""), context) for key in (AT, SIZE))
        if size > held.room:
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "more bytes come than can be a trained subnet")
        with held.lock:
            if held.call is context and held.up is None:
                held.up = bytearray(size)
        for piece in pieces:
            with held.lock:
                if held.call is not context or held.up is None or at != held.got or at + len(piece) > len(held.up):
                    context.abort(grpc.StatusCode.ABORTED, "these are not the bytes that come next")
                assert held.up is not None
                held.up[at : at + len(piece)] = piece
                at = held.got = at + len(piece)
                if held.got == len(held.up):
                    self.came.set()
        return str(held.got).encode()

    def _of(self, context: grpc.ServicerContext) -> _Held:
        """What belongs to the call's ticket; the call before it is broken off, so that a ticket takes one thread."""
        name = _ticket(context)
        held = self._held.get(name)
        if held is not None:
            with held.lock:
                older, held.call = held.call, context
            if older is not None:
                older.cancel()
        if held is None or name not in self._held:  # it may have been taken meanwhile
            context.abort(grpc.StatusCode.NOT_FOUND, _UNKNOWN)
        assert held is not None
        return held


class _Ticketed(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Looks at a call's ticket before the call gets a thread, which it would keep while it sends nothing.

    Args:
        calls: what answers those with a ticket.
        held: what belongs to each ticket.
    """

    def __init__(self, calls: grpc.GenericRpcHandler, held: Container[str]) -> None:
        self._calls, self._held = calls, held

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """What answers a call; None if there is no such call."""
        handler = self._calls.service(details)
        known = handler is None or _ticket(details) in self._held
        return handler if known else grpc.stream_stream_rpc_method_handler(_refuse)


def _refuse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    context.abort(grpc.StatusCode.NOT_FOUND, _UNKNOWN)
    yield b""


def _ticket(call: grpc.ServicerContext | grpc.HandlerCallDetails) -> str:
    said = call.invocation_metadata
    return str(dict(said() if callable(said) else said).get(TICKET, ""))


def _number(said: str | bytes, context: grpc.ServicerContext) -> int:
    text = str(said)
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "a call says by numbers which byte comes first, and of how many"
        )
    return int(text)

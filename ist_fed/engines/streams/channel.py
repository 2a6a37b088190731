"""A client's end of the streams. What is broken off goes on where it was, once the server can be reached again."""

import random
import time
from collections.abc import Iterable
from contextlib import suppress

import grpc

from ist_fed.engines.reasons import explain
from ist_fed.engines.streams.calls import AT, DOWN, MESSAGE, OPTIONS, SIZE, TICKET, UP, path
from ist_fed.errors import FleetRefused, FleetUnreachable
from ist_fed.wire import Laid

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0  # after a failure
_PATIENCE_S = 60.0  # with failures, while nothing gets through; the server misses a client much sooner
_TELLING = 1 << 18  # bytes from which on the time of a transfer tells the speed of the link


class Channel:
    """A connection to one server's streams, made when it is first used.

    Args:
        address: `host:port`.
        ca: certificate of the authority that signed the server's, in PEM; None speaks without TLS.

    Attributes:
        link: bytes a second of the last `fetch` that was large enough to tell; 0 before.
    """

    def __init__(self, address: str, ca: bytes | None) -> None:
        options = [*OPTIONS, ("grpc.max_reconnect_backoff_ms", 5000)]
        self.address, self.link = address, 0.0
        self._channel = (
            grpc.insecure_channel(address, options)
            if ca is None
            else grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options)
        )
        self._down = self._channel.unary_stream(path(DOWN))
        self._up = self._channel.stream_unary(path(UP))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def fetch(self, ticket: str, size: int, seconds: float) -> bytearray:
        """The bytes that wait for a ticket.

        Args:
            ticket: its name.
            size: how many they are.
            seconds: to try for; a minute at most while nothing gets through.

        Raises:
            FleetUnreachable: they were not had in time.
            FleetRefused: the server knows of no such ticket, has fewer or more bytes, or is not this federation's.
        """
        came, there, tries, began = bytearray(size), 0, _Tries(self.address, seconds), time.perf_counter()
        while there < size:
            try:
                for piece in self._down(_number(there), timeout=seconds, metadata=[(TICKET, ticket)]):
                    if there + len(piece) > size:
                        raise FleetRefused(f"a subnet of {size} bytes was promised, but more come")
                    came[there : there + len(piece)] = piece
                    there += len(piece)
                if there < size:
                    raise FleetRefused(f"a subnet of {size} bytes was promised, but {there} came")
            except grpc.RpcError as error:
                tries.again(error, there)
        if size >= _TELLING:
            self.link = size / (time.perf_counter() - began)
        with suppress(grpc.RpcError):  # the server would keep them for somewhat longer, and that is all
            list(self._down(_number(size), timeout=_PATIENCE_S, metadata=[(TICKET, ticket)]))
        return came

    def send(self, ticket: str, laid: Laid, seconds: float) -> None:
        """Send bytes for a ticket.

        Args:
            ticket: its name.
            laid: what to send.
            seconds: as of `fetch`.

        Raises:
            FleetError: as `fetch`.
        """
        tries, there = _Tries(self.address, seconds), 0
        while there < laid.size:
            try:
                if tries.failed:
                    there = self._send(ticket, (), 0, laid.size, seconds)
                there = self._send(ticket, laid.pieces(there, MESSAGE), there, laid.size, seconds)
            except grpc.RpcError as error:
                tries.again(error, there)

    def _send(self, ticket: str, pieces: Iterable[bytes], at: int, size: int, seconds: float) -> int:
        """Send some of the bytes, from one on; how many the server has then."""
        metadata = [(TICKET, ticket), (AT, str(at)), (SIZE, str(size))]
        return int(self._up(iter(pieces), timeout=seconds, metadata=metadata))


class _Tries:
    """Decides whether to try once more, and waits until then."""

    def __init__(self, address: str, seconds: float) -> None:
        self._address, self._until = address, time.monotonic() + seconds
        self._through, self._wait = 0, _FIRST_WAIT_S
        self._failing: float | None = None  # since when nothing got through

    @property
    def failed(self) -> bool:
        """Whether a call did."""
        return self._failing is not None

    def again(self, error: grpc.RpcError, through: int) -> None:
        """Wait after a call that failed, when so many bytes had got through.

        Raises:
            FleetError: trying again is of no use, or the time is up.
        """
        reason, now = explain(error, self._address), time.monotonic()
        if self._failing is None or through > self._through:
            self._failing, self._through, self._wait = now, through, _FIRST_WAIT_S
        taken_over = error.code() is grpc.StatusCode.ABORTED  # from a broken call of this very client
        can_help = taken_over or isinstance(reason, FleetUnreachable)
        if not can_help or now > min(self._until, self._failing + _PATIENCE_S):
            raise reason from error
        time.sleep(self._wait * random.uniform(0.8, 1.2))
        self._wait = min(2 * self._wait, _LONGEST_WAIT_S)


def _number(byte: int) -> bytes:
    return str(byte).encode()

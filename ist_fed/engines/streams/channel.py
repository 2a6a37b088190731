"""A client's end of the streams. What is broken off goes on where it was, once the server can be reached again."""

import random
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

import grpc

from ist_fed.engines.reasons import explain
from ist_fed.engines.streams.calls import AT, DOWN, OPTIONS, TICKET, UP, path
from ist_fed.errors import FleetRefused, FleetUnreachable

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

    def fetch(self, ticket: str, count: int, seconds: float) -> list[bytes]:
        """The pieces that wait for a ticket.

        Args:
            ticket: its name.
            count: how many they are.
            seconds: to try for; a minute at most while nothing gets through.

        Raises:
            FleetUnreachable: they were not had in time.
            FleetRefused: the server knows of no such ticket, has other pieces, or is not the one of this federation.
        """
        pieces, tries, began = list[bytes](), _Tries(self.address, seconds), time.perf_counter()
        while len(pieces) < count:
            try:
                pieces += self._down(_number(len(pieces)), timeout=seconds, metadata=[(TICKET, ticket)])
                if len(pieces) != count:
                    raise FleetRefused(f"{count} pieces of a subnet were promised, but the server gave {len(pieces)}")
            except grpc.RpcError as error:
                tries.again(error, len(pieces))
        if (size := sum(map(len, pieces))) >= _TELLING:
            self.link = size / (time.perf_counter() - began)
        with suppress(grpc.RpcError):  # the server would keep them for somewhat longer, and that is all
            list(self._down(_number(count), timeout=_PATIENCE_S, metadata=[(TICKET, ticket)]))
        return pieces

    def send(self, ticket: str, pieces: Sequence[bytes], seconds: float) -> None:
        """Send pieces for a ticket.

        Args:
            ticket: its name.
            pieces: what to send.
            seconds: as of `fetch`.

        Raises:
            FleetError: as `fetch`.
        """
        tries, there = _Tries(self.address, seconds), 0
        while there < len(pieces):
            try:
                if tries.failed:
                    there = self._send(ticket, (), 0, seconds)
                there = self._send(ticket, pieces, there, seconds)
            except grpc.RpcError as error:
                tries.again(error, there)

    def _send(self, ticket: str, pieces: Sequence[bytes], first: int, seconds: float) -> int:
        """Send pieces from one on; how many the server has then."""
        metadata = [(TICKET, ticket), (AT, str(first))]
        return int(self._up(islice(pieces, first, None), timeout=seconds, metadata=metadata))


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
        """Wait after a call that failed, when so many pieces had got through.

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


def _number(piece: int) -> bytes:
    return str(piece).encode()

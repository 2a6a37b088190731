"""A message whose subnet travels aside: in place of the bytes it holds a ticket, for which they are had elsewhere."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from ist_fed.errors import WireError
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.laid import Laid
from ist_fed.wire.parcel import is_piece, records_of, source_of, take_records

_TICKET = "ticket"  # field of a message's first record


@dataclass(frozen=True)
class Ticket:
    """What a message holds in place of its bytes.

    Args:
        name: whoever knows it may have the bytes, and send others back.
        port: of the server, where they are; in a reply, the one that was named to the client.
        size: how many bytes there are.
    """

    name: str
    port: int
    size: int


def lift(content: RecordDict) -> Laid | None:
    """Take the bytes of a subnet out of a message; None if it holds none, or a small one among its fields.

    Raises:
        WireError: what stands in their place is no bytes.
    """
    if (laid := source_of(content)) is None:
        pieces = take_records(content)
        return Laid(map(memoryview, pieces)) if pieces else None
    for name in list(filter(is_piece, content)):
        del content[name]
    return laid


def leave(content: RecordDict, ticket: Ticket) -> None:
    """Leave a ticket in a message, among the fields of its first record: one of its own would cost calls of its own."""
    fields = next(_fields(content))
    fields[_TICKET] = json.dumps([ticket.name, ticket.port, ticket.size])


def ticket_of(content: RecordDict) -> Ticket | None:
    """The ticket that a message holds; None if it holds none.

    Raises:
        WireError: it cannot be one.
    """
    said = next((fields[_TICKET] for fields in _fields(content) if _TICKET in fields), None)
    if said is None:
        return None
    with suppress(TypeError, ValueError, RecursionError):
        match json.loads(str(said)):
            case [str(name), int(port), int(size)] if 0 < port < 1 << 16 and size >= 0:
                return Ticket(name, port, size)
    raise WireError(
        f"a ticket holds a name, a port and a number of bytes, but this one says {excerpt(said, 80)}; server and "
        f"client must run the same version of ist_fed"
    )


def put_back(content: RecordDict, came: bytearray | None) -> None:
    """Put bytes into a message in place of its ticket, as if they had come with it; without a ticket, do nothing."""
    for fields in _fields(content):
        if _TICKET in fields:
            del fields[_TICKET]
            if came:
                content.update(records_of(Laid([memoryview(came)], received=came)))
            return


def _fields(content: RecordDict) -> Iterator[ConfigRecord]:
    return (record for record in list(content.values()) if isinstance(record, ConfigRecord))

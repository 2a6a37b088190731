"""A message whose subnet travels aside: in place of the bytes it holds a ticket, for which they are had elsewhere."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from ist_fed.errors import WireError
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.parcel import records_of, take_records
from ist_fed.wire.records import TICKET


@dataclass(frozen=True)
class Ticket:
    """What a message holds in place of its bytes.

    Args:
        name: whoever knows it may have the bytes, and send others back.
        port: of the server, where they are; in a reply, the one that was named to the client.
        pieces: how many there are.
    """

    name: str
    port: int
    pieces: int


def lift(content: RecordDict) -> list[bytes]:
    """Take the pieces of a subnet out of a message; none if it holds none, or a small one among its fields.

    Raises:
        WireError: what stands in their place is no bytes.
    """
    return take_records(content)


def leave(content: RecordDict, ticket: Ticket) -> None:
    """Leave a ticket in a message, among the fields of its first record: one of its own would cost calls of its own."""
    fields = next(_fields(content))
    fields[TICKET] = json.dumps([ticket.name, ticket.port, ticket.pieces])


def ticket_of(content: RecordDict) -> Ticket | None:
    """The ticket that a message holds; None if it holds none.

    Raises:
        WireError: it cannot be one.
    """
    said = next((fields[TICKET] for fields in _fields(content) if TICKET in fields), None)
    if said is None:
        return None
    with suppress(TypeError, ValueError, RecursionError):
        match json.loads(str(said)):
            case [str(name), int(port), int(pieces)] if 0 < port < 1 << 16 and pieces >= 0:
                return Ticket(name, port, pieces)
    raise WireError(
        f"a ticket holds a name, a port and a number of pieces, but this one says {excerpt(said, 80)}; server and "
        f"client must run the same version of ist_fed"
    )


def put_back(content: RecordDict, pieces: list[bytes]) -> None:
    """Put pieces into a message in place of its ticket, as if they had come with it; without a ticket, do nothing."""
    for fields in _fields(content):
        if TICKET in fields:
            del fields[TICKET]
            content.update(records_of(pieces))
            return


def _fields(content: RecordDict) -> Iterator[ConfigRecord]:
    return (record for record in list(content.values()) if isinstance(record, ConfigRecord))

"""Who is there: the server's question to a client, and its answer."""

from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from ist_fed.errors import WireError
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.records import NODE, content_of, record_of


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a client says of itself when the server asks.

    Args:
        client: its number among the clients; orders the nodes the same way on every engine.
        examples: how many it trains on; its weight within a cohort.
        capacity: how much it can hold, relative to the others.
    """

    client: int
    examples: int
    capacity: float = 1.0


def profile_question(node: int, ttl: float) -> Message:
    """The message that asks a node who it is."""
    return Message(RecordDict(), node, MessageType.QUERY, ttl=ttl)


def profile_answer(profile: Profile, *, reply_to: Message) -> Message:
    """The client's answer."""
    record = ConfigRecord({"client": profile.client, "examples": profile.examples, "capacity": profile.capacity})
    return Message(RecordDict({NODE: record}), reply_to=reply_to)


def open_profile(message: Message) -> Profile:
    """Read the answer on the server.

    Raises:
        WireError: the node failed or answered something else.
    """
    record = record_of(content_of(message), NODE, ConfigRecord)
    client, examples, capacity = (record.get(key) for key in ("client", "examples", "capacity"))
    if not (type(client) is int and type(examples) is int and type(capacity) is float):
        raise WireError(
            "a client must say its number, its examples and its capacity, but this one does not; server and client "
            "must run the same version of ist_fed"
        )
    if not (0 <= client < 1 << 64 and 0 <= examples < 1 << 53 and 1e-6 <= capacity <= 1e6):
        raise WireError(
            f"a client's number and examples must not be negative and its capacity lie between 1e-6 and 1e6, but they "
            f"are {excerpt(client)}, {excerpt(examples)} and {capacity}"
        )
    return Profile(client=client, examples=examples, capacity=capacity)

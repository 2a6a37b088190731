"""Who is there: the server's question to a client, and its answer."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from ist_fed.errors import WireError
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.records import NODE, content_of, record_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """What the server tells a client when it asks who it is.

    Args:
        sizes: units of each axis of the full network.
        training: the fields of `Training`.
    """

    sizes: dict[str, int]
    training: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a client says of itself when the server asks.

    Args:
        client: its number among the clients; orders the nodes the same way on every engine.
        examples: how many it trains on; its weight within a cohort.
        capacity: how much it can hold, relative to the others.
        memory: bytes that its training may take; 0 if it sets no bound.
        limit: largest fraction of every axis that it can train within them, by its own estimate.
        step_seconds: that a local step took when it last trained, for each million parameters; 0 if not known.
        link: bytes a second between it and the server; 0 if not known.
    """

    client: int
    examples: int
    capacity: float = 1.0
    memory: int = 0
    limit: float = 1.0
    step_seconds: float = 0.0
    link: float = 0.0


_RANGES: dict[str, tuple[type[int] | type[float], float, float]] = {
    "client": (int, 0, (1 << 64) - 1),
    "examples": (int, 0, (1 << 53) - 1),
    "capacity": (float, 1e-6, 1e6),
    "memory": (int, 0, 1 << 53),
    "limit": (float, 0, 1),
    "step_seconds": (float, 0, 1e6),
    "link": (float, 0, 1e15),
}
_REQUIRED = ("client", "examples", "capacity")


def profile_question(
    node: int, ttl: float, sizes: Mapping[str, int] | None = None, training: Mapping[str, Any] | None = None
) -> Message:
    """The message that asks a node who it is.

    Args:
        node: Flower's node id.
        ttl: seconds until the question lapses.
        sizes: units of each axis of the full network, so that the node can say what it can hold.
        training: the fields of `Training`, for the same.
    """
    told = ConfigRecord()
    if sizes is not None:
        told["question"] = json.dumps({"sizes": dict(sizes), "training": dict(training or {})})
    return Message(RecordDict({NODE: told}), node, MessageType.QUERY, ttl=ttl)


def open_question(message: Message) -> Question | None:
    """Read the question on the client; None if it tells nothing.

    Raises:
        WireError: what it tells cannot be read.
    """
    told = record_of(message.content, NODE, ConfigRecord).get("question")
    if told is None:
        return None
    try:
        question = Question(**json.loads(str(told)))
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(
            f"a question must tell sizes and training, but this one cannot be read ({excerpt(str(error))}); server and "
            f"client must run the same version of ist_fed"
        ) from error
    sizes, training = question.sizes, question.training
    if not (isinstance(sizes, dict) and all(type(n) is int and n >= 1 for n in sizes.values())):
        raise WireError(f"a question tells the units of each axis, at least 1, but tells {excerpt(str(sizes), 80)}")
    if not isinstance(training, dict):
        raise WireError(f"a question tells the fields of Training, but tells {excerpt(training, 80)}")
    return question


def profile_answer(profile: Profile, *, reply_to: Message) -> Message:
    """The client's answer."""
    return Message(RecordDict({NODE: ConfigRecord(asdict(profile))}), reply_to=reply_to)


def open_profile(message: Message) -> Profile:
    """Read the answer on the server; what an older client does not say has its default.

    Raises:
        WireError: the node failed or answered something else.
    """
    record = record_of(content_of(message), NODE, ConfigRecord)
    said: dict[str, Any] = {}
    for name, (kind, least, most) in _RANGES.items():
        if name not in record and name not in _REQUIRED:
            continue
        value = record.get(name)
        if type(value) is not kind or not least <= cast(float, value) <= most:
            raise WireError(
                f"a client's {name} must be a {'whole ' * (kind is int)}number from {least:.16g} to {most:.16g}, but "
                f"is {excerpt(value, 80)}; server and client must run the same version of ist_fed"
            )
        said[name] = value
    return Profile(**said)

"""The steps of a secure round: what the server asks and a member answers, as bytes that only they understand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from ist_fed.errors import WireError
from ist_fed.flat import Flat
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.laid import Laid
from ist_fed.wire.layout import write_layout
from ist_fed.wire.parcel import Parcel, take_pieces
from ist_fed.wire.records import ORDER, REPLY, STEP, Records, content_of, record_of


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a secure round, as a member is asked for it.

    Args:
        name: which.
        body: what comes with it.
    """

    name: str
    body: bytes


def step_message(
    node: int,
    step: Step,
    round: int,
    ttl: float,
    *,
    parcel: Parcel | None = None,
    order: Mapping[str, Any],
) -> Message:
    """The message that asks a member for a step.

    Args:
        node: Flower's node id.
        step: the step.
        round: from 1.
        ttl: seconds until the question lapses.
        parcel: the packed subnet, in the step in which it is trained.
        order: how, the fields of `Order` but `arrays` and `digest`; sent with the parcel.
    """
    records: Records = {STEP: ConfigRecord({"name": step.name, "body": step.body})}
    if parcel is not None:
        records |= parcel.beside(ORDER, {"fields": json.dumps(dict(order))})
    return Message(RecordDict(records), node, MessageType.TRAIN, group_id=str(round), ttl=ttl)


def open_step(message: Message) -> Step | None:
    """Read the question on the member's side; None if it is an ordinary order.

    Raises:
        WireError: it cannot be read.
    """
    record = record_of(message.content, STEP, ConfigRecord)
    if not record:
        return None
    name, body = record.get("name"), record.get("body")
    if not isinstance(name, str) or not isinstance(body, bytes):
        raise WireError(
            f"a step of a secure round has a name and bytes, but this one has {excerpt(name, 80)}; server and client "
            f"must run the same version of ist_fed"
        )
    return Step(name=name, body=body)


def step_answer(body: bytes, *, reply_to: Message) -> Message:
    """The message by which a member answers; a large body goes in pieces."""
    return Message(RecordDict(Parcel("", Laid([memoryview(body)])).beside(REPLY, {})), reply_to=reply_to)


def open_step_answer(message: Message) -> bytes:
    """Read the answer on the server.

    Raises:
        WireError: the member failed, or would not go on.
    """
    content = content_of(message)
    record = record_of(content, REPLY, ConfigRecord)
    if "error" in record:
        raise WireError(f"the client did not go on: {excerpt(record['error'])}")
    pieces = take_pieces(content, REPLY)
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def layout_of_flat(arrays: Flat) -> str:
    """The layout of a parcel's arrays, as text, from those that came out of it."""
    return write_layout(
        tuple(
            (name, run.dtype, shape) for run in arrays.layout for name, shape in zip(run.names, run.shapes, strict=True)
        )
    )

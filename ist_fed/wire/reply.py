"""Replies: what a client sends back, and the checks it must pass before anything of it is read.

The server never reads what a reply says of its own bytes: it compares that with what it sent.
"""

from dataclasses import dataclass
from math import nan

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from ist_fed.arrays import Arrays
from ist_fed.errors import WireError
from ist_fed.flat import Flat
from ist_fed.optimizer_state import why_unsound
from ist_fed.wire.excerpt import excerpt
from ist_fed.wire.order import Order
from ist_fed.wire.parcel import Label, pack, take_pieces, unpack_checked
from ist_fed.wire.records import REPLY, Fields, content_of, record_of

_ERROR_CHARACTERS = 2000  # longest reason that a client sends


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back from a client, checked.

    Args:
        arrays: the trained subnet.
        size: bytes of it.
        loss: mean training loss over the local steps.
        seconds: that the local steps took, by the client's clock.
        epsilon: that the client's examples have cost so far, if it says so; else NaN.
    """

    arrays: Flat
    size: int
    loss: float
    seconds: float
    epsilon: float = nan


def reply_message(
    order: Order, arrays: Arrays, *, loss: float, seconds: float, epsilon: float | None = None, reply_to: Message
) -> Message:
    """The message that brings a trained subnet back."""
    echo: Fields = {"round": order.round, "nonce": order.nonce, "digest": order.digest}
    answer = {**echo, "loss": float(loss), "seconds": float(seconds)}
    if epsilon is not None:
        answer["epsilon"] = float(epsilon)
    return Message(RecordDict(pack(arrays).beside(REPLY, answer)), reply_to=reply_to)


def refusal_message(reason: str, *, reply_to: Message) -> Message:
    """The message by which a client says why it did not train."""
    return Message(RecordDict({REPLY: ConfigRecord({"error": reason[:_ERROR_CHARACTERS]})}), reply_to=reply_to)


def open_reply(message: Message, *, round: int, nonce: str, label: Label) -> Reply:
    """Check a reply against what was sent, and only then read it; nothing larger than what came is allocated.

    A large subnet is taken out of the message, so that it is in memory once.

    Raises:
        WireError: the client failed, or the reply is not the one that was asked for.
    """
    content = content_of(message)
    echo = record_of(content, REPLY, ConfigRecord)
    if "error" in echo:
        raise WireError(f"the client did not train: {excerpt(echo['error'])}")
    if not echo:
        raise WireError(
            f"a reply must be what ist_fed's Worker answers, but this one holds {excerpt(', '.join(content))}; let the "
            f"ClientApp return Worker.train(message)"
        )
    _check_echo(echo, round, nonce, label)
    if any(isinstance(record, ArrayRecord) for record in content.values()):
        raise WireError("a reply must hold the subnet and no other arrays, but holds more")
    arrays = unpack_checked(label.layout, take_pieces(content, REPLY))
    if unsound := why_unsound(arrays):
        raise WireError(f"a reply must hold what an optimiser could keep: {unsound}")
    loss, seconds = _number(echo.get("loss")), _number(echo.get("seconds"))
    seconds = seconds if seconds >= 0 else nan
    return Reply(arrays=arrays, size=label.size, loss=loss, seconds=seconds, epsilon=_number(echo.get("epsilon")))


def _check_echo(echo: ConfigRecord, round: int, nonce: str, label: Label) -> None:
    """A reply names the order that it answers, so that an old one, or another's, is never merged."""
    for key, expected in (("round", round), ("nonce", nonce), ("digest", label.digest)):
        if type(echo.get(key)) is not type(expected) or echo[key] != expected:
            raise WireError(
                f"a reply must echo the {key} of its order, {excerpt(expected, 80)}, but says "
                f"{excerpt(echo.get(key), 80)}; it answers another order"
            )
    if echo.get("layout") != label.layout:
        raise WireError(
            f"a reply must hold the arrays that were sent, in the same layout, but says it holds "
            f"{excerpt(echo.get('layout'), 200)}; server and client must run the same version of ist_fed"
        )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e30 else float("nan")

"""Arrays ⇄ Flower records: the only file that knows records and key strings.

A subnet travels as one flat array of bytes, because Flower pays per array and not per byte. What its bytes mean stands
beside it as text, and the server never reads that text from a reply: it compares it with what it sent.
"""

import hashlib
import io
import json
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.errors import WireError

_SUBNET, _FLAT, _ORDER, _REPLY, _METRICS, _NODE = "subnet", "flat", "order", "reply", "metrics", "node"
_ERROR_CHARACTERS = 2000  # longest reason taken over from a client


# --- Flat arrays -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """What the server remembers of a subnet it sent, to check the reply against.

    Args:
        layout: of the parcel.
        digest: SHA-256 of its bytes, in hexadecimal.
        size: their number.
    """

    layout: str
    digest: str
    size: int


@dataclass(frozen=True)
class Parcel:
    """One subnet, packed.

    Args:
        layout: JSON list of `[name, dtype, shape]`, in the order of the bytes.
        array: Flower's array: the bytes of all arrays, one after another without padding.
        size: their number.
    """

    layout: str
    array: Array
    size: int

    def label(self) -> Label:
        """What to remember of it."""
        return Label(self.layout, _digest(self.array, self.size), self.size)


def pack(arrays: Arrays) -> Parcel:
    """Lay arrays out as one flat array; wider dtypes first, so that every array is aligned without padding."""
    named = sorted(arrays.items(), key=lambda item: -item[1].element_size())
    layout = json.dumps([[name, _dtype_name(array.dtype), list(array.shape)] for name, array in named])
    pieces = [_bytes_of(array) for _, array in named]
    size = sum(map(len, pieces))
    array = Array("uint8", (size,), "numpy.ndarray", b"".join((_header(size), *pieces)))  # the one copy
    return Parcel(layout, array, size)


def unpack(layout: str, array: Array) -> dict[str, Tensor]:
    """The arrays of a parcel, without copying its bytes; they must not be written to.

    Raises:
        WireError: the layout cannot be read, or does not multiply out to the bytes that came.
    """
    entries = _read_layout(layout)
    flat = _payload(array, sum(dtype.itemsize * prod(shape) for _, dtype, shape in entries))
    arrays, start = {}, 0
    for name, dtype, shape in entries:
        end = start + dtype.itemsize * prod(shape)
        arrays[name] = flat[start:end].view(dtype).view(shape)
        start = end
    return arrays


def _read_layout(layout: str) -> list[tuple[str, torch.dtype, list[int]]]:
    try:
        entries = [(name, _DTYPES[dtype], shape) for name, dtype, shape in json.loads(layout)]
        sound = all(
            isinstance(name, str) and all(type(n) is int and n >= 0 for n in shape) for name, _, shape in entries
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"a layout is a JSON list of [name, dtype, shape]; this one cannot be read: {error}") from error
    if not sound:
        raise WireError("a layout holds names and lengths that are not negative, but this one holds something else")
    return entries


def _payload(array: Array, expected: int) -> Tensor:
    """The bytes behind NumPy's header, as a tensor that shares memory with `array`."""
    header = _header(expected)
    if len(array.data) != len(header) + expected or not array.data.startswith(header):
        raise WireError(
            f"a subnet must come as {expected} bytes of type uint8, but {len(array.data)} bytes came, which say they "
            f"are {array.dtype} {tuple(array.shape)}"
        )
    if expected == 0:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"):  # that the bytes are read-only, which is what we want
        return torch.frombuffer(array.data, dtype=torch.uint8, offset=len(header))


def _header(length: int) -> bytes:
    """NumPy's own header for `length` bytes, so that Flower's mods can read the array too."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (length,)})
    return buffer.getvalue()


def _digest(array: Array, size: int) -> str:
    return hashlib.sha256(memoryview(array.data)[len(array.data) - size :]).hexdigest()


def _bytes_of(array: Tensor) -> memoryview:
    return memoryview(array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_DTYPES = {
    _dtype_name(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    )
}  # fmt: skip


# --- The wide network in Flower's own form ---------------------------------------------------------------------------


def to_record(arrays: Arrays) -> ArrayRecord:
    """The wide network as an `ArrayRecord`; bfloat16, which NumPy lacks, as its bits in int16."""
    return ArrayRecord({
        name: Array((array.view(torch.int16) if array.dtype == torch.bfloat16 else array).detach().cpu().numpy())
        for name, array in arrays.items()
    })


def from_record(record: ArrayRecord, like: Arrays) -> dict[str, Tensor]:
    """The wide network out of an `ArrayRecord`, with the names, shapes and dtypes of `like`.

    A record made from a `state_dict` may hold a tied weight under both its names; the second is left out.

    Raises:
        WireError: an array is missing, or has another shape or dtype.
    """
    arrays = {}
    for name, template in like.items():
        if name not in record:
            raise WireError(f"the initial arrays must be this model's state, but lack '{name}'; they have {list(record)}")
        array = torch.from_numpy(record[name].numpy().copy())
        if template.dtype == torch.bfloat16 and array.dtype == torch.int16:
            array = array.view(torch.bfloat16)
        if (array.shape, array.dtype) != (template.shape, template.dtype):
            raise WireError(
                f"initial array '{name}' must be {tuple(template.shape)} {template.dtype}, "
                f"but is {tuple(array.shape)} {array.dtype}"
            )
        arrays[name] = array
    return arrays


# --- Orders: server to client ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a client is asked to do in one round.

    Args:
        round: from 1.
        nonce: of this round's plan and this client; the reply echoes it.
        seed: the scenario's seed, from which the client draws its order of examples.
        sizes: units of each axis of the subnet.
        arrays: the subnet.
        digest: SHA-256 of the subnet's bytes as they arrived.
        local_steps: how many steps to take.
        lr: learning rate of this round.
        training: the other fields of `Training`.
    """

    round: int
    nonce: str
    seed: int
    sizes: dict[str, int]
    arrays: dict[str, Tensor]
    digest: str
    local_steps: int
    lr: float
    training: dict[str, Any]


def new_nonce() -> str:
    """A name that nobody can guess, for one client in one round."""
    return secrets.token_hex(16)


def order_message(node: int, parcel: Parcel, order: Mapping[str, Any], extra: ConfigRecord, ttl: float) -> Message:
    """The message that sends a subnet to a node.

    Args:
        node: Flower's node id.
        parcel: the packed subnet; the same object may go to a whole cohort.
        order: the fields of `Order` but `arrays` and `digest`.
        extra: Flower's `train_config`, passed on as it is.
        ttl: seconds until the order lapses.
    """
    config = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in order.items()}
    records = {
        _SUBNET: ArrayRecord({_FLAT: parcel.array}),
        _ORDER: ConfigRecord({**config, "layout": parcel.layout}),
        "config": extra,
    }
    return Message(RecordDict(records), node, MessageType.TRAIN, group_id=str(order["round"]), ttl=ttl)


def open_order(message: Message) -> Order:
    """Read an order on the client.

    Raises:
        WireError: it was not sent by this version of ist_fed.
    """
    try:
        config = dict(message.content.config_records[_ORDER])
        layout = str(config.pop("layout"))
        array = message.content.array_records[_SUBNET][_FLAT]
        sizes, training = json.loads(str(config.pop("sizes"))), json.loads(str(config.pop("training")))
        arrays = unpack(layout, array)
        size = sum(tensor.nbytes for tensor in arrays.values())
        return Order(sizes=sizes, training=training, arrays=arrays, digest=_digest(array, size), **config)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(
            f"an order must hold a subnet and its round; this one cannot be read ({type(error).__name__}: {error}). "
            f"Do server and client run the same version of ist_fed?"
        ) from error


# --- Replies: client to server ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back from a client, checked.

    Args:
        arrays: the trained subnet.
        size: bytes of it.
        loss: mean training loss over the local steps.
        seconds: that the local steps took, by the client's clock.
    """

    arrays: dict[str, Tensor]
    size: int
    loss: float
    seconds: float


def reply_message(order: Order, arrays: Arrays, *, loss: float, seconds: float, reply_to: Message) -> Message:
    """The message that brings a trained subnet back."""
    parcel = pack(arrays)
    echo = {"round": order.round, "nonce": order.nonce, "digest": order.digest, "layout": parcel.layout}
    records = {
        _SUBNET: ArrayRecord({_FLAT: parcel.array}),
        _REPLY: ConfigRecord(echo),
        _METRICS: MetricRecord({"loss": loss, "seconds": seconds}),
    }
    return Message(RecordDict(records), reply_to=reply_to)


def refusal_message(reason: str, *, reply_to: Message) -> Message:
    """The message by which a client says why it did not train."""
    return Message(RecordDict({_REPLY: ConfigRecord({"error": reason[:_ERROR_CHARACTERS]})}), reply_to=reply_to)


def open_reply(message: Message, *, round: int, nonce: str, label: Label) -> Reply:
    """Check a reply against what was sent, and only then read it; nothing larger than what came is allocated.

    Raises:
        WireError: the client failed, or the reply is not the one that was asked for.
    """
    if message.has_error():
        raise WireError(f"the client failed: {_short(message.error.reason) or f'code {message.error.code}'}")
    echo = message.content.config_records.get(_REPLY, ConfigRecord())
    if "error" in echo:
        raise WireError(f"the client did not train: {_short(str(echo['error']))}")
    expected = {"round": round, "nonce": nonce, "digest": label.digest, "layout": label.layout}
    for key, value in expected.items():
        if echo.get(key) != value:
            raise WireError(f"a reply must echo its {key}, {_short(str(value), 80)}, but says {_short(str(echo.get(key)), 80)}")
    arrays = _checked_arrays(message, label)
    metrics = message.content.metric_records.get(_METRICS, MetricRecord())
    loss, seconds = (_number(metrics.get(key)) for key in ("loss", "seconds"))
    return Reply(arrays=arrays, size=label.size, loss=loss, seconds=seconds)


def _checked_arrays(message: Message, label: Label) -> dict[str, Tensor]:
    record = message.content.array_records.get(_SUBNET, ArrayRecord())
    if list(record) != [_FLAT] or len(message.content.array_records) != 1:
        raise WireError("a reply must hold one flat array and no other")
    arrays = unpack(label.layout, record[_FLAT])
    for name, array in arrays.items():
        if array.dtype == torch.bool:
            sound = bool((array.view(torch.uint8) <= 1).all())
        else:
            sound = bool(array.isfinite().all())
        if not sound:
            raise WireError(f"every value of a reply must be finite, but '{name}' holds one that is not")
    return arrays


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e30 else float("nan")


def _short(text: str | None, length: int = 500) -> str:
    """One printable line of a text that a client sent."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text or "").split())
    return line if len(line) <= length else line[:length] + " …"


# --- Nodes: who is there ---------------------------------------------------------------------------------------------


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
    return Message(RecordDict({_NODE: record}), reply_to=reply_to)


def open_profile(message: Message) -> Profile:
    """Read the answer on the server.

    Raises:
        WireError: the node failed or answered something else.
    """
    if message.has_error():
        raise WireError(f"the client failed: {_short(message.error.reason) or f'code {message.error.code}'}")
    record = message.content.config_records.get(_NODE, ConfigRecord())
    client, examples, capacity = (record.get(key) for key in ("client", "examples", "capacity"))
    if not (type(client) is int and type(examples) is int and isinstance(capacity, float)):
        raise WireError("a client must say its number, its examples and its capacity")
    if not (client >= 0 and 0 <= examples < 1 << 53 and 0 < capacity < float("inf")):
        raise WireError(f"a client's numbers make no sense: client {client}, {examples} examples, capacity {capacity}")
    return Profile(client=client, examples=examples, capacity=capacity)

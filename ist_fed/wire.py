"""Arrays ⇄ Flower records: the only file that knows records and key strings.

A subnet travels as one flat array of bytes, because Flower pays per array and not per byte. What its bytes mean stands
beside it as text, and the server never reads that text from a reply: it compares it with what it sent.
"""

import hashlib
import json
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite, prod
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.errors import WireError

Kind = TypeVar("Kind", ArrayRecord, ConfigRecord, MetricRecord)

_SUBNET, _FLAT, _ORDER, _REPLY, _METRICS, _NODE = "subnet", "flat", "order", "reply", "metrics", "node"
_ERROR_CHARACTERS = 2000  # longest reason that a client sends
_SHOWN_CHARACTERS = 500  # of it, in a message of the server


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

    @cached_property
    def record(self) -> ArrayRecord:
        """The flat array in Flower's record; a cohort's messages share it."""
        return ArrayRecord({_FLAT: self.array})

    def label(self) -> Label:
        """What to remember of it."""
        return Label(self.layout, _digest(self.array, self.size), self.size)


@dataclass(frozen=True)
class _Run:
    """Arrays of one dtype that follow each other; handled as one tensor, since a call costs more than its numbers."""

    dtype: torch.dtype
    names: list[str]
    shapes: list[list[int]]
    lengths: list[int]


def pack(arrays: Arrays) -> Parcel:
    """Lay arrays out as one flat array; wider dtypes first, so that every array is aligned without padding.

    Raises:
        WireError: an array has a dtype that cannot travel.
    """
    for name, tensor in arrays.items():
        if tensor.dtype not in _NAMES:
            raise WireError(
                f"an array travels as one of {', '.join(_DTYPES)}, but '{name}' is "
                f"{str(tensor.dtype).removeprefix('torch.')}; convert it in the factory, or make it a buffer that is "
                f"not persistent"
            )
    named = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, _NAMES[item[1].dtype]))
    layout = _write_layout(tuple((name, _NAMES[array.dtype], tuple(array.shape)) for name, array in named))
    pieces = [_bytes_of(array) for _, array in named]
    size = sum(piece.nbytes for piece in pieces)
    array = Array("uint8", (size,), "numpy.ndarray", b"".join((_header(size), *pieces)))  # the one copy
    return Parcel(layout, array, size)


def unpack(layout: str, array: Array) -> dict[str, Tensor]:
    """The arrays of a parcel, without copying its bytes; they must not be written to.

    Raises:
        WireError: the layout cannot be read, or does not multiply out to the bytes that came.
    """
    runs = _read_layout(layout)
    return _named(runs, _values(runs, array))


def _named(runs: Sequence[_Run], values: Sequence[Tensor]) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    for run, numbers in zip(runs, values, strict=True):
        for name, shape, piece in zip(run.names, run.shapes, torch.split_with_sizes(numbers, run.lengths), strict=True):
            arrays[name] = piece if len(shape) == 1 else piece.view(shape)
    return arrays


def _values(runs: Sequence[_Run], array: Array) -> list[Tensor]:
    """The numbers of each run, one behind the other, sharing memory with `array`."""
    sizes = [run.dtype.itemsize * sum(run.lengths) for run in runs]
    pieces = torch.split_with_sizes(_payload(array, sum(sizes)), sizes)
    return [piece.view(run.dtype) for run, piece in zip(runs, pieces, strict=True)]


@lru_cache(maxsize=256)
def _write_layout(entries: tuple[tuple[str, str, tuple[int, ...]], ...]) -> str:
    return json.dumps(entries)


@lru_cache(maxsize=256)
def _read_layout(layout: str) -> tuple[_Run, ...]:
    """The runs of a layout: every name once, every shape one that a tensor can have, every array aligned."""
    try:
        entries = [(name, dtype, shape) for name, dtype, shape in json.loads(layout)]
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(
            f"a layout is a JSON list of [name, dtype, shape], but this one cannot be read: {_short(str(error))}"
        ) from error
    runs: list[_Run] = []
    start = 0
    for name, dtype, shape in entries:
        if not (isinstance(name, str) and isinstance(dtype, str) and dtype in _DTYPES and _is_shape(shape)):
            raise WireError(
                f"a layout gives each array one of the types {', '.join(_DTYPES)} and a list of lengths, but this one "
                f"does not for {_short(name, 80)}"
            )
        if start % _DTYPES[dtype].itemsize:
            raise WireError(f"a layout puts wider dtypes first, but '{_short(name, 80)}' comes after a narrower one")
        if not runs or runs[-1].dtype != _DTYPES[dtype]:
            runs.append(_Run(_DTYPES[dtype], [], [], []))
        runs[-1].names.append(name)
        runs[-1].shapes.append(shape)
        runs[-1].lengths.append(prod(shape))
        start += _DTYPES[dtype].itemsize * prod(shape)
    if len({name for name, _, _ in entries}) < len(entries):
        raise WireError("a layout names every array once, but this one names one twice")
    return tuple(runs)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, list) or len(shape) > 64:
        return False
    # The product with zeros left out must fit as well, for torch multiplies lengths to strides.
    lengths = all(type(length) is int and 0 <= length < 1 << 63 for length in shape)
    return lengths and prod(max(1, length) for length in shape) < 1 << 60


def _payload(array: Array, expected: int) -> Tensor:
    """The bytes behind NumPy's header, as a tensor that shares memory with `array`."""
    header = _header(expected)
    declared = (array.dtype, array.shape, array.stype) == ("uint8", (expected,), "numpy.ndarray")
    if not declared or len(array.data) != len(header) + expected or not array.data.startswith(header):
        raise WireError(
            f"a subnet must come as {expected} bytes of type uint8 behind NumPy's header of {len(header)}, but "
            f"{len(array.data)} bytes came, declared as {_short(array.dtype, 40)} {_short(str(array.shape[:4]), 80)}"
        )
    if expected == 0:
        return torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"):  # that the bytes are read-only, which is what we want
        return torch.frombuffer(array.data, dtype=torch.uint8, offset=len(header))


def _header(length: int) -> bytes:
    """What `numpy.save` writes before `length` bytes, so that Flower's mods can read the array too.

    It is written out here, for server and clients need not have the same NumPy.
    """
    about = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({length},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + about.ljust(117).encode() + b"\n"


def _digest(array: Array, size: int) -> str:
    return hashlib.sha256(memoryview(array.data)[len(array.data) - size :]).hexdigest()


def _bytes_of(array: Tensor) -> memoryview:
    if array.numel() == 0:
        return memoryview(b"")  # an empty array may have strides that cannot be viewed as bytes
    if array.requires_grad or not array.is_cpu or not array.is_contiguous():
        array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:  # NumPy has none
        array = array.view(torch.int16)
    return array.numpy().data


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    )
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


# --- The wide network in Flower's own form ---------------------------------------------------------------------------


def to_record(arrays: Arrays) -> ArrayRecord:
    """The wide network as an `ArrayRecord`; bfloat16, which NumPy lacks, as its bits in int16."""
    return ArrayRecord(
        {
            name: Array((array.view(torch.int16) if array.dtype == torch.bfloat16 else array).detach().cpu().numpy())
            for name, array in arrays.items()
        }
    )


def from_record(record: ArrayRecord, like: Arrays) -> dict[str, Tensor]:
    """The wide network out of an `ArrayRecord`, with the names, shapes and dtypes of `like`.

    A record made from a `state_dict` may hold a tied weight under both its names; the second is left out.

    Raises:
        WireError: an array is missing, or has another shape or dtype.
    """
    arrays = {}
    for name, template in like.items():
        if name not in record:
            raise WireError(
                f"the initial arrays must be this model's state, but lack '{name}'; they have {list(record)}"
            )
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
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        _SUBNET: parcel.record,
        _ORDER: ConfigRecord({"fields": json.dumps(dict(order)), "layout": parcel.layout}),  # Flower pays per key, too
        "config": extra,
    }
    return Message(RecordDict(records), node, MessageType.TRAIN, group_id=str(order["round"]), ttl=ttl)


def open_order(message: Message) -> Order:
    """Read an order on the client.

    Raises:
        WireError: it was not sent by this version of ist_fed.
    """
    try:
        config = _record(message.content, _ORDER, ConfigRecord)
        array = _record(message.content, _SUBNET, ArrayRecord)[_FLAT]
        arrays = unpack(str(config["layout"]), array)
        size = sum(tensor.nbytes for tensor in arrays.values())
        order = Order(arrays=arrays, digest=_digest(array, size), **json.loads(str(config["fields"])))
    except WireError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WireError(
            f"an order must hold a subnet and its round, but this one cannot be read ({type(error).__name__}: "
            f"{_short(str(error))}); server and client must run the same version of ist_fed"
        ) from error
    _check_order(order)
    return order


def _check_order(order: Order) -> None:
    sound = {
        "round": type(order.round) is int and order.round >= 1,
        "nonce": isinstance(order.nonce, str),
        "seed": type(order.seed) is int and order.seed >= 0,
        "sizes": isinstance(order.sizes, dict) and all(type(n) is int and n >= 1 for n in order.sizes.values()),
        "local_steps": type(order.local_steps) is int and order.local_steps >= 1,
        "lr": type(order.lr) is float and isfinite(order.lr) and order.lr >= 0,
        "training": isinstance(order.training, dict),
    }
    for key, fits in sound.items():
        if not fits:
            raise WireError(
                f"an order's {key} makes no sense: {_short(getattr(order, key), 80)}; server and client must run the "
                f"same version of ist_fed"
            )


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
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
        _SUBNET: parcel.record,
        _REPLY: ConfigRecord(
            {"round": order.round, "nonce": order.nonce, "digest": order.digest, "layout": parcel.layout}
        ),
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
    content = _content(message)
    echo = _record(content, _REPLY, ConfigRecord)
    if "error" in echo:
        raise WireError(f"the client did not train: {_short(echo['error'])}")
    if not echo:
        raise WireError(
            f"a reply must be what ist_fed's Worker answers, but this one holds {_short(', '.join(content))}; let the "
            f"ClientApp return Worker.train(message)"
        )
    _check_echo(echo, round, nonce, label)
    arrays = _checked_arrays(content, label)
    metrics = _record(content, _METRICS, MetricRecord)
    loss, seconds = _number(metrics.get("loss")), _number(metrics.get("seconds"))
    return Reply(arrays=arrays, size=label.size, loss=loss, seconds=seconds if seconds >= 0 else float("nan"))


def _content(message: Message) -> RecordDict:
    """The records of a client's message.

    Raises:
        WireError: it holds none; if Flower says why, so does the message.
    """
    if message.has_error():
        raise WireError(f"the client failed: {_short(message.error.reason or f'code {message.error.code}')}")
    if not message.has_content():
        raise WireError("a client's message must hold records, but is empty")
    return message.content


def _record(content: RecordDict, key: str, kind: type[Kind]) -> Kind:
    """The record of this name and kind, or an empty one.

    Flower's own `content.config_records` makes a cycle of references, which would keep the arrays beside it in memory
    until Python's collector comes round.
    """
    record = content.get(key)
    return record if isinstance(record, kind) else kind()


def _check_echo(echo: ConfigRecord, round: int, nonce: str, label: Label) -> None:
    """A reply names the order that it answers, so that an old one, or another's, is never merged."""
    for key, expected in (("round", round), ("nonce", nonce), ("digest", label.digest)):
        if type(echo.get(key)) is not type(expected) or echo[key] != expected:
            raise WireError(
                f"a reply must echo the {key} of its order, {_short(expected, 80)}, but says "
                f"{_short(echo.get(key), 80)}; it answers another order"
            )
    if echo.get("layout") != label.layout:
        raise WireError(
            f"a reply must hold the arrays that were sent, in the same layout, but says it holds "
            f"{_short(echo.get('layout'), 200)}; server and client must run the same version of ist_fed"
        )


def _checked_arrays(content: RecordDict, label: Label) -> dict[str, Tensor]:
    record = _record(content, _SUBNET, ArrayRecord)
    if list(record) != [_FLAT] or sum(isinstance(other, ArrayRecord) for other in content.values()) != 1:
        raise WireError("a reply must hold one flat array and no other")
    runs = _read_layout(label.layout)
    values = _values(runs, record[_FLAT])
    for run, numbers in zip(runs, values, strict=True):
        if not _is_sound(numbers):
            pieces = zip(run.names, torch.split_with_sizes(numbers, run.lengths), strict=True)
            name = next(name for name, piece in pieces if not _is_sound(piece))
            if run.dtype == torch.bool:
                raise WireError(f"every bit of a reply must be 0 or 1, but '{name}' holds another byte")
            raise WireError(f"every value of a reply must be finite, but '{name}' holds NaN or infinity")
    return _named(runs, values)


def _is_sound(numbers: Tensor) -> bool:
    """Whether floats are finite and booleans are booleans."""
    if numbers.numel() == 0:
        return True
    if numbers.dtype == torch.bool:
        return int(numbers.view(torch.uint8).max()) <= 1
    if not numbers.is_floating_point():
        return True
    least, most = numbers.aminmax()  # NaN comes through; no second array is made
    return isfinite(least.item()) and isfinite(most.item())


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e30 else float("nan")


def _short(value: object, length: int = _SHOWN_CHARACTERS) -> str:
    """One printable line of whatever the other side sent; not much more of it is read than is shown."""
    if isinstance(value, str):
        text = value[: 4 * length]
    elif value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64):
        text = str(value)
    else:
        text = f"a value of type {type(value).__name__}"
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (line if len(line) <= length else line[:length] + " …") or "nothing"


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
    record = _record(_content(message), _NODE, ConfigRecord)
    client, examples, capacity = (record.get(key) for key in ("client", "examples", "capacity"))
    if not (type(client) is int and type(examples) is int and type(capacity) is float):
        raise WireError(
            "a client must say its number, its examples and its capacity, but this one does not; server and client "
            "must run the same version of ist_fed"
        )
    if not (0 <= client < 1 << 64 and 0 <= examples < 1 << 53 and 1e-6 <= capacity <= 1e6):
        raise WireError(
            f"a client's number and examples must not be negative and its capacity lie between 1e-6 and 1e6, but they "
            f"are {_short(client)}, {_short(examples)} and {capacity}"
        )
    return Profile(client=client, examples=examples, capacity=capacity)

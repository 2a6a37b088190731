"""A subnet as one flat array of bytes: Flower pays per array and per record, and not per byte.

What the bytes mean stands beside them as text, the layout. They travel in Flower's `ConfigRecord`s, a few megabytes
each: an `ArrayRecord` would be four objects on the wire where this is one, each with a call of its own.
"""

import warnings
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cached_property

import torch
from blake3 import blake3
from flwr.app import ConfigRecord
from torch import Tensor

from ist_fed.arrays import Arrays, is_finite
from ist_fed.errors import WireError
from ist_fed.flat import Flat
from ist_fed.wire.laid import Laid
from ist_fed.wire.layout import DTYPES, NAMES, read_layout, write_layout
from ist_fed.wire.piece import BYTES, Piece
from ist_fed.wire.records import Fields, Record, Records

ENCLOSED = 1 << 17
"""Bytes up to which a subnet lies in the record of its order or reply: a record of its own costs a call on its way."""

Chunk = bytes | bytearray
"""Some bytes of a parcel; as a `bytearray`, they belong to whoever has it."""

_SUBNET, _LAYOUT = "subnet", "layout"


@dataclass(frozen=True)
class Label:
    """What the server remembers of a subnet it sent, to check the reply against.

    Args:
        layout: of the parcel.
        digest: BLAKE3 of its bytes, in hexadecimal.
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
        laid: the bytes of all arrays, one after another without padding.
    """

    layout: str
    laid: Laid

    @property
    def size(self) -> int:
        """Bytes."""
        return self.laid.size

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """A copy of the bytes; each but the last of `PIECE`."""
        return tuple(self.laid.pieces())

    @cached_property
    def _records(self) -> Records:
        """The bytes in Flower's records; a cohort's messages share them."""
        return records_of(self.laid)

    def beside(self, key: str, fields: Fields) -> Records:
        """The records of a message: one of fields, with a small subnet in it, and those of a larger subnet."""
        fields = {**fields, _LAYOUT: self.layout}
        if self.size <= ENCLOSED:
            return {key: ConfigRecord({**fields, BYTES: self.laid.read(0, self.size)})}
        return {**self._records, key: ConfigRecord(fields)}

    def label(self) -> Label:
        """What to remember of it."""
        return Label(self.layout, digest_of(self.laid.arrays), self.size)


def pack(arrays: Arrays) -> Parcel:
    """Lay arrays out as one flat array; wider dtypes first, so that every array is aligned without padding.

    They are not copied, and not to be changed before the parcel is where it is to be.

    Raises:
        WireError: an array has a dtype that cannot travel.
    """
    for name, tensor in arrays.items():
        if tensor.dtype not in NAMES:
            raise WireError(
                f"an array travels as one of {', '.join(DTYPES)}, but '{name}' is "
                f"{str(tensor.dtype).removeprefix('torch.')}; convert it in the factory, or make it a buffer that is "
                f"not persistent"
            )
    named = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, NAMES[item[1].dtype]))
    layout = write_layout(tuple((name, array.dtype, tuple(array.shape)) for name, array in named))
    return Parcel(layout, Laid(_bytes_of(array) for _, array in named))


def take_pieces(records: MutableMapping[str, Record], key: str) -> list[Chunk]:
    """The pieces of the parcel that a message holds beside the fields named `key`; records that hold
    nothing else are taken out, so that the bytes can be let go.

    Raises:
        WireError: a piece is missing, or is no bytes.
    """
    fields = records.get(key)
    enclosed = fields.get(BYTES) if isinstance(fields, ConfigRecord) else None
    return [*([enclosed] if isinstance(enclosed, bytes) else []), *take_records(records)]


def take_records(records: MutableMapping[str, Record]) -> list[Chunk]:
    """The same, of those pieces only that have a record of their own."""
    if (laid := source_of(records)) is not None and laid.received is not None:
        for name in list(filter(is_piece, records)):
            del records[name]
        return [laid.received]
    pieces, numbers = list[Chunk](), range(sum(map(is_piece, records)))
    for name in map(_name, numbers):
        record = records.pop(name, None)
        piece = record.get(BYTES) if isinstance(record, ConfigRecord) and len(record) == 1 else None
        if not isinstance(piece, bytes):
            raise WireError(f"a subnet comes as {len(numbers)} records of bytes, but '{name}' is not one")
        pieces.append(piece)
    return pieces


def records_of(laid: Laid) -> Records:
    """A record for each piece, as a message holds them."""
    return {_name(number): Piece(laid, number) for number in range(laid.count)}


def source_of(records: Mapping[str, Record]) -> Laid | None:
    """What the pieces in a message are of, if they are a whole that was not copied yet."""
    first = records.get(_name(0))
    return first.source if isinstance(first, Piece) else None


def is_piece(name: str) -> bool:
    """Whether a record of this name is one."""
    return name.startswith(_SUBNET)


def _name(number: int) -> str:
    return f"{_SUBNET}{number}"


def unpack(layout: str, pieces: list[Chunk]) -> Flat:
    """The arrays of a parcel; they must not be written to, unless they are `fresh`, as those are that were copied.

    Args:
        layout: of the parcel.
        pieces: its bytes. A single piece is not copied; of several each is let go as soon as it is.

    Raises:
        WireError: the layout cannot be read, or does not multiply out to the bytes that came.
    """
    runs = read_layout(layout)
    sizes = [run.size for run in runs]
    fresh = len(pieces) > 1 or any(isinstance(piece, bytearray) for piece in pieces)
    parts = torch.split_with_sizes(_payload(pieces, sum(sizes)), sizes)
    return Flat(runs, [part.view(run.dtype) for run, part in zip(runs, parts, strict=True)], fresh)


def unpack_checked(layout: str, pieces: list[Chunk]) -> Flat:
    """The same, once every float is known to be finite and every boolean to be one.

    Raises:
        WireError: also if one is not; the message names its array.
    """
    arrays = unpack(layout, pieces)
    for run, numbers in zip(arrays.layout, arrays.runs, strict=True):
        if not _is_sound(numbers):
            name = next(name for name in run.names if not _is_sound(arrays[name]))
            if run.dtype == torch.bool:
                raise WireError(f"every bit of a reply must be 0 or 1, but '{name}' holds another byte")
            raise WireError(f"every value of a reply must be finite, but '{name}' holds NaN or infinity")
    return arrays


def _payload(pieces: list[Chunk], expected: int) -> Tensor:
    """The bytes as a tensor."""
    if (came := sum(len(piece) for piece in pieces)) != expected:
        raise WireError(f"a subnet must come as {expected} bytes, but {came} came")
    if expected == 0:
        return torch.empty(0, dtype=torch.uint8)
    if len(pieces) == 1:
        return _tensor(pieces[0])
    whole, end = torch.empty(expected, dtype=torch.uint8), expected
    while pieces:
        piece = _tensor(pieces.pop())
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole


def _tensor(piece: Chunk) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # that the bytes are read-only, which is what we want
        return torch.frombuffer(piece, dtype=torch.uint8) if piece else torch.empty(0, dtype=torch.uint8)


def digest_of(pieces: Iterable[Chunk | memoryview]) -> str:
    """BLAKE3 of the bytes, 32 bytes in hexadecimal; as strong as SHA-256, and ten times as fast."""
    digest = blake3()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _bytes_of(array: Tensor) -> memoryview:
    if array.numel() == 0:
        return memoryview(b"")  # an empty array may have strides that cannot be viewed as bytes
    if array.requires_grad or not array.is_cpu or not array.is_contiguous():
        array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:  # NumPy has none
        array = array.view(torch.int16)
    return array.numpy().data.cast("B")


def _is_sound(numbers: Tensor) -> bool:
    """Whether floats are finite and booleans are booleans."""
    if numbers.dtype == torch.bool and numbers.numel():
        return int(numbers.view(torch.uint8).max()) <= 1
    return is_finite(numbers)

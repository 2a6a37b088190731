"""Messages as bytes and back, field by field: every length is checked against what is there before anything is made."""

import struct
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, Self, cast

import numpy as np

from ist_fed.errors import SecureError

_VERSION = b"ISF1"


class Form(Protocol):
    """How one field is written."""

    def write(self, value: Any) -> bytes:
        """Its bytes."""
        ...

    def read(self, source: "Source") -> Any:
        """Its value."""
        ...


class Source:
    """Bytes that are being read.

    Args:
        data: all of them.
    """

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    @property
    def left(self) -> int:
        """How many have not been read."""
        return len(self._rest)

    def take(self, count: int) -> memoryview:
        """The next ones; not copied.

        Raises:
            SecureError: there are not so many.
        """
        if count > len(self._rest):
            raise SecureError(f"a message of the secure protocol is cut short: {count} bytes are due, {self.left} left")
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


@dataclass(frozen=True)
class Whole:
    """A number from 0 that fits in so many bytes."""

    size: int

    def write(self, value: int) -> bytes:
        """Little end first."""
        return value.to_bytes(self.size, "little")

    def read(self, source: Source) -> int:
        """The number."""
        return int.from_bytes(source.take(self.size), "little")


@dataclass(frozen=True)
class Real:
    """A finite float64."""

    def write(self, value: float) -> bytes:
        """IEEE 754, little end first."""
        return struct.pack("<d", value)

    def read(self, source: Source) -> float:
        """The number."""
        (value,) = struct.unpack("<d", source.take(8))
        if not abs(value) < float("inf"):
            raise SecureError("a number in the secure protocol is finite, but one is not")
        return float(value)


@dataclass(frozen=True)
class Exactly:
    """So many bytes."""

    size: int

    def write(self, value: bytes) -> bytes:
        """As they are."""
        assert len(value) == self.size
        return bytes(value)

    def read(self, source: Source) -> bytes:
        """The bytes."""
        return bytes(source.take(self.size))


@dataclass(frozen=True)
class Upto:
    """Bytes, up to so many."""

    most: int

    def write(self, value: bytes) -> bytes:
        """Their number, and they."""
        assert len(value) <= self.most
        return struct.pack("<I", len(value)) + value

    def read(self, source: Source) -> bytes:
        """The bytes."""
        return bytes(source.take(_count(source, self.most)))


@dataclass(frozen=True)
class Many:
    """A tuple of up to so many of something."""

    of: Form
    most: int = 1 << 12

    def write(self, value: tuple[Any, ...]) -> bytes:
        """Their number, and they."""
        assert len(value) <= self.most
        return b"".join([struct.pack("<I", len(value)), *(self.of.write(each) for each in value)])

    def read(self, source: Source) -> tuple[Any, ...]:
        """The tuple."""
        return tuple(self.of.read(source) for _ in range(_count(source, self.most)))


@dataclass(frozen=True)
class Vector:
    """All that is left, as numbers modulo 2³²; read without a copy, and not to be written to."""

    def write(self, value: np.ndarray) -> bytes:
        """Four bytes each, little end first."""
        assert value.dtype == np.uint32
        return value.astype("<u4", copy=False).tobytes()

    def read(self, source: Source) -> np.ndarray:
        """The numbers."""
        if source.left % 4:
            raise SecureError("a masked update is four bytes a number, but some are left over")
        return np.frombuffer(source.take(source.left), dtype="<u4")


@dataclass(frozen=True)
class Record:
    """Another message, within one."""

    of: type["Packed"]

    def write(self, value: "Packed") -> bytes:
        """Its fields."""
        return value.fields_packed()

    def read(self, source: Source) -> "Packed":
        """The message."""
        return self.of.read_fields(source)


def packed(form: Form) -> Any:
    """A field of a message, and how it is written."""
    return field(metadata={"form": form})


class Packed:
    """A frozen dataclass whose fields are all `packed`."""

    kind: ClassVar[int] = 0
    """Which message it is; 0 stands within another only."""

    def pack(self) -> bytes:
        """The message as bytes."""
        return b"".join([_VERSION, bytes([self.kind]), self.fields_packed()])

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """A message out of bytes; nothing larger than they is made.

        Raises:
            SecureError: they are not this message.
        """
        source = Source(data)
        if source.take(len(_VERSION)) != _VERSION or source.take(1)[0] != cls.kind:
            raise SecureError(
                f"a message of the secure protocol is what the step asks for, here {cls.__name__}, but this one is "
                f"not; server and members must run the same version of ist_fed"
            )
        message = cls.read_fields(source)
        if source.left:
            raise SecureError(f"a message of the secure protocol ends where it says, but {source.left} bytes follow")
        return message

    def fields_packed(self) -> bytes:
        """The fields alone."""
        return b"".join(f.metadata["form"].write(getattr(self, f.name)) for f in fields(cast(Any, self)))

    @classmethod
    def read_fields(cls, source: Source) -> Self:
        """The fields alone."""
        return cls(**{f.name: f.metadata["form"].read(source) for f in fields(cast(Any, cls))})


def _count(source: Source, most: int) -> int:
    (count,) = struct.unpack("<I", source.take(4))
    if count > min(most, source.left):
        raise SecureError(
            f"a list in the secure protocol holds at most {min(most, source.left)} here, but says {count}"
        )
    return int(count)

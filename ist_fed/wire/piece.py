"""A few megabytes in a record of Flower's, made fit to travel with one copy.

Flower serialises a record each time it is asked for its name, which is a hash, and again to send it, with half a dozen
copies each time: seconds for a subnet of a hundred megabytes.
"""

import hashlib
from typing import Any

from flwr.app import ConfigRecord
from flwr.app.typing import ConfigRecordValues
from flwr.proto.recorddict_pb2 import ConfigRecord as Proto
from flwr.proto.recorddict_pb2 import ConfigRecordValue

from ist_fed.wire.laid import Laid

BYTES = "bytes"
"""The one key of a piece."""


class Piece(ConfigRecord):
    """Bytes under one key. On the wire it is a `ConfigRecord`, and comes out as one.

    Args:
        source: what they are part of; they are copied from it when they are first asked for.
        number: of the piece in it, from 0.
    """

    def __init__(self, source: Laid, number: int) -> None:
        super().__init__({BYTES: b""})
        self.__dict__["_source"], self.__dict__["_number"] = source, number

    @property
    def source(self) -> Laid | None:
        """What it is part of, while its bytes were not asked for."""
        source: Laid | None = self.__dict__["_source"]
        return source

    def __getitem__(self, key: str) -> ConfigRecordValues:
        """Its bytes."""
        if key == BYTES and self.source is not None:
            self[BYTES] = self.source.piece(self.__dict__["_number"])
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: ConfigRecordValues) -> None:
        """Put others in their place."""
        self.__dict__["_source"] = None
        super().__setitem__(key, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is sent between processes of one machine: as the plain record that it comes out as."""
        return ConfigRecord, ({BYTES: self[BYTES]},)

    @property
    def object_id(self) -> str:
        """SHA-256 of what `deflate` gives, worked out once."""
        named, name = self.__dict__.get("_named", (None, ""))
        if named is not self[BYTES]:  # bytes do not change, but others may stand here now
            digest = hashlib.sha256()
            for part in self._parts():
                digest.update(part)
            name = digest.hexdigest()
            self.__dict__["_named"] = (self[BYTES], name)
        return str(name)

    def deflate(self) -> bytes:
        """The record as Flower sends it."""
        return b"".join(self._parts())

    def _parts(self) -> tuple[bytes, bytes]:
        content = self[BYTES]
        assert isinstance(content, bytes)
        within = _field(ConfigRecordValue.DESCRIPTOR.fields_by_name["bytes"].number, len(content))
        key = _field(Proto.Item.DESCRIPTOR.fields_by_name["key"].number, len(BYTES)) + BYTES.encode()
        value = key + _field(Proto.Item.DESCRIPTOR.fields_by_name["value"].number, len(within) + len(content)) + within
        item = _field(Proto.DESCRIPTOR.fields_by_name["items"].number, len(value) + len(content)) + value
        return f"{ConfigRecord.__qualname__}  {len(item) + len(content)}".encode() + b"\x00" + item, content


def _field(number: int, length: int) -> bytes:
    """What stands before a protobuf field of bytes: its number and its length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    low = []
    while number > 127:
        low.append(number & 127 | 128)
        number >>= 7
    return bytes([*low, number])

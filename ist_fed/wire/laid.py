"""Bytes that lie in several places, as one: copied piece by piece when they are asked for, and never all at once."""

from collections.abc import Iterable, Iterator

PIECE = 1 << 22
"""Bytes that are copied, or sent, at once."""


class Laid:
    """Arrays of bytes, one behind another; they are not to be changed as long as somebody may ask for them.

    Args:
        arrays: the bytes.
        received: these bytes, if they came from elsewhere as one and nobody else has them.
    """

    def __init__(self, arrays: Iterable[memoryview], received: bytearray | None = None) -> None:
        self.received = received
        self.arrays = [array for array in arrays if len(array)]
        self.size = sum(map(len, self.arrays))

    @property
    def count(self) -> int:
        """Of pieces."""
        return -(-self.size // PIECE)

    def piece(self, number: int) -> bytes:
        """A copy of one, counted from 0."""
        return self.read(number * PIECE, PIECE)

    def read(self, start: int, length: int) -> bytes:
        """A copy of some of them; fewer where they end."""
        parts, left = list[memoryview](), length
        for array in self.arrays:
            if start < len(array) and left:
                parts.append(array[start : start + left])
                left -= len(parts[-1])
            start = max(0, start - len(array))
        return b"".join(parts)

    def pieces(self, start: int = 0, length: int = PIECE) -> Iterator[bytes]:
        """Copies of all from one byte on, so many at a time."""
        return (self.read(at, length) for at in range(start, self.size, length))

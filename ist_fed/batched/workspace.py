"""Memory that one chunk of clients after another fills, asked of the system once."""

from collections.abc import Hashable
from math import prod

from torch import Tensor


class Workspace:
    """Hands out the same memory whenever it is asked for by the same name, and keeps the most that was asked for.

    Freed and asked for anew, tens of megabytes go back to the system and come again page by page: a twentieth of a
    round on a processor.
    """

    def __init__(self) -> None:
        self._most: dict[Hashable, Tensor] = {}
        self._last: dict[Hashable, Tensor] = {}

    def empty(self, name: Hashable, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """An array of any values, of the dtype and device of another; a leaf, to which autograd lets anyone write."""
        last = self._last.get(name)
        if last is None or last.shape != shape or last.dtype != like.dtype or last.device != like.device:
            size, most = prod(shape), self._most.get(name)
            if most is None or len(most) < size or most.dtype != like.dtype or most.device != like.device:
                most = self._most[name] = like.new_empty(size)
            last = self._last[name] = most[:size].view(shape)
        return last.data

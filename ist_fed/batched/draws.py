"""How far random generators are, which a dataset or a task may draw from, and back again."""

import random
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from types import CellType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_KINDS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_MOST = 256  # things that are looked into: a generator stands near the top, and examples are many


class Draws:
    """Of the generators that anyone may draw from, and of those that are held by something.

    Args:
        holders: whose attributes, and theirs in turn, are looked through.
    """

    def __init__(self, *holders: object) -> None:
        self._sources: list[Any] = [torch.default_generator, np.random, random, *_generators(list(holders))]
        self._before = [*map(_state, self._sources)]

    def moved(self) -> bool:
        """Whether anything has been drawn since."""
        return any(map(_differs, self._before, map(_state, self._sources)))

    def undo(self) -> None:
        """Let whoever draws next draw what would have been drawn first."""
        for source, state in zip(self._sources, self._before, strict=True):
            if isinstance(source, np.random.Generator):
                source.bit_generator.state = state
            else:
                (source.setstate if hasattr(source, "setstate") else source.set_state)(state)


def _state(source: Any) -> Any:
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    return source.getstate() if hasattr(source, "getstate") else source.get_state()


def _differs(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return not torch.equal(one, other)
    if isinstance(one, dict):
        return any(map(_differs, one.values(), other.values()))
    if isinstance(one, tuple):
        return not all(map(np.array_equal, one, other))
    return not np.array_equal(one, other)


def _generators(left: list[object]) -> Iterator[object]:
    seen = dict[int, object]()  # by identity, and kept, so that it stays theirs
    while left and len(seen) < _MOST:
        one = left.pop(0)
        if id(one) not in seen:
            seen[id(one)] = one
            with suppress(Exception):  # what cannot be looked into, or has no state, is let be
                if not isinstance(one, _KINDS):
                    left += _parts(one)[: _MOST - len(left)]
                elif _state(one) is not None:
                    yield one


def _parts(one: object) -> list[object]:
    """What something holds: an object, a function, a container."""
    if isinstance(one, type | Tensor | np.ndarray):
        return []
    if isinstance(one, list | tuple):
        return [*one[:_MOST]]
    if isinstance(one, dict):
        return [*islice(one.values(), _MOST)]
    if isinstance(one, MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, FunctionType):
        filled = (cell for cell in one.__closure__ or () if cell != CellType())  # others are of names not yet bound
        return [*(cell.cell_contents for cell in filled), *(one.__defaults__ or ())]
    if isinstance(one, partial):
        return [one.func, *one.args, *one.keywords.values()]
    return [*getattr(one, "__dict__", {}).values()]

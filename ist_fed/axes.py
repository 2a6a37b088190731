"""One table says what a unit is: which axis indexes which dimension of which array.

The table is derived from the factory (`infer`); `symmetry.py` checks it. Nothing else in the library knows a dimension's
number.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ist_fed.arrays import Build, arrays_of, build_on_meta
from ist_fed.errors import AxesError


@dataclass(frozen=True)
class Dim:
    """One dimension of one array; in row-major order it is `outer × units × inner`.

    Args:
        axis: the axis whose units index this dimension; None where nothing is split.
        outer: blocks laid out before the units, such as the 3 of a fused qkv.
        inner: entries that one unit owns side by side, such as a head's 64 features.
    """

    axis: str | None = None
    outer: int = 1
    inner: int = 1

    def __str__(self) -> str:
        if self.axis is None:
            return "."
        parts = [str(self.outer)] * (self.outer > 1) + [self.axis] + [str(self.inner)] * (self.inner > 1)
        return parts[0] if len(parts) == 1 else f"({' '.join(parts)})"


Axes = Mapping[str, tuple[Dim, ...]]
"""Name of an array of the state dict → its dimensions. A tied weight stands once, under its first name."""

_TERM = re.compile(r"\(([^()]+)\)|(\S+)")


def parse(pattern: str) -> tuple[Dim, ...]:
    """Read what `Dim` prints: `"hidden2 hidden1"`, `"(c2 16) ."`, `"(3 heads0 64) ."`.

    Raises:
        AxesError: a group names no axis, or more than one.
    """
    return tuple(_parse_term((grouped or single).split(), pattern) for grouped, single in _TERM.findall(pattern))


def _parse_term(words: list[str], pattern: str) -> Dim:
    if words == ["."]:
        return Dim()
    named = [i for i, word in enumerate(words) if not word.isdigit()]
    if len(named) != 1 or len(words) > 3 or not words[named[0]].isidentifier():
        raise AxesError(
            f"each dimension is '.', an axis, or '(outer axis inner)' with one axis name; "
            f"found '{' '.join(words)}' in '{pattern}'"
        )
    at = named[0]
    outer, inner = (int(words[0]) if at == 1 else 1), (int(words[-1]) if at < len(words) - 1 else 1)
    if at > 1 or len(words) - at > 2:
        raise AxesError(f"write at most one number on each side of the axis; found '{' '.join(words)}' in '{pattern}'")
    return Dim(words[at], outer, inner)


def describe(dims: tuple[Dim, ...]) -> str:
    """One array's dimensions as they are written: `hidden2 hidden1`; a scalar is `()`."""
    return " ".join(str(dim) for dim in dims) or "()"


def infer(build: Build, sizes: Mapping[str, int], declared: Mapping[str, str] | None = None) -> dict[str, tuple[Dim, ...]]:
    """Derive the axes table by building the factory and doubling one size at a time, without memory.

    Doubling, not adding one, so that divisibility constraints survive. A layout that is not block-contiguous (fused
    qkv, LSTM gates) looks like one that is; declare it, and let `check_symmetry` have the last word.

    Args:
        build: the model factory, `build(**sizes) -> nn.Module`.
        sizes: units of each axis in the full network.
        declared: array name → its dimensions as `Dim` prints them; overrides what is derived.

    Returns:
        A `Dim` for every dimension of every array of the state dict, buffers included.

    Raises:
        AxesError: the factory ignores a size, adds arrays with it, or concatenates it with something else.
    """
    shapes = _shapes(build, sizes)
    if not sizes:
        raise AxesError("a network is cut along its axes, but sizes is empty; name at least one, such as hidden1=512")
    table = {name: [Dim() for _ in shape] for name, shape in shapes.items()}
    for axis, units in sizes.items():
        grown = _shapes(build, {**sizes, axis: 2 * units})
        if grown.keys() != shapes.keys():
            raise AxesError(
                f"a size changes shapes, never which arrays there are; doubling '{axis}' adds or removes "
                f"{sorted(grown.keys() ^ shapes.keys())}. Make it an ordinary argument of the factory"
            )
        if grown == shapes:
            raise AxesError(
                f"every size must change the network, but the factory ignores '{axis}' "
                f"(doubling {units} changes no array); use it in the factory or leave it out of sizes"
            )
        for name, shape in shapes.items():
            _mark(table[name], name, axis, units, shape, grown[name])
    for name, pattern in (declared or {}).items():
        if name not in shapes:
            raise AxesError(f"an array is declared that the model does not have: '{name}'; it has {sorted(shapes)}")
        table[name] = list(_checked(name, parse(pattern), shapes[name], sizes))
    return {name: tuple(dims) for name, dims in table.items()}


def _shapes(build: Build, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays_of(build_on_meta(build, sizes)).items()}


def _mark(
    dims: list[Dim], name: str, axis: str, units: int, shape: tuple[int, ...], grown: tuple[int, ...]
) -> None:
    for at, (length, longer) in enumerate(zip(shape, grown, strict=True)):
        if length == longer:
            continue
        if dims[at].axis is not None:
            raise AxesError(
                f"a dimension belongs to one axis, but dimension {at} of '{name}' {shape} grows with both "
                f"'{dims[at].axis}' and '{axis}'; give the two one name, or do not split one of them"
            )
        if longer != 2 * length or length % units:
            raise AxesError(
                f"doubling '{axis}' must double what it owns, but dimension {at} of '{name}' went from {length} to "
                f"{longer}; a concatenation of units with something else cannot be cut"
            )
        dims[at] = Dim(axis, inner=length // units)


def _checked(
    name: str, dims: tuple[Dim, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[Dim, ...]:
    unknown = [dim.axis for dim in dims if dim.axis is not None and dim.axis not in sizes]
    fits = len(dims) == len(shape) and not unknown and all(
        dim.axis is None or dim.outer * sizes[dim.axis] * dim.inner == length
        for dim, length in zip(dims, shape, strict=True)
    )
    if not fits:
        raise AxesError(
            f"the declaration of '{name}' must multiply out to its shape {shape}; found '{describe(dims)}' "
            f"with sizes {dict(sizes)}"
        )
    return dims

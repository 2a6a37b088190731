"""One table says what a unit is: which axis indexes which dimension of which array.

The table is derived from the factory (`infer`); `symmetry.py` checks it. Nothing else in the library knows a
dimension's number.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ist_fed.arrays import Build, arrays_of, build_on_meta
from ist_fed.errors import AxesError, nearest


@dataclass(frozen=True)
class Dim:
    """One dimension of one array; in row-major order it is `outer × units × inner`.

    Args:
        axis: the axis whose units index this dimension; None where nothing is split.
        outer: blocks laid out before the units, such as the 3 of a fused qkv.
        inner: entries that one unit owns side by side, such as a head's 64 features.
        owner: no dimension of the array; the axis has one unit, a block, and the array is there where that is held.
    """

    axis: str | None = None
    outer: int = 1
    inner: int = 1
    owner: bool = False

    def __str__(self) -> str:
        """As einops would write it; an owner as `block2:`."""
        if self.axis is None:
            return "."
        if self.owner:
            return f"{self.axis}:"
        parts = [str(self.outer)] * (self.outer > 1) + [self.axis] + [str(self.inner)] * (self.inner > 1)
        return parts[0] if len(parts) == 1 else f"({' '.join(parts)})"


Axes = Mapping[str, tuple[Dim, ...]]
"""Name of an array of the state dict → its owners and dimensions. A tied weight stands once, under its first name."""

_OWNERS = re.compile(r"\s*((?:[^\W\d]\w*:\s*)*)(.*)", re.ASCII | re.DOTALL)
_TERM = re.compile(r"\([^()]*\)|\S+")
_GROUP = re.compile(r"(?:(\d+) +)?([^\W\d]\w*)(?: +(\d+))?", re.ASCII)


def parse(pattern: str) -> tuple[Dim, ...]:
    """Read what `describe` writes: `"hidden2 hidden1"`, `"(c2 16) ."`, `"(3 heads0 64) ."`, `"()"`, `"block2: . mid2"`.

    Raises:
        AxesError: a dimension is none of `.`, an axis, or an axis between numbers in parentheses.
    """
    match = _OWNERS.fullmatch(pattern)
    assert match is not None  # both parts may be empty
    owners = tuple(Dim(axis.strip(), owner=True) for axis in match[1].split(":")[:-1])
    terms = [] if match[2].strip() == "()" else _TERM.findall(match[2])
    return owners + tuple(_parse_term(term, pattern) for term in terms)


def _parse_term(term: str, pattern: str) -> Dim:
    if term == ".":
        return Dim()
    group = _GROUP.fullmatch(term[1:-1].strip() if term.startswith("(") else term)
    if group is None:
        raise AxesError(
            f"each dimension is '.', an axis, or '(outer axis inner)' with one axis and at most one number on each "
            f"side of it; found '{term}' in '{pattern}'"
        )
    outer, axis, inner = group.groups("1")
    return Dim(axis, int(outer), int(inner))


def describe(dims: tuple[Dim, ...]) -> str:
    """One array's owners and dimensions as they are written: `hidden2 hidden1`, `block2: . mid2`; a scalar is `()`."""
    return " ".join([str(dim) for dim in dims] + ["()"] * (not dims_of(dims)))


def owners_of(dims: Sequence[Dim]) -> tuple[str, ...]:
    """The axes of the blocks without which the array is not there."""
    return tuple([dim.axis for dim in dims if dim.owner and dim.axis is not None])


def dims_of(dims: Sequence[Dim]) -> tuple[Dim, ...]:
    """An entry for each dimension of the array."""
    return tuple([dim for dim in dims if not dim.owner])


def infer(
    build: Build, sizes: Mapping[str, int], declared: Mapping[str, str] | None = None
) -> dict[str, tuple[Dim, ...]]:
    """Derive the axes table by building the factory and doubling one size at a time, without memory.

    Doubling, not adding one, so that divisibility constraints survive. Shapes tell which axis a dimension has and how
    many entries one unit owns, but not their order: a layout that is not block-contiguous (fused qkv, LSTM gates) looks
    like one that is. Declare it, and let `check_symmetry` have the last word.

    An axis of one unit is a block if the factory builds without it, at size 0, and arrays are then missing: it owns
    them. All others keep their names and shapes, so what changes the shape of the stream cannot be left out.

    Args:
        build: the model factory, `build(**sizes) -> nn.Module`.
        sizes: units of each axis in the full network.
        declared: array name → its dimensions as `describe` writes them, where their order is not the derived one.

    Returns:
        A `Dim` for every dimension of every array of the state dict, buffers included, behind one for each owner.

    Raises:
        AxesError: the factory ignores a size, adds arrays with it, or concatenates it with something else; leaving a
            block out changes what it does not own; or a declaration does not multiply out.
    """
    if not sizes:
        raise AxesError("a network is cut along its axes, but sizes is empty; name at least one, such as hidden1=512")
    shapes = _shapes(build, sizes)
    table = {name: [Dim() for _ in shape] for name, shape in shapes.items()}
    owners = _owners(build, sizes, shapes)
    blocks = {axis for own in owners.values() for axis in own}
    for axis, units in sizes.items():
        if axis in blocks:
            continue
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
    derived = {name: (*(Dim(axis, owner=True) for axis in owners[name]), *dims) for name, dims in table.items()}
    return derived | {name: _declared(name, pattern, derived) for name, pattern in (declared or {}).items()}


_Shapes = Mapping[str, tuple[int, ...]]


def _shapes(build: Build, sizes: Mapping[str, int]) -> _Shapes:
    return {name: tuple(array.shape) for name, array in arrays_of(build_on_meta(build, sizes)).items()}


def _owners(build: Build, sizes: Mapping[str, int], shapes: _Shapes) -> defaultdict[str, list[str]]:
    """Array → its owners: of the axes of one unit those without which it is not there."""
    owners = defaultdict[str, list[str]](list)
    for axis, units in sizes.items():
        for name in _missing(build, sizes, [axis], shapes) if units == 1 else ():
            owners[name].append(axis)
    blocks = sorted({axis for own in owners.values() for axis in own})
    if blocks and _missing(build, sizes, blocks, shapes) != owners.keys():
        raise AxesError(
            f"a block's arrays are its own, but without any of {', '.join(blocks)} other arrays are missing than "
            f"without each alone; let every block keep its name whoever else is there, and share no array"
        )
    return owners


def _missing(build: Build, sizes: Mapping[str, int], blocks: Sequence[str], shapes: _Shapes) -> set[str]:
    """The arrays that are missing where axes have no unit; none if the factory must have one."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of layers without units
            left = _shapes(build, {**sizes, **dict.fromkeys(blocks, 0)})
    except AxesError:
        return set()
    missing = shapes.keys() - left.keys()
    changed = [name for name, shape in left.items() if shapes.get(name) != shape]
    if missing and changed:
        raise AxesError(
            f"leaving a block out takes its arrays away and changes no other, but without {', '.join(blocks)} not only "
            f"'{min(missing)}' is missing: '{changed[0]}' is another; let every block keep its name whoever else is "
            f"there, and do not leave out what changes the stream's shape"
        )
    return missing


def _mark(dims: list[Dim], name: str, axis: str, units: int, shape: tuple[int, ...], grown: tuple[int, ...]) -> None:
    """Enter `axis` in the dimensions of one array that it doubles."""
    if len(grown) != len(shape):
        raise AxesError(
            f"a size changes lengths, never dimensions; doubling '{axis}' takes '{name}' from {shape} to {grown}"
        )
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
                f"{longer} for {units} units; units joined with something else (a concatenation), or grouped, cannot "
                f"be cut"
            )
        dims[at] = Dim(axis, inner=length // units)


def _declared(name: str, pattern: str, derived: Axes) -> tuple[Dim, ...]:
    """Read a declaration; it may order what a unit owns, but neither move it nor change how much that is."""
    if name not in derived:
        raise AxesError(f"an array is declared that the model does not have: '{name}'{nearest(name, list(derived))}")
    dims, shape = parse(pattern), derived[name]
    if [(d.axis, d.owner, d.outer * d.inner) for d in dims] != [(d.axis, d.owner, d.inner) for d in shape]:
        raise AxesError(
            f"the declaration of '{name}' must multiply out to its shape, [{describe(shape)}], but is [{pattern}]"
        )
    return dims


def blocks_of(axes: Axes) -> list[str]:
    """The axes that are blocks."""
    return list(dict.fromkeys(owner for dims in axes.values() for owner in owners_of(dims)))


def sizes_of(arrays: Mapping[str, Tensor], axes: Axes) -> dict[str, int]:
    """Units of each axis in the network, wide or narrow, that `arrays` belong to; of blocks left out nothing is said.

    Raises:
        AxesError: the arrays do not fit the table: one is missing from it, has other dimensions, or disagrees with
            another about an axis.
    """
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        if name not in axes:
            raise AxesError(f"every array stands in the axes table, but '{name}' does not; use its own factory's table")
        dims = dims_of(axes[name])
        if len(dims) != array.ndim:
            raise AxesError(f"'{name}' has {array.ndim} dimensions, but its table says [{describe(axes[name])}]")
        sizes |= dict.fromkeys(owners_of(axes[name]), 1)
        for dim, length in zip(dims, array.shape, strict=True):
            if dim.axis is None:
                continue
            block = dim.outer * dim.inner
            units = sizes.setdefault(dim.axis, length // block)
            if length != units * block:
                raise AxesError(
                    f"the arrays of one network agree about its sizes, but by '{name}' {tuple(array.shape)} "
                    f"[{describe(axes[name])}] axis '{dim.axis}' has {length / block:g} units, not {units}"
                )
    return sizes

"""Many subnets of a small network at once: there a call of torch costs more than the numbers that it moves.

The network is laid out flat. Where a subnet's numbers stand in it is worked out for all subnets of one size together,
once for cutting and for putting back; then one call cuts them all, and one call puts them all back.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Axes, Dim, dims_of, owners_of
from ist_fed.flat import Flat, Layout, Run
from ist_fed.places import Units, check_each
from ist_fed.subnet.means import Cohort, mean_of_all

SMALL, LARGE = 1 << 17, 1 << 21
"""Coordinates for each subnet up to which this pays: what a subnet is then made of is a few kilobytes an array. And in
all: where a coordinate stands takes twice the memory of the coordinate itself."""

Held = Mapping[str, Tensor]
"""Checked units: axis → int64 on the CPU; an axis that is held whole is left out."""

Key = tuple[tuple[str, bytes], ...]
"""Which units a subnet holds: what can be looked up in a dictionary."""


def is_small(arrays: Mapping[str, Tensor], subnets: int) -> bool:
    """Whether a network of which there are several subnets is small enough."""
    return subnets > 1 and sum(array.numel() for array in arrays.values()) <= min(subnets * SMALL, LARGE)


@dataclass(frozen=True, eq=False)
class Alike:
    """Subnets of one size.

    Args:
        layout: of each.
        places: for each run of it, subnets × numbers: where they stand in the wide network's run of that dtype.
        whole: for each run of it, which of its numbers are of arrays that no axis splits: every subnet has them.
    """

    layout: Layout
    places: Sequence[Tensor]
    whole: Sequence[Tensor]


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """One of several subnets of a size: what it was asked for with, checked, and where it stands among them."""

    units: Units
    held: Held
    key: Key
    alike: Alike
    row: int


def key_of(held: Held) -> Key:
    """The same for all subnets that hold the same units in the same order, and for no others."""
    return tuple((axis, held[axis].numpy().tobytes()) for axis in sorted(held))


def pieces(wide: Layout, axes: Axes, sizes: Mapping[str, int], subnets: Sequence[Units]) -> list[Piece]:
    """Where subnets stand in a network laid out so, one run for each dtype.

    Raises:
        AxesError: the units are not units of it.
    """
    found: dict[int, Piece] = {}
    for numbers, held, units in check_each(subnets, sizes):
        alike = _alike(wide, axes, sizes, len(numbers), units)
        for row, number in enumerate(numbers):
            key = tuple((axis, units[axis][row].tobytes()) for axis in sorted(units))
            found[number] = Piece(subnets[number], held[row], key, alike, row)
    return [found[number] for number in range(len(subnets))]


@torch.no_grad()
def cut(wide: Flat, of: Sequence[Piece]) -> list[Flat]:
    """Each subnet of a small network."""
    made: list[Flat] = []
    for alike, some in groupby(of, key=lambda piece: piece.alike):
        rows = [piece.row for piece in some]
        runs = [_read(wide, run, _rows(at, rows)) for run, at in zip(alike.layout, alike.places, strict=True)]
        made += [Flat(alike.layout, [run[row] for run in runs]) for row in range(len(rows))]
    return made


def put_back(wide: Flat, parts: Sequence[tuple[Piece, Cohort]]) -> Flat:
    """A copy of a small network with parts written in: of arrays that no axis splits their mean, of others a part's.

    Of a coordinate of the others that is in several parts any one's value stands.
    """
    runs = {run.dtype: numbers.clone() for run, numbers in zip(wide.layout, wide.runs, strict=True)}
    even = defaultdict[torch.dtype, list[_Even]](list)
    groups = defaultdict[Alike, list[tuple[int, Cohort]]](list)
    for piece, cohort in parts:
        groups[piece.alike].append((piece.row, cohort.laid(piece.alike.layout)))
    for alike, members in groups.items():
        rows, cohorts = [row for row, _ in members], [cohort for _, cohort in members]
        means = [cohort.means() for cohort in cohorts]
        for number, (run, at, whole) in enumerate(zip(alike.layout, alike.places, alike.whole, strict=True)):
            here = _rows(at, rows).to(wide.runs[0].device)
            first = torch.stack([cohort.first.runs[number] for cohort in cohorts])
            apart = [cohort.apart.runs[number] for cohort in cohorts if cohort.apart]
            mean = torch.stack([mean.runs[number] for mean in means]) if apart else first
            runs[run.dtype].index_copy_(0, here.view(-1), mean.view(-1))  # quicker than by two dimensions
            if whole.numel():
                whole = whole.to(here.device)
                values, own = first.index_select(1, whole), [sums.index_select(0, whole) for sums in apart]
                even[run.dtype].append(_Even(here[0].index_select(0, whole), values, cohorts, own))
    for dtype, found in even.items():
        values, everyone = torch.cat([one.values for one in found]), [own for one in found for own in one.cohorts]
        mean = mean_of_all(values, everyone, [own for one in found for own in one.apart])
        runs[dtype].index_copy_(0, found[0].places, mean)
    return Flat(wide.layout, list(runs.values()))


@dataclass(frozen=True, eq=False)
class _Even:
    """Numbers that every subnet has: where they stand, and what some cohorts have there, as `mean_of_all` takes it."""

    places: Tensor
    values: Tensor
    cohorts: Sequence[Cohort]
    apart: Sequence[Tensor]


def _read(wide: Flat, run: Run, places: Tensor) -> Sequence[Tensor]:
    """What stands at places in the run of this dtype, row by row."""
    numbers = next(numbers for own, numbers in zip(wide.layout, wide.runs, strict=True) if own.dtype == run.dtype)
    return numbers.index_select(0, places.to(numbers.device).view(-1)).view(places.shape).unbind()


def _rows(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a table; the table itself if it is all of them."""
    return table if [*rows] == [*range(len(table))] else table[[*rows]]


def _alike(wide: Layout, axes: Axes, sizes: Mapping[str, int], count: int, units: Mapping[str, np.ndarray]) -> Alike:
    """So many subnets of one size; `units` are subnets × units of each axis that they do not hold whole."""
    one_row = np.concatenate([np.zeros((count, 1), dtype=np.int64), *units.values()], axis=1)
    counts = tuple((axis, held.shape[1]) for axis, held in units.items())
    layout, places, whole = [], [], []
    for run in wide:
        form = _form(run, tuple(axes[name] for name in run.names), tuple(sizes.items()), counts)
        if form.run.names:
            at = np.broadcast_to(form.base, (count, len(form.base)))
            for factor, which in form.terms:
                at = at + factor * one_row.take(which, axis=1)
            layout.append(form.run)
            places.append(torch.from_numpy(at if form.terms else at.copy()))
            whole.append(form.whole)
    return Alike(tuple(layout), places, whole)


@dataclass(frozen=True, eq=False)
class _Form:
    """What subnets of one size have in common, in one run.

    A number stands at `base` plus, for every dimension that is split, a factor times the number of its unit.

    Args:
        run: of a subnet.
        base: for each of its numbers.
        terms: for each of its numbers the factor, and which of the subnet's units; unit 0 where there is none.
        whole: which of its numbers are of arrays that no axis splits.
    """

    run: Run
    base: np.ndarray
    terms: Sequence[tuple[np.ndarray, np.ndarray]]
    whole: Tensor


@lru_cache(maxsize=16)  # few: each is several times as large as a subnet, and sizes may change with every round
def _form(
    run: Run,
    tables: tuple[tuple[Dim, ...], ...],
    sizes: tuple[tuple[str, int], ...],
    counts: tuple[tuple[str, int], ...],
) -> _Form:
    full, held, first, end = dict(sizes), dict(counts), dict[str, int](), 1
    for axis, count in counts:
        first[axis], end = end, end + count
    start, names, shapes, bases, whole = 0, [], [], [], []
    terms: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for name, table, shape, length in zip(run.names, tables, run.shapes, run.lengths, strict=True):
        if all(held.get(block, 1) for block in owners_of(table)):
            found = [_along(dim, size, full, held, first) for dim, size in zip(dims_of(table), shape, strict=True)]
            names.append(name)
            shapes.append(narrow := tuple(len(base) for base, *_ in found))
            base, own = np.full(narrow, start), []
            for at, (along, factor, which) in enumerate(found):
                stride, beside = prod(shape[at + 1 :]), [1] * at + [-1] + [1] * (len(shape) - at - 1)
                base = base + stride * along.reshape(beside)
                if factor:
                    every = np.broadcast_to(which.reshape(beside), narrow).ravel()
                    own.append((np.full(len(every), stride * factor), every))
            bases.append(base.ravel())
            terms.append(own)
            whole.append(np.full(base.size, all(dim.axis is None for dim in table)))
        start += length
    return _Form(
        run=Run(run.dtype, tuple(names), tuple(shapes)),
        base=_behind(bases),
        terms=[_term(at, terms, bases) for at in range(max(map(len, terms), default=0))],
        whole=torch.from_numpy(np.flatnonzero(_behind(whole))),
    )


def _term(
    at: int, terms: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], bases: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The term of that number of all arrays, one behind another; zeros of those that have fewer."""
    none = [(np.zeros_like(base), np.zeros_like(base)) for base in bases]
    found = [own[at] if at < len(own) else zero for own, zero in zip(terms, none, strict=True)]
    return _behind([factor for factor, _ in found]), _behind([which for _, which in found])


def _behind(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def _along(
    dim: Dim, length: int, full: Mapping[str, int], held: Mapping[str, int], first: Mapping[str, int]
) -> tuple[np.ndarray, int, np.ndarray]:
    """Of each position along a narrow dimension: where it stands but for its unit, whose factor, and which it is."""
    if dim.axis is None or dim.axis not in held:
        return np.arange(length), 0, np.zeros(length, dtype=np.int64)
    # In row-major order a dimension is outer × units × inner.
    outer, unit, inner = (each.ravel() for each in np.indices([dim.outer, held[dim.axis], dim.inner]))
    return outer * full[dim.axis] * dim.inner + inner, dim.inner, first[dim.axis] + unit

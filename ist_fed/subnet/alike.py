"""Where the numbers of subnets of one size stand in a wide network that is laid out flat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from math import prod
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Axes, Dim, dims_of, owners_of
from ist_fed.flat import Layout, Run
from ist_fed.subnet.stretch import Stretch

Held = Mapping[str, np.ndarray]
"""Axis → subnets × units; an axis that is held whole is left out."""


_NOTHING = np.zeros(1, dtype=np.int64)
_LONG = 256
"""Numbers of a row from which on one call a subnet for whole rows costs less than an address for every number."""


@dataclass(frozen=True, eq=False)
class Alike:
    """Subnets of one size.

    Args:
        layout: of each.
        stretches: for each run of it, in order; None for a run that no axis splits: every subnet has all of it.
        whole: for each run of it, which of its numbers are of arrays that no axis splits, which every subnet has; and
            where these stand in the wide network's run of that dtype.
    """

    layout: Layout
    stretches: Sequence[Sequence[Stretch] | None]
    whole: Sequence[tuple[Tensor, Tensor]]


def alike_in(wide: Layout, axes: Axes, sizes: Mapping[str, int], count: int, held: Held) -> Alike:
    """So many subnets of one size in a network laid out so, one run for each dtype."""
    counts = tuple((axis, units.shape[1]) for axis, units in held.items())
    layout, stretches, whole = [], [], []
    for run in wide:
        form = _form(run, tuple(axes[name] for name in run.names), tuple(sizes.items()), counts)
        if form.run.names:
            layout.append(form.run)
            split = form.whole[0].numel() < sum(run.lengths)
            stretches.append(form.stretches(count, held) if split else None)
            whole.append(form.whole)
    return Alike(tuple(layout), stretches, whole)


@dataclass(frozen=True, eq=False)
class _Along:
    """Positions along a dimension, or along several that no axis splits, in steps of the wide array's numbers.

    Args:
        fixed: of each position what does not depend on the unit.
        axis: that splits it, if one does.
        factor: of the unit's number.
        which: of each position the unit, counted in the subnet; None if each is one unit.
    """

    fixed: np.ndarray
    axis: str | None = None
    factor: int = 1
    which: np.ndarray | None = None

    def places(self, held: Held) -> np.ndarray:
        """Subnets × positions, or 1 × positions where they are the same in all."""
        if self.axis is None:
            return self.fixed[None]
        units: np.ndarray = held[self.axis] if self.which is None else held[self.axis].take(self.which, axis=1)
        found: np.ndarray = units * self.factor + self.fixed
        return found


@dataclass(frozen=True, eq=False)
class _Part:
    """An array of a subnet, or several.

    Args:
        span: where it lies in the subnet's run.
        start: where it begins in the wide one.
        shape: in the subnet.
        along: positions along each dimension, and the shape in which they stand beside the other dimensions.
        end: where it ends in the wide one.
    """

    span: slice
    start: int
    shape: tuple[int, ...]
    along: Sequence[tuple[_Along, tuple[int, ...]]]
    end: int

    @property
    def is_long(self) -> bool:
        """Whether a subnet has long rows of it, each whole."""
        (*before, (last, _)) = self.along
        return last.axis is None and self.shape[-1] >= _LONG and any(along.axis for along, _ in before)

    def write(self, places: np.ndarray, held: Held) -> None:
        """Write where its numbers stand, for subnets × its numbers."""
        *before, last = self._found(held)
        np.add(sum(before, self.start), last, out=places.reshape(len(places), *self.shape))

    def rows(self, held: Held) -> Stretch:
        """Its rows."""
        *before, _ = self._found(held)
        at = np.asarray(sum(before)) // self.shape[-1]
        rows = torch.from_numpy(at.reshape(len(at), -1))
        return Stretch(self.span, rows, slice(self.start, self.end), self.shape[-1])

    def _found(self, held: Held) -> list[np.ndarray]:
        found = [(along.places(held), beside) for along, beside in self.along]
        return [each.reshape(len(each), *beside) for each, beside in found]


@dataclass(frozen=True, eq=False)
class _Form:
    """What subnets of one size have in common, in one run.

    Args:
        run: of a subnet.
        parts: its arrays.
        whole: as in `Alike`.
    """

    run: Run
    parts: Sequence[_Part]
    whole: tuple[Tensor, Tensor]

    def stretches(self, count: int, held: Held) -> list[Stretch]:
        """Of so many subnets."""
        made = []
        for is_long, some in groupby(self.parts, key=lambda part: part.is_long):
            if is_long:
                made += [part.rows(held) for part in some]
                continue
            parts = [*some]
            span = slice(parts[0].span.start, parts[-1].span.stop)
            places = np.empty((count, span.stop - span.start), dtype=np.int64)
            for part in parts:
                part.write(places[:, part.span.start - span.start : part.span.stop - span.start], held)
            made.append(Stretch(span, torch.from_numpy(places)))
        return made


@lru_cache(maxsize=64)
def _form(
    run: Run,
    tables: tuple[tuple[Dim, ...], ...],
    sizes: tuple[tuple[str, int], ...],
    counts: tuple[tuple[str, int], ...],
) -> _Form:
    full, held = dict(sizes), dict(counts)
    begin, start, names, shapes, parts = 0, 0, list[str](), list[tuple[int, ...]](), list[_Part]()
    whole, stands = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    arrays = zip(run.names, tables, run.shapes, run.lengths, strict=True)
    for (table, shape, length), some in groupby(arrays, key=itemgetter(1, 2, 3)):
        found = [name for name, *_ in some]
        if all(held.get(block, 1) for block in owners_of(table)):
            dims = [*zip(dims_of(table), shape, strict=True)]
            narrow = tuple(dim.outer * held[dim.axis] * dim.inner if dim.axis in held else n for dim, n in dims)
            names += found
            shapes += [narrow] * len(found)
            if len(found) > 1:  # arrays alike that lie behind one another are written as one
                dims, narrow = [(Dim(), len(found)), *dims], (len(found), *narrow)
            parts.append(_part(begin, start, dims, narrow, full, held))
            end = begin + prod(narrow)
            if all(dim.axis is None for dim in table):
                whole.append(torch.arange(begin, end))
                stands.append(torch.arange(start, start + end - begin))
            begin = end
        start += length * len(found)
    return _Form(Run(run.dtype, tuple(names), tuple(shapes)), parts, (torch.cat(whole), torch.cat(stands)))


def _part(
    begin: int,
    start: int,
    dims: Sequence[tuple[Dim, int]],
    narrow: Sequence[int],
    full: Mapping[str, int],
    held: Mapping[str, int],
) -> _Part:
    """Dimensions that no axis splits and that stand beside each other are one."""
    shape, along = list[int](), list[_Along]()
    for at, ((dim, length), here) in enumerate(zip(dims, narrow, strict=True)):
        stride = prod(length for _, length in dims[at + 1 :])
        if dim.axis is not None and dim.axis in held:
            shape.append(here)
            along.append(_split(dim, stride, full[dim.axis], held[dim.axis]))
        elif along and along[-1].axis is None:
            shape[-1] *= length
            along[-1] = _Along((along[-1].fixed[:, None] + stride * np.arange(length)).ravel())
        else:
            shape.append(length)
            along.append(_Along(stride * np.arange(length)))
    shape, along = shape or [1], along or [_Along(_NOTHING)]
    beside = [(*[1] * at, length, *[1] * (len(shape) - at - 1)) for at, length in enumerate(shape)]
    end = start + prod(length for _, length in dims)
    return _Part(slice(begin, begin + prod(shape)), start, tuple(shape), [*zip(along, beside, strict=True)], end)


def _split(dim: Dim, stride: int, full: int, held: int) -> _Along:
    """Positions along a dimension of which so many of so many units are held."""
    assert dim.axis is not None
    if dim.outer * dim.inner == 1:
        return _Along(_NOTHING, dim.axis, stride)
    # In row-major order a dimension is outer × units × inner.
    outer, unit, inner = (each.ravel() for each in np.indices([dim.outer, held, dim.inner]))
    return _Along(stride * (outer * full * dim.inner + inner), dim.axis, stride * dim.inner, unit)

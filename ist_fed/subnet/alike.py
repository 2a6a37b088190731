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

Held = Mapping[str, np.ndarray]
"""Axis → subnets × units; an axis that is held whole is left out."""


_NOTHING = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Alike:
    """Subnets of one size.

    Args:
        layout: of each.
        places: for each run of it, subnets × numbers: where they stand in the wide network's run of that dtype; None
            for a run that no axis splits: every subnet has all of it.
        whole: for each run of it, which of its numbers are of arrays that no axis splits: every subnet has them.
    """

    layout: Layout
    places: Sequence[Tensor | None]
    whole: Sequence[Tensor]


def alike_in(wide: Layout, axes: Axes, sizes: Mapping[str, int], count: int, held: Held) -> Alike:
    """So many subnets of one size in a network laid out so, one run for each dtype."""
    counts = tuple((axis, units.shape[1]) for axis, units in held.items())
    layout, places, whole = [], [], []
    for run in wide:
        form = _form(run, tuple(axes[name] for name in run.names), tuple(sizes.items()), counts)
        if form.run.names:
            layout.append(form.run)
            split = form.whole.numel() < sum(run.lengths)
            places.append(torch.from_numpy(form.places(count, held)) if split else None)
            whole.append(form.whole)
    return Alike(tuple(layout), places, whole)


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
    """

    span: slice
    start: int
    shape: tuple[int, ...]
    along: Sequence[tuple[_Along, tuple[int, ...]]]

    def write(self, places: np.ndarray, held: Held) -> None:
        """Write where its numbers stand, for subnets × numbers of the whole run."""
        found = [(along.places(held), beside) for along, beside in self.along]
        *before, last = [each.reshape(len(each), *beside) for each, beside in found]
        np.add(sum(before, self.start), last, out=places[:, self.span].reshape(len(places), *self.shape))


@dataclass(frozen=True, eq=False)
class _Form:
    """What subnets of one size have in common, in one run.

    Args:
        run: of a subnet.
        parts: its arrays.
        whole: which of its numbers are of arrays that no axis splits.
    """

    run: Run
    parts: Sequence[_Part]
    whole: Tensor

    def places(self, count: int, held: Held) -> np.ndarray:
        """Where the numbers of so many subnets stand in the wide run: subnets × numbers."""
        places = np.empty((count, sum(self.run.lengths)), dtype=np.int64)
        for part in self.parts:
            part.write(places, held)
        return places


@lru_cache(maxsize=64)
def _form(
    run: Run,
    tables: tuple[tuple[Dim, ...], ...],
    sizes: tuple[tuple[str, int], ...],
    counts: tuple[tuple[str, int], ...],
) -> _Form:
    full, held = dict(sizes), dict(counts)
    begin, start, names, shapes, parts = 0, 0, list[str](), list[tuple[int, ...]](), list[_Part]()
    whole = [torch.empty(0, dtype=torch.int64)]
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
            begin = end
        start += length * len(found)
    return _Form(Run(run.dtype, tuple(names), tuple(shapes)), parts, torch.cat(whole))


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
    return _Part(slice(begin, begin + prod(shape)), start, tuple(shape), [*zip(along, beside, strict=True)])


def _split(dim: Dim, stride: int, full: int, held: int) -> _Along:
    """Positions along a dimension of which so many of so many units are held."""
    assert dim.axis is not None
    if dim.outer * dim.inner == 1:
        return _Along(_NOTHING, dim.axis, stride)
    # In row-major order a dimension is outer × units × inner.
    outer, unit, inner = (each.ravel() for each in np.indices([dim.outer, held, dim.inner]))
    return _Along(stride * (outer * full * dim.inner + inner), dim.axis, stride * dim.inner, unit)

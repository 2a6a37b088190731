"""Many subnets of a small network at once: there a call of torch costs more than the numbers that it moves.

The network is laid out flat. Where a subnet's numbers stand in it is worked out for all subnets of one size together;
then one call cuts them all, and one call puts them all back.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Axes, Dim, dims_of
from ist_fed.flat import Flat, Layout, Run, flat, joined
from ist_fed.places import names_held

SMALL = 1 << 17
"""Coordinates of a network up to which this pays: what a subnet is then made of is a few kilobytes an array."""

Held = Mapping[str, Tensor]
"""Checked units: axis → int64 on the CPU; an axis that is held whole is left out."""


def is_small(arrays: Mapping[str, Tensor]) -> bool:
    """Whether a network is small enough."""
    return sum(array.numel() for array in arrays.values()) <= SMALL


def cut(arrays: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int], subnets: Sequence[Held]) -> list[Flat]:
    """Each subnet of a small network, in a run for each dtype."""
    wide, made = joined(arrays), dict[int, Flat]()
    runs = {run.dtype: numbers for run, numbers in zip(wide.layout, wide.runs, strict=True)}
    for members, alike in _of_one_size(wide.layout, axes, sizes, subnets):
        cut = [runs[run.dtype][at.to(runs[run.dtype].device)].unbind() for run, at in alike.runs()]
        made |= {member: Flat(alike.layout, own) for member, *own in zip(members, *cut, strict=True)}
    return [made[member] for member in range(len(subnets))]


def put_back(
    arrays: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int], parts: Sequence[tuple[Held, Flat]]
) -> Flat:
    """A copy of a small network with parts written in; of coordinates in several of them any part's value stands."""
    wide = joined(arrays)
    runs = {run.dtype: numbers.clone() for run, numbers in zip(wide.layout, wide.runs, strict=True)}
    for members, alike in _of_one_size(wide.layout, axes, sizes, [held for held, _ in parts]):
        given = [flat(parts[member][1], alike.layout).runs for member in members]
        for (run, at), numbers in zip(alike.runs(), zip(*given, strict=True), strict=True):
            runs[run.dtype][at.to(runs[run.dtype].device)] = torch.stack(numbers)
    return Flat(wide.layout, list(runs.values()))


@dataclass(frozen=True, eq=False)
class _Alike:
    """Subnets of one size.

    Args:
        layout: of each.
        places: for each run of it, subnets × numbers: where they stand in the wide network's run of that dtype.
    """

    layout: Layout
    places: Sequence[Tensor]

    def runs(self) -> Iterator[tuple[Run, Tensor]]:
        return zip(self.layout, self.places, strict=True)


def _of_one_size(
    wide: Layout, axes: Axes, sizes: Mapping[str, int], subnets: Sequence[Held]
) -> Iterator[tuple[list[int], _Alike]]:
    """The numbers of the subnets that are of one size, and where they stand."""
    groups: defaultdict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for number, held in enumerate(subnets):
        groups[tuple((axis, len(units)) for axis, units in sorted(held.items()))].append(number)
    for members in groups.values():
        alike = [subnets[member] for member in members]
        units = {axis: np.stack([held[axis].numpy() for held in alike]) for axis in alike[0]}
        yield members, _alike(wide, axes, alike[0], _Positions(sizes, units), len(members))


def _alike(wide: Layout, axes: Axes, one: Held, positions: "_Positions", count: int) -> _Alike:
    layout, places = [], []
    for run in wide:
        start, held, found = 0, set(names_held(run.names, axes, one)), []
        for name, shape, length in zip(run.names, run.shapes, run.lengths, strict=True):
            if name in held:
                along = [positions.along(dim, size) for dim, size in zip(dims_of(axes[name]), shape, strict=True)]
                found.append((name, tuple(index.shape[1] for index in along), start + _row_major(along, shape)))
            start += length
        if found:
            names, shapes, spots = zip(*found, strict=True)
            layout.append(Run(run.dtype, names, shapes))
            places.append(torch.from_numpy(_beside(spots, count)))
    return _Alike(tuple(layout), places)


def _beside(tables: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Tables of so many rows, or of one that stands for all, side by side."""
    whole = np.empty((rows, sum(table.shape[1] for table in tables)), dtype=np.int64)
    end = 0
    for table in tables:
        start, end = end, end + table.shape[1]
        whole[:, start:end] = table
    return whole


class _Positions:
    """Where the units of subnets stand along a dimension: subnets × positions, one row where all hold it whole."""

    def __init__(self, sizes: Mapping[str, int], units: Mapping[str, np.ndarray]) -> None:
        self._sizes, self._units = sizes, units
        self._known: dict[Dim, np.ndarray] = {}

    def along(self, dim: Dim, length: int) -> np.ndarray:
        if dim.axis is None or dim.axis not in self._units:
            return np.arange(length)[None]
        if dim not in self._known:
            units = self._units[dim.axis]
            # In row-major order a dimension is outer × units × inner.
            unit = np.arange(dim.outer)[:, None] * self._sizes[dim.axis] + units[:, None, :]
            self._known[dim] = (unit[..., None] * dim.inner + np.arange(dim.inner)).reshape(len(units), -1)
        return self._known[dim]


def _row_major(along: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Positions along each dimension as positions in the array laid out flat: subnets × coordinates."""
    at = np.zeros((1, 1), dtype=np.int64)
    for index, length in zip(along, shape, strict=True):
        at = at[:, :, None] * length + index[:, None, :]
        at = at.reshape(len(at), -1)
    return at

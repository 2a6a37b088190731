"""Many subnets of a small network at once: there a call of torch costs more than the numbers that it moves.

The network is laid out flat. Where a subnet's numbers stand in it is worked out for all subnets of one size together,
once for cutting and for putting back; then one call cuts them all, and one call puts them all back.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ist_fed.axes import Axes
from ist_fed.flat import Flat, Layout, Run
from ist_fed.places import Units, check_each
from ist_fed.subnet.alike import Alike, alike_in
from ist_fed.subnet.means import Cohort, mean_of_all
from ist_fed.subnet.stretch import Stretch

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


class Piece(NamedTuple):
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
        alike = alike_in(wide, axes, sizes, len(numbers), units)
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
        runs = [_read(wide, run, of_run, rows) for run, of_run in zip(alike.layout, alike.stretches, strict=True)]
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
        groups[piece.alike].append((piece.row, cohort))
    for alike, members in groups.items():
        rows, cohorts = [row for row, _ in members], [cohort for _, cohort in members]
        if any(cohort.apart for cohort in cohorts):
            cohorts = [cohort.laid(alike.layout) for cohort in cohorts]
        means = [cohort.means() for cohort in cohorts]
        for number, (run, stretches) in enumerate(zip(alike.layout, alike.stretches, strict=True)):
            arrays = [array for cohort in cohorts for array in cohort.first.within(run)]
            first = torch.cat(arrays).view(len(cohorts), -1)
            apart = [cohort.apart.runs[number] for cohort in cohorts if cohort.apart]
            if stretches is None:
                even[run.dtype].append(_Even(None, first, cohorts, apart))
                continue
            mean = torch.stack([mean.runs[number] for mean in means]) if apart else first
            for stretch in stretches:
                stretch.write(runs[run.dtype], rows, mean)
            whole, stands = (each.to(mean.device) for each in alike.whole[number])
            if whole.numel():
                values, own = first.index_select(1, whole), [sums.index_select(0, whole) for sums in apart]
                even[run.dtype].append(_Even(stands, values, cohorts, own))
    for dtype, found in even.items():
        values, everyone = torch.cat([one.values for one in found]), [own for one in found for own in one.cohorts]
        mean = mean_of_all(values, everyone, [own for one in found for own in one.apart])
        at = found[0].places
        runs[dtype] = mean if at is None else runs[dtype].index_copy_(0, at, mean)
    return Flat(wide.layout, list(runs.values()))


@dataclass(frozen=True, eq=False)
class _Even:
    """Numbers that every subnet has: where they stand, and what some cohorts have there, as `mean_of_all` takes it.

    Places of None are the whole run.
    """

    places: Tensor | None
    values: Tensor
    cohorts: Sequence[Cohort]
    apart: Sequence[Tensor]


def _read(wide: Flat, run: Run, stretches: Sequence[Stretch] | None, rows: Sequence[int]) -> Sequence[Tensor]:
    """What these rows of subnets have in the run of this dtype."""
    numbers = next(numbers for own, numbers in zip(wide.layout, wide.runs, strict=True) if own.dtype == run.dtype)
    if stretches is None:
        return [numbers] * len(rows)
    made = numbers.new_empty(len(rows), sum(run.lengths))
    for stretch in stretches:
        stretch.read(numbers, rows, made)
    return made.unbind()

"""Merge narrow networks back into the wide one."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, sizes_of
from ist_fed.flat import Flat, Layout, flat, joined
from ist_fed.places import CHUNK, Indices, Units, check_units, places_of, put
from ist_fed.subnet import small
from ist_fed.subnet.checks import check_part, check_weight, device_of
from ist_fed.subnet.cut import AT_ONCE, axes_apart, extract_each
from ist_fed.subnet.means import Cohort, Mean, mean_of_all


class Merge:
    """The wide network as narrow ones come back, in any order.

    A coordinate takes the weighted mean of what its holders sent, computed as the first value plus the mean difference
    from it, in float64, and rounded once. So one holder's value, or one on which all holders agree, is kept bit for
    bit in every dtype, and the order of arrival does not show but in the last bits of float64. Integers and booleans
    take their holders' maximum. A coordinate that nobody sent keeps its bits.

    Parts of one subnet are added up at the subnet's size, and subnets at the wide network's before they hold more than
    twice its coordinates. So however many parts come, at most 11 times the wide network's bytes are held (in float32,
    where every subnet has several holders and all overlap), and where nothing overlaps little more than the parts.

    Args:
        arrays: the wide network as it was; it is not changed.
        axes: the table from `infer`.

    Raises:
        AxesError: the arrays do not fit the table.
    """

    def __init__(self, arrays: Mapping[str, Tensor], axes: Axes) -> None:
        self._arrays, self._axes, self._sizes = arrays, axes, sizes_of(arrays, axes)
        self._device = device_of(arrays)
        self._cohorts: dict[small.Key, Cohort] = {}
        self._means: dict[str, Mean] = {}
        self._room = self._limit = 2 * sum(array.numel() for array in arrays.values())
        self._sound: set[tuple[tuple[tuple[str, int], ...], Layout]] = set()  # sizes, and a layout that fits them
        self._wide: Flat | None = None  # of a small network whose subnets were cut here
        self._pieces: dict[int, small.Piece] = {}  # and these, by the identity of their units
        self._cut_as: dict[small.Key, small.Piece] = {}  # those of them that came back

    def cut(self, subnets: Sequence[Units]) -> Iterator[Arrays]:
        """Cut narrow networks, as `extract_each`; to take them back then costs less if the very same `Units` are given.

        Args:
            subnets: the units of each; not to be changed.
        """
        if not small.is_small(self._arrays, len(subnets)):
            yield from extract_each(self._arrays, self._axes, subnets)
            return
        self._wide = joined(self._arrays)
        room = self._limit  # what is known of many subnets that overlap is more than the network
        for start in range(0, len(subnets), AT_ONCE):
            some = small.pieces(self._wide.layout, self._axes, self._sizes, subnets[start : start + AT_ONCE])
            room -= sum(sum(run.lengths) for piece in some for run in piece.alike.layout)
            if room >= 0:
                self._pieces |= {id(piece.units): piece for piece in some}
            yield from small.cut(self._wide, some)

    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take one narrow network back. `part` may be kept until `result`; do not change it.

        Args:
            units: the units it was cut with; they come from the server's own plan, never from the client.
            part: its arrays, of the names, shapes and dtypes that `extract` gave.
            weight: its share in the mean where several hold a coordinate; positive.

        Raises:
            AxesError: the arrays are not those of this subnet, or the weight is not positive; nothing was merged.
        """
        check_weight(weight)
        piece = self._pieces.get(id(units))
        held = piece.held if piece else check_units(units, self._sizes)
        key = piece.key if piece else small.key_of(held)
        if piece is None or not isinstance(part, Flat) or part.layout != piece.alike.layout:
            self._check(part, held)
        here = flat(part).to(self._device)
        if cohort := self._cohorts.get(key):
            cohort.add(here, weight)
        else:
            self._make_room(sum(run.numel() for run in here.runs))
            self._cohorts[key] = Cohort(held, here, weight)
            if piece:
                self._cut_as[key] = piece

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; an array that nobody sent is the one given, not a copy."""
        if not self._cohorts:
            return dict(self._arrays)
        cohorts = [*self._cohorts.values()]
        apart = axes_apart([cohort.units for cohort in cohorts], self._sizes)
        alone, even = set[str](), set[str]()
        if not self._means:
            one = len(cohorts) == 1
            alone = {name for name in self._arrays if one or any(dim.axis in apart for dim in self._axes[name])}
            even = {name for name in self._arrays.keys() - alone if self._is_even(name, len(cohorts))}
        merged = self._put(cohorts, alone, even)
        for name in self._arrays.keys() - merged.keys():
            mean = self._means[name].copy() if self._means else Mean(self._arrays[name])
            for cohort in cohorts:
                mean.add(cohort, self._places(cohort), name)
            merged[name] = mean.over(self._arrays[name])
        return {name: merged[name] for name in self._arrays}

    def _put(self, cohorts: Sequence[Cohort], alone: Collection[str], even: Collection[str]) -> dict[str, Tensor]:
        """The arrays of which no two subnets share a coordinate, and short ones that all subnets have all of."""
        if alone and small.is_small(self._arrays, len(cohorts)):
            return self._put_back({*alone, *even})
        parts = [(cohort, cohort.means()) for cohort in cohorts] if alone else []
        held = {name for _, means in parts for name in means}
        merged = {name: self._arrays[name] for name in alone}
        for name in held & merged.keys():
            here = [(self._places(cohort)[name], means[name]) for cohort, means in parts if name in means]
            merged[name] = put(self._arrays[name], here)
        for name in even:
            values = torch.stack([cohort.first[name] for cohort in cohorts])
            merged[name] = mean_of_all(values, cohorts, [cohort.apart[name] for cohort in cohorts if cohort.apart])
        return merged

    def _put_back(self, names: Collection[str]) -> dict[str, Tensor]:
        """The same of a small network, all at once."""
        wide = self._wide or joined(self._arrays)
        rest = [cohort.units for key, cohort in self._cohorts.items() if key not in self._cut_as]
        of = self._cut_as | {one.key: one for one in small.pieces(wide.layout, self._axes, self._sizes, rest)}
        made = small.put_back(wide, [(of[key], cohort) for key, cohort in self._cohorts.items()]).views()
        sent = {name for piece in of.values() for run in piece.alike.layout for name in run.names}
        return {name: made[name] if name in sent else self._arrays[name] for name in names}

    def _is_even(self, name: str, cohorts: int) -> bool:
        """Whether every subnet has all of an array, and all of them together are short enough to lie in one tensor."""
        return self._arrays[name].numel() * cohorts <= CHUNK and all(dim.axis is None for dim in self._axes[name])

    def _places(self, cohort: Cohort) -> Mapping[str, Indices]:
        """Where a subnet stands; asked for only where its arrays are handled one by one."""
        if cohort.places is None:
            cohort.places = places_of(self._arrays, self._axes, self._sizes, cohort.units)
        return cohort.places

    def _check(self, part: Mapping[str, Tensor], held: Units) -> None:
        """Check that a part is of this subnet; a layout that was found right once is right for all of these sizes."""
        sizes = tuple((axis, len(units)) for axis, units in held.items())
        if isinstance(part, Flat) and (sizes, part.layout) in self._sound:
            return
        check_part(part, self._arrays, self._axes, held)
        if isinstance(part, Flat):
            self._sound.add((sizes, part.layout))

    def _make_room(self, coordinates: int) -> None:
        """Before subnets hold too much, add up those held at the wide network's size."""
        if self._cohorts and coordinates > self._room:
            self._means = self._means or {name: Mean(array) for name, array in self._arrays.items()}
            for cohort in self._cohorts.values():
                for name, mean in self._means.items():
                    mean.add(cohort, self._places(cohort), name)
            self._cohorts.clear()
            self._room = self._limit
        self._room -= coordinates

"""Merge narrow networks back into the wide one."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ist_fed.axes import Axes, sizes_of
from ist_fed.flat import Flat, Layout
from ist_fed.places import CHUNK, Indices, Units, check_units, places_of, put
from ist_fed.subnet import small
from ist_fed.subnet.checks import check_part, check_weight, on_device_of
from ist_fed.subnet.cut import axes_apart
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
        self._cohorts: dict[tuple[tuple[str, str, bytes], ...], Cohort] = {}
        self._means: dict[str, Mean] = {}
        self._room = self._limit = 2 * sum(array.numel() for array in arrays.values())
        self._sound: set[tuple[tuple[tuple[str, int], ...], Layout]] = set()  # sizes, and a layout that fits them

    @torch.no_grad()
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
        given = {axis: torch.as_tensor(units[axis]).cpu() for axis in sorted(units)}
        key = tuple((axis, str(index.dtype), index.numpy().tobytes()) for axis, index in given.items())
        cohort = self._cohorts.get(key)
        held = cohort.units if cohort else check_units(given, self._sizes)
        self._check(part, held)
        here = on_device_of(self._arrays, part)
        if cohort:
            cohort.add(here, weight)
        else:
            self._make_room(sum(run.numel() for run in here.runs))
            self._cohorts[key] = Cohort(held, here, weight)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; an array that nobody sent is the one given, not a copy."""
        if not self._cohorts:
            return dict(self._arrays)
        cohorts = [*self._cohorts.values()]
        apart = axes_apart([cohort.units for cohort in cohorts], self._sizes)
        alone = {
            name
            for name in self._arrays
            if not self._means and (len(cohorts) == 1 or any(dim.axis in apart for dim in self._axes[name]))
        }
        merged = self._put(cohorts, alone)
        for name in self._arrays.keys() - alone:
            array = self._arrays[name]
            if not self._means and self._is_short(name, len(cohorts)):
                merged[name] = mean_of_all(cohorts, name)
                continue
            mean = self._means[name].copy() if self._means else Mean(array)
            for cohort in cohorts:
                mean.add(cohort, self._places(cohort), name)
            merged[name] = mean.over(array)
        return {name: merged[name] for name in self._arrays}

    def _put(self, cohorts: Sequence[Cohort], alone: Collection[str]) -> dict[str, Tensor]:
        """The arrays of which no two subnets share a coordinate."""
        parts = [(cohort, cohort.means()) for cohort in cohorts] if alone else []
        held = {name for _, means in parts for name in means}
        merged = {name: self._arrays[name] for name in alone}
        if len(parts) > 1 and small.is_small(self._arrays):
            given = [(cohort.units, means) for cohort, means in parts]
            wide = small.put_back(self._arrays, self._axes, self._sizes, given)
            return merged | {name: wide[name] for name in held & merged.keys()}
        for name in held & merged.keys():
            here = [(self._places(cohort)[name], means[name]) for cohort, means in parts if name in means]
            merged[name] = put(self._arrays[name], here)
        return merged

    def _is_short(self, name: str, cohorts: int) -> bool:
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

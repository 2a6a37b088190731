"""Cut a narrow network out of a wide one, and merge narrow ones back: pure functions on `{name: tensor}`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import fsum

import torch
from torch import Tensor

from ist_fed import small
from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, describe, dims_of, sizes_of
from ist_fed.errors import AxesError
from ist_fed.flat import Flat, Layout, flat
from ist_fed.places import CHUNK, Indices, Units, check_units, length_of, names_held, places_of, put, read, write

_AT_ONCE = 16  # subnets of a small network that are cut together


@torch.no_grad()
def extract(arrays: Mapping[str, Tensor], axes: Axes, units: Units) -> dict[str, Tensor]:
    """Cut the narrow network that `units` make.

    Args:
        arrays: the wide network.
        axes: the table from `infer`.
        units: the units held; their order is the order in the narrow network.

    Returns:
        The narrow network's arrays, in the order of `arrays`. An array held whole is returned as it is, not copied;
        those of a block that is not held are missing.

    Raises:
        AxesError: the arrays do not fit the table, or the units are not units of it.
    """
    sizes = sizes_of(arrays, axes)
    places = places_of(arrays, axes, sizes, check_units(units, sizes))
    return {name: read(arrays[name], at) for name, at in places.items()}


@torch.no_grad()
def extract_each(arrays: Mapping[str, Tensor], axes: Axes, subnets: Sequence[Units]) -> Iterator[Arrays]:
    """Cut several narrow networks, one when it is asked for; of a small network some at once, which costs less.

    Args:
        arrays: and all else as of `extract`.
        subnets: the units of each.
    """
    if len(subnets) == 1 or not small.is_small(arrays):
        yield from (extract(arrays, axes, units) for units in subnets)
        return
    sizes = sizes_of(arrays, axes)
    for start in range(0, len(subnets), _AT_ONCE):
        held = [check_units(units, sizes) for units in subnets[start : start + _AT_ONCE]]
        yield from small.cut(arrays, axes, sizes, held)


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
        self._cohorts: dict[tuple[tuple[str, str, bytes], ...], _Cohort] = {}
        self._means: dict[str, _Mean] = {}
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
        _check_weight(weight)
        given = {axis: torch.as_tensor(units[axis]).cpu() for axis in sorted(units)}
        key = tuple((axis, str(index.dtype), index.numpy().tobytes()) for axis, index in given.items())
        cohort = self._cohorts.get(key)
        held = cohort.units if cohort else check_units(given, self._sizes)
        self._check(part, held)
        here = _on_device_of(self._arrays, part)
        if cohort:
            cohort.add(here, weight)
        else:
            self._make_room(sum(run.numel() for run in here.runs))
            self._cohorts[key] = _Cohort(held, here, weight)

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
                merged[name] = _mean_of_all(cohorts, name)
                continue
            mean = self._means[name].copy() if self._means else _Mean(array)
            for cohort in cohorts:
                mean.add(cohort, self._places(cohort), name)
            merged[name] = mean.over(array)
        return {name: merged[name] for name in self._arrays}

    def _put(self, cohorts: Sequence["_Cohort"], alone: Collection[str]) -> dict[str, Tensor]:
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

    def _places(self, cohort: "_Cohort") -> Mapping[str, Indices]:
        """Where a subnet stands; asked for only where its arrays are handled one by one."""
        if cohort.places is None:
            cohort.places = places_of(self._arrays, self._axes, self._sizes, cohort.units)
        return cohort.places

    def _check(self, part: Mapping[str, Tensor], held: Units) -> None:
        """Check that a part is of this subnet; a layout that was found right once is right for all of these sizes."""
        sizes = tuple((axis, len(units)) for axis, units in held.items())
        if isinstance(part, Flat) and (sizes, part.layout) in self._sound:
            return
        _check_part(part, self._arrays, self._axes, held)
        if isinstance(part, Flat):
            self._sound.add((sizes, part.layout))

    def _make_room(self, coordinates: int) -> None:
        """Before subnets hold too much, add up those held at the wide network's size."""
        if self._cohorts and coordinates > self._room:
            self._means = self._means or {name: _Mean(array) for name, array in self._arrays.items()}
            for cohort in self._cohorts.values():
                for name, mean in self._means.items():
                    mean.add(cohort, self._places(cohort), name)
            self._cohorts.clear()
            self._room = self._limit
        self._room -= coordinates


class MergeInPlace:
    """The same for subnets that share no unit, each of one holder: a part is written over the network as it comes.

    So little more is held than the network itself. Arrays that no axis splits are in every subnet: they are averaged
    beside it, and a subnet that is cut before the last part has come is what it was before the first. The values are
    those of `Merge`, bit for bit.

    Args:
        arrays: the wide network, contiguous; what is split of it is changed.
        axes: the table from `infer`.

    Raises:
        AxesError: the arrays do not fit the table.
    """

    def __init__(self, arrays: Mapping[str, Tensor], axes: Axes) -> None:
        self._arrays, self._axes, self._sizes = arrays, axes, sizes_of(arrays, axes)
        self._means = {
            name: _Mean(array) for name, array in arrays.items() if all(dim.axis is None for dim in axes[name])
        }

    @torch.no_grad()
    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """As `Merge.add`; of `part` nothing is kept."""
        _check_weight(weight)
        held = check_units(units, self._sizes)
        places = places_of(self._arrays, self._axes, self._sizes, held)
        _check_part(part, self._arrays, self._axes, held)
        given = _on_device_of(self._arrays, part)
        for name, at in places.items():
            if name in self._means:
                self._means[name].add(_Cohort(held, given, weight), places, name)
            else:
                write(self._arrays[name], at, given[name])

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; the arrays that are split are those given."""
        return {
            name: self._means[name].over(array) if name in self._means else array
            for name, array in self._arrays.items()
        }


def axes_apart(subnets: Sequence[Units], sizes: Mapping[str, int]) -> set[str | None]:
    """The axes along which no two subnets share a unit; they share no coordinate of an array that one splits."""
    apart: set[str | None] = set()
    for axis, size in sizes.items():
        held = torch.cat([units.get(axis, torch.arange(size)) for units in subnets])
        if len(held) <= size and held.bincount(minlength=1).max() <= 1:
            apart.add(axis)
    return apart


def _check_weight(weight: float) -> None:
    if not 0 < weight < float("inf"):
        raise AxesError(f"a weight must be positive and finite, but is {weight}")


def _check_part(part: Mapping[str, Tensor], arrays: Mapping[str, Tensor], axes: Axes, held: Units) -> None:
    """Check that a part's arrays are those of the subnet of these units."""
    names = names_held(arrays, axes, held)
    if part.keys() != set(names):
        raise AxesError(
            f"a part must have the arrays it was cut with; found on one side only: {sorted(part.keys() ^ set(names))}"
        )
    for name in names:
        array, dims = arrays[name], dims_of(axes[name])
        shape = tuple(length_of(dim, length, held) for dim, length in zip(dims, array.shape, strict=True))
        if part[name].shape != shape or part[name].dtype != array.dtype:
            raise AxesError(
                f"array '{name}' [{describe(axes[name])}] of this part must be {shape} {array.dtype}, but is "
                f"{tuple(part[name].shape)} {part[name].dtype}"
            )


def _on_device_of(arrays: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> Flat:
    return flat(part).to(next((array.device for array in arrays.values()), torch.device("cpu")))


class _Cohort:
    """The parts of one subnet: the first, and the weighted sum of the others' differences from it."""

    def __init__(self, units: dict[str, Tensor], part: Flat, weight: float) -> None:
        self.units, self.first, self.weight = units, part, weight
        self.places: Mapping[str, Indices] | None = None  # until they are asked for
        self.apart: Flat | None = None  # until a second part comes

    def add(self, part: Flat, weight: float) -> None:
        layout = self.first.layout
        if self.apart is None:
            self.apart = Flat(layout, [torch.zeros_like(run, dtype=torch.float64) for run in self.first.runs])
        largest = []
        for first, apart, given in zip(self.first.runs, self.apart.runs, flat(part, layout).runs, strict=True):
            if first.is_floating_point():
                for some in _chunks(first):
                    apart[some].add_(given[some].double() - first[some], alpha=weight)
            largest.append(first if first.is_floating_point() else torch.maximum(first, given))
        self.first = Flat(layout, largest)
        self.weight += weight

    def means(self) -> Flat:
        """The mean of the parts."""
        if self.apart is None:
            return self.first
        means = [
            _mean(first, apart, self.weight) if first.is_floating_point() else first
            for first, apart in zip(self.first.runs, self.apart.runs, strict=True)
        ]
        return Flat(self.first.layout, means)


def _chunks(run: Tensor) -> list[slice]:
    """A long run is handled piece by piece, so that what is made of it on the way stays in a processor's cache."""
    return [slice(start, start + CHUNK) for start in range(0, len(run), CHUNK)] if run.is_cpu else [slice(None)]


class _Mean:
    """The same at the wide array's size, for coordinates that different subnets share: weights differ between them."""

    def __init__(self, array: Tensor) -> None:
        self._first = torch.empty_like(array, memory_format=torch.contiguous_format)
        self._apart = torch.zeros_like(self._first, dtype=torch.float64)
        self._weight = torch.zeros_like(self._apart)

    def copy(self) -> "_Mean":
        new = object.__new__(_Mean)
        new._first, new._apart, new._weight = self._first.clone(), self._apart.clone(), self._weight.clone()
        return new

    def add(self, cohort: _Cohort, at: Mapping[str, Indices], name: str) -> None:
        if name not in at:
            return
        places, value = at[name], cohort.first[name]
        weight = read(self._weight, places)
        first = torch.where(weight > 0, read(self._first, places), value)
        if value.is_floating_point():
            apart = read(self._apart, places) + (value.double() - first).mul_(cohort.weight)
            write(self._apart, places, apart.add_(cohort.apart[name]) if cohort.apart else apart)
        else:
            first = torch.maximum(first, value)
        write(self._first, places, first)
        write(self._weight, places, weight + cohort.weight)

    def over(self, array: Tensor) -> Tensor:
        """The mean (or maximum) wherever something was added, `array` elsewhere."""
        mean = _mean(self._first, self._apart, self._weight) if array.is_floating_point() else self._first
        return torch.where(self._weight > 0, mean, array)


def _mean_of_all(cohorts: Sequence[_Cohort], name: str) -> Tensor:
    """The same for a short array that every subnet has all of, in a few calls."""
    values = torch.stack([cohort.first[name] for cohort in cohorts])
    if not values.is_floating_point():
        return values.amax(0)
    weights = [cohort.weight for cohort in cohorts]
    apart = torch.tensordot(values.new_tensor(weights, dtype=torch.float64), values.double() - values[0], 1)
    for cohort in cohorts:
        if cohort.apart is not None:
            apart = apart + cohort.apart[name]
    return _mean(values[0], apart, fsum(weights))


def _mean(first: Tensor, apart: Tensor, weight: Tensor | float) -> Tensor:
    # Adding nothing would still turn -0.0 into 0.0; and infinities that agree differ by nan.
    kept = (apart == 0) | ~first.isfinite()
    return torch.where(kept, first, (first + apart / weight).to(first.dtype))

"""Cut a narrow network out of a wide one, and merge narrow ones back: pure functions on `{name: tensor}`."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ist_fed.axes import Axes, Dim, describe
from ist_fed.errors import AxesError

Units = Mapping[str, Tensor]
"""Axis → index of the units held, int64, sorted; an axis left out is held whole."""

_CHUNK = 1 << 17  # coordinates addressed at once on a CPU, so that their addresses stay in its cache


def extract(arrays: Mapping[str, Tensor], axes: Axes, units: Units) -> dict[str, Tensor]:
    """Cut the narrow network that `units` make.

    Args:
        arrays: the wide network.
        axes: the table from `infer`.
        units: the units held; an axis left out is held whole.

    Returns:
        The narrow network's arrays, in the order of `arrays`. An array that nothing splits is returned as it is, not
        copied.

    Raises:
        AxesError: a unit lies outside its axis, or an array is not in the table.
    """
    return {name: _read(array, _indices(name, array, axes, units)) for name, array in arrays.items()}


class Merge:
    """The wide network as narrow ones come back, in any order.

    A coordinate with one holder takes the value sent, bit for bit; one with several takes their weighted mean, summed
    in float64 and rounded once, so that the order of arrival does not show in float32; integers and booleans take the
    maximum of their holders'; one that nobody sent keeps its bits.

    Parts of one subnet are added up at the subnet's own size, so memory stays below that of the wide network in
    float64 however many come.

    Args:
        arrays: the wide network as it was; it is not changed.
        axes: the table from `infer`.
    """

    def __init__(self, arrays: Mapping[str, Tensor], axes: Axes) -> None:
        self._arrays, self._axes = arrays, axes
        self._cohorts: dict[tuple[tuple[str, bytes], ...], _Cohort] = {}
        self._sums: dict[str, _Sum] = {}
        self._room = sum(array.numel() for array in arrays.values())

    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Take one narrow network back. `part` may be kept until `result`; do not change it.

        Args:
            units: the units it was cut with; they come from the server's own plan, never from the client.
            part: its arrays, of the names, shapes and dtypes that `extract` gave.
            weight: its share in the mean where several hold a coordinate; positive.

        Raises:
            AxesError: the arrays are not those of this subnet; nothing was merged.
        """
        if not 0 < weight < float("inf"):
            raise AxesError(f"a weight must be positive and finite, but is {weight}")
        key = tuple((axis, torch.as_tensor(units[axis]).cpu().numpy().tobytes()) for axis in sorted(units))
        if key not in self._cohorts:
            cohort = _Cohort(units, self._places(units))
            self._check(cohort, part)
            self._make_room(sum(array.numel() for array in part.values()))
            self._cohorts[key] = cohort
        else:
            self._check(self._cohorts[key], part)
        self._cohorts[key].add(part, weight)

    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; an array that nobody sent is the one given, not a copy."""
        apart = self._axes_apart()
        merged = {}
        for name, array in self._arrays.items():
            shared = len(self._cohorts) > 1 and not any(dim.axis in apart for dim in self._axes[name])
            if name in self._sums or shared:
                total = self._sums[name].copy() if name in self._sums else _Sum(array)
                for cohort in self._cohorts.values():
                    total.add(cohort.places[name], cohort.total(name), cohort.weight)
                merged[name] = total.over(array)
            else:
                merged[name] = _copied(array, [(c.places[name], c.mean(name)) for c in self._cohorts.values()])
        return merged

    def _places(self, units: Units) -> dict[str, "Indices"]:
        return {name: _indices(name, array, self._axes, units) for name, array in self._arrays.items()}

    def _check(self, cohort: "_Cohort", part: Mapping[str, Tensor]) -> None:
        if part.keys() != self._arrays.keys():
            raise AxesError(
                f"a part must have the arrays it was cut with; found on one side only: "
                f"{sorted(part.keys() ^ self._arrays.keys())}"
            )
        for name, array in self._arrays.items():
            expected = _shape(array, cohort.places[name])
            if (tuple(part[name].shape), part[name].dtype) != (expected, array.dtype):
                raise AxesError(
                    f"array '{name}' [{describe(self._axes[name])}] of this part must be {expected} {array.dtype}, "
                    f"but is {tuple(part[name].shape)} {part[name].dtype}"
                )

    def _make_room(self, coordinates: int) -> None:
        """Before more is held than the wide network has, add up what is held at the wide network's size."""
        self._room -= coordinates
        if self._room >= 0 or not self._cohorts:
            return
        for name, array in self._arrays.items():
            if name not in self._sums:
                self._sums[name] = _Sum(array)
            total = self._sums[name]
            for cohort in self._cohorts.values():
                total.add(cohort.places[name], cohort.total(name), cohort.weight)
        self._cohorts.clear()
        self._room = sum(array.numel() for array in self._arrays.values()) - coordinates

    def _axes_apart(self) -> set[str | None]:
        """The axes along which no two cohorts share a unit; arrays that one of them splits need no sum."""
        apart: set[str | None] = set()
        for axis in {axis for cohort in self._cohorts.values() for axis in cohort.units}:
            held = [torch.as_tensor(cohort.units[axis]) for cohort in self._cohorts.values() if axis in cohort.units]
            if len(held) == len(self._cohorts) and int(torch.cat(held).bincount().max()) <= 1:
                apart.add(axis)
        return apart


class _Cohort:
    """The parts of one subnet: the first as it came, from the second on their weighted sum in float64."""

    def __init__(self, units: Units, places: Mapping[str, "Indices"]) -> None:
        self.units, self.places, self.weight = units, places, 0.0
        self._only: Mapping[str, Tensor] | None = None
        self._totals: dict[str, Tensor] = {}

    def add(self, part: Mapping[str, Tensor], weight: float) -> None:
        if self.weight == 0:
            self._only = part
        else:
            if self._only is not None:
                self._totals = {name: self.total(name) for name in part}
                self._only = None
            for name, array in part.items():
                if array.is_floating_point():
                    self._totals[name].add_(array, alpha=weight)
                else:
                    self._totals[name] = torch.maximum(self._totals[name], array)
        self.weight += weight

    def total(self, name: str) -> Tensor:
        """The weighted sum; of integers the maximum."""
        if self._only is None:
            return self._totals[name]
        only = self._only[name]
        return only.double() * self.weight if only.is_floating_point() else only

    def mean(self, name: str) -> Tensor:
        if self._only is not None:
            return self._only[name]
        total = self._totals[name]
        return total / self.weight if total.is_floating_point() else total


class _Sum:
    """Weighted sums at the wide array's own size, for coordinates that different subnets share."""

    def __init__(self, array: Tensor) -> None:
        dtype = torch.float64 if array.is_floating_point() else array.dtype
        self._total = torch.zeros_like(array, dtype=dtype, memory_format=torch.contiguous_format)
        self._weight = torch.zeros_like(self._total, dtype=torch.float64)

    def copy(self) -> "_Sum":
        new = object.__new__(_Sum)
        new._total, new._weight = self._total.clone(), self._weight.clone()
        return new

    def add(self, places: "Indices", total: Tensor, weight: float) -> None:
        held, before = _read(self._weight, places), _read(self._total, places)
        if total.is_floating_point():
            _write(self._total, places, before + total)
        else:
            _write(self._total, places, torch.where(held > 0, torch.maximum(before, total), total))
        _write(self._weight, places, held + weight)

    def over(self, array: Tensor) -> Tensor:
        """The mean (or maximum) wherever something was added, `array` elsewhere."""
        mean = self._total / self._weight if self._total.is_floating_point() else self._total
        return torch.where(self._weight > 0, mean.to(array.dtype), array)


Indices = Sequence[Tensor | None]
"""Per dimension of an array: the positions held, or None for all of them."""


def _indices(name: str, array: Tensor, axes: Axes, units: Units) -> Indices:
    if name not in axes:
        raise AxesError(f"every array stands in the axes table, but '{name}' does not; infer it from the same factory")
    dims = axes[name]
    if len(dims) != array.ndim:
        raise AxesError(f"'{name}' has {array.ndim} dimensions, but its table says [{describe(dims)}]")
    return [_positions(dim, length, units, array.device) for dim, length in zip(dims, array.shape, strict=True)]


def _positions(dim: Dim, length: int, units: Units, device: torch.device) -> Tensor | None:
    """Where the units of `dim` stand in a dimension of `length` entries: `outer × units × inner`."""
    if dim.axis is None or dim.axis not in units:
        return None
    index = torch.as_tensor(units[dim.axis]).to(device=device, dtype=torch.int64)
    whole = length // (dim.outer * dim.inner)
    if len(index) and not (0 <= int(index.min()) and int(index.max()) < whole):
        raise AxesError(
            f"units of '{dim.axis}' are numbered 0 to {whole - 1}, but {int(index.min())}..{int(index.max())} were asked"
        )
    if dim.outer == dim.inner == 1:
        return index
    outer = torch.arange(dim.outer, device=device) * (whole * dim.inner)
    inner = torch.arange(dim.inner, device=device)
    return (outer[:, None, None] + index[None, :, None] * dim.inner + inner).flatten()


def _shape(array: Tensor, indices: Indices) -> tuple[int, ...]:
    return tuple(n if index is None else len(index) for n, index in zip(array.shape, indices, strict=True))


def _copied(array: Tensor, parts: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    if not parts:
        return array
    out = array.clone(memory_format=torch.contiguous_format)
    for places, part in parts:
        _write(out, places, part.to(device=array.device, dtype=array.dtype))
    return out


def _read(array: Tensor, indices: Indices) -> Tensor:
    split = [(at, index) for at, index in enumerate(indices) if index is not None]
    if not split:
        return array
    if len(split) == 1:
        return array.index_select(*split[0])
    flat = array.reshape(-1)
    out = array.new_empty(_shape(array, indices))
    rows = out.view(len(out), -1)
    for chunk, addresses in _addresses(array.shape, indices, array.device):
        torch.index_select(flat, 0, addresses.view(-1), out=rows[chunk].view(-1))
    return out


def _write(target: Tensor, indices: Indices, part: Tensor) -> None:
    split = [(at, index) for at, index in enumerate(indices) if index is not None]
    if not split:
        target.copy_(part)
    elif len(split) == 1:
        target.index_copy_(*split[0], part)
    else:
        flat, rows = target.view(-1), part.reshape(len(part), -1)
        for chunk, addresses in _addresses(target.shape, indices, target.device):
            flat.scatter_(0, addresses.view(-1), rows[chunk].reshape(-1))


def _addresses(shape: Sequence[int], indices: Indices, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Flat addresses of the coordinates held, some rows of the narrow array at a time."""
    places = [torch.arange(n, device=device) if i is None else i for n, i in zip(shape, indices, strict=True)]
    row = torch.zeros(1, dtype=torch.int64, device=device)
    stride = 1
    for length, index in zip(reversed(shape[1:]), reversed(places[1:]), strict=True):
        row = (index[:, None] * stride + row).flatten()
        stride *= length
    step = max(1, _CHUNK // max(1, len(row))) if device.type == "cpu" else max(1, len(places[0]))
    buffer = torch.empty((min(step, len(places[0])), len(row)), dtype=torch.int64, device=device)
    for start in range(0, len(places[0]), step):
        first = places[0][start : start + step, None] * stride
        yield slice(start, start + len(first)), torch.add(first, row, out=buffer[: len(first)])

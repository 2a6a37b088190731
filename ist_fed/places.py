"""Where the units of a subnet stand in each array, and reading and writing there."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Axes, Dim, dims_of, owners_of
from ist_fed.errors import AxesError

Units = Mapping[str, Tensor]
"""Axis → numbers of the units held: integers, each once, sorted for speed; an axis left out is held whole."""

Indices = Sequence[Tensor | None]
"""Per dimension of an array: the positions held, or None for all of them."""

CHUNK = 1 << 17  # coordinates handled at once on a CPU, so that what is made of them on the way stays in its cache
_LONG = 256  # entries of a row from which on NumPy, which is called for each row, writes faster than torch at once


def check_units(units: Units, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The units as int64 on the CPU, where plans are made; axes held whole and in order are left out."""
    held = {}
    for axis, given in units.items():
        if axis not in sizes:
            raise AxesError(f"units are units of an axis, but no array has an axis '{axis}'; known: {sorted(sizes)}")
        index = torch.as_tensor(given)
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point():
            raise AxesError(f"units of '{axis}' must be a list of integers, but are {tuple(index.shape)} {index.dtype}")
        index = index.to("cpu", torch.int64)
        numbers = index.numpy()  # its calls cost less
        rising = numbers if (numbers[1:] > numbers[:-1]).all() else np.sort(numbers)
        if rising.size and not (rising[0] >= 0 and rising[-1] < sizes[axis]):
            raise AxesError(
                f"units of '{axis}' are numbered 0 to {sizes[axis] - 1}, but {rising[0]} to {rising[-1]} were asked for"
            )
        if rising is not numbers and (rising[1:] == rising[:-1]).any():
            raise AxesError(f"a subnet holds a unit once, but one of '{axis}' stands in it twice")
        if numbers.size < sizes[axis] or rising is not numbers:
            held[axis] = index
    return held


class Checked(NamedTuple):
    """Subnets of one size whose units were checked.

    Args:
        numbers: of the subnets.
        held: the units of each, as `check_units` gives them.
        units: axis → subnets × units.
    """

    numbers: list[int]
    held: list[dict[str, Tensor]]
    units: dict[str, np.ndarray]


def check_each(subnets: Sequence[Units], sizes: Mapping[str, int]) -> Iterator[Checked]:
    """`check_units` for several subnets; those in order, as a plan's are, are looked at together."""
    plain = {number: dict(units) for number, units in enumerate(subnets) if all(map(_is_plain, units.values()))}
    odd = {number: check_units(units, sizes) for number, units in enumerate(subnets) if number not in plain}
    for numbers, units in of_one_size(plain):
        if all(_in_order(held, sizes.get(axis, 0)) for axis, held in units.items()):
            split = {axis: held for axis, held in units.items() if held.shape[1] < sizes[axis]}
            yield Checked(numbers, [{axis: plain[number][axis] for axis in split} for number in numbers], split)
        else:
            odd |= {number: check_units(subnets[number], sizes) for number in numbers}
    for numbers, units in of_one_size(odd):
        yield Checked(numbers, [odd[number] for number in numbers], units)


def _is_plain(units: Tensor) -> bool:
    return isinstance(units, Tensor) and units.dtype == torch.int64 and units.is_cpu and units.ndim == 1


def of_one_size(subnets: Mapping[int, Mapping[str, Tensor]]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """The numbers of subnets that hold equally much, and the units that they hold: axis → subnets × units."""
    alike = defaultdict[tuple[tuple[str, int], ...], list[int]](list)
    for number, units in subnets.items():
        alike[tuple((axis, index.numel()) for axis, index in units.items())].append(number)
    for counts, numbers in alike.items():
        yield numbers, {axis: torch.stack([subnets[number][axis] for number in numbers]).numpy() for axis, _ in counts}


def _in_order(units: np.ndarray, size: int) -> bool:
    """Whether the numbers of each row rise, from 0 to less than `size`."""
    if not units.shape[1]:
        return size > 0
    rising = bool((units[:, 1:] > units[:, :-1]).all())
    return rising and min(units[:, 0].tolist()) >= 0 and max(units[:, -1].tolist()) < size


def names_held(arrays: Iterable[str], axes: Axes, units: Units) -> list[str]:
    """Those of the arrays that a subnet has: not those of a block that is left out of it."""
    return [name for name in arrays if all(block not in units or len(units[block]) for block in owners_of(axes[name]))]


def length_of(dim: Dim, length: int, units: Units) -> int:
    """Of a dimension of so many entries, how many a subnet has."""
    return length if dim.axis is None or dim.axis not in units else dim.outer * len(units[dim.axis]) * dim.inner


def places_of(arrays: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int], units: Units) -> dict[str, Indices]:
    """Where the units stand in each array; one whose owner is not held is left out."""
    held = names_held(arrays, axes, units)
    positions: dict[Dim, Tensor] = {}
    for dim in {dim for name in held for dim in dims_of(axes[name])}:
        if dim.axis is not None and dim.axis in units:
            # In row-major order a dimension is outer × units × inner.
            unit = torch.arange(dim.outer)[:, None] * sizes[dim.axis] + units[dim.axis]
            positions[dim] = (unit[..., None] * dim.inner + torch.arange(dim.inner)).flatten()
    return {
        name: [positions[dim].to(arrays[name].device) if dim in positions else None for dim in dims_of(axes[name])]
        for name in held
    }


def shape_of(array: Tensor, places: Indices) -> tuple[int, ...]:
    """The shape of what stands at `places`."""
    return tuple(n if index is None else len(index) for n, index in zip(array.shape, places, strict=True))


def read(array: Tensor, places: Indices, out: Tensor | None = None) -> Tensor:
    """What stands at `places`: the array itself where it is held whole, else a copy, in `out` if that is given."""
    split = [(at, index) for at, index in enumerate(places) if index is not None]
    if not split:
        return array
    at, index = split[0]
    if len(split) == 1:
        return torch.index_select(array, at, index, out=out)
    rest = [*places[:at], None, *places[at + 1 :]]
    if at > 0:
        return read(array.index_select(at, index), rest, out)
    out = array.new_empty(shape_of(array, places))
    step = _rows_at_once(array.numel() // max(1, len(array)), len(index), array.device)
    for start in range(0, len(index), step):
        some = slice(start, start + step)
        read(array.index_select(0, index[some]), rest, out[some])  # whole rows; of them, while in the cache, the rest
    return out


def write(target: Tensor, places: Indices, value: Tensor) -> None:
    """Write `value` into `target` at `places`, in place."""
    split = [(at, index) for at, index in enumerate(places) if index is not None]
    if not split:
        target.copy_(value)
    elif places[-1] is not None and _has_long_rows(target, value):
        _write_rows(target, places, value)
    elif len(split) == 1:
        target.index_copy_(*split[0], value)
    else:
        wide, narrow = _blocks(target, places), _blocks(value, places)
        for part, addresses in _addresses(target, places):
            wide.index_copy_(0, addresses, narrow[part])


def _has_long_rows(target: Tensor, value: Tensor) -> bool:
    alike = target.dtype == value.dtype and target.is_cpu and value.is_cpu
    return alike and target.ndim == 2 and value.shape[1] >= _LONG


def _write_rows(target: Tensor, places: Indices, value: Tensor) -> None:
    """The same in matrices, row by row: NumPy writes at an index that is in the cache without making addresses."""
    if target.dtype == torch.bfloat16:  # NumPy has none
        target, value = target.view(torch.int16), value.view(torch.int16)
    wide, narrow = target.detach().numpy(), value.detach().numpy()
    at, columns = [range(len(wide)) if index is None else index.numpy() for index in places]
    for row, entries in zip(at, narrow, strict=True):
        wide[row][columns] = entries


def put(array: Tensor, parts: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    """A copy of `array` with parts written in that share no coordinate; a part that covers it all is returned as is."""
    split = {tuple(at for at, index in enumerate(places) if index is not None) for places, _ in parts}
    match [*split]:
        case [()]:
            return parts[-1][1]
        case [(at,)] if at > 0:
            return _gather(array, at, parts)
        case [(0,)] if sum(len(value) for _, value in parts) == len(array):
            out = torch.empty_like(array, memory_format=torch.contiguous_format)  # of which nothing is kept
        case _:
            out = array.clone(memory_format=torch.contiguous_format)
    for places, value in parts:
        write(out, places, value)
    return out


def _gather(array: Tensor, at: int, parts: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    """The same along one dimension that is not the first: one pass that reads here and there and writes in order."""
    held = torch.cat([index for places, _ in parts if (index := places[at]) is not None])
    pieces = [value for _, value in parts]
    if len(held) < array.shape[at]:
        pieces.append(array)  # for the entries that nobody holds
    source = torch.arange(len(held), len(held) + array.shape[at], device=array.device)
    source[held] = torch.arange(len(held), device=array.device)
    out = torch.empty_like(array, memory_format=torch.contiguous_format)
    step = _rows_at_once(array.numel() // max(1, len(array)), len(array), array.device)
    for start in range(0, len(array), step):
        rows = slice(start, start + step)
        torch.index_select(torch.cat([piece[rows] for piece in pieces], at), at, source, out=out[rows])
    return out


def _split_dims(places: Indices) -> int:
    """Dimensions up to the last one that is split; the entries after it stand side by side, and move as one block."""
    return max(at for at, index in enumerate(places) if index is not None) + 1


def _blocks(array: Tensor, places: Indices) -> Tensor:
    """The array as a list of blocks; a list of numbers where a block is one."""
    block = math.prod(array.shape[_split_dims(places) :])
    return array.reshape(array.numel() // max(1, block), block).squeeze(1)


def _addresses(array: Tensor, places: Indices) -> Iterator[tuple[slice, Tensor]]:
    """Which blocks of the narrow array stand at which blocks of the wide one, some rows of the narrow one at a time."""
    shape, device = array.shape[: _split_dims(places)], array.device
    rows, *rest = [
        torch.arange(length, device=device) if index is None else index
        for length, index in zip(shape, places, strict=False)
    ]
    row = torch.zeros(1, dtype=torch.int64, device=device)
    stride = 1
    for length, index in zip(reversed(shape[1:]), reversed(rest), strict=True):
        row = (index[:, None] * stride + row).flatten()
        stride *= length
    step = _rows_at_once(len(row), len(rows), device)
    buffer = torch.empty((step, len(row)), dtype=torch.int64, device=device)
    for start in range(0, len(rows), step):
        first = rows[start : start + step, None] * stride
        addresses = torch.add(first, row, out=buffer[: len(first)]).view(-1)
        yield slice(start * len(row), start * len(row) + len(addresses)), addresses


def _rows_at_once(row: int, rows: int, device: torch.device) -> int:
    """As many rows of `row` entries as stay in a processor's cache; on other devices all."""
    return max(1, min(rows, CHUNK // max(1, row)) if device.type == "cpu" else rows)

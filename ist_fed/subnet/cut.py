"""Cut narrow networks out of a wide one: pure functions on `{name: tensor}`."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, sizes_of
from ist_fed.places import Units, check_units, places_of, read
from ist_fed.subnet import small

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


def axes_apart(subnets: Sequence[Units], sizes: Mapping[str, int]) -> set[str | None]:
    """The axes along which no two subnets share a unit; they share no coordinate of an array that one splits."""
    apart: set[str | None] = set()
    for axis, size in sizes.items():
        held = torch.cat([units.get(axis, torch.arange(size)) for units in subnets])
        if len(held) <= size and held.bincount(minlength=1).max() <= 1:
            apart.add(axis)
    return apart

"""Cut narrow networks out of a wide one: pure functions on `{name: tensor}`."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, sizes_of
from ist_fed.flat import joined
from ist_fed.places import Units, check_units, places_of, read
from ist_fed.subnet import small

AT_ONCE = 16  # subnets of a small network that are cut together


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


def extract_each(arrays: Mapping[str, Tensor], axes: Axes, subnets: Sequence[Units]) -> Iterator[Arrays]:
    """Cut several narrow networks, one when it is asked for; of a small network some at once, which costs less.

    Args:
        arrays: and all else as of `extract`.
        subnets: the units of each.
    """
    if not small.is_small(arrays, len(subnets)):
        yield from (extract(arrays, axes, units) for units in subnets)
        return
    sizes, wide = sizes_of(arrays, axes), joined(arrays)
    for start in range(0, len(subnets), AT_ONCE):
        yield from small.cut(wide, small.pieces(wide.layout, axes, sizes, subnets[start : start + AT_ONCE]))


def axes_apart(subnets: Sequence[Units], sizes: Mapping[str, int]) -> set[str | None]:
    """The axes along which no two subnets share a unit; they share no coordinate of an array that one splits."""
    apart: set[str | None] = set()
    for axis, size in sizes.items():
        held = torch.cat([units[axis] if axis in units else torch.arange(size) for units in subnets]).numpy()
        if len(held) <= size and np.bincount(held, minlength=1).max() <= 1:  # whose calls cost less than torch's
            apart.add(axis)
    return apart

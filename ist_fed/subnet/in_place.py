"""Merge narrow networks that share no unit into the wide one itself."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ist_fed.axes import Axes, sizes_of
from ist_fed.flat import flat
from ist_fed.places import Units, check_units, places_of, write
from ist_fed.subnet.checks import check_part, check_weight, device_of
from ist_fed.subnet.means import Cohort, Mean


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
            name: Mean(array) for name, array in arrays.items() if all(dim.axis is None for dim in axes[name])
        }

    @torch.no_grad()
    def add(self, units: Units, part: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """As `Merge.add`; of `part` nothing is kept."""
        check_weight(weight)
        held = check_units(units, self._sizes)
        places = places_of(self._arrays, self._axes, self._sizes, held)
        check_part(part, self._arrays, self._axes, held)
        given = flat(part).to(device_of(self._arrays))
        for name, at in places.items():
            if name in self._means:
                self._means[name].add(Cohort(held, given, weight), places, name)
            else:
                write(self._arrays[name], at, given[name])

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """The wide network as it is now; the arrays that are split are those given."""
        return {
            name: self._means[name].over(array) if name in self._means else array
            for name, array in self._arrays.items()
        }

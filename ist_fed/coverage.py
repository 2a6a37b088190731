"""Which coordinates of the wide network have been trained at least once."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ist_fed.axes import Axes
from ist_fed.errors import AxesError
from ist_fed.places import Units

_Key = tuple[str, ...]


class Coverage:
    """Marks unit by unit, not coordinate by coordinate: arrays split by the same axes share one small grid.

    Args:
        arrays: the wide network (shapes only).
        axes: the table from `infer`.
        sizes: units of each axis.
    """

    def __init__(self, arrays: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int]) -> None:
        self._coordinates: Counter[_Key] = Counter()
        for name, array in arrays.items():
            if array.is_floating_point():
                self._coordinates[_key(axes, name)] += array.numel()
        self._grids = {key: torch.zeros([sizes[axis] for axis in key], dtype=torch.bool) for key in self._coordinates}

    def mark(self, units: Units) -> None:
        """Say that a subnet was trained and merged."""
        for key, grid in self._grids.items():
            held = [units.get(axis, torch.arange(size)) for axis, size in zip(key, grid.shape, strict=True)]
            grid[torch.meshgrid(*held, indexing="ij") if held else ()] = True

    def fraction(self) -> float:
        """Share of the network's floating-point coordinates trained so far, from 0 to 1."""
        covered = sum(
            self._coordinates[key] * int(grid.count_nonzero()) / grid.numel() for key, grid in self._grids.items()
        )
        return covered / max(1, self._coordinates.total())

    def state(self) -> dict[str, Tensor]:
        """The marks as tensors, for a checkpoint."""
        return {"/".join(key): grid for key, grid in self._grids.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the marks of a checkpoint.

        Raises:
            AxesError: they are another network's.
        """
        own = self.state()
        if {name: grid.shape for name, grid in own.items()} != {name: marks.shape for name, marks in state.items()}:
            raise AxesError("the marks of a checkpoint must be this network's; their axes or sizes differ")
        for name, grid in own.items():
            grid.copy_(state[name])


def _key(axes: Axes, name: str) -> _Key:
    return tuple(dim.axis for dim in axes[name] if dim.axis is not None)

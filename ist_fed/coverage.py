"""Which coordinates of the wide network have been trained at least once, and how often each unit."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ist_fed.axes import Axes
from ist_fed.errors import AxesError
from ist_fed.places import Units, of_one_size

_Key = tuple[str, ...]

_TRAINED = "trained:"  # before an axis, in a checkpoint; no axis has a colon in its name


class Coverage:
    """Marks unit by unit, not coordinate by coordinate: arrays split by the same axes share one small grid.

    Args:
        arrays: the wide network (shapes only).
        axes: the table from `infer`.
        sizes: units of each axis.

    Attributes:
        trained: how many subnets that held a unit were merged, for each unit of each axis; do not change it.
    """

    def __init__(self, arrays: Mapping[str, Tensor], axes: Axes, sizes: Mapping[str, int]) -> None:
        self._coordinates: Counter[_Key] = Counter()
        for name, array in arrays.items():
            if array.is_floating_point():
                self._coordinates[_key(axes, name)] += array.numel()
        # A grid whose marks are all the same holds one of them, until there are others.
        self._grids = {key: _all(False, [sizes[axis] for axis in key]) for key in self._coordinates}
        self._whole = set[_Key]()  # of which nothing is left to mark
        self.trained = untrained(sizes)

    def mark(self, *subnets: Units) -> None:
        """Say that subnets were trained and merged."""
        if self._grids.keys() - self._whole:
            for _, held in of_one_size(dict(enumerate(subnets))):  # at once: a call takes longer than what it marks
                self._mark(held)
        count_trained(self.trained, *subnets)

    def _mark(self, held: Mapping[str, np.ndarray]) -> None:
        """Mark subnets of one size: subnets × units of each axis; one that is left out is held whole."""
        for key in self._grids.keys() - self._whole:
            sizes = zip(key, self._grids[key].shape, strict=True)
            along = [held[axis] if axis in held else np.arange(size)[None] for axis, size in sizes]
            if tuple(each.shape[1] for each in along) == self._grids[key].shape:
                self._fill(key)
                continue
            grid = self._grids[key] = self._grids[key].contiguous()
            others = [1] * len(along)
            marked = [
                each.reshape(len(each), *others[:at], each.shape[1], *others[at + 1 :]) for at, each in enumerate(along)
            ]
            grid.numpy()[tuple(marked)] = True  # whose calls cost less than torch's

    def fraction(self) -> float:
        """Share of the network's floating-point coordinates trained so far, from 0 to 1."""
        covered = sum(self._coordinates[key] * self._share(key) for key in self._grids)
        return covered / max(1, self._coordinates.total())

    def state(self) -> dict[str, Tensor]:
        """The marks and counts as tensors, for a checkpoint; they are not changed afterwards."""
        counts = {_TRAINED + axis: counts.clone() for axis, counts in self.trained.items()}
        return {
            "/".join(key): grid.clone() if grid.is_contiguous() else grid for key, grid in self._grids.items()
        } | counts

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the marks and counts of a checkpoint; one of before units were counted has none, and they stay as is.

        Raises:
            AxesError: they are another network's.
        """
        own = {"/".join(key): grid for key, grid in self._grids.items()}
        own |= {_TRAINED + axis: counts for axis, counts in self.trained.items()}
        if not any(name.startswith(_TRAINED) for name in state):
            own = {name: grid for name, grid in own.items() if not name.startswith(_TRAINED)}
        if {name: grid.shape for name, grid in own.items()} != {name: marks.shape for name, marks in state.items()}:
            raise AxesError("the marks of a checkpoint must be this network's; their axes or sizes differ")
        self._whole.clear()
        self._grids = {key: state["/".join(key)].bool().contiguous().clone() for key in self._grids}
        for axis, counts in self.trained.items():
            if _TRAINED + axis in own:
                counts.copy_(state[_TRAINED + axis])

    def _share(self, key: _Key) -> float:
        """Of one grid."""
        if key in self._whole:
            return 1.0
        grid = self._grids[key]
        marked = int(grid.count_nonzero())
        if marked == grid.numel():
            self._fill(key)
        return marked / grid.numel()

    def _fill(self, key: _Key) -> None:
        self._whole.add(key)
        self._grids[key] = _all(True, self._grids[key].shape)


def untrained(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """How often each unit of each axis was trained before the first round."""
    return {axis: torch.zeros(size, dtype=torch.int64) for axis, size in sizes.items()}


def count_trained(trained: Mapping[str, Tensor], *subnets: Units) -> None:
    """Count subnets that were trained and merged, in place; an axis left out of one is held whole."""
    for axis, counts in trained.items():
        held = [units[axis] for units in subnets if axis in units]
        if held:
            counts += torch.from_numpy(np.bincount(torch.cat(held).numpy(), minlength=len(counts)))
        if len(held) < len(subnets):
            counts += len(subnets) - len(held)


def _key(axes: Axes, name: str) -> _Key:
    return tuple(dim.axis for dim in axes[name] if dim.axis is not None)


def _all(mark: bool, shape: Sequence[int]) -> Tensor:
    return torch.tensor(mark).expand(list(shape))

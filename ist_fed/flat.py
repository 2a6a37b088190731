"""Arrays that lie one behind another: a call of torch costs more than the numbers of a small array."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Arrays of one dtype that follow each other, handled as one tensor of one dimension."""

    dtype: torch.dtype
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Coordinates of each array."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * sum(self.lengths)

    @cached_property
    def places(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Name → where the array begins, its coordinates, and its shape."""
        starts = accumulate(self.lengths, initial=0)
        return dict(zip(self.names, zip(starts, self.lengths, self.shapes, strict=False), strict=True))


Layout = tuple[Run, ...]
"""What lies behind one another."""


def layout_of(entries: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> Layout:
    """The layout of arrays of these names, dtypes and shapes, in this order."""
    layout = []
    for dtype, group in groupby(entries, key=lambda entry: entry[1]):
        names, _, shapes = zip(*group, strict=True)
        layout.append(Run(dtype, names, shapes))
    return tuple(layout)


class Flat(Mapping[str, Tensor]):
    """Arrays in a few runs. A name gives the part of its run that is that array, a view.

    Args:
        layout: of the arrays.
        runs: one tensor of one dimension for each run of the layout.
        fresh: nobody else has them, so that whoever is given this may write to them.
    """

    def __init__(self, layout: Layout, runs: Sequence[Tensor], fresh: bool = False) -> None:
        self.layout, self.runs, self.fresh = layout, runs, fresh

    def __getitem__(self, name: str) -> Tensor:
        for run, numbers in zip(self.layout, self.runs, strict=True):
            if name in run.places:
                start, length, shape = run.places[name]
                piece = numbers.narrow(0, start, length)
                return piece if len(shape) == 1 else piece.view(shape)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for run in self.layout for name in run.names)

    def __len__(self) -> int:
        return sum(len(run.names) for run in self.layout)

    def views(self) -> dict[str, Tensor]:
        """All arrays, as names give them, in fewer calls."""
        found = {}
        for run, numbers in zip(self.layout, self.runs, strict=True):
            for name, shape, piece in zip(run.names, run.shapes, numbers.split_with_sizes(run.lengths), strict=True):
                found[name] = piece if len(shape) == 1 else piece.view(shape)
        return found

    def within(self, run: Run) -> list[Tensor]:
        """What lies in a run of these arrays one behind another, each of one dimension."""
        for own, numbers in zip(self.layout, self.runs, strict=True):
            if own == run:
                return [numbers]
        return [self[name].reshape(-1) for name in run.names]

    def to(self, device: torch.device) -> "Flat":
        """The same on a device; itself if it is there."""
        there = all(run.device == device for run in self.runs)  # asking is much cheaper than `to`
        return self if there else Flat(self.layout, [run.to(device) for run in self.runs])


def flat(arrays: Mapping[str, Tensor], layout: Layout | None = None) -> Flat:
    """The arrays as runs of this layout, else as they are; copied only where arrays that lie apart make one run."""
    if isinstance(arrays, Flat) and layout in (None, arrays.layout):
        return arrays
    if layout is None:
        layout = tuple(Run(array.dtype, (name,), (tuple(array.shape),)) for name, array in arrays.items())
    return Flat(layout, [in_one_run([arrays[name] for name in run.names]) for run in layout])


def joined(arrays: Mapping[str, Tensor]) -> Flat:
    """The arrays as one run for each dtype."""
    if isinstance(arrays, Flat) and len({run.dtype for run in arrays.layout}) == len(arrays.layout):
        return arrays
    return flat(arrays, _by_dtype(tuple((name, array.dtype, tuple(array.shape)) for name, array in arrays.items())))


@lru_cache(maxsize=256)
def _by_dtype(entries: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> Layout:
    return layout_of(sorted(entries, key=lambda entry: str(entry[1])))


def in_one_run(arrays: Sequence[Tensor]) -> Tensor:
    """Arrays of one dtype as one run; those that lie behind one another, as `Flat.views` gives them, are not copied."""
    if _are_one(arrays):
        return arrays[0].as_strided([sum(array.numel() for array in arrays)], [1])
    return torch.cat([array.reshape(-1) for array in arrays])


def _are_one(arrays: Sequence[Tensor]) -> bool:
    at = arrays[0].data_ptr()
    for array in arrays:
        if array.data_ptr() != at or not array.is_contiguous():
            return False
        at += array.nbytes
    storage = arrays[0].untyped_storage()
    return at <= storage.data_ptr() + storage.nbytes()  # else they are neighbours by chance

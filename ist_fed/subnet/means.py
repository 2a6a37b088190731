"""Weighted means of what the holders of a coordinate sent: the first value, and the mean difference from it."""

from collections.abc import Mapping, Sequence
from math import fsum

import numpy as np
import torch
from torch import Tensor

from ist_fed.flat import Flat, Layout, flat
from ist_fed.places import CHUNK, Indices, read, write


class Cohort:
    """The parts of one subnet: the first, and the weighted sum of the others' differences from it."""

    def __init__(self, units: Mapping[str, Tensor], part: Flat, weight: float) -> None:
        self.units, self.first, self.weight = units, part, weight
        self.places: Mapping[str, Indices] | None = None  # until they are asked for
        self.apart: Flat | None = None  # until a second part comes

    @torch.no_grad()
    def add(self, part: Flat, weight: float) -> None:
        """Take another part."""
        layout, begins = self.first.layout, self.apart is None
        if self.apart is None:
            self.apart = Flat(layout, [torch.empty_like(run, dtype=torch.float64) for run in self.first.runs])
        largest = []
        for first, apart, given in zip(self.first.runs, self.apart.runs, flat(part, layout).runs, strict=True):
            if first.is_floating_point():
                for some in _chunks(first):
                    if begins:
                        apart[some].copy_(given[some]).sub_(first[some]).mul_(weight)
                    else:
                        apart[some].add_(given[some].double() - first[some], alpha=weight)
            largest.append(first if first.is_floating_point() else torch.maximum(first, given))
        self.first = Flat(layout, largest)
        self.weight += weight

    def laid(self, layout: Layout) -> "Cohort":
        """The same with its arrays in this layout; itself if they are."""
        if self.first.layout == layout:
            return self
        other = Cohort(self.units, flat(self.first, layout), self.weight)
        other.apart = self.apart and flat(self.apart, layout)
        return other

    def means(self) -> Flat:
        """The mean of the parts."""
        if self.apart is None:
            return self.first
        return Flat(self.first.layout, [self._mean(*run) for run in zip(self.first.runs, self.apart.runs, strict=True)])

    def _mean(self, first: Tensor, apart: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first
        mean = torch.empty_like(first)
        for some in _chunks(first):
            mean[some] = _mean(first[some], apart[some], self.weight)
        return mean


def _chunks(run: Tensor) -> list[slice]:
    """A long run is handled piece by piece, so that what is made of it on the way stays in a processor's cache."""
    return [slice(start, start + CHUNK) for start in range(0, len(run), CHUNK)] if run.is_cpu else [slice(None)]


class Mean:
    """The same at the wide array's size, for coordinates that different subnets share: weights differ between them."""

    def __init__(self, array: Tensor) -> None:
        self._first = torch.empty_like(array, memory_format=torch.contiguous_format)
        self._apart = torch.zeros_like(self._first, dtype=torch.float64)
        self._weight = torch.zeros_like(self._apart)

    def copy(self) -> "Mean":
        """Another one of the same state."""
        new = object.__new__(Mean)
        new._first, new._apart, new._weight = self._first.clone(), self._apart.clone(), self._weight.clone()
        return new

    @torch.no_grad()
    def add(self, cohort: Cohort, at: Mapping[str, Indices], name: str) -> None:
        """Take what a cohort has of the array, if it has some; `at` is where its subnet stands in each."""
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


def mean_of_all(values: Tensor, cohorts: Sequence[Cohort], apart: Sequence[Tensor]) -> Tensor:
    """The same for numbers that every subnet has. They are few, and NumPy takes half as long as torch.

    Args:
        values: the first of each cohort, cohorts × ….
        cohorts: whose they are.
        apart: the weighted sums of differences, of those that have some.
    """
    if not values.is_floating_point():
        return values.amax(0)
    weights = [cohort.weight for cohort in cohorts]
    exact = values.to("cpu", torch.float64).reshape(len(values), -1).numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        first, sums = exact[0], np.array(weights) @ (exact - exact[0])
        for one in apart:
            sums += one.flatten().cpu().numpy()
        mean = np.where((sums == 0) | (first - first != 0), first, first + sums / fsum(weights))  # as `_mean`
    return torch.from_numpy(mean).to(values).view_as(values[0])


def _mean(first: Tensor, apart: Tensor, weight: Tensor | float) -> Tensor:
    # Adding nothing would still turn -0.0 into 0.0; and infinities that agree differ by nan.
    kept = (apart == 0) | (first - first != 0)  # a third of the time of `isfinite`
    return torch.where(kept, first, (first + apart / weight).to(first.dtype))

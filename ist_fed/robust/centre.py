"""One subnet out of those that a cohort sent, coordinate by coordinate."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from ist_fed.flat import Flat
from ist_fed.places import CHUNK
from ist_fed.robust.settings import FEWEST, Centre


@torch.no_grad()
def centre(parts: Sequence[Flat], weights: Sequence[float], kind: Centre, trim: float = 0.2) -> Flat:
    """The centre of the parts; where all agree it is what they agree on, bit for bit.

    With k parts, up to ⌊(k - 1) / 2⌋ of them, whatever they hold, cannot bring the median out of the range of the
    others; nor can the trimmed mean be brought out of it by as many as are left out at either end. Fewer than three
    parts have no outvoted member: they give the mean, whatever is asked for.

    Args:
        parts: of one layout, finite; at least one.
        weights: of each in the mean.
        kind: of centre. Integers and booleans take the lower median, but with `mean` their maximum, as in `Merge`.
        trim: share of the parts left out at either end, rounded up.

    Source: Yin et al., ICML 2018.
    """
    if len(parts) < FEWEST:
        kind = "mean"
    runs = []
    for numbers in zip(*(part.runs for part in parts), strict=True):
        made = torch.empty_like(numbers[0])
        for start in range(0, len(made), CHUNK):
            some = torch.stack([each[start : start + CHUNK] for each in numbers])
            made[start : start + CHUNK] = _mean(some, weights) if kind == "mean" else _middle(some, kind, trim)
        runs.append(made)
    return Flat(parts[0].layout, runs)


def cut(members: int, trim: float) -> int:
    """How many of a cohort the trimmed mean leaves out at either end: at least one, and one at least stays."""
    return min(ceil(trim * members - 1e-9), (members - 1) // 2)


def _middle(some: Tensor, kind: Centre, trim: float) -> Tensor:
    """Of members × coordinates, the median or the trimmed mean."""
    ordered, members = some.sort(dim=0).values, len(some)
    if not some.is_floating_point():
        return ordered[(members - 1) // 2]
    left_out = cut(members, trim) if kind == "trimmed" else (members - 1) // 2
    kept = ordered[left_out : members - left_out]
    return _mean(kept, [1.0] * len(kept)).clamp(kept[0], kept[-1])  # against rounding


def _mean(some: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean as the first number plus the mean difference from it, in float64."""
    if not some.is_floating_point():
        return some.amax(dim=0)
    first, shares = some[0], torch.tensor(weights, dtype=torch.float64, device=some.device)
    apart = ((some[1:].double() - first) * (shares[1:] / shares.sum())[:, None]).sum(dim=0)
    return torch.where(apart == 0, first, (first + apart).to(first.dtype))  # adding nothing turns -0.0 into 0.0

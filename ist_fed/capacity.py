"""How much each client should hold: what fits in its memory, and what lets a round end for all at once."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence, Sized
from math import ceil, floor, fsum, inf, sqrt

_PARTS = 1024  # a limit is a whole number of these; a power of two, so that no rounding is lost on the way


def narrowed(sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """The sizes of the widest subnet that holds no more than `share` of any axis, but at least one unit."""
    return {axis: max(1, floor(share * size)) for axis, size in sizes.items()}


def largest_share(sizes: Mapping[str, int], fits: Callable[[dict[str, int]], bool]) -> float:
    """The largest fraction of every axis, in 1024ths, whose subnet fits; 0 if none does.

    Args:
        sizes: units of each axis of the full network.
        fits: whether a subnet of these sizes does; if one does, so does every narrower one.
    """
    if fits(dict(sizes)):
        return 1.0
    most, too_many = 0, _PARTS
    while too_many - most > 1:
        middle = (most + too_many) // 2
        if fits(narrowed(sizes, middle / _PARTS)):
            most = middle
        else:
            too_many = middle
    return most / _PARTS


def largest_depth(
    sizes: Mapping[str, int], blocks: Sequence[str], needs: Callable[[dict[str, int]], int], room: int
) -> float:
    """The largest fraction of the blocks that fits, whichever they are, beside all else; 0 if none does.

    Args:
        sizes: units of each axis of the full network.
        blocks: the axes that are blocks, 1024 at most.
        needs: what a subnet of these sizes needs; taken to grow with each block by about what the block alone does.
        room: how much of that there is.
    """

    def only(held: Sequence[str]) -> int:
        return needs({axis: size if axis in held or axis not in blocks else 0 for axis, size in sizes.items()})

    costliest = sorted(blocks, key=lambda block: only([block]), reverse=True)
    most = bisect_right(range(len(blocks) + 1), room, key=lambda depth: only(costliest[:depth])) - 1
    return ceil(_PARTS * max(0, most) / len(blocks)) / _PARTS  # rounded up, so that times their number it is `most`


def share(units: Mapping[str, Sized], sizes: Mapping[str, int]) -> float:
    """The fraction of an axis that a subnet holds, on the mean of all axes; one left out is held whole.

    Where there are axes of one unit, which are blocks, the others are whole in every subnet, and do not count.
    """
    dealt = {axis: size for axis, size in sizes.items() if size == 1} or sizes
    return fsum(len(units[axis]) / size if axis in units else 1.0 for axis, size in dealt.items()) / len(dealt)


def adapted(capacities: Sequence[float], shares: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Capacities by which the next round takes every client about as long.

    Time grows with the share and its square, so share / √seconds says how fast a client is whatever it held, and
    c ← share / √seconds, scaled so that the sum stays. Where shares follow capacities that is c ← (c/√t) / Σ(c/√t).

    Args:
        capacities: as they were.
        shares: fraction of the network's units that each client held, above 0.
        seconds: that its round took; what is not positive and finite is no measurement.

    Returns:
        New ones: none more than doubled or halved, and without a measurement the old one.

    Source: AdapTrain, shares by measured speed.
    """
    speeds = {i: shares[i] / sqrt(time) for i, time in enumerate(seconds) if 0 < time < inf}
    scale = fsum(capacities[i] for i in speeds) / (fsum(speeds.values()) or 1.0)
    return [min(max(scale * speeds[i], old / 2), old * 2) if i in speeds else old for i, old in enumerate(capacities)]

"""Which clients are trained in one call, where all of them do not fit in memory."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from ist_fed.cohort import Assignment

_FULL = 0.75  # of the largest cohort's clients, that a smaller one has if both are trained at once

Part = tuple[Assignment, tuple[int, ...]]
"""Some nodes of a cohort."""


def cut(parts: Sequence[Part], most: int) -> list[Part]:
    """The same with no more than so many nodes in each, about equally many; those of equal length side by side."""
    pieces = [
        (asked, tuple(some.tolist()))
        for asked, nodes in parts
        for some in np.array_split(nodes, ceil(len(nodes) / most))
    ]
    return sorted(pieces, key=lambda part: len(part[1]), reverse=True)


def chunk(left: Sequence[Part], most: int) -> Sequence[Part]:
    """The next parts that hold about equally many nodes, and together no more than may be trained at once.

    About as many are left for each call after this one: that takes no more calls, and less memory.
    """
    if not most:
        return left[:1]
    each = len(left[0][1])
    alike = next((at for at, (_, nodes) in enumerate(left) if len(nodes) < _FULL * each), len(left))
    calls = ceil(alike / max(1, most // each))
    return left[: ceil(alike / calls)]


def filled(chunk: Sequence[Part]) -> tuple[list[int], list[list[float]]]:
    """All nodes of a call, cohort by cohort, and the weights of each cohort's: of each as many as of the first.

    A cohort that is short is filled up with its last node, which counts for nothing there.
    """
    most, nodes, weights = len(chunk[0][1]), list[int](), list[list[float]]()
    for asked, part in chunk:
        known, short = dict(zip(asked.nodes, asked.weights, strict=True)), most - len(part)
        nodes += [*part, *part[-1:] * short]
        weights.append([*(known[node] for node in part), *[0.0] * short])
    return nodes, weights

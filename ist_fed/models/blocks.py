"""Whole blocks of a residual network as axes of one unit each, `block2 = 1`; at 0 the block is left out."""

import re
from collections.abc import Collection, Mapping

from torch import nn

from ist_fed.errors import TaskError


class Branch(nn.Identity):
    """What a block adds to the stream passes through it; where fewer blocks train than there are it may be scaled."""


_NAME = re.compile(r"block(\d+)")


def apart(sizes: Mapping[str, int]) -> tuple[dict[str, int], dict[int, int]]:
    """The sizes that are no blocks, and the number of each block that is an axis → 1, or 0 where it is left out."""
    blocks = {axis: int(match[1]) for axis in sizes if (match := _NAME.fullmatch(axis))}
    return {axis: size for axis, size in sizes.items() if axis not in blocks}, {n: sizes[a] for a, n in blocks.items()}


def check_blocks(blocks: Mapping[int, int], can: Collection[int]) -> None:
    """Refuse to leave out what cannot be.

    Args:
        blocks: number → 1 or 0.
        can: the numbers of the blocks that leave the stream's shape as it is.

    Raises:
        TaskError: a block is not one of these, or has more than its one unit.
    """
    for number, units in blocks.items():
        if number not in can:
            known = ", ".join(f"block{number}" for number in can) or "none"
            raise TaskError(
                f"a block that is an axis leaves the shape of the stream as it is, but block{number} does not, or is "
                f"not there; those that can be left out: {known}"
            )
        if units not in (0, 1):
            raise TaskError(f"a block is one unit, so block{number} must be 1, but is {units}")

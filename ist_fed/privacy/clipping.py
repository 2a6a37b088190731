"""The longest that one client's update may be."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ist_fed.errors import WireError


@torch.no_grad()
def clipped(update: Mapping[str, Tensor], limit: float) -> tuple[dict[str, Tensor], float]:
    """An update scaled down, as one vector, to norm `limit` if it is longer.

    Args:
        update: in float64; zero is an update like any other.
        limit: positive.

    Returns:
        The update, and the norm that it had.

    Raises:
        WireError: a number in it is not finite: no scaling would make it so.
    """
    norm = norm_of(update)
    if norm <= limit:
        return dict(update), norm
    return {name: array * (limit / norm) for name, array in update.items()}, norm


def norm_of(update: Mapping[str, Tensor]) -> float:
    """The norm of all of it, as one vector; numbers up to 10¹⁵⁰ do not overflow."""
    squares = [float(array.square().sum()) for array in update.values()]
    norm = float(sum(squares) ** 0.5)
    if not norm < float("inf"):
        bad = next((name for name, array in update.items() if not array.isfinite().all()), "its norm")
        raise WireError(f"an update must be finite before it is clipped, but '{bad}' is not")
    return norm


def apart(update: Mapping[str, Tensor], shared: Collection[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """An update in two: what belongs to a block, and what everyone shares."""
    return (
        {name: array for name, array in update.items() if name not in shared},
        {name: array for name, array in update.items() if name in shared},
    )

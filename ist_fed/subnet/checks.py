"""What a part must be to be merged."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ist_fed.axes import Axes, describe, dims_of
from ist_fed.errors import AxesError
from ist_fed.places import Units, length_of, names_held


def check_weight(weight: float) -> None:
    """Check that a weight can be a share of a mean."""
    if not 0 < weight < float("inf"):
        raise AxesError(f"a weight must be positive and finite, but is {weight}")


def check_part(part: Mapping[str, Tensor], arrays: Mapping[str, Tensor], axes: Axes, held: Units) -> None:
    """Check that a part's arrays are those of the subnet of these units."""
    names = names_held(arrays, axes, held)
    if part.keys() != set(names):
        raise AxesError(
            f"a part must have the arrays it was cut with; found on one side only: {sorted(part.keys() ^ set(names))}"
        )
    for name in names:
        array, dims = arrays[name], dims_of(axes[name])
        shape = tuple(length_of(dim, length, held) for dim, length in zip(dims, array.shape, strict=True))
        if part[name].shape != shape or part[name].dtype != array.dtype:
            raise AxesError(
                f"array '{name}' [{describe(axes[name])}] of this part must be {shape} {array.dtype}, but is "
                f"{tuple(part[name].shape)} {part[name].dtype}"
            )


def device_of(arrays: Mapping[str, Tensor]) -> torch.device:
    """Where a network is."""
    return next((array.device for array in arrays.values()), torch.device("cpu"))

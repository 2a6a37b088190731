"""Server optimisers: a round's change is taken as a gradient, and applied with moments that the server keeps."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from ist_fed.arrays import Arrays
from ist_fed.axes import Axes, sizes_of
from ist_fed.errors import AxesError
from ist_fed.places import Units, check_units, places_of, shape_of, write

Kind = Literal["none", "momentum", "adam"]


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """How the server applies the change Δ that a round's merge makes of the wide network.

    Args:
        optimizer: `none` (the merge is the network), `momentum` (FedAvgM: m ← βm + Δ, x ← x + ηm) or `adam` (FedAdam:
            m ← βm + (1−β)Δ, v ← β₂v + (1−β₂)Δ², x ← x + ηm/(√v + τ)).
        lr: η.
        momentum: β, 0 to 1.
        beta2: β₂, 0 to 1; of `adam`.
        epsilon: τ, positive; of `adam`: changes much smaller than it are not magnified.

    Sources: Hsu et al., 2019 (FedAvgM); Reddi et al., ICLR 2021, algorithm 2 (FedAdam).
    """

    optimizer: Kind = "none"
    lr: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if self.optimizer not in get_args(Kind):
            raise ValueError(f"optimizer must be one of {', '.join(get_args(Kind))}, but is {self.optimizer!r}")
        for key in ("lr", "epsilon"):
            if not getattr(self, key) > 0 or not isfinite(getattr(self, key)):
                raise ValueError(f"{key} must be positive and finite, but is {getattr(self, key)}")
        for key in ("momentum", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 0 and less than 1, but is {getattr(self, key)}")


@torch.no_grad()
def apply_change(
    how: ServerOptimizer, before: Arrays, after: Arrays, trained: Mapping[str, Tensor], moments: Arrays
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One step. A coordinate that nobody trained keeps its bits, and so do its moments.

    Args:
        how: the optimiser.
        before: the wide network before the round.
        after: what the merge made of it.
        trained: parameter → booleans of its shape, where somebody trained it; arrays that do not stand here (buffers)
            are as the merge made them.
        moments: as the last step returned them; at first there are none.

    Returns:
        The wide network, and the new moments: `first/…` and `second/…` of each parameter, in float32 at least.
    """
    arrays, kept = dict(after), dict(moments)
    if how.optimizer == "none":
        return arrays, kept
    gain = 1 - how.momentum if how.optimizer == "adam" else 1.0
    for name, mask in trained.items():
        old = before[name]
        start = old.to(torch.promote_types(old.dtype, torch.float32))
        change = after[name].to(start.dtype) - start
        first = _moment(kept, f"first/{name}", change, how.momentum, gain, mask)
        move = first
        if how.optimizer == "adam":
            second = _moment(kept, f"second/{name}", change.square(), how.beta2, 1 - how.beta2, mask)
            move = first / (second.sqrt() + how.epsilon)
        arrays[name] = torch.where(mask, (start + how.lr * move).to(old.dtype), after[name])
    return arrays, kept


def _moment(moments: dict[str, Tensor], key: str, value: Tensor, decay: float, gain: float, mask: Tensor) -> Tensor:
    """Decay a moment and add to it, where something was trained."""
    kept = moments[key].to(value.device) if key in moments else torch.zeros_like(value)
    moments[key] = torch.where(mask, decay * kept + gain * value, kept)
    return moments[key]


def trained_where(arrays: Arrays, axes: Axes, held: Sequence[Units]) -> dict[str, Tensor]:
    """Array → booleans of its shape: whether one of several subnets holds a coordinate."""
    sizes = sizes_of(arrays, axes)
    masks = {name: torch.zeros(array.shape, dtype=torch.bool, device=array.device) for name, array in arrays.items()}
    for units in held:
        places = places_of(arrays, axes, sizes, check_units(units, sizes))
        for name, at in places.items():
            write(masks[name], at, masks[name].new_ones(shape_of(masks[name], at)))
    return masks


class Server:
    """An optimiser and its moments.

    Args:
        how: the optimiser.
        parameters: which arrays it is for; the others are buffers.
        axes: the table from `infer`.
    """

    def __init__(self, how: ServerOptimizer, parameters: Collection[str], axes: Axes) -> None:
        self._how, self._parameters, self._axes = how, frozenset(parameters), axes
        self._moments: dict[str, Tensor] = {}

    def step(self, before: Arrays, after: Arrays, held: Sequence[Units]) -> dict[str, Tensor]:
        """The wide network after a round in which the subnets of `held` were merged."""
        if self._how.optimizer == "none":
            return dict(after)
        trained = trained_where({name: before[name] for name in before if name in self._parameters}, self._axes, held)
        arrays, self._moments = apply_change(self._how, before, after, trained, self._moments)
        return arrays

    def state(self) -> dict[str, Tensor]:
        """The moments as tensors, for a checkpoint; they are not changed afterwards."""
        return dict(self._moments)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the moments of a checkpoint.

        Raises:
            AxesError: they are of other parameters.
        """
        if unknown := {key.partition("/")[2] for key in state} - self._parameters:
            raise AxesError(
                f"the moments of a checkpoint must be of this network's parameters; '{min(unknown)}' is none"
            )
        self._moments = dict(state)

"""What torch's optimisers keep for each parameter from step to step, as arrays beside the parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ist_fed.arrays import Arrays

SLOTS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "adamw": ("exp_avg", "exp_avg_sq", "step"),
}
"""Optimiser → torch's names of what it keeps: arrays of the parameter's shape, and `step`, a number."""

MOST_STEPS = 1 << 24
"""So many steps torch can count, for it counts them in float32."""


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that an optimiser changes; a tied weight once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def no_state(parameters: Mapping[str, Tensor], slots: tuple[str, ...]) -> dict[str, Tensor]:
    """The state before the first step, `slot/parameter` → zeros; a `step` is an int64 without dimensions."""
    return {
        f"{slot}/{name}": torch.zeros((), dtype=torch.int64, device=parameter.device)
        if slot == "step"
        else torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        for slot in slots
        for name, parameter in parameters.items()
    }


def split_state(arrays: Arrays, slots: tuple[str, ...]) -> tuple[Arrays, dict[str, Tensor]]:
    """A network's arrays, and the state that stands beside them."""
    if not slots:
        return arrays, {}
    beside = {name for name in arrays if name.partition("/")[0] in slots}
    own = {name: array for name, array in arrays.items() if name not in beside}
    return own, {name: array for name, array in arrays.items() if name in beside}


def why_unsound(arrays: Arrays) -> str:
    """Why the state among some arrays cannot be what an optimiser keeps; empty if it can.

    One squared gradient below zero would make everybody's next step something that is no number.
    """
    for key, array in arrays.items():
        slot = key.partition("/")[0]
        if slot == "exp_avg_sq" and bool((array < 0).any()):
            return f"a mean of squares must not be negative, but '{key}' holds {float(array.min()):.4g}"
        if slot == "step" and not 0 <= int(array) <= MOST_STEPS:
            return f"a number of steps must be from 0 to {MOST_STEPS}, but '{key}' is {int(array)}"
    return ""


def load_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], state: Arrays) -> None:
    """Let an optimiser go on from a state. Its arrays are the optimiser's from now on, which changes them in place."""
    for key, array in state.items():
        slot, _, name = key.partition("/")
        kept: dict[str, Any] = optimizer.state[parameters[name]]
        kept[slot] = torch.tensor(float(array)) if slot == "step" else array  # torch counts so, and on the processor


def read_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], state: dict[str, Tensor]) -> None:
    """Put what an optimiser keeps now in the place of the state that it was given."""
    for key, array in state.items():
        slot, _, name = key.partition("/")
        state[key] = optimizer.state[parameters[name]][slot].to(array)

"""How a client takes a local step: optimiser, learning rate, batch, precision."""

from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any, Literal, get_args

import torch

from ist_fed.optimizer_state import SLOTS

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

Rescale = Literal["none", "sqrt", "full", "auto"]
"""What a narrow network's hidden inputs are multiplied by while it trains; see `rescale`."""

Amp = Literal["bf16", "fp16"]
"""Mixed precision: the type in which the forward pass computes what gains by it. Weights stay float32."""

Precision = Literal["float32", "tf32", "bf16", "fp16"]
"""How simulated clients compute: `tf32` rounds what is multiplied, on GPUs that know it; the last two are mixed."""

AMP: dict[Amp, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a client takes a local step.

    Args:
        optimizer: `sgd`, `adam` or `adamw`, torch's own.
        lr: learning rate of the first round.
        momentum: of SGD, 0 to 1; the other optimisers ignore it.
        weight_decay: as torch defines it for the optimiser.
        batch_size: examples in one step; a client that has fewer uses all it has.
        clip_norm: largest norm of the whole gradient; 0 does not clip.
        schedule: learning rate over rounds: `constant`, or `cosine` from `lr` down to zero after the last round.
        warmup: rounds in which the learning rate rises linearly to `lr`.
        rescale: what a narrow network's hidden inputs are multiplied by while it trains: `none`, by the ratio of the
            full width to its own (`full`) or the root of that (`sqrt`), or what suits the network's norms (`auto`). The
            server says how much that is in each order.
        state: what the optimiser keeps from step to step, momentum or Adam's moments, starts `fresh` every round, or
            `travels` with the units: it is sent with the weights, sent back, and merged as they are.
    """

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 32
    clip_norm: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    rescale: Rescale = "none"
    state: Literal["fresh", "travels"] = "fresh"

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(sorted(OPTIMIZERS))}, but is {self.optimizer!r}")
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be constant or cosine, but is {self.schedule!r}")
        if self.rescale not in get_args(Rescale):
            raise ValueError(f"rescale must be one of {', '.join(get_args(Rescale))}, but is {self.rescale!r}")
        if self.state not in ("fresh", "travels"):
            raise ValueError(f"state must be fresh or travels, but is {self.state!r}")
        for key, least in (("batch_size", 1), ("warmup", 0)):
            if type(value := getattr(self, key)) is not int or value < least:
                raise ValueError(f"{key} must be a whole number, at least {least}, but is {value!r}")
        for key in ("lr", "momentum", "weight_decay", "clip_norm"):
            if type(value := getattr(self, key)) not in (int, float) or not (isfinite(value) and value >= 0):
                raise ValueError(f"{key} must be a finite number, not negative, but is {value!r}")
        if self.lr == 0:
            raise ValueError("lr must be positive, but is 0")
        if self.momentum >= 1:
            raise ValueError(f"momentum must be less than 1, but is {self.momentum}")

    @property
    def carried(self) -> tuple[str, ...]:
        """Torch's names of what the optimiser keeps and what travels; empty if nothing does."""
        keeps_none = self.optimizer == "sgd" and not self.momentum
        return () if self.state == "fresh" or keeps_none else SLOTS[self.optimizer]


def optimizer_options(training: Training, lr: float) -> dict[str, Any]:
    """What torch's optimiser is made with."""
    options: dict[str, Any] = {"lr": lr, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        options["momentum"] = training.momentum
    return options


def learning_rate(training: Training, round: int, rounds: int) -> float:
    """The learning rate of round `round` (from 1) of `rounds`."""
    rate = training.lr * min(1.0, round / (training.warmup + 1))
    if training.schedule == "cosine":
        rate *= (1 + cos(pi * (round - 1) / max(1, rounds))) / 2
    return rate


def amp_of(precision: Precision) -> Amp | None:
    """Its mixed precision, if it is one."""
    return precision if precision in AMP else None

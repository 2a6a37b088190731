"""What a round asks of a cohort, and what comes of it, where nothing has to travel.

A grid between processes gets messages. One whose clients live in the server's own process may offer to be given the
subnets themselves, and to return what a whole cohort makes of one: then nothing is packed that nobody reads.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from flwr.serverapp import Grid

from ist_fed.arrays import Arrays
from ist_fed.flat import flat
from ist_fed.places import Units
from ist_fed.train import Training
from ist_fed.wire import Profile, Question


@dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """A subnet, and who is to train it.

    Args:
        round: from 1; of a lease its number.
        seed: the scenario's seed, from which each client draws its order of examples.
        units: that make the subnet.
        arrays: the subnet; not to be written to.
        nodes: the cohort.
        weights: of each node in the mean.
        local_steps: how many steps to take.
        lr: learning rate of this round.
        training: optimiser, batch size, clipping.
        scales: layer → what its inputs are multiplied by.
        once: its one client may let the arrays go as soon as it has them in a network.
    """

    round: int
    seed: int
    units: Units
    arrays: Arrays
    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    local_steps: int
    lr: float
    training: Training
    scales: Mapping[str, float] = field(default_factory=dict)
    once: bool = False

    def alone(self) -> "tuple[Assignment, ...]":
        """The same for each node by itself: its outcome is then not mixed with the others'."""
        return tuple(
            replace(self, nodes=(node,), weights=(weight,))
            for node, weight in zip(self.nodes, self.weights, strict=True)
        )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Units of each axis."""
        return {axis: held.numel() for axis, held in self.units.items()}

    @cached_property
    def order(self) -> dict[str, Any]:
        """What a message says of it, besides the arrays and the nonce."""
        return {
            "round": self.round,
            "seed": self.seed,
            "sizes": self.sizes,
            "local_steps": self.local_steps,
            "lr": self.lr,
            "training": asdict(self.training),
            **({"scales": dict(self.scales)} if self.scales else {}),
        }

    @cached_property
    def size(self) -> int:
        """Bytes of the subnet."""
        return sum(run.size for run in flat(self.arrays).layout)

    def let_go(self) -> None:
        """Forget the arrays, which are in a network now, if nobody else needs them; `size` is still known."""
        if self.once and self.size and isinstance(self.arrays, MutableMapping):
            self.arrays.clear()


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What some nodes of a cohort made of their subnet.

    Args:
        assignment: what they were asked.
        nodes: who answers herewith.
        losses: mean training loss of each over its local steps.
        seconds: that all their local steps took together.
        refused: those that could not train, and why; the others' subnets are in `arrays`.
        arrays: the mean of the trained subnets, weighted; integers their maximum. None if there is none.
        weight: what the mean stands for: the sum of weights.
        traffic: bytes that went down and up, where they are not those of a subnet for everyone.
    """

    assignment: Assignment
    nodes: tuple[int, ...]
    losses: np.ndarray
    seconds: float
    refused: Mapping[int, str] = field(default_factory=dict)
    arrays: Arrays | None
    weight: float
    traffic: tuple[int, int] | None = None


class Direct(Protocol):
    """A grid that carries out assignments itself.

    Attributes:
        device: where it does; the wide network is kept there between rounds.
    """

    device: torch.device

    def profiles(self, nodes: Sequence[int], question: Question) -> Iterator[tuple[int, Profile | str]]:
        """Who each node is, or why it does not say."""
        ...

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        """Let every node of every assignment train; in any order, each node in one outcome."""
        ...

    def train_ahead(self, assignments: Sequence[Assignment]) -> None:
        """Let nodes train what messages are about to ask of them, one in each assignment; they answer with that."""
        ...


def is_direct(grid: Grid) -> TypeGuard[Direct]:
    """Whether a grid carries out assignments; asked every round, where `isinstance` would look each method up anew."""
    return hasattr(grid, "carry_out")

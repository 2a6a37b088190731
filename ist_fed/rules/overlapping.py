"""Overlapping subnets that cover the network: every unit is held by the same number of them.

Source: the masks of Subnet Data Parallelism (SDP) and TwIST, which overlap and cover every unit; trades after Strona et
al., Nature Communications 5, 2014 ("curveball").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes, held_only
from ist_fed.rules.shares import bounds_of, check_groups, cohorts_of, dealt


@dataclass(frozen=True, kw_only=True)
class Overlapping:
    """Deal every unit of every axis to exactly `holders` of `groups` groups, drawn at random every round.

    A weight between two hidden units is trained by holders² / groups subnets on the mean of all such weights, against
    1 / groups of disjoint groups; what several trained is averaged. Cohorts, groups that rest and shares by capacity
    and limit are those of `Disjoint`, which deals the same way to one holder.

    Args:
        groups: how many subnets there are.
        holders: how many of them hold a unit; as many as `groups` is federated averaging.
        min_units: fewest units of any axis in any subnet.
    """

    groups: int
    holders: int
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse more holders than groups, and none."""
        if not 1 <= self.holders <= self.groups:
            raise RuleError(
                f"holders must be at least 1 and at most as many as there are groups, but are {self.holders} of "
                f"{self.groups}"
            )
        if self.min_units < 1:
            raise RuleError(f"min_units must be at least 1, but is {self.min_units}")

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal every unit to `holders` groups and every node to exactly one cohort."""
        check_nodes(nodes)
        check_groups(self.groups, sizes, self.min_units, self.holders)
        cohorts = cohorts_of(nodes, self.groups, rng)
        weights, limits = bounds_of(cohorts, nodes)
        subnets: list[dict[str, torch.Tensor]] = [{} for _ in range(self.groups)]
        for axis, size in sizes.items():
            shares = dealt(size, weights, limits, self.min_units, axis=axis, nodes=nodes, holders=self.holders)
            for subnet, row in zip(subnets, _holdings(size, shares, rng), strict=True):
                subnet[axis] = torch.from_numpy(np.flatnonzero(row))
        return held_only(subnets, cohorts)


def _holdings(size: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Who holds what, `(groups, units)`, at random among all that give each group its share and each unit as many."""
    units, ends = np.arange(size), np.cumsum(shares)
    # Shares laid end to end wind around the axis: each place is passed equally often, and by a group at most once.
    held: np.ndarray = (units - (ends - shares)[:, None]) % size < shares[:, None]
    held = held[:, rng.permutation(size)]
    # Neighbours on the way would always meet and others never, so pairs of groups trade what only one of them holds.
    for _ in range(4 + 2 * len(shares).bit_length()):
        order = rng.permutation(len(shares))
        for one, other in zip(order[::2], order[1::2], strict=False):
            apart = np.flatnonzero(held[one] != held[other])
            kept = rng.permutation(held[one, apart])
            held[one, apart], held[other, apart] = kept, ~kept
    return held

"""Disjoint groups that meet each other evenly: all hidden weights are trained in as many rounds as there are groups.

Source: the blocks of two axes are paired off as the rows and symbols of a cyclic Latin square (an orthogonal array of
strength two); the subnets are those of Yuan et al., PVLDB 15(8), 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.rules.plan import Node, Plan, check_nodes, held_only
from ist_fed.rules.shares import bounds_of, check_counts, check_groups, cohorts_of, dealt


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Cut each axis at random into `groups` blocks, and let every block meet every block of the next axis once a cycle.

    A cycle is `groups` rounds. In its round t, group g holds block g + (l + 1)·t of the l-th axis, so that the blocks
    of the axes l and l + 1 that meet lie t apart: each pair of neighbouring axes' units is in one subnet exactly once
    a cycle. No equal groups can do it in fewer rounds, for one round trains 1 / groups of those weights; drawn anew
    every round, groups leave (1 − 1/groups)^r of them untrained after r rounds. The same holds of axes k apart in
    `sizes` where k and `groups` share no divisor. The next cycle cuts anew, so over cycles no two units are favoured.

    With unequal capacities a group's share goes with its cohort, as in `Disjoint`, and moves around the axis by its
    `groups`-th part; pairs then meet about as evenly, but not exactly once.

    Args:
        groups: how many subnets the network is cut into, and how many rounds a cycle has.
        min_units: fewest units of any axis in any subnet.
    """

    groups: int
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse what no network could be cut into."""
        check_counts(self.groups, self.min_units)

    def draw(self, round: int) -> int:
        """The number of the cycle that a round belongs to, from 1."""
        return (round - 1) // self.groups + 1

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal every unit to exactly one group and every node to exactly one cohort."""
        check_nodes(nodes)
        check_groups(self.groups, sizes, self.min_units)
        # Units first: who is there may change during a cycle, and must not change it.
        orders = {axis: rng.permutation(size) for axis, size in sizes.items()}
        cohorts = cohorts_of(nodes, self.groups, rng)
        weights, limits = bounds_of(cohorts, nodes)
        subnets: list[dict[str, torch.Tensor]] = [{} for _ in range(self.groups)]
        for number, (axis, size) in enumerate(sizes.items()):
            shares = dealt(size, weights, limits, self.min_units, axis=axis, nodes=nodes)
            turn = (number + 1) * (round - 1) % self.groups
            starts, shares = self._turned(size, shares, np.floor(limits * size), turn)
            for subnet, start, share in zip(subnets, starts, shares, strict=True):
                units = orders[axis][(start + np.arange(share)) % size]
                subnet[axis] = torch.from_numpy(np.sort(units))
        return held_only(subnets, cohorts)

    def _turned(self, size: int, shares: np.ndarray, most: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each group's block begins, and how long it is, after `turn` of `groups` steps around the axis."""
        starts = np.cumsum(shares) - shares
        if np.ptp(shares) <= 1 and shares.max() <= most.min():
            return np.roll(starts, -turn), np.roll(shares, -turn)  # blocks change hands
        return starts + turn * size // self.groups, shares  # blocks are as large as their holders can hold

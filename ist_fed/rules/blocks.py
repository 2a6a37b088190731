"""Whole residual blocks, dealt out at random: subnets are shallower than the network, not narrower.

Source: Dun, Wolfe, Jermaine, Kyrillidis, UAI 2022 (ResIST).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes, held_only
from ist_fed.rules.shares import apportion, bounds_of, cohorts_of


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Deal the blocks, which are the axes of one unit, to `groups` groups; all other axes everyone holds whole.

    Every block is dealt, and to one group only, unless `groups` times `min_depth` are more than there are: then each
    group holds `min_depth`, and the first ones dealt go round again. Who trains together and how many blocks a group
    gets follows capacities and limits, as under `disjoint`.

    Args:
        groups: how many subnets the network is cut into.
        min_depth: fewest blocks of any subnet, beside those that are no axis and so are in every one.
    """

    groups: int
    min_depth: int = 1

    def __post_init__(self) -> None:
        """Refuse what no network could be cut into."""
        if min(self.groups, self.min_depth) < 1:
            raise RuleError(f"groups and min_depth must be at least 1, but are {self.groups} and {self.min_depth}")

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal every block to at least one group and every node to exactly one cohort."""
        check_nodes(nodes)
        blocks = [axis for axis, size in sizes.items() if size == 1]
        order = rng.permutation(len(blocks))
        cohorts = cohorts_of(nodes, self.groups, rng)
        subnets = []
        start = 0
        for depth in self._depths(len(blocks), cohorts, nodes):
            own = {blocks[at] for at in np.take(order, range(start, start + depth), mode="wrap")}
            subnets.append({axis: torch.arange(size if size > 1 or axis in own else 0) for axis, size in sizes.items()})
            start += depth
        return held_only(subnets, cohorts)

    def _depths(self, blocks: int, cohorts: Sequence[Sequence[Node]], nodes: Sequence[Node]) -> list[int]:
        """How many blocks each group is dealt."""
        if blocks < self.min_depth:
            raise RuleError(
                f"every subnet needs at least min_depth={self.min_depth} blocks, but the network has {blocks} that can "
                f"be left out; make blocks axes of one unit, such as block2=1, or lower min_depth"
            )
        weights, limits = bounds_of(cohorts, nodes)
        most = np.floor(limits * blocks).astype(np.int64)
        if most.min() < self.min_depth:
            weakest = min(nodes, key=lambda node: node.limit)
            raise RuleError(
                f"every client must be able to hold min_depth={self.min_depth} blocks, but the memory of node "
                f"{weakest.id} holds {most.min()} of {blocks}; leave it out, raise its budget, lower batch_size, or "
                f"lower min_depth"
            )
        dealt = max(blocks, self.groups * self.min_depth)
        if most.sum() < dealt:
            raise RuleError(
                f"the clients must together hold all {blocks} blocks, but the memory of {len(most)} groups holds "
                f"{most.sum()} (group by group: {most.tolist()}); add clients and groups, raise the clients' budgets, "
                f"or lower batch_size"
            )
        return [int(depth) for depth in apportion(dealt, weights, self.min_depth, most)]

"""Disjoint groups, and each client in one drawn for it alone: the draw under which amplification may be claimed.

Source: Dong, Chen and Özgür, ICML 2025, for the effect; docs/privacy.md for the conditions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.places import Units
from ist_fed.rules.plan import Node, Plan, check_nodes
from ist_fed.rules.shares import check_counts, check_groups, check_limits


@dataclass(frozen=True, kw_only=True)
class Private:
    """Cut each axis into `groups` equal groups; every client draws its group uniformly, whatever the others drew.

    Groups come out uneven, some even empty: that is the price of not telling anyone's group from the others'. A share
    does not follow capacity, for that would tell a client's group too. In a private run the units are dealt by `rng`,
    for everyone may know them, and the clients' draw comes from the operating system and is told to nobody; elsewhere
    both come from `rng`.

    Args:
        groups: how many subnets the network is cut into.
        min_units: fewest units of any axis in any subnet.
    """

    groups: int
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse what no network could be cut into."""
        check_counts(self.groups, self.min_units)

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal the units, and let every node draw; groups that nobody drew are left out."""
        blocks = self.blocks(nodes, sizes, rng)
        drawn = rng.integers(self.groups, size=len(nodes))
        held = sorted(set(drawn.tolist()))
        return Plan(
            subnets=tuple(blocks[group] for group in held),
            cohorts=tuple(
                tuple(node.id for node, own in zip(nodes, drawn, strict=True) if own == group) for group in held
            ),
        )

    def blocks(self, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> tuple[Units, ...]:
        """The units of all groups, which everyone may know.

        Raises:
            RuleError: a group would be too narrow, or too wide for a client, which might draw any of them.
        """
        check_nodes(nodes)
        check_groups(self.groups, sizes, self.min_units)
        weakest = min(nodes, key=lambda node: node.limit)
        for axis, size in sizes.items():
            most, widest = int(weakest.limit * size), -(-size // self.groups)
            check_limits(axis, most, self.min_units, nodes)
            if most < widest:
                raise RuleError(
                    f"every client must be able to hold any group, {widest} units of axis '{axis}', but the memory of "
                    f"node {weakest.id} holds {most}; use more groups, leave it out, or raise its budget"
                )
        groups: list[dict[str, torch.Tensor]] = [{} for _ in range(self.groups)]
        for axis, size in sizes.items():
            for group, units in zip(groups, np.array_split(rng.permutation(size), self.groups), strict=True):
                group[axis] = torch.from_numpy(np.sort(units))
        return tuple(groups)

"""Federated Dropout: every subnet is a random draw of units, whatever the others hold.

Source: Caldas et al., 2018 (arXiv 1812.07210); a sub-model for each client after Wen, Jeon and Huang, 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.rules.plan import Node, Plan, check_nodes, held_only
from ist_fed.rules.shares import bounds_of, cohorts_of
from ist_fed.rules.widths import check_draws, widths


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Draw a share of every axis at random for each subnet, without regard to the others.

    Some units are then held by several subnets, and some by none, which keep their values.

    Args:
        share: of every axis, for the strongest client; others get less in proportion to their capacity.
        groups: how many subnets are drawn, each for a cohort of clients of like capacity, as wide as its weakest client
            allows; 0 draws one for each client.
        min_units: fewest units of any axis in any subnet.
    """

    share: float = 0.5
    groups: int = 0
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse what is no share and no number of groups."""
        check_draws(self.share, self.groups, self.min_units)

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """One draw of every axis for each cohort."""
        check_nodes(nodes)
        cohorts = cohorts_of(nodes, min(self.groups or len(nodes), len(nodes)), rng)
        weights, limits = bounds_of(cohorts, nodes)
        shares = self.share * weights / max(node.capacity for node in nodes)
        subnets = [
            {
                axis: torch.from_numpy(np.sort(rng.permutation(size)[:width]))
                for (axis, size), width in zip(sizes.items(), row, strict=True)
            }
            for row in widths(sizes, shares, limits, self.min_units, nodes).tolist()
        ]
        return held_only(subnets, cohorts)

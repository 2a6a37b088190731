"""Hetero-AsyncDrop: the units that were trained least go to the fastest clients.

Source: Dun et al., AISTATS 2023 (asynchronous distributed dropout: least updated sub-models to the fastest devices).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ist_fed.rules.plan import Node, Plan, Rule, check_nodes, held_only
from ist_fed.rules.shares import bounds_of, cohorts_of
from ist_fed.rules.widths import check_draws, widths


@dataclass(frozen=True, kw_only=True)
class LeastTrained:
    """Give each subnet the units of every axis that were trained least, and choose for the fastest clients first.

    Units dealt to one subnet count as trained for those chosen after it, and equals are drawn at random. So as long as
    everybody replies, no unit of an axis is ever trained more than once more often than another; what a slow client
    did not bring back goes to the fastest in the next round. With `round.adapt` capacities follow measured times, and
    the fastest are those of the largest capacity.

    Args:
        share: of every axis, for the strongest client; others get less in proportion to their capacity.
        groups: how many subnets there are, each for a cohort of clients of like capacity, as wide as its weakest client
            allows; 0 makes one for each client.
        min_units: fewest units of any axis in any subnet.
    """

    share: float = 0.5
    groups: int = 0
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse what is no share and no number of groups."""
        check_draws(self.share, self.groups, self.min_units)

    def knowing(self, trained: Mapping[str, Tensor]) -> Rule:
        """The rule, given how often each unit of each axis was trained so far."""
        return partial(self._plan, trained)

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """The plan where nothing has been trained yet."""
        return self._plan({}, round, nodes, sizes, rng)

    def _plan(
        self,
        trained: Mapping[str, Tensor],
        round: int,
        nodes: Sequence[Node],
        sizes: Mapping[str, int],
        rng: np.random.Generator,
    ) -> Plan:
        check_nodes(nodes)
        cohorts = cohorts_of(nodes, min(self.groups or len(nodes), len(nodes)), rng)  # the strongest first
        weights, limits = bounds_of(cohorts, nodes)
        shares = self.share * weights / max(node.capacity for node in nodes)
        wide = widths(sizes, shares, limits, self.min_units, nodes)
        subnets: list[dict[str, Tensor]] = [{} for _ in cohorts]
        for column, (axis, size) in zip(wide.T.tolist(), sizes.items(), strict=True):
            counts = trained[axis].numpy().copy() if axis in trained else np.zeros(size, dtype=np.int64)
            for subnet, width in zip(subnets, column, strict=True):
                units = np.argpartition(counts + rng.random(size), width - 1)[:width]
                counts[units] += 1
                subnet[axis] = torch.from_numpy(np.sort(units))
        return held_only(subnets, cohorts)

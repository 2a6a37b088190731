"""FedRolex: a client holds a window of every axis, which moves on by one unit a round.

Source: Alam et al., NeurIPS 2022.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ist_fed.rules.plan import Node, Plan, check_nodes
from ist_fed.rules.widths import check_share, plan_by_width, strengths, widths


@dataclass(frozen=True, kw_only=True)
class Rolling:
    """Give each client a window of every axis; windows begin at one unit for all, and at the next in the next round.

    At the end of an axis a window goes on at its beginning. In as many rounds as an axis has units everybody has held
    all of them equally often.

    Args:
        share: of every axis, for the strongest client; others get less in proportion to their capacity.
        min_units: fewest units of any axis in any subnet.
    """

    share: float = 0.5
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        check_share(self.share, self.min_units)

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """One cohort for each width."""
        check_nodes(nodes)
        strength, limits = strengths(nodes)
        wide = widths(sizes, self.share * strength, limits, self.min_units, nodes)
        return plan_by_width(nodes, sizes, wide, lambda size, width: np.sort((round - 1 + np.arange(width)) % size))

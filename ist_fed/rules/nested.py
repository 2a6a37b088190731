"""HeteroFL: a client holds the first units of every axis, the more the stronger it is.

Source: Diao, Ding and Tarokh, ICLR 2021.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes
from ist_fed.rules.widths import plan_by_width, strengths, widths


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Give each client the first units of every axis, the same in every round; each tier is half as wide as the last.

    The strongest clients hold everything. Another holds the widest tier, 1, ½, ¼ … of every axis, that exceeds neither
    its capacity, as a fraction of the largest, nor its limit. So with equal capacities and no limits this is federated
    averaging. Units that only strong clients hold learn from their examples alone.

    Args:
        tiers: how many widths there are; 5 ends with a sixteenth. A client too weak for the last gets that all the
            same, but never more than its limit.
        min_units: fewest units of any axis in any subnet.
    """

    tiers: int = 5
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse no tiers and no units."""
        if min(self.tiers, self.min_units) < 1:
            raise RuleError(f"tiers and min_units must be at least 1, but are {self.tiers} and {self.min_units}")

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """One cohort for each tier, or less where a limit lies below the last."""
        check_nodes(nodes)
        strength, limits = strengths(nodes)
        tiers = 0.5 ** np.arange(self.tiers)
        fitting = (tiers[:, None] <= np.minimum(strength, limits)).argmax(axis=0)  # the first, so the widest
        shares = np.where(np.minimum(strength, limits) < tiers[-1], tiers[-1], tiers[fitting])
        return plan_by_width(nodes, sizes, widths(sizes, shares, limits, self.min_units, nodes), _prefix)


def _prefix(size: int, width: int) -> np.ndarray:
    return np.arange(width)

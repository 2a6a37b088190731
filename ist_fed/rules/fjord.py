"""FjORD: a client holds the first units of every axis, up to a width drawn anew in every round.

Source: Horváth et al., NeurIPS 2021 (ordered dropout, uniform over the widths up to a client's largest).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes
from ist_fed.rules.widths import plan_by_width, strengths, widths


@dataclass(frozen=True, kw_only=True)
class Fjord:
    """Draw each client's width every round, evenly from `levels` widths up to the largest that it can train.

    The widths are 1/levels, 2/levels … 1 of every axis. A client's largest exceeds neither its capacity, as a fraction
    of the largest, nor its limit; one that is too weak for the first gets that all the same, but never more than its
    limit. The paper draws a width for every local step; here a client keeps one for the round, so that it is never
    sent more than it trains.

    Args:
        levels: how many widths there are.
        min_units: fewest units of any axis in any subnet.
    """

    levels: int = 5
    min_units: int = 16

    def __post_init__(self) -> None:
        """Refuse no widths and no units."""
        if min(self.levels, self.min_units) < 1:
            raise RuleError(f"levels and min_units must be at least 1, but are {self.levels} and {self.min_units}")

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """One cohort for each width that somebody drew."""
        check_nodes(nodes)
        strength, limits = strengths(nodes)
        ladder = np.arange(1, self.levels + 1) / self.levels
        fitting = np.searchsorted(ladder, np.minimum(strength, limits), side="right")
        shares = ladder[rng.integers(np.maximum(fitting, 1))]
        return plan_by_width(
            nodes, sizes, widths(sizes, shares, limits, self.min_units, nodes), lambda size, width: np.arange(width)
        )

"""Rules decide who holds which units in a round; every sub-model method is one, in a file of its own."""

from collections.abc import Callable

from ist_fed.rules.balanced import Balanced
from ist_fed.rules.blocks import Blocks
from ist_fed.rules.disjoint import Disjoint
from ist_fed.rules.fjord import Fjord
from ist_fed.rules.full import Full
from ist_fed.rules.independent import Independent
from ist_fed.rules.lease import Grant, Lease, Leases
from ist_fed.rules.least_trained import LeastTrained
from ist_fed.rules.nested import Nested
from ist_fed.rules.overlapping import Overlapping
from ist_fed.rules.plan import Node, Plan, Rule, plan_round, why_too_little
from ist_fed.rules.private import Private
from ist_fed.rules.rolling import Rolling

RULES: dict[str, Callable[..., Rule]] = {
    "disjoint": Disjoint,
    "full": Full,
    "balanced": Balanced,
    "overlapping": Overlapping,
    "independent": Independent,
    "nested": Nested,
    "fjord": Fjord,
    "rolling": Rolling,
    "least_trained": LeastTrained,
    "private": Private,
    "blocks": Blocks,
    "lease": Lease,
}
"""Name in a scenario → rule."""

__all__ = [
    "RULES",
    "Balanced",
    "Blocks",
    "Disjoint",
    "Fjord",
    "Full",
    "Grant",
    "Independent",
    "Lease",
    "Leases",
    "LeastTrained",
    "Nested",
    "Node",
    "Overlapping",
    "Plan",
    "Private",
    "Rolling",
    "Rule",
    "plan_round",
    "why_too_little",
]

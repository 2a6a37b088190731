"""Rules decide who holds which units in a round; every sub-model method is one, in a file of its own."""

from collections.abc import Callable

from ist_fed.rules.disjoint import Disjoint
from ist_fed.rules.full import Full
from ist_fed.rules.plan import Node, Plan, Rule, plan_round

RULES: dict[str, Callable[..., Rule]] = {"disjoint": Disjoint, "full": Full}
"""Name in a scenario → rule."""

__all__ = ["RULES", "Disjoint", "Full", "Node", "Plan", "Rule", "plan_round"]

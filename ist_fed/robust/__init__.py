"""Merging that a few clients cannot spoil, whatever they send: centres of cohorts, bounds on norms, validation."""

from ist_fed.robust.centre import centre
from ist_fed.robust.keeper import Keeper
from ist_fed.robust.merge import RobustMerge
from ist_fed.robust.settings import Robust, check_trust

__all__ = ["Keeper", "Robust", "RobustMerge", "centre", "check_trust"]

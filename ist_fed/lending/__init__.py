"""Units lent out and taken back one client at a time: what a strategy does instead of rounds under the rule `Lease`."""

from ist_fed.lending.contract import Conditions, Lending
from ist_fed.lending.loops import lend

__all__ = ["Conditions", "Lending", "lend"]

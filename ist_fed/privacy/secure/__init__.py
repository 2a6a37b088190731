"""Secure rounds: an aggregator that is not trusted to look learns the sum of a cohort's updates, and nothing else.

One instance for each cohort: Bonawitz et al., CCS 2017, double masking on the complete graph, with signed keys and a
vote on who survived (their section 6.2), and masks bound to what is trained (against Pasquini et al., CCS 2022).
"""

from ist_fed.privacy.secure.aggregator import Aggregator
from ist_fed.privacy.secure.budget import Budget
from ist_fed.privacy.secure.grid import Grid, fit_grid
from ist_fed.privacy.secure.member import Member
from ist_fed.privacy.secure.settings import Secure

__all__ = ["Aggregator", "Budget", "Grid", "Member", "Secure", "fit_grid"]

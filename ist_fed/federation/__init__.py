"""A scenario, a Grid and a run's folder: train. Every engine calls this; they differ only in the Grid."""

from ist_fed.federation.assemble import initial_arrays, simulated_network
from ist_fed.federation.checks import check_model, first_plans
from ist_fed.federation.drive import federate
from ist_fed.federation.recorder import Line

__all__ = ["Line", "check_model", "federate", "first_plans", "initial_arrays", "simulated_network"]

"""Clients and links that we do not have: how fast they would be, and who would fail, in virtual time."""

from ist_fed.network.description import Network, Tier
from ist_fed.network.traffic import Traffic, Trip
from ist_fed.network.virtual import Asked, SimulatedRound, Virtual, nodes_of

__all__ = ["Asked", "Network", "SimulatedRound", "Tier", "Traffic", "Trip", "Virtual", "nodes_of"]

"""How much privacy was spent: events describe what was released, the accountant interprets them."""

from ist_fed.privacy.accounting.accountant import QUIETEST, Claim, calibrate, delta_of, epsilon, epsilon_of
from ist_fed.privacy.accounting.events import Composed, Event, Gaussian, Partition, Repeated, Sampled, Step, steps_of

__all__ = [
    "QUIETEST",
    "Claim",
    "Composed",
    "Event",
    "Gaussian",
    "Partition",
    "Repeated",
    "Sampled",
    "Step",
    "calibrate",
    "delta_of",
    "epsilon",
    "epsilon_of",
    "steps_of",
]

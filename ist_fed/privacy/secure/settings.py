"""How a scenario asks for secure rounds."""

from dataclasses import dataclass
from math import inf

from ist_fed.privacy.secure.limits import FLOOR, MIN_COHORT

LEAST_NOISE, MOST_NOISE = 1e-3, 100.0
"""Of what noise can be, in clip norms."""


@dataclass(frozen=True, kw_only=True)
class Secure:
    """Secure aggregation in every cohort, where `privacy.mode` is `secure`: the server sees sums, and no one's update.

    Args:
        clip: largest norm of a client's update; longer ones are shortened.
        noise: standard deviation of the noise in a cohort's sum, in clip norms; 0 hides updates from the server
            only, and is no differential privacy.
        delta: the δ at which ε is reported.
        min_cohort: fewest clients whose sum may be seen, also after drop-outs; clients may insist on more.
        threshold: how many of a cohort must be there to the end; 0 means more than two thirds, which is the least.
        patience: seconds that a step is waited for, in which nobody trains.
    """

    clip: float = 1.0
    noise: float = 0.0
    delta: float = 1e-5
    min_cohort: int = MIN_COHORT
    threshold: int = 0
    patience: float = 60.0

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("clip", "patience"):
            if not 0 < getattr(self, key) < inf:
                raise ValueError(f"{key} must be positive, but is {getattr(self, key)}")
        if self.noise and not LEAST_NOISE <= self.noise <= MOST_NOISE:
            raise ValueError(
                f"noise is 0 for none, or from {LEAST_NOISE:g} to {MOST_NOISE:g} clip norms, but is {self.noise}"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be between 0 and 1, but is {self.delta}")
        if self.min_cohort < FLOOR:
            raise ValueError(f"min_cohort must be at least {FLOOR}, but is {self.min_cohort}")
        if self.threshold < 0:
            raise ValueError(f"threshold must not be negative, but is {self.threshold}; 0 means more than two thirds")

"""What a scenario says about clients that may send anything."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

Centre = Literal["mean", "median", "trimmed"]

FEWEST = 3
"""Members of a cohort from which on one of them can be outvoted."""

REFUSED_BEYOND = 10.0
"""Times the usual length from which on an update is not scaled down any more but refused."""


@dataclass(frozen=True, kw_only=True)
class Robust:
    """How what a cohort sent becomes one subnet, and what is refused. All off by default.

    Args:
        merge: of the members of a cohort, coordinate by coordinate: the weighted `mean`, the `median`, or the `trimmed`
            mean. The latter two count every client alike, for its weight is what it says of itself.
        trim: with `trimmed`, the share of a cohort that is left out at either end, rounded up to whole clients.
        norm_bound: an update longer than so many times what is usual is scaled down to that, and flagged; one beyond
            ten times is refused. Lengths are per coordinate, so subnets may differ in size; what is usual is the median
            of the updates that were accepted in the rounds before. 0 does not look.
        loss_margin: refuse a block if the network's loss on the server's calibration examples is by more than this
            fraction higher with it than without; 0 does not look.
    """

    merge: Centre = "mean"
    trim: float = 0.2
    norm_bound: float = 0.0
    loss_margin: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if self.merge not in get_args(Centre):
            raise ValueError(f"merge must be one of {', '.join(get_args(Centre))}, but is {self.merge!r}")
        if not 0 < self.trim < 0.5:
            raise ValueError(f"trim must lie between 0 and 0.5, for it is cut at either end, but is {self.trim}")
        if not (self.norm_bound == 0 or 1 <= self.norm_bound <= REFUSED_BEYOND):
            raise ValueError(
                f"norm_bound is 0 or from 1 to {REFUSED_BEYOND:g} times the usual length, but is {self.norm_bound}"
            )
        if not 0 <= self.loss_margin < inf:
            raise ValueError(f"loss_margin must be finite and not negative, but is {self.loss_margin}")

    @property
    def on(self) -> bool:
        """Whether anything is asked for."""
        return self.merge != "mean" or self.norm_bound > 0 or self.loss_margin > 0


def check_trust(robust: Robust, mode: str) -> None:
    """Refuse what does not go with privacy.

    Raises:
        ValueError: updates are summed under noise, or in secret.
    """
    if robust.on and mode in ("central", "secure"):
        raise ValueError(
            f"with privacy.mode '{mode}' updates are summed so that nobody's shows, so none can be outvoted or refused "
            f"for what it holds; drop [robust] or set privacy.mode to 'off'"
        )

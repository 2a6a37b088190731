"""The tables `[round]` and `[record]` of a scenario."""

from dataclasses import dataclass
from math import inf

from ist_fed.roster import Weighting


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """When a round ends.

    Args:
        deadline: seconds after which a round goes on without the replies still missing.
        min_clients: wait until so many clients are connected; 0 means all of them. Where units are lent (rule `lease`),
            only at the start.
        min_replies: stop the run if a round brings fewer usable replies.
        weighting: within a cohort, weigh clients by their `examples` or `uniform`ly.
        adapt: let shares follow the time that each client's rounds take; results then differ from run to run.
        min_limit: leave out clients that can hold less than this fraction of every axis.
        in_place: for networks that fill the memory: where every unit has one holder, subnets are cut one by one and
            written over the network as they come back. A run that is stopped or fails within a round then goes on from
            its last checkpoint, not from its last round.
    """

    deadline: float = 3600.0
    min_clients: int = 0
    min_replies: int = 1
    weighting: Weighting = "examples"
    adapt: bool = False
    min_limit: float = 0.0
    in_place: bool = False

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if not 0 <= self.min_limit <= 1:
            raise ValueError(f"min_limit must be a fraction from 0 to 1, but is {self.min_limit}")
        if not 0 < self.deadline < inf:
            raise ValueError(f"deadline must be a positive number of seconds, but is {self.deadline}")
        if self.min_clients < 0:
            raise ValueError(f"min_clients must not be negative, but is {self.min_clients}; 0 means all of them")
        if self.min_replies < 1:
            raise ValueError(f"min_replies must be at least 1, but is {self.min_replies}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run writes down, and when.

    Args:
        evaluate_every: rounds between evaluations of the assembled network.
        checkpoint_every: rounds between checkpoints; one is also written at the end and when a run is stopped.
        keep: how many checkpoints, the newest, are kept.
        tensorboard: write TensorBoard event files too, if the package is installed.
    """

    evaluate_every: int = 1
    checkpoint_every: int = 10
    keep: int = 3
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("evaluate_every", "checkpoint_every", "keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, but is {getattr(self, key)}")

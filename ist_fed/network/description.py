"""What a network of clients is like, as `[network]` says it."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Literal

_RATES = ("flops", "down", "up", "latency", "step_seconds")
_CHANCES = ("dropout", "churn")


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Clients of one kind; what is left out is as in `[network]`.

    Args:
        share: of the clients, relative to the other tiers' shares.
        width: largest fraction of every axis that a client can hold, which is also its capacity.
        flops: floating-point operations a second.
        step_seconds: seconds that a local step takes besides its operations.
        down: bits a second from the server to a client.
        up: bits a second from a client to the server.
        latency: seconds that a message is on its way, each way.
        dropout: probability that a client which was asked fails, in each round.
        churn: probability that a client is absent, in each round.
    """

    share: float = 1.0
    width: float = 1.0
    flops: float | None = None
    step_seconds: float | None = None
    down: float | None = None
    up: float | None = None
    latency: float | None = None
    dropout: float | None = None
    churn: float | None = None

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if not 0 < self.share < inf:
            raise ValueError(f"share must be a positive number, but is {self.share}")
        if not 0 < self.width <= 1:
            raise ValueError(f"width must be a fraction above 0 and at most 1, but is {self.width}")
        _check(self)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that is simulated: by default clients and links take no time, and nobody fails.

    Args:
        flops: floating-point operations a second of a client; 0 takes no time.
        step_seconds: seconds that a local step takes besides its operations.
        down: bits a second from the server to a client; 0 takes no time.
        up: bits a second from a client to the server; 0 takes no time.
        latency: seconds that a message is on its way, each way.
        dropout: probability that a client which was asked fails, in each round.
        churn: probability that a client is absent, in each round.
        spread: every client computes up to so many times slower, the factor drawn log-uniformly from 1 to it.
        link_spread: the same of its link.
        server_down: bits a second that reach the server, shared fairly by the clients that send; 0 sets no bound.
        server_up: bits a second that leave the server, shared fairly by the clients that receive; 0 sets no bound.
        round_seconds: seconds that the server itself takes for a synchronous round.
        compute: take a client's seconds from `flops` and `step_seconds`, or as they were `measured` on this machine,
            slowed down by its factor and by its tier's `flops`; measured seconds differ from run to run.
        tiers: kinds of clients, by name.
    """

    flops: float = 0.0
    step_seconds: float = 0.0
    down: float = 0.0
    up: float = 0.0
    latency: float = 0.0
    dropout: float = 0.0
    churn: float = 0.0
    spread: float = 1.0
    link_spread: float = 1.0
    server_down: float = 0.0
    server_up: float = 0.0
    round_seconds: float = 0.0
    compute: Literal["flops", "measured"] = "flops"
    tiers: dict[str, Tier] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("spread", "link_spread"):
            if not 1 <= getattr(self, key) < inf:
                raise ValueError(f"{key} must be at least 1, but is {getattr(self, key)}")
        for key in ("server_down", "server_up", "round_seconds"):
            if not 0 <= getattr(self, key) < inf:
                raise ValueError(f"{key} must be a finite number, not negative, but is {getattr(self, key)}")
        _check(self)
        for name, tier in self.tiers.items():
            if self.compute == "measured" and tier.flops and not self.flops:
                raise ValueError(
                    f"tiers.{name}.flops says how much slower than [network] flops its clients are, but that is 0; set "
                    f"it to the speed of this machine"
                )

    def of(self, tier: Tier) -> Tier:
        """A tier with everything filled in."""
        own = {each.name: getattr(tier, each.name) for each in fields(Tier)}
        return Tier(**{key: getattr(self, key) if value is None else value for key, value in own.items()})


def _check(described: Network | Tier) -> None:
    for key in _RATES:
        if (value := getattr(described, key)) is not None and not 0 <= value < inf:
            raise ValueError(f"{key} must be a finite number, not negative, but is {value}")
    for key in _CHANCES:
        if (value := getattr(described, key)) is not None and not 0 <= value < 1:
            raise ValueError(f"{key} must be a probability below 1, but is {value}")

"""What a scenario says about privacy, and what may be claimed for it."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from ist_fed.errors import PrivacyError
from ist_fed.privacy.accounting import Event, Gaussian, Partition, Repeated, Sampled, calibrate
from ist_fed.rules import Full, Private, Rule

Mode = Literal["off", "central", "secure"]


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Which privacy a run promises.

    Args:
        mode: `off`; `central`, differential privacy by a server that is trusted; `secure`, a server that need not be.
        epsilon: what a run may spend at most, at `delta`; it stops before it would spend more.
        delta: should be well below one over the number of clients.
        noise_multiplier: standard deviation of the noise, over `clip`; 0 works out what `epsilon` takes for all rounds.
        sampling: probability with which a client takes part in a round, drawn for each client alone.
        clip: largest norm of what a client may change; with a quantile, the first one.
        shared_clip: the same for parameters that are in every subnet, which are clipped apart; 0 takes a quarter of
            `clip`. Their noise is `blocks` times louder, so that their mean over all clients is as loud as a block's.
        quantile: let `clip` follow this quantile of the updates' norms, as 0.5; 0 keeps it.
        clip_lr: how fast it does.
        count_noise: standard deviation of the noise on the number of updates below `clip`, in clients; 0 makes the
            number cost as much privacy as the shared parameters.
    """

    mode: Mode = "off"
    epsilon: float = 0.0
    delta: float = 1e-5
    noise_multiplier: float = 0.0
    sampling: float = 1.0
    clip: float = 1.0
    shared_clip: float = 0.0
    quantile: float = 0.0
    clip_lr: float = 0.2
    count_noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        for key in ("epsilon", "noise_multiplier", "shared_clip", "count_noise"):
            if not 0 <= getattr(self, key) < inf:
                raise ValueError(f"{key} must be finite and not negative, but is {getattr(self, key)}")
        for key in ("clip", "clip_lr"):
            if not 0 < getattr(self, key) < inf:
                raise ValueError(f"{key} must be positive and finite, but is {getattr(self, key)}")
        if not 0 < self.sampling <= 1:
            raise ValueError(f"sampling must be a probability above 0, at most 1, but is {self.sampling}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must lie between 0 and 1, but is {self.delta}")
        if not 0 <= self.quantile < 1:
            raise ValueError(f"quantile must be at least 0 and below 1, but is {self.quantile}")
        if self.mode == "central" and self.epsilon == 0:
            raise ValueError("epsilon, the budget of a private run, must be given, as in epsilon = 4.0")


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Central differential privacy of one scenario, every number filled in.

    Args:
        settings: as the scenario has them.
        clients: how many are registered; public, whoever is connected.
        blocks: d that may be claimed; 1 if amplification may not.
        why: the reason.
        noise_multiplier: σ/C of a block.
    """

    settings: Privacy
    clients: int
    blocks: int
    why: str
    noise_multiplier: float

    @property
    def expected(self) -> float:
        """How many clients take part in a round on average."""
        return self.settings.sampling * self.clients

    @property
    def shared_clip(self) -> float:
        """Largest norm of what a client changes of parameters that are in every subnet, over that of a block."""
        return (self.settings.shared_clip or self.settings.clip / 4) / self.settings.clip

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise on the number of updates below the clip; 0 if it does not adapt."""
        return _count_noise(self.settings, self.blocks, self.noise_multiplier)

    @property
    def shared_multiplier(self) -> float:
        """Noise over largest norm of parameters that are in every subnet."""
        return self.blocks * self.noise_multiplier

    def round(self) -> Event:
        """One round."""
        return _round(self.settings, self.blocks, self.noise_multiplier)


def mechanism(settings: Privacy, rule: Rule, *, clients: int, rounds: int) -> Mechanism:
    """What a scenario's rule and settings come to.

    Raises:
        PrivacyError: no noise is enough for the budget, or δ is no promise.
    """
    if settings.delta * clients >= 1:
        raise PrivacyError(
            f"delta must be below one over the number of clients, or one of them may be shown whole, but it is "
            f"{settings.delta:g} for {clients} clients; lower privacy.delta"
        )
    blocks, why = claimed(rule)
    made = Mechanism(
        settings=settings, clients=clients, blocks=blocks, why=why, noise_multiplier=settings.noise_multiplier
    )
    if settings.noise_multiplier:
        return made
    needed = calibrate(
        lambda noise: Repeated(rounds, _round(settings, blocks, noise)),
        settings.epsilon,
        settings.delta,
    )
    return Mechanism(settings=settings, clients=clients, blocks=blocks, why=why, noise_multiplier=needed)


def _count_noise(settings: Privacy, blocks: int, noise: float) -> float:
    return (settings.count_noise or blocks * noise / 2) if settings.quantile else 0.0


def _round(settings: Privacy, blocks: int, noise: float) -> Event:
    """Everything that a round releases is one vector: a block, what all share, and whether the norm was below the clip.

    A bit less one half has norm one half.
    """
    together = 0.0
    if blocks > 1:
        together += (blocks * noise) ** -2
    if count_noise := _count_noise(settings, blocks, noise):
        together += (2 * count_noise) ** -2
    return Sampled(
        settings.sampling, Partition(blocks, Gaussian(noise), Gaussian(together**-0.5) if together else None)
    )


def claimed(rule: Rule) -> tuple[int, str]:
    """The number of blocks for which amplification may be claimed, and why."""
    match rule:
        case Private(groups=1) | Full():
            return 1, "there is one block, which everyone trains"
        case Private(groups=groups):
            return groups, "each client's block is drawn uniformly, independently of all others, and kept secret"
    return 1, (
        "not amplified: the rule does not draw each client's block independently, so that who knows the others' blocks "
        "knows a client's by elimination; use rule 'private'"
    )


def check_conditions(
    settings: Privacy, *, weighting: str, adapt: bool, phases: bool = False, travels: bool = False
) -> None:
    """Refuse what would break the promise.

    Raises:
        PrivacyError: clients weigh as they have examples, shares follow their times, rounds differ, or state of
            optimisers travels.
    """
    if travels and settings.mode != "off":
        raise PrivacyError(
            "state of optimisers has no noise, so none leaves a private run; set training.state to 'fresh'"
        )
    if settings.mode != "central":
        return
    if weighting != "uniform":
        raise PrivacyError(
            f"in a private run no client counts more than another, but round.weighting is '{weighting}'; set it to "
            f"'uniform'"
        )
    if adapt:
        raise PrivacyError("in a private run nothing may follow how long clients take; set round.adapt to false")
    if phases:
        raise PrivacyError("all rounds of a private run are accounted alike, so it has no phases; leave [[phases]] out")

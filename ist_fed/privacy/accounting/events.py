"""What was released, described: frozen values that compute nothing."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from ist_fed.errors import PrivacyError


@dataclass(frozen=True)
class Gaussian:
    """A sum to which every client adds a vector of norm at most one unit, released with Gaussian noise.

    Args:
        noise_multiplier: standard deviation of the noise on each coordinate, over the largest norm.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        """Refuse noise that is none."""
        if not 0 < self.noise_multiplier < inf:
            raise PrivacyError(
                f"a noise multiplier must be positive and finite, but is {self.noise_multiplier}; without noise "
                f"nothing is private"
            )


@dataclass(frozen=True)
class Partition:
    """A release by disjoint, public blocks: each client adds to one, drawn uniformly, independently and secretly.

    Every block is released with noise, whether a client drew it or not.

    Args:
        blocks: how many there are.
        event: the release of one block.
        shared: what every client adds besides, whichever block it drew; clipped apart, with noise of its own.
    """

    blocks: int
    event: Gaussian
    shared: Gaussian | None = None

    def __post_init__(self) -> None:
        """Refuse what is no partition."""
        if type(self.blocks) is not int or self.blocks < 1:
            raise PrivacyError(f"a partition has at least one block, but {self.blocks!r} were given")


@dataclass(frozen=True)
class Sampled:
    """A release in which each client takes part with a probability, independently of all others and secretly.

    Args:
        probability: of taking part.
        event: what is released.
    """

    probability: float
    event: "Gaussian | Partition"

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 < self.probability <= 1:
            raise PrivacyError(
                f"a client takes part with a probability above 0 and at most 1, but it is {self.probability}"
            )


@dataclass(frozen=True)
class Repeated:
    """The same release several times; what is asked may follow from what was released before.

    Args:
        count: how many times.
        event: one of them.
    """

    count: int
    event: "Event"

    def __post_init__(self) -> None:
        """Refuse what is no count."""
        if type(self.count) is not int or self.count < 0:
            raise PrivacyError(f"a release happens a whole number of times, not {self.count!r}")


@dataclass(frozen=True)
class Composed:
    """Several releases, one after another.

    Args:
        events: each of them.
    """

    events: tuple["Event", ...]


Event = Gaussian | Partition | Sampled | Repeated | Composed


@dataclass(frozen=True, kw_only=True)
class Step:
    """One release with everything in it that an accountant knows: what every supported event comes down to.

    Args:
        noise: noise multiplier of a block.
        blocks: d; 1 where there is no partition.
        sampling: q; 1 where everyone takes part.
        shared: squared ratio of norm to noise of what everyone adds, C₀²/σ₀²; 0 if there is nothing.
    """

    noise: float
    blocks: int = 1
    sampling: float = 1.0
    shared: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a ledger keeps it."""
        return asdict(self)


def steps_of(event: Event) -> dict[Step, int]:
    """An event as steps, and how often each happens.

    Raises:
        PrivacyError: it is built in a way that no proof here covers.
    """
    match event:
        case Repeated(count, inner):
            return {step: count * times for step, times in steps_of(inner).items() if count}
        case Composed(events):
            total: dict[Step, int] = {}
            for inner in events:
                for step, times in steps_of(inner).items():
                    total[step] = total.get(step, 0) + times
            return total
        case Sampled(probability, (Gaussian() | Partition()) as inner):
            ((step, _),) = steps_of(inner).items()
            return {Step(noise=step.noise, blocks=step.blocks, sampling=probability, shared=step.shared): 1}
        case Partition(blocks, Gaussian(noise), Gaussian() | None as shared):
            own = shared.noise_multiplier**-2 if shared else 0.0
            if blocks == 1:  # then the two parts are one vector, each measured in its own noise
                return {Step(noise=(noise**-2 + own) ** -0.5): 1}
            return {Step(noise=noise, blocks=blocks, shared=own): 1}
        case Gaussian(noise):
            return {Step(noise=noise): 1}
    raise PrivacyError(
        f"the accountant knows Gaussian releases, by blocks or not, of everyone or of a sample, repeated and composed; "
        f"it has no proof for {event!r}, so it does not give a number"
    )

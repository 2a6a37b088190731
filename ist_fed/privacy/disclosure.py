"""What a private run promises, said so that it can be checked: to whom, against whom, at which numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ist_fed.privacy.accounting import Event, Repeated, Sampled, Step, epsilon, epsilon_of, steps_of
from ist_fed.privacy.settings import Mechanism, mechanism
from ist_fed.rules import Disjoint, Full, Private, Rule

TARGETS = (1.0, 2.0, 4.0, 8.0)
"""Budgets for which the noise is worked out beside the scenario's own."""

NOT_COVERED = (
    "the server and whoever reads its memory: it sees every update as it came",
    "the server's logs, the messages between server and clients, and their times: whoever sees who was asked for which "
    "block is given no amplification, neither by blocks nor by sampling (the last line of epsilon)",
    "what clients say of themselves (number, capacity, memory) and that they are connected; it is taken as public",
    "other runs and other servers with the same clients, beyond what their ledgers count",
    "choices made by looking at private runs, such as the learning rate or the clip",
    "one example of a client: the promise is about all of a client together, which is more, but says nothing apart",
    "the last bits of floating-point numbers, beyond noise that is the sum of four draws",
    "calibration and test data that the server holds, with which the network is recalibrated and evaluated",
)


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """Everything that is said of a run.

    Args:
        facts: in the order in which they are read.
        epsilons: ε after all rounds, by how it was found.
        curve: round → ε.
        needed: target of ε → the noise that it takes, by what is supposed.
        not_covered: in plain words.
    """

    facts: Mapping[str, Any]
    epsilons: Mapping[str, float]
    curve: Mapping[int, float]
    needed: Mapping[float, Mapping[str, float]]
    not_covered: Sequence[str] = NOT_COVERED


def disclose(made: Mechanism, rule: Rule, *, rounds: int, losses: bool = False) -> Disclosure:
    """What may be said of a mechanism.

    Args:
        made: the mechanism.
        rule: that deals the units out.
        rounds: how many.
        losses: work out the bound by privacy loss distributions as well, which takes seconds to minutes.

    Raises:
        PrivacyError: no noise is enough for a target.
    """
    settings, delta = made.settings, made.settings.delta
    event, steps = made.round(), steps_of(made.round())
    epsilons = {"rdp": epsilon_of(_times(steps, rounds), delta).epsilon}
    if losses:
        epsilons["pld"] = epsilon(Repeated(rounds, event), delta, "pld")
    epsilons["rdp, who knows the draws (d = 1, q = 1)"] = epsilon_of(_times(_known(event), rounds), delta).epsilon
    return Disclosure(
        facts=_facts(made, rule, rounds),
        epsilons=epsilons,
        curve={round: epsilon_of(_times(steps, round), delta).epsilon for round in rounds_shown(rounds)},
        needed={
            target: {
                "z as drawn": _needed(made, rule, rounds, target),
                "z if the draws were known": _needed(made, Full(), rounds, target, sampling=1.0),
            }
            for target in sorted({*TARGETS, settings.epsilon})
        },
    )


def rounds_shown(rounds: int) -> list[int]:
    """The rounds after which ε is told: 1, 2, 5, 10, … and the last."""
    known = {step * 10**power for power in range(len(str(rounds))) for step in (1, 2, 5)}
    return sorted({round for round in known if round < rounds} | {rounds})


def _facts(made: Mechanism, rule: Rule, rounds: int) -> dict[str, Any]:
    settings = made.settings
    blocks = rule.groups if isinstance(rule, (Private, Disjoint)) else 1
    clip = f"{settings.clip:g}"
    if settings.quantile:
        clip += f" at first, then after quantile {settings.quantile:g} of the norms (counted with noise "
        clip += f"{made.count_noise:g})"
    return {
        "unit": "one client: all that it contributes, in all rounds",
        "adjacency": "what the client contributes is replaced by zero",
        "adversary": "whoever sees every released network and the run's metrics; other clients; not the server",
        "mode": "central: the server is trusted with the updates",
        "assignment": _law(rule, settings.sampling),
        "amplified": "by blocks" if made.blocks > 1 else "not by blocks",
        "why": made.why,
        "q": settings.sampling,
        "d": made.blocks,
        "C": clip,
        "z": made.noise_multiplier,
        "shared parameters": (
            f"clipped apart to {made.shared_clip * settings.clip:g}, z = {made.shared_multiplier:.4g}"
            if made.blocks > 1
            else "none: one vector"
        ),
        "denominators": (
            f"{made.expected / blocks:g} clients a block, {made.expected:g} where all share; whoever takes part"
            if isinstance(rule, (Private, Full))
            else "q × the clients of each block by the plan; whoever takes part"
        ),
        "T": rounds,
        "delta": settings.delta,
        "budget": settings.epsilon,
    }


def _law(rule: Rule, sampling: float) -> str:
    taking = "everyone takes part" if sampling == 1 else f"each takes part with probability {sampling:g}, independently"
    if isinstance(rule, Private):
        return f"{taking}; a block uniformly, for each client alone, from the operating system, and never logged"
    return f"{taking}; a block by rule {type(rule).__name__.lower()}, from the scenario's seed, which others can repeat"


def _needed(made: Mechanism, rule: Rule, rounds: int, target: float, **changes: float) -> float:
    settings = replace(made.settings, noise_multiplier=0.0, epsilon=target, **changes)  # type: ignore[arg-type]
    return mechanism(settings, rule, clients=made.clients, rounds=rounds).noise_multiplier


def _known(event: Event) -> Mapping[Step, int]:
    """A round for who knows who took part, in which block: one plain Gaussian."""
    assert isinstance(event, Sampled)
    ((step, _),) = steps_of(event).items()
    return {Step(noise=(step.noise**-2 + step.shared) ** -0.5): 1}


def _times(steps: Mapping[Step, int], count: int) -> dict[Step, int]:
    return {step: times * count for step, times in steps.items()}

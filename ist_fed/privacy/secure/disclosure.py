"""What secure rounds promise, said so that it can be checked, and what they do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Any

from ist_fed.privacy.disclosure import TARGETS, Disclosure, rounds_shown
from ist_fed.privacy.secure.accounting import epsilon, release
from ist_fed.privacy.secure.grid import fit_grid
from ist_fed.privacy.secure.limits import threshold_of
from ist_fed.privacy.secure.settings import LEAST_NOISE, MOST_NOISE, Secure

NOT_COVERED = (
    "a server that makes up most of a cohort itself: signers say who is who, and must not be the server's own",
    "clients that send what they like: a sum hides a poisoned update as well as an honest one",
    "members that leave their noise out, or tell the server what it was: what is counted takes all of them as honest",
    "which client trained which units, when, and for how long: the server deals them out",
    "rounds that were begun and run again, after a restart or by a server that wants to: each counts in full",
    "statistics of BatchNorm, losses and metrics of clients: they are not sent at all",
    "choices made by looking at runs, such as the learning rate or the clip",
)


@dataclass(frozen=True, kw_only=True)
class CohortSize:
    """What a cohort's promise depends on.

    Args:
        members: clients in it.
        length: parameters of its subnet.
    """

    members: int
    length: int


def disclose_secure(settings: Secure, cohorts: Sequence[CohortSize], *, rounds: int) -> Disclosure:
    """What may be said of secure rounds; ε is that of the cohort for which it is largest.

    Args:
        settings: of the scenario.
        cohorts: of a round.
        rounds: how many; a client is in one cohort of each.

    Raises:
        ValueError: updates of a cohort do not fit in 32 bits with that noise.
    """
    return Disclosure(
        facts=_facts(settings, cohorts, rounds),
        epsilons={"rdp": spent(settings, cohorts, rounds)} if settings.noise else {},
        curve={round: spent(settings, cohorts, round) for round in rounds_shown(rounds)} if settings.noise else {},
        needed={
            target: {"secure.noise": noise}
            for target in TARGETS
            if (noise := _needed(settings, cohorts, rounds, target)) < inf
        },
        not_covered=NOT_COVERED,
    )


def spent(settings: Secure, cohorts: Sequence[CohortSize], rounds: int) -> float:
    """ε of so many rounds, for a client that is always in the cohort that protects it least."""
    thresholds = [max(threshold_of(each.members), settings.threshold) for each in cohorts]
    grids = [
        fit_grid(
            clip=settings.clip, noise=settings.noise, length=each.length, members=each.members, threshold=threshold
        )
        for each, threshold in zip(cohorts, thresholds, strict=True)
    ]
    return max(
        epsilon({release(grid, threshold): rounds}, settings.delta)
        for grid, threshold in zip(grids, thresholds, strict=True)
    )


def _needed(settings: Secure, cohorts: Sequence[CohortSize], rounds: int, target: float) -> float:
    """The least noise for a budget, to a thousandth of itself; infinite if none that fits is enough."""

    def enough(noise: float) -> bool:
        try:
            return spent(replace(settings, noise=noise), cohorts, rounds) <= target
        except ValueError:  # more noise than there is room for
            return False

    least, most = LEAST_NOISE, next((noise for noise in (1.0, 10.0, MOST_NOISE) if enough(noise)), inf)
    while most / least > 1.001 and most < inf:
        middle = sqrt(least * most)
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most


def _facts(settings: Secure, cohorts: Sequence[CohortSize], rounds: int) -> dict[str, Any]:
    sizes = sorted({each.members for each in cohorts})
    thresholds = sorted({max(threshold_of(members), settings.threshold) for members in sizes})
    return {
        "unit": "one client: all that it contributes, in all rounds",
        "adjacency": "what the client contributes is replaced by zero",
        "adversary": "whoever sees the sum of each cohort, and who is in it: the server, too",
        "mode": "secure: the server sees sums only; noise is the clients'",
        "cohorts": ", ".join(str(members) for members in sizes) + " clients",
        "least that is summed": ", ".join(str(max(least, settings.min_cohort)) for least in thresholds),
        "amplified": "not by blocks, nor by sampling",
        "why": "the server deals the units out and knows who takes part",
        "C": f"{settings.clip:g}",
        "noise": settings.noise,
        "noise counted": f"of {', '.join(str(least) for least in thresholds)} members, the threshold"
        if settings.noise
        else "none (secure.noise = 0): sums are exact, and there is no differential privacy",
        "denominators": "those whose updates are in the sum; the server knows their number",
        "T": rounds,
        "delta": settings.delta,
    }

"""How many members there must be, and what of that a member insists on, whatever the server says."""

from math import ceil, floor, sqrt

from ist_fed.errors import SecureError, SmallCohort
from ist_fed.privacy.secure.masks import LONGEST
from ist_fed.privacy.secure.messages import LARGEST, Terms
from ist_fed.privacy.secure.skellam import LEAST_VARIANCE, TAIL

MIN_COHORT = 5
"""Fewest members whose sum may be seen, unless a member's operator says otherwise."""

FLOOR = 3
"""Fewest that anybody may say: of two, each knows the other's update from the sum and its own."""

LEAST_GRID = 2.0**-256
"""The finest grid. On one much finer, an update of many steps may have squares that are 0 in float64: no norm."""


def threshold_of(members: int) -> int:
    """How many of so many must be there to the end: more than two thirds.

    Two sets of survivors with so many votes each have more than a third of all members in common; a server that wants
    both, and with them both secrets of somebody, needs all of those to vote twice.
    """
    return 2 * members // 3 + 1


def survivors_needed(terms: Terms, min_cohort: int) -> int:
    """Fewest members whose sum may be seen."""
    return max(terms.threshold, min_cohort)


def bound_of(*, clip: float, grid: float, variance: float) -> int:
    """The largest whole number that can be in a member's update, noise and all."""
    return floor(clip / grid) + ceil(TAIL * sqrt(variance))


def check_terms(terms: Terms, min_cohort: int) -> None:
    """Check what a server announces, as every member does.

    Whatever its data are, a member's update then is no longer than the clip norm, which is what is counted, and within
    the bound: on a coarse grid rounding would lengthen it, and a small bound would tell whose update is a long one.

    Raises:
        SmallCohort: too few would hide one another.
        SecureError: the numbers make no sense.
    """
    least = max(FLOOR, min_cohort)
    if terms.members < least:
        raise SmallCohort(f"a cohort has at least {least} members, but this one has {terms.members}")
    if not threshold_of(terms.members) <= terms.threshold <= terms.members:
        raise SmallCohort(
            f"of {terms.members} members at least {threshold_of(terms.members)} must be there to the end, but "
            f"{terms.threshold} are asked for"
        )
    sound = (
        terms.members <= LARGEST
        and terms.round >= 1
        and 1 <= terms.length <= LONGEST
        and terms.members * terms.bound < 1 << 31
        and terms.grid >= LEAST_GRID
        and terms.grid * sqrt(terms.length) <= terms.clip < terms.grid * (1 << 31)
        and (terms.variance == 0 or terms.variance >= LEAST_VARIANCE)
        and terms.bound >= bound_of(clip=terms.clip, grid=terms.grid, variance=terms.variance)
    )
    if not sound:
        raise SecureError(
            "every update must be within its bound on a grid finer than the clip norm, their sum fit in 32 bits, and "
            "noise be none or large enough to be exact, but the terms of this round are not so; server and members "
            "must run the same version of ist_fed"
        )

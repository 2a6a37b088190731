"""Which of a strategy's options go together."""

from collections.abc import Sequence

from ist_fed.errors import RuleError, ScenarioError
from ist_fed.phases import Course, Phase
from ist_fed.rules import Lease


def check_together(
    course: Course,
    *,
    privacy: bool,
    secure: bool,
    robust: bool,
    outvotes: bool,
    own_server: bool,
    network: bool,
    in_place: bool,
    plain_roster: bool,
) -> None:
    """Refuse options that contradict each other.

    Args:
        course: of the run.
        privacy: whether it is private, in central mode.
        secure: whether rounds are secure.
        robust: whether what clients send is looked at.
        outvotes: whether the centre of a cohort takes the place of its mean, for every number of it.
        own_server: whether the server has an optimiser.
        network: whether a network is simulated.
        in_place: whether rounds merge in place.
        plain_roster: whether all clients weigh the same, and shares do not follow the time they take.

    Raises:
        ValueError: two of them do not go together; the message says why. A `ScenarioError`, which is one, where no
            scenario that was read can have said so before.
    """
    if secure and not plain_roster:
        raise ValueError("secure rounds need weighting 'uniform', and no adapt: the server sees nothing else")
    if in_place and (privacy or secure or robust or own_server):
        raise ValueError("in_place keeps no network as it was, to which server optimisers and other merges compare")
    if privacy and robust:
        raise ValueError("a private run sums updates so that nobody's shows: none can be outvoted or refused")
    if (privacy or secure) and any(own.carried for own in course.trainings):
        raise ValueError("state of optimisers has no noise, so none leaves a private run; let it start fresh")
    if robust and not outvotes and any(own.carried for own in course.trainings):
        raise ScenarioError(
            "robust.norm_bound and loss_margin look at parameters and not at optimisers' state, with which one client "
            "could spoil what all others train; set training.state to 'fresh', or robust.merge to 'median' or 'trimmed'"
        )
    if privacy and network:
        raise ValueError("how long a simulated round lasts tells who was drawn; leave network out of a private run")


def lease_of(course: Course, phases: Sequence[Phase], merge: bool, own_server: bool) -> Lease | None:
    """The rule, if units are lent: then there are no rounds that anything else could be about.

    Args:
        course: of the run.
        phases: of the run.
        merge: whether another merge than the plain one is asked for.
        own_server: whether the server has an optimiser.

    Raises:
        RuleError: something else is asked for.
    """
    rules = [course.plain.rule, *(phase.rule for phase in phases)]
    if not any(isinstance(rule, Lease) for rule in rules):
        return None
    asked = {"phases": bool(phases), "privacy or robust merging": merge, "a server optimiser": own_server}
    if others := [name for name, given in asked.items() if given]:
        raise RuleError(
            f"where units are lent there are no rounds that phases, a merge or a server optimiser could be about, but "
            f"the rule is 'lease' and {' and '.join(others)} was asked for; leave one of them out"
        )
    return course.plain.rule if isinstance(course.plain.rule, Lease) else None

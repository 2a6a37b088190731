"""Phases of a run: stretches of rounds that are asked alike, such as dense warm-up, subnets, dense final rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from ist_fed.errors import RoundError
from ist_fed.rules import Rule
from ist_fed.train import Training

FALLING = frozenset({"loss", "train_loss"})
"""Metrics of which less is better: they end a phase once they are at most what `until` says, others at least."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms a round is held.

    Args:
        rule: who holds which units.
        local_steps: steps a client takes.
        training: optimiser, learning rate, batch size.
    """

    rule: Rule
    local_steps: int
    training: Training


@dataclass(frozen=True, kw_only=True)
class Phase:
    """On what terms the rounds of a phase are held; what is left out is as in the strategy's own arguments.

    Args:
        rounds: how many at most. 0 is as many as the other phases leave of the run; one phase at most may say so. The
            last phase lasts to the end of the run in any case.
        until: metric → value; the phase ends after the first round in which every one of them is reached. Losses are
            reached from above, all others from below. Of a round that is not evaluated, only `train_loss` and
            `coverage` are known.
        rule: who holds which units.
        local_steps: steps a client takes in a round.
        training: optimiser, learning rate, batch size. A schedule counts the rounds of the whole run, not those of the
            phase: how long a phase with `until` lasts nobody knows before it ends.
    """

    rounds: int = 0
    until: Mapping[str, float] = field(default_factory=dict)
    rule: Rule | None = None
    local_steps: int | None = None
    training: Training | None = None

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        if self.rounds < 0:
            raise ValueError(
                f"rounds of a phase must not be negative, but is {self.rounds}; 0 is what the others leave"
            )
        if self.local_steps is not None and self.local_steps < 1:
            raise ValueError(f"local_steps of a phase must be at least 1, but is {self.local_steps}")
        for metric, value in self.until.items():
            if not isfinite(value):
                raise ValueError(f"until.{metric} must be a finite number, but is {value}")

    def terms(self, plain: Terms) -> Terms:
        """The phase's own terms, and `plain` where it has none."""
        own = {"rule": self.rule, "local_steps": self.local_steps, "training": self.training}
        return replace(plain, **{key: value for key, value in own.items() if value is not None})  # type: ignore[arg-type]

    def is_over(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the metrics of a round end it."""
        return bool(self.until) and all(
            (found := metrics.get(metric)) is not None and (found <= value if metric in FALLING else found >= value)
            for metric, value in self.until.items()
        )


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One of `[[phases]]`; what is left out is as in the rest of the scenario.

    Args:
        rounds: how many at most; 0 is what the other phases leave, and the last lasts to the end of the run.
        until: metric and value, such as `{ accuracy = 0.95 }`: the phase ends once it is reached.
        rule: another rule, or without `name` other fields of the scenario's.
        local_steps: steps a client takes in a round; 0 is the scenario's.
        training: what is different in `[training]`.
    """

    rounds: int = 0
    until: dict[str, float] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    local_steps: int = 0
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a value out of its range."""
        Phase(rounds=self.rounds, until=self.until, local_steps=self.local_steps or None)


class Course:
    """Which phase a round belongs to: a function of its number, of the run's length and of the metrics so far.

    So a resumed run that is told the metrics of its earlier rounds again goes on in the right phase.

    Args:
        phases: in their order; none is one phase on plain terms.
        plain: terms of which a phase may have its own.
    """

    def __init__(self, phases: Sequence[Phase], plain: Terms) -> None:
        if sum(not phase.rounds for phase in phases) > 1:
            raise ValueError("one phase at most may leave its rounds out, for it takes what the others leave")
        self.phases = tuple(phases) or (Phase(),)
        self.plain = plain
        self._terms = [phase.terms(plain) for phase in self.phases]
        self._ended: dict[int, int] = {}  # phase → the round that met its `until`
        self._known: dict[int, dict[str, Any]] = {}  # of the last round

    def number(self, round: int, rounds: int | None) -> int:
        """The phase, from 1, of a round.

        Args:
            round: from 1.
            rounds: of the whole run, or None if nobody knows.

        Raises:
            RoundError: it depends on how many rounds there are.
        """
        last = 0
        for number, phase in enumerate(self.phases[:-1], 1):
            if number in self._ended:
                last = self._ended[number]
            elif phase.rounds:
                last += phase.rounds
            elif rounds is None:
                raise RoundError(
                    f"phase {number} takes the rounds that the others leave, so the number of rounds must be known, "
                    f"which Flower's hooks do not say; run this strategy's own start(), or give the phase its rounds"
                )
            else:
                last = max(last, rounds - sum(later.rounds for later in self.phases[number:]))
            if round <= last:
                return number
        return len(self.phases)

    def terms(self, round: int, rounds: int | None) -> Terms:
        """The terms of a round; arguments as of `number`."""
        return self._terms[self.number(round, rounds) - 1]

    def summary(self) -> list[str]:
        """The terms of each phase, in words."""
        told = [f"{terms.rule}, {terms.local_steps} local steps a round" for terms in self._terms]
        return [f"phase {n}: {text}" for n, text in enumerate(told, 1)] if len(told) > 1 else told

    @property
    def trainings(self) -> list[Training]:
        """Of each phase."""
        return [terms.training for terms in self._terms]

    @property
    def heaviest(self) -> Training:
        """The training that takes most memory, by which clients say what they can hold."""
        return max(
            self.trainings,
            key=lambda own: (own.batch_size, own.optimizer != "sgd", own.rescale != "none", len(own.carried)),
        )

    def after(self, round: int, rounds: int | None, metrics: Mapping[str, Any]) -> None:
        """Learn metrics of a round, all at once or some by some; one that is None is not known."""
        self._known = {round: {**self._known.get(round, {}), **metrics}}
        number = self.number(round, rounds)
        if self.phases[number - 1].is_over(self._known[round]):
            self._ended[number] = round

    def rewind(self, round: int) -> None:
        """Forget what became of a round and those after it."""
        self._ended = {phase: last for phase, last in self._ended.items() if last < round}
        self._known = {}

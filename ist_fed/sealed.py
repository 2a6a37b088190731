"""Secure rounds on the server: every cohort takes the five steps, all cohorts each step at once.

A client that does not answer a step, or answers with what does not fit, is out for the round; a cohort that becomes too
small gives nothing, and its units keep their values.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from flwr.app import Message, Metadata
from flwr.serverapp import Grid as FlowerGrid

from ist_fed import wire
from ist_fed.arrays import Build, build_on_meta
from ist_fed.cohort import Assignment, Outcome, is_direct
from ist_fed.errors import RoundError, ScenarioError, SecureError, WireError
from ist_fed.exchange import exchange
from ist_fed.privacy.secure import Aggregator, Grid, Secure, fit_grid
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.accounting import epsilon, release
from ist_fed.privacy.secure.codec import Packed
from ist_fed.privacy.secure.limits import threshold_of
from ist_fed.rules import Plan
from ist_fed.updates import model_hash, moved, order_hash, trained_names, units_hash

logger = logging.getLogger("ist_fed")


def check_cohorts(plan: Plan, settings: Secure) -> None:
    """Check that a plan's cohorts are large enough for what a scenario wants.

    Raises:
        ScenarioError: one is not.
    """
    smallest = min(len(cohort) for cohort in plan.cohorts if cohort)
    key = max("min_cohort", "threshold", key=lambda key: getattr(settings, key))
    if smallest < (least := getattr(settings, key)):
        raise ScenarioError(
            f"in secure rounds a cohort has at least {least} clients (secure.{key}), but the rule makes one of "
            f"{smallest}; use fewer groups or more clients"
        )


class SealedRounds:
    """The secure rounds of one run.

    Args:
        settings: of the scenario.
        build: the model factory.
    """

    def __init__(self, settings: Secure, build: Build) -> None:
        self._settings, self._build, self._run = settings, build, secrets.token_bytes(16)

    def carry_out(self, grid: FlowerGrid, assignments: Iterable[Assignment], timeout: float) -> Iterator[Outcome]:
        """Let every cohort train in secret; one outcome each.

        Args:
            grid: where the clients are.
            assignments: what each cohort is asked.
            timeout: seconds that training is waited for.
        """
        cohorts = [self._cohort(number, asked) for number, asked in enumerate(assignments)]
        if self._settings.noise:
            self._say_cost(cohorts)
        ask = partial(_ask, grid, cohorts)
        patience = min(timeout, self._settings.patience)
        ask("advertise", patience, _Cohort.calls, lambda c, node, body: c.of.advertised(node, say.Advert.unpack(body)))
        ask("share", patience, _Cohort.rosters, lambda c, node, body: c.of.shared(node, say.Shares.unpack(body)))
        if is_direct(grid):
            grid.train_ahead([one for cohort in cohorts for one in cohort.trainees()])
        ask("upload", timeout, _Cohort.boxes, lambda c, node, body: c.of.masked(node, say.Masked.unpack(body)))
        ask("agree", patience, _Cohort.survivors, lambda c, node, body: c.of.voted(node, say.Vote.unpack(body)))
        ask("unmask", patience, _Cohort.votes, lambda c, node, body: c.of.opened(node, say.Opened.unpack(body)))
        while cohorts:
            yield cohorts.pop(0).outcome()

    def _say_cost(self, cohorts: Sequence["_Cohort"]) -> None:
        round, delta = cohorts[0].asked.round, self._settings.delta
        worst = max(epsilon({release(each.grid, each.of.terms.threshold): round}, delta) for each in cohorts)
        logger.info(
            "round %d: noise %g: ε = %.4g at δ = %g after it, if no round was run twice",
            round,
            self._settings.noise,
            worst,
            delta,
        )

    def _cohort(self, number: int, asked: Assignment) -> "_Cohort":
        names = trained_names(build_on_meta(self._build, asked.sizes), asked.arrays)
        parcel = wire.pack(asked.arrays)
        label = parcel.label()
        members = len(asked.nodes)
        threshold = max(threshold_of(members), self._settings.threshold)
        length = sum(asked.arrays[name].numel() for name in names)
        try:
            grid = fit_grid(
                clip=self._settings.clip,
                noise=self._settings.noise,
                length=length,
                members=members,
                threshold=threshold,
            )
        except ValueError as error:
            raise RoundError(str(error)) from error
        terms = say.Terms(
            run=self._run,
            round=asked.round,
            cohort=number,
            members=members,
            threshold=threshold,
            length=length,
            bound=grid.bound,
            grid=grid.step,
            clip=grid.clip,
            variance=grid.variance,
            model=model_hash(parcel.layout, label.digest),
            units=units_hash(asked.units),
            order=order_hash(asked.order),
        )
        aggregator = Aggregator[int](terms, self._settings.min_cohort)
        return _Cohort(asked=asked, of=aggregator, names=names, parcel=parcel, grid=grid)


@dataclass(kw_only=True)
class _Cohort:
    """One cohort of a round, on its way through the steps."""

    asked: Assignment
    of: Aggregator[int]
    names: Sequence[str]
    parcel: wire.Parcel | None
    grid: Grid
    out: dict[int, str] = field(default_factory=dict)
    failed: str = ""
    merged: frozenset[int] = frozenset()
    down: int = 0
    up: int = 0

    def there(self) -> list[int]:
        """Those who have answered every step."""
        return [] if self.failed else [node for node in self.asked.nodes if node not in self.out]

    def trainees(self) -> list[Assignment]:
        """What those who are there will be asked to train, for each by itself."""
        there = set(self.there())
        return [one for one in self.asked.alone() if there.issuperset(one.nodes)]

    def calls(self) -> dict[int, Packed]:
        return dict.fromkeys(self.there(), self.of.call())

    def rosters(self) -> dict[int, Packed]:
        return dict.fromkeys(self.there(), self.of.roster())

    def boxes(self) -> dict[int, Packed]:
        return dict(self.of.boxes())

    def survivors(self) -> dict[int, Packed]:
        self.parcel, survivors = None, self.of.survivors()
        self.merged = frozenset(self.there())
        return dict.fromkeys(self.there(), survivors)

    def votes(self) -> dict[int, Packed]:
        return dict.fromkeys(self.there(), self.of.votes())

    def refuse(self, node: int, reason: str) -> None:
        """Ask a node no more in this round."""
        self.out.setdefault(node, reason)

    def outcome(self) -> Outcome:
        """What the cohort's clients made of their subnet together."""
        arrays, count = None, 0
        if not self.failed:
            try:
                total, count = self.of.total()
                arrays = moved(self.asked.arrays, self.names, self.grid.mean(total, count))
            except SecureError as error:
                self.failed = str(error)
        reason = f"its cohort's sum is lost: {self.failed}" if self.failed else ""
        merged = frozenset[int]() if self.failed else self.merged
        refused = {node: self.out.get(node, reason) for node in self.asked.nodes if node not in merged}
        return Outcome(
            assignment=self.asked,
            nodes=self.asked.nodes,
            losses=np.full(len(self.asked.nodes), np.nan),  # said to nobody
            seconds=0.0,
            refused=refused,
            arrays=arrays,
            weight=float(count),
            traffic=(self.down, self.up),
        )


_Given = Callable[[_Cohort], dict[int, Packed]]
_Taken = Callable[[_Cohort, int, bytes], None]


def _ask(grid: FlowerGrid, cohorts: Sequence[_Cohort], name: str, timeout: float, given: _Given, taken: _Taken) -> None:
    """One step of all cohorts: what every member is given, and what comes back."""
    asked: dict[int, tuple[_Cohort, Metadata]] = {}
    messages: list[Message] = []
    for cohort in cohorts:
        try:
            bodies = {} if cohort.failed else given(cohort)
        except SecureError as error:
            cohort.failed = str(error)
            logger.warning("round %d: a cohort of %d: %s", cohort.asked.round, len(cohort.asked.nodes), error)
            continue
        for node, message in _messages(cohort, name, bodies, timeout):
            asked[node] = (cohort, message.metadata)  # its id is known only once the grid has pushed it
            messages.append(message)
    waiting = set(asked)
    for answer in exchange(grid, [messages], timeout, lambda node, reason: asked[node][0].refuse(node, reason)):
        own = answer.metadata.reply_to_message_id
        if (member := next((node for node in waiting if asked[node][1].message_id == own), None)) is None:
            continue
        waiting.remove(member)
        cohort = asked[member][0]
        try:
            body = wire.open_step_answer(answer)
            cohort.up += len(body)
            taken(cohort, member, body)
        except (WireError, SecureError) as error:
            cohort.refuse(member, str(error))
    for node in waiting:
        asked[node][0].refuse(node, f"no answer to '{name}' came in time")


def _messages(
    cohort: _Cohort, name: str, bodies: Mapping[int, Packed], timeout: float
) -> Iterator[tuple[int, Message]]:
    """To each its own; what is for everyone is packed once."""
    parcel = cohort.parcel if name == "upload" else None
    order = {**cohort.asked.order, "nonce": ""}
    packed: dict[int, bytes] = {}
    for node, body in bodies.items():
        if id(body) not in packed:
            packed[id(body)] = body.pack()
        data = packed[id(body)]
        cohort.down += len(data) + (parcel.size if parcel else 0)
        step = wire.Step(name=name, body=data)
        yield node, wire.step_message(node, step, cohort.asked.round, timeout, parcel=parcel, order=order)

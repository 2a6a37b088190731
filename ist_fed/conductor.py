"""Rounds, one after another: who trains what, what is sent, what is merged, who is told."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from ist_fed import wire
from ist_fed.arrays import Arrays, Build, arrays_of, build_on_meta, is_finite
from ist_fed.axes import infer
from ist_fed.cohort import Assignment, Direct, Outcome, is_direct
from ist_fed.coverage import Coverage
from ist_fed.errors import AxesError
from ist_fed.exchange import exchange
from ist_fed.lending import Conditions, Lending, lend
from ist_fed.network import SimulatedRound, Virtual
from ist_fed.options import check_together, lease_of
from ist_fed.phases import Course, Phase, Terms
from ist_fed.places import Units
from ist_fed.privacy import Central
from ist_fed.privacy.secure import Secure
from ist_fed.rescale import Rescaling
from ist_fed.robust import Keeper
from ist_fed.roster import Roster, Weighting
from ist_fed.round import Round, RoundReport
from ist_fed.rules import Lease, Node, Plan, Rule, plan_round
from ist_fed.sealed import SealedRounds
from ist_fed.server_optimizer import Server, ServerOptimizer
from ist_fed.subnet import axes_apart
from ist_fed.train import Training, learning_rate
from ist_fed.travelling import Travelling

logger = logging.getLogger("ist_fed")


class Conductor:
    """Holds the rounds of `IndependentSubnetTraining`, whose arguments these are; knows no strategy of Flower's."""

    def __init__(
        self,
        *,
        build: Build,
        sizes: Mapping[str, int],
        rule: Rule,
        local_steps: int = 40,
        training: Training | None = None,
        seed: int = 0,
        declared: Mapping[str, str] | None = None,
        weighting: Weighting = "examples",
        min_nodes: int = 1,
        min_replies: int = 1,
        adapt: bool = False,
        min_limit: float = 0.0,
        secure: Secure | None = None,
        privacy: Central | None = None,
        robust: Keeper | None = None,
        on_round: Callable[[RoundReport], Mapping[str, Any] | None] | None = None,
        server_optimizer: ServerOptimizer | None = None,
        phases: Sequence[Phase] = (),
        network: Virtual | None = None,
        in_place: bool = False,
    ) -> None:
        if local_steps < 1 or min_nodes < 1 or min_replies < 1:
            raise ValueError("local_steps, min_nodes and min_replies must be at least 1")
        self.axes, self.sizes = infer(build, sizes, declared), dict(sizes)
        model = build_on_meta(build, sizes)
        self._template, self._rescaling = arrays_of(model), Rescaling(model, self.axes)
        self._privacy, self._robust = privacy, robust
        self._trained = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
        parameters = {name for name, _ in model.named_parameters()}
        self._new_coverage = partial(Coverage, self._template, self.axes, self.sizes)
        self._new_server = partial(Server, server_optimizer or ServerOptimizer(), parameters, self.axes)
        self._new_travelling = partial(Travelling, model, self.axes)
        plain = Terms(rule=rule, local_steps=local_steps, training=training or Training())
        self.course = Course(phases, plain)
        own = server_optimizer not in (None, ServerOptimizer())
        check_together(
            self.course,
            privacy=privacy is not None,
            secure=secure is not None,
            robust=robust is not None,
            outvotes=robust is not None and robust.outvotes,
            own_server=own,
            network=network is not None,
            in_place=in_place,
            plain_roster=weighting == "uniform" and not adapt,
        )
        if privacy is not None:
            privacy.check_run(rule, weighting=weighting, adapt=adapt, phases=bool(phases))
        self._lease = lease_of(self.course, phases, bool(privacy or secure or robust), own)
        self._build = build
        self._seed, self._min_replies, self._on_round = seed, min_replies, on_round
        self._new_roster = partial(
            Roster,
            min_nodes,
            weighting,
            self.sizes,
            self.course.heaviest,
            adapt,
            min_limit,
            network.width if network else lambda client: 1.0,
        )
        self._network = network
        self._simulated: SimulatedRound | None = None
        self._new_sealed = partial(SealedRounds, secure, build) if secure else None
        self._sealed: SealedRounds | None = None
        self._in_place = in_place
        self._open: Round | None = None
        self._begin()

    def _begin(self) -> None:
        """Forget an earlier run: with its momentum, another one would not be what its seed says."""
        self.coverage, self.server, self.travelling = self._new_coverage(), self._new_server(), self._new_travelling()
        self.loans: dict[str, Tensor] = {}  # of the report after which a run is taken up
        self._rounds: int | None = None  # of the whole run, for the learning rate; `start` knows it
        self._roster = self._new_roster()
        self.course.rewind(1)
        if self._robust is not None:
            self._robust.forget()

    def summary(self) -> None:
        """Log what is trained and how."""
        for text in self.course.summary():
            logger.info("%s, sizes %s", text, self.sizes)
        if any(own.rescale == "auto" for own in self.course.trainings):
            logger.info("%s", self._rescaling)

    def rounds(
        self,
        grid: Grid,
        arrays: dict[str, Tensor],
        num_rounds: int,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        *,
        first_round: int = 1,
    ) -> Iterator[RoundReport]:
        """The rounds of `start`, one by one, without Flower's records, in which the network would be twice in memory.

        Args:
            grid: where the clients are.
            arrays: the wide network's state; not to be changed by the caller any more.
            num_rounds: and all else as of `start`.
        """
        if first_round == 1:
            self._begin()
        self._rounds, self._roster = num_rounds, self._new_roster()
        self.course.rewind(first_round)
        self._sealed = self._new_sealed() if self._new_sealed else None
        self.summary()
        # In the network's own order, in which replies come; a checkpoint's is another.
        arrays = {name: arrays[name] for name in self._template}
        if endless := [name for name, array in arrays.items() if not is_finite(array)]:
            raise AxesError(
                f"arrays that travel must be finite, but '{endless[0]}' is not; of a mask register the buffer with "
                f"persistent=False, and it stays with each network"
            )
        if is_direct(grid):
            arrays = {name: array.to(grid.device) for name, array in arrays.items()}
        reports = self._reports(first_round, arrays, train_config or ConfigRecord(), grid, timeout)
        del arrays  # those of the first round are needed no longer than it lasts
        yield from (report for _, report in zip(range(first_round, num_rounds + 1), reports, strict=False))

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def _reports(
        self, number: int, arrays: dict[str, Tensor], config: ConfigRecord, grid: Grid, timeout: float
    ) -> Iterator[RoundReport]:
        """Round by round, without end."""
        if self._lease is not None:
            lending = self._lending(self._lease, config, grid, timeout)
            wide = self.travelling.beside(arrays, lending.conditions.training)
            for report in lend(lending, wide, number, self.loans):
                yield self._told(replace(report, arrays=self.travelling.take(report.arrays)))
        while self._lease is None:
            report = self._round(number, arrays, config, grid, timeout)
            number, arrays = number + 1, report.arrays
            yield report

    def _lending(self, rule: Lease, config: ConfigRecord, grid: Grid, timeout: float) -> Lending:
        terms = self.course.terms(1, self._rounds)
        conditions = Conditions(
            seed=self._seed,
            local_steps=terms.local_steps,
            training=terms.training,
            scales=partial(self._rescaling.scales, terms.training.rescale, self.sizes),
            rounds=self._rounds or 1,
            min_replies=self._min_replies,
        )
        return Lending(
            rule=rule,
            conditions=conditions,
            build=self._build,
            axes=self.travelling.axes,
            sizes=self.sizes,
            coverage=self.coverage,
            roster=self._roster.under(rule),
            grid=grid,
            network=self._network,
            config=config,
            timeout=timeout,
        )

    def _told(self, report: RoundReport) -> RoundReport:
        told = self._on_round(report) if self._on_round is not None else None
        known = {"train_loss": report.loss, "coverage": report.coverage, **(told if isinstance(told, Mapping) else {})}
        self.course.after(report.round, self._rounds, known)
        return report

    def _round(
        self, number: int, arrays: dict[str, Tensor], config: ConfigRecord, grid: Grid, timeout: float
    ) -> RoundReport:
        this, assignments = self._assign(number, arrays, grid, timeout)
        if self._sealed:
            return self._merge(this, self._sealed.carry_out(grid, assignments, timeout))
        if is_direct(grid):
            if this.is_in_place:
                return self._merge(this, _one_after_another(this, assignments, grid))
            with this.timed("extract"):
                apart = self._privacy is not None or self._robust is not None
                cut = [one for asked in assignments for one in (asked.alone() if apart else (asked,))]
            return self._merge(this, grid.carry_out(cut))
        messages = self._messages(this, assignments, config, timeout)
        pushes = map(_alone, messages) if this.is_in_place else [list(messages)]
        return self._merge(this, exchange(grid, pushes, timeout, this.lost))

    def _assign(
        self, number: int, arrays: dict[str, Tensor], grid: Grid, timeout: float
    ) -> tuple[Round, Iterator[Assignment]]:
        """Open a round: deal the units out; a subnet is cut when it is asked for."""
        terms = self.course.terms(number, self._rounds)
        connected = self._roster.under(terms.rule).connected(grid, timeout)
        here = self._network.present(number, connected) if self._network else connected
        clients = {client.node: client for client in here}
        nodes = [Node(client.node, client.capacity, client.limit) for client in clients.values()]
        beside = self.travelling.beside(arrays, terms.training)
        this = Round(number, tuple(clients.values()), beside, self.travelling.axes, self.coverage)
        with this.timed("assign"):
            plan = self._plan(this, number, terms.rule, nodes, arrays)
        if self._in_place and _shares_nothing(plan, self.sizes):
            this.in_place()
            arrays.clear()  # nor may anyone take these for what they were
        lr = learning_rate(terms.training, number, self._rounds or number)
        held = [(units, cohort) for units, cohort in zip(plan.subnets, plan.cohorts, strict=True) if cohort]

        def assignment(one: tuple[Units, tuple[int, ...]], arrays: Arrays) -> Assignment:
            units, cohort = one
            return Assignment(
                round=number,
                seed=self._seed,
                units=units,
                arrays=arrays,
                once=this.is_in_place,
                nodes=cohort,
                weights=tuple(clients[node].weight for node in cohort),
                local_steps=terms.local_steps,
                lr=lr,
                training=terms.training,
                scales=self._rescaling.scales(
                    terms.training.rescale, self.sizes, {axis: index.numel() for axis, index in units.items()}
                ),
            )

        subnets = this.cut([units for units, _ in held])
        assignments = map(assignment, held, subnets)  # which keeps none of them
        if self._network is None:
            return this, assignments
        self._simulated = SimulatedRound(self._network, number, {client.node: client.number for client in here})
        return this, self._simulated.ask(assignments, this.failed)

    def _plan(self, this: Round, number: int, rule: Rule, nodes: list[Node], arrays: dict[str, Tensor]) -> Plan:
        """Who trains what; in a private run the round is told to keep it to itself."""
        if self._privacy is None:
            plan = plan_round(rule, number, nodes, self.sizes, self._seed, self.coverage.trained)
            if self._robust is not None:
                this.guard(self._robust.merge(this.before, self.travelling.axes, plan, self._trained))
            return plan
        trained = self.coverage.trained
        drawn = self._privacy.draw(rule, number, nodes, self.sizes, self._seed, trained)
        merge = self._privacy.merge(number, arrays, self.axes, drawn, self._trained)
        this.protect(merge, drawn.plan.subnets, int(merge.usual))
        return drawn.plan

    def _messages(
        self, this: Round, assignments: Iterable[Assignment], config: ConfigRecord, timeout: float
    ) -> Iterator[Message]:
        """Pack and address; one packed subnet serves its whole cohort. What was asked for is not kept here."""
        with this.timed("extract"):
            for asked in assignments:
                order, units, nodes, parcel = asked.order, asked.units, asked.nodes, wire.pack(asked.arrays)
                del asked
                label = parcel.label()
                for node in nodes:
                    nonce = wire.new_nonce()
                    message = wire.order_message(node, parcel, {**order, "nonce": nonce}, config, ttl=timeout)
                    this.sent(node, units, nonce, label, message)
                    yield message
                    del message
                del parcel

    def _merge(self, this: Round, answers: Iterable[Message | Outcome]) -> RoundReport:
        with this.timed("wait"):
            for answer in answers:
                if isinstance(answer, Outcome):
                    this.take_outcome(answer)
                else:
                    this.take(answer)
                del answer  # before the next is made
        report = this.close(self._min_replies)
        if self._robust is not None and this.robust is not None:
            report = replace(report, told={**report.told, **self._robust.learn(this.robust)})
        merged = self.travelling.take(report.arrays)
        report = replace(report, arrays=self.server.step(this.before, merged, list(this.held.values())))
        times = this.times
        if self._network is not None and self._simulated is not None:
            trips = self._simulated.trips({node: seconds for node, (_, seconds) in times.items()})
            report = replace(report, virtual=self._network.round_seconds(trips.values()))
            times = {node: (units, trips[node].alone) for node, (units, _) in times.items()}
        self._roster.learn(times)
        return self._told(report)


def _shares_nothing(plan: Plan, sizes: Mapping[str, int]) -> bool:
    """Whether every unit has one holder at most."""
    alone = all(len(cohort) <= 1 for cohort in plan.cohorts)
    return bool(plan.subnets) and alone and axes_apart(plan.subnets, sizes) == set(sizes)


def _one_after_another(this: Round, assignments: Iterator[Assignment], grid: Direct) -> Iterator[Outcome]:
    """Let each be carried out before the next is cut; nothing of it is kept here."""
    while True:
        with this.timed("extract"):
            asked = next(assignments, None)
        if asked is None:
            return
        yield from grid.carry_out([asked])
        del asked


def _alone(message: Message) -> list[Message]:
    return [message]

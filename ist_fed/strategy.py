"""Independent Subnet Training as a Flower strategy. It only orchestrates: decode, one pure call, encode."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from ist_fed import wire
from ist_fed.arrays import Arrays, Build, arrays_of, build_on_meta
from ist_fed.axes import infer
from ist_fed.capacity import share
from ist_fed.cohort import Assignment, Direct, Outcome
from ist_fed.coverage import Coverage
from ist_fed.errors import RoundError, RuleError
from ist_fed.exchange import exchange
from ist_fed.lending import Conditions, Lending, lend
from ist_fed.network import SimulatedRound, Virtual
from ist_fed.phases import Course, Phase, Terms
from ist_fed.privacy import Central
from ist_fed.privacy.secure import Secure
from ist_fed.rescale import Rescaling
from ist_fed.robust import Keeper
from ist_fed.roster import Roster, Weighting
from ist_fed.round import Round, RoundReport
from ist_fed.rules import Lease, Node, Plan, Rule, plan_round
from ist_fed.sealed import SealedRounds
from ist_fed.server_optimizer import Server, ServerOptimizer
from ist_fed.subnet import axes_apart, extract
from ist_fed.train import Training, learning_rate
from ist_fed.travelling import Travelling

logger = logging.getLogger("ist_fed")


class IndependentSubnetTraining(Strategy):
    """Train one wide network as narrow ones, each on a client that never sees the rest.

    Each round the rule deals out the hidden units, every client gets the subnet its units make, trains it for
    `local_steps` steps and returns it, and what came back is merged into the wide network as it arrives. A reply is
    checked before it is merged; one that fails the check is refused, and its block keeps its value.

    Args:
        build: the model factory, `build(**sizes) -> nn.Module`.
        sizes: units of each axis of the full network.
        rule: who holds which units; `rules.Disjoint(groups=n)` is the method of the paper. With `rules.Lease` nobody
            waits for anybody, and a round is as many leases that ended as there are clients.
        local_steps: steps a client takes between receiving its subnet and returning it.
        training: optimiser, learning rate, batch size.
        seed: of every draw, of the server and of the clients.
        declared: dimensions of arrays whose layout `infer` cannot see.
        weighting: within a cohort, weigh clients by their `examples` or `uniform`ly.
        min_nodes: wait until so many clients are connected before a round.
        min_replies: stop if a round brings fewer usable replies.
        adapt: let shares follow the time that each client's rounds take, so that all end at once. Times differ from
            run to run, and so do the results then: neither another engine nor a resumed run gives the same bits.
        secure: let every cohort add its updates up in secret, so that the server sees sums only; needs `uniform`
            weighting, for a client's share must not depend on its data.
        privacy: central differential privacy of the run; what comes back is then clipped, summed and given noise.
        robust: how what cohorts send is merged where clients may send anything; not in a private run.
        on_round: called with the `RoundReport` after each round. What it returns are metrics of the round, as are what
            `evaluate_fn` gives, `train_loss` and `coverage`; they may end a phase.
        server_optimizer: what the server does with a round's change of the network.
        phases: stretches of rounds that are asked otherwise than the arguments above say.
        min_limit: leave out clients that can hold less than this fraction of every axis.
        network: simulate clients that are slow, absent or fail, and links, in virtual time; a round does not wait for
            it, but says how long it would have lasted.
        in_place: in rounds whose subnets share no unit and have one holder each, cut a subnet when its client's turn
            comes and write it over the network when it is back, so that little more than the network is in memory. What
            was `arrays` of an earlier report is emptied; a round that fails leaves no network, but what was saved.

    Source: Yuan et al., PVLDB 15(8), 2022, algorithm 1.
    """

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
        if secure and (weighting != "uniform" or adapt):
            raise ValueError("secure rounds need weighting 'uniform', and no adapt: the server sees nothing else")
        if in_place and (privacy or secure or robust or server_optimizer not in (None, ServerOptimizer())):
            raise ValueError("in_place keeps no network as it was, to which server optimisers and other merges compare")
        self.axes, self.sizes = infer(build, sizes, declared), dict(sizes)
        model = build_on_meta(build, sizes)
        self._template, self._rescaling = arrays_of(model), Rescaling(model, self.axes)
        if privacy is not None and robust is not None:
            raise ValueError("a private run sums updates so that nobody's shows: none can be outvoted or refused")
        self._privacy, self._robust = privacy, robust
        self._trained = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
        self.coverage = Coverage(self._template, self.axes, self.sizes)
        parameters = {name for name, _ in model.named_parameters()}
        self.server = Server(server_optimizer or ServerOptimizer(), parameters, self.axes)
        self.travelling = Travelling(model, self.axes)
        plain = Terms(rule=rule, local_steps=local_steps, training=training or Training())
        self.course = Course(phases, plain)
        self._lease = _lease_of(self.course, phases, privacy or secure or robust, server_optimizer)
        if (privacy or secure) and any(own.carried for own in self.course.trainings):
            raise ValueError("state of optimisers has no noise, so none leaves a private run; let it start fresh")
        if privacy is not None and network is not None:
            raise ValueError("how long a simulated round lasts tells who was drawn; leave network out of a private run")
        self.loans: dict[str, Tensor] = {}  # of the report after which a run is taken up
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
        self._roster = self._new_roster()
        self._network = network
        self._simulated: SimulatedRound | None = None
        self._new_sealed = partial(SealedRounds, secure, build) if secure else None
        self._sealed: SealedRounds | None = None
        self._in_place = in_place
        self._rounds: int | None = None  # of the whole run, for the learning rate; `start` knows it
        self._open: Round | None = None

    # --- Flower's interface -------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        first_round: int = 1,
    ) -> Result:
        """Run the rounds. As Flower's own, but replies are merged as they arrive and a run can be taken up again.

        Args:
            grid: where the clients are.
            initial_arrays: the wide network's state.
            num_rounds: the last round's number.
            timeout: seconds after which a round goes on without the replies still missing.
            train_config: sent along with every order.
            evaluate_config: ignored; clients hold subnets, so the whole network is evaluated on the server.
            evaluate_fn: called as `evaluate_fn(round, arrays)` before the first round and after each.
            first_round: to take up a run after round `first_round - 1`; load what `coverage`, `server` and `travelling`
                held then, and tell `course` the metrics of earlier rounds if `until` reads them.

        Raises:
            RoundError: a round brought fewer than `min_replies` usable replies.
            WireError: `initial_arrays` are not this model's.
        """
        result = Result()
        arrays = wire.from_record(initial_arrays, self._template)
        del initial_arrays  # nobody needs them beside
        _evaluate(evaluate_fn, first_round - 1, arrays, result)
        for report in self.rounds(grid, arrays, num_rounds, timeout, train_config, first_round=first_round):
            number, arrays = report.round, report.arrays
            result.train_metrics_clientapp[number] = _metrics(report)
            _evaluate(evaluate_fn, number, arrays, result)
            self.course.after(number, num_rounds, result.evaluate_metrics_serverapp.get(number, {}))
        result.arrays = wire.to_record(arrays)
        return result

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
        self._rounds, self._roster = num_rounds, self._new_roster()
        self.course.rewind(first_round)
        self._sealed = self._new_sealed() if self._new_sealed else None
        self.summary()
        if isinstance(grid, Direct):
            arrays = {name: array.to(grid.device) for name, array in arrays.items()}
        reports = self._reports(first_round, arrays, train_config or ConfigRecord(), grid, timeout)
        del arrays  # those of the first round are needed no longer than it lasts
        yield from (report for _, report in zip(range(first_round, num_rounds + 1), reports, strict=False))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Plan a round and cut a subnet for each node; one packed subnet serves its whole cohort."""
        if self._lease is not None:
            raise RoundError("leases know no rounds, which Flower's hooks are for; run this strategy's own start()")
        if self._rounds is None and self.course.terms(server_round, None).training.schedule == "cosine":
            raise RoundError(
                "the cosine schedule needs the number of rounds, which Flower's hooks do not say; run this strategy's "
                "own start(), or use the constant schedule"
            )
        if self._new_sealed:
            raise RoundError(
                "a secure round has five steps, which Flower's hooks have not; run this strategy's start()"
            )
        wide = wire.from_record(arrays, self._template)
        self._open, assignments = self._assign(server_round, wide, grid, timeout=3600)
        return list(self._messages(self._open, assignments, config, timeout=3600))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and merge the replies to the round that `configure_train` opened, one by one as they come."""
        this, self._open = self._open, None
        if this is None or this.number != server_round:
            raise RoundError(f"round {server_round} is not open; call configure_train for it first")
        report = self._merge(this, replies)
        return wire.to_record(report.arrays), _metrics(report)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Nothing: a client never gets the whole network, so `evaluate_fn` evaluates it on the server."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing, for the same reason."""
        return None

    def summary(self) -> None:
        """Log what is trained and how."""
        for text in self.course.summary():
            logger.info("%s, sizes %s", text, self.sizes)
        if any(own.rescale == "auto" for own in self.course.trainings):
            logger.info("%s", self._rescaling)

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
            roster=self._roster,
            grid=grid,
            network=self._network,
            config=config,
            timeout=timeout,
        )

    def _told(self, report: RoundReport) -> RoundReport:
        told = self._on_round(report) if self._on_round is not None else None
        known = {"train_loss": report.loss, "coverage": report.coverage, **(told or {})}
        self.course.after(report.round, self._rounds, known)
        return report

    def _round(
        self, number: int, arrays: dict[str, Tensor], config: ConfigRecord, grid: Grid, timeout: float
    ) -> RoundReport:
        this, assignments = self._assign(number, arrays, grid, timeout)
        if self._sealed:
            return self._merge(this, self._sealed.carry_out(grid, assignments, timeout))
        if isinstance(grid, Direct):
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
        connected = self._roster.connected(grid, timeout)
        here = self._network.present(number, connected) if self._network else connected
        clients = {client.node: client for client in here}
        nodes = [Node(client.node, client.capacity, client.limit) for client in clients.values()]
        terms = self.course.terms(number, self._rounds)
        beside = self.travelling.beside(arrays, terms.training)
        this = Round(number, tuple(clients.values()), beside, self.travelling.axes, self.coverage)
        with this.timed("assign"):
            plan = self._plan(this, number, terms.rule, nodes, arrays)
        wide: Arrays = beside
        if self._in_place and _shares_nothing(plan, self.sizes):
            wide = this.in_place()
            arrays.clear()  # nor may anyone take these for what they were
        assignments = (
            Assignment(
                round=number,
                seed=self._seed,
                units=units,
                arrays=extract(wide, self.travelling.axes, units),
                once=this.is_in_place,
                nodes=cohort,
                weights=tuple(clients[node].weight for node in cohort),
                local_steps=terms.local_steps,
                lr=learning_rate(terms.training, number, self._rounds or number),
                training=terms.training,
                scales=self._rescaling.scales(
                    terms.training.rescale, self.sizes, {axis: len(held) for axis, held in units.items()}
                ),
            )
            for units, cohort in zip(plan.subnets, plan.cohorts, strict=True)
            if cohort
        )
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
        self._roster.learn({node: (share(units, self.sizes), took) for node, (units, took) in times.items()})
        return self._told(report)


def _lease_of(
    course: Course,
    phases: Sequence[Phase],
    merge: Central | Secure | Keeper | None,
    server_optimizer: ServerOptimizer | None,
) -> Lease | None:
    """The rule, if units are lent: then there are no rounds that anything else could be about."""
    rules = [course.plain.rule, *(phase.rule for phase in phases)]
    if not any(isinstance(rule, Lease) for rule in rules):
        return None
    own = server_optimizer not in (None, ServerOptimizer())
    asked = {"phases": bool(phases), "privacy or robust merging": merge is not None, "a server optimiser": own}
    if others := [name for name, given in asked.items() if given]:
        raise RuleError(
            f"where units are lent there are no rounds that phases, a merge or a server optimiser could be about, but "
            f"the rule is 'lease' and {' and '.join(others)} was asked for; leave one of them out"
        )
    return course.plain.rule if isinstance(course.plain.rule, Lease) else None


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


def _metrics(report: RoundReport) -> MetricRecord:
    return MetricRecord(
        {
            "train_loss": report.loss,
            "merged": report.merged,
            "refused": len(report.refused),
            "bytes_down": report.bytes_down,
            "bytes_up": report.bytes_up,
            "coverage": report.coverage,
        }
    )


def _evaluate(
    function: Callable[[int, ArrayRecord], MetricRecord | None] | None,
    number: int,
    arrays: dict[str, Tensor],
    result: Result,
) -> None:
    if function is not None and (metrics := function(number, wire.to_record(arrays))) is not None:
        result.evaluate_metrics_serverapp[number] = metrics

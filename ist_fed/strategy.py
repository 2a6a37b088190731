"""Independent Subnet Training as a Flower strategy. It only orchestrates: decode, one pure call, encode."""

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor

from ist_fed import wire
from ist_fed.conductor import Conductor
from ist_fed.errors import RoundError
from ist_fed.round import RoundReport


class IndependentSubnetTraining(Conductor, Strategy):
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
        declared: dimensions of arrays whose layout `infer` cannot see; that none is missing, `check_symmetry` shows.
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

    Raises:
        AxesError: `infer` cannot say which axis indexes which dimension, or a declaration is wrong.
        RuleError: units are lent, and something is asked for that is about rounds.
        ValueError: an argument is out of its range, or two contradict each other.

    Source: Yuan et al., PVLDB 15(8), 2022, algorithm 1.
    """

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
            first_round: 1 forgets what an earlier run left here. To take up a run after round `first_round - 1`, load
                what `coverage`, `server` and `travelling` held then, and tell `course` the metrics of earlier rounds if
                `until` reads them.

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

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Plan a round and cut a subnet for each node; one packed subnet serves its whole cohort."""
        if self._lease is not None:
            raise RoundError("leases know no rounds, which Flower's hooks are for; run this strategy's own start()")
        if server_round == 1:
            self._begin()
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

"""The strategy with real workers: the laws of a whole run, and what a misbehaving client can do (nothing)."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ist_fed import IndependentSubnetTraining, extract, roster, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.checkpoints import Checkpoint, Checkpoints
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.errors import AxesError, RoundError, WireError
from ist_fed.evaluate import evaluate, network, ready
from ist_fed.robust import Keeper, Robust
from ist_fed.seeds import generator
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.train import Training
from ist_fed.wire.parcel import take_pieces
from ist_fed.wire.records import ORDER, REPLY
from ist_fed.worker import Worker

HALVES = rules.Disjoint(groups=2, min_units=2)
QUARTERS = rules.Disjoint(groups=4, min_units=2)


# --- Law 7: one client and one group are plain SGD --------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("rule", [rules.Disjoint(groups=1, min_units=2), rules.Full()])
def test_whole(rule: rules.Rule, norm: str) -> None:
    task = tiny.Tiny(norm=norm)
    run = tiny.federate(task, rule, 1, rounds=4)
    model = task.build(**tiny.SIZES)
    model.load_state_dict(run.before)
    for round in (1, 2, 3, 4):  # the optimiser starts afresh every round
        losses = tiny.plain_sgd(model, task.client_data(0, 1), tiny.TRAINING, 5, tiny.stream(1, round, 0))
        assert run.reports[round - 1].loss == pytest.approx(sum(losses) / 5, rel=1e-12)
    assert tiny.same(run.after, arrays_of(model))


# --- Law 8: every local step of every client reaches the global network -----------------------------------------------


def by_hand(run: tiny.Run, task: tiny.Tiny, steps: int) -> dict[str, Tensor]:
    """One round of two clients on an MLP with BatchNorm, cut and merged with nothing of ours."""
    wide = {name: array.clone() for name, array in run.before.items()}
    trained = []
    for client, units in sorted(run.plans[0].items()):
        h1, h2 = units["hidden1"], units["hidden2"]
        narrow = task.build(hidden1=len(h1), hidden2=len(h2))
        cut = {name: array[h1] if name.startswith("2.") and array.ndim else array for name, array in run.before.items()}
        cut |= {name: array[h2] for name, array in run.before.items() if name.startswith("5.") and array.ndim}
        cut["1.weight"] = run.before["1.weight"][h1]
        cut["4.weight"] = run.before["4.weight"][h2][:, h1]
        cut["7.weight"] = run.before["7.weight"][:, h2]
        narrow.load_state_dict(cut)
        tiny.plain_sgd(narrow, task.client_data(client, 2), tiny.TRAINING, steps, tiny.stream(1, 1, client))
        state = narrow.state_dict()
        for name in ("weight", "bias", "running_mean", "running_var"):
            wide[f"2.{name}"][h1] = state[f"2.{name}"]
            wide[f"5.{name}"][h2] = state[f"5.{name}"]
        wide["1.weight"][h1] = state["1.weight"]
        wide["4.weight"][torch.meshgrid(h2, h1, indexing="ij")] = state["4.weight"]
        wide["7.weight"][:, h2] = state["7.weight"]
        for name in ("2.num_batches_tracked", "5.num_batches_tracked"):
            wide[name] = state[name]
        trained.append(state["7.bias"].double())
    wide["7.bias"] = (torch.stack(trained).sum(0) / 2).float()  # nothing splits it: both hold it
    return wide


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_step_counts(steps: int) -> None:
    task = tiny.Tiny()
    run = tiny.federate(task, HALVES, 2, local_steps=steps)
    assert tiny.same(run.after, by_hand(run, task, steps))
    assert not tiny.same(run.after, by_hand(run, task, steps + 1))
    assert int(run.after["2.num_batches_tracked"]) == steps


def test_coordinates_between_the_groups_keep_their_bits() -> None:
    run = tiny.federate(tiny.Tiny(), HALVES, 2)
    (one, other) = (run.plans[0][node] for node in (0, 1))
    for rows, columns in ((one, other), (other, one)):
        between = torch.meshgrid(rows["hidden2"], columns["hidden1"], indexing="ij")
        assert torch.equal(run.after["4.weight"][between], run.before["4.weight"][between])
    assert run.reports[0].coverage < 1


# --- Law 9: bytes -----------------------------------------------------------------------------------------------------


class Counting(InProcessGrid):
    """Counts the payload of what passes, as NumPy reads it."""

    down = up = largest = 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        type(self).down += sum(payload(message) for message in messages)
        type(self).largest = max(type(self).largest, *map(overhead, messages))
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        type(self).up += sum(payload(reply) for reply in replies)
        return replies


def payload(message: Message) -> int:
    key = ORDER if ORDER in message.content else REPLY
    return sum(map(len, take_pieces(message.content, key)))


def overhead(message: Message) -> int:
    """What stands beside the weights: Flower's own count of all records, less the payload."""
    records = message.content.values()
    return sum(record.count_bytes() for record in records if len(record)) - payload(message)


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (1, {"hidden1": 8, "hidden2": 12}),
        (2, {"hidden1": 8}),
        (2, {"hidden1": 8, "hidden2": 12}),
        (4, {"hidden1": 16, "hidden2": 8, "hidden3": 12}),
    ],
)
def test_bytes(n: int, sizes: dict[str, int]) -> None:
    Counting.down = Counting.up = Counting.largest = 0
    rule, rounds = rules.Disjoint(groups=n, min_units=2), 3
    run = tiny.federate(tiny.Tiny(), rule, n, rounds=rounds, sizes=sizes, local_steps=1, grid=Counting)
    h = list(sizes.values())
    numbers = (
        tiny.INPUTS * h[0] // n
        + sum(before * after // n**2 for before, after in pairwise(h))
        + h[-1] * tiny.CLASSES // n
        + tiny.CLASSES
        + sum(4 * units // n for units in h)  # BatchNorm: weight, bias, running mean, running variance
    )
    site = 4 * numbers + 8 * len(h)  # and its counter of batches
    assert Counting.down == Counting.up == rounds * n * site
    assert [report.bytes_down for report in run.reports] == [n * site] * rounds
    assert [report.bytes_up for report in run.reports] == [n * site] * rounds
    assert Counting.largest < 2000


def test_only_what_was_merged_counts_as_received() -> None:
    run = tiny.federate(tiny.Tiny(), HALVES, 2, instead={1: raising})
    assert run.reports[0].bytes_up == run.reports[0].bytes_down // 2


# --- Law 11: resume ---------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("rule", [HALVES, QUARTERS, rules.Full()])
def test_resume(tmp_path: Path, rule: rules.Rule, stop: int) -> None:
    """From a file: there arrays stand in another order than in the network."""
    task = tiny.Tiny(dropout=0.2)
    training = Training(lr=0.1, batch_size=8, schedule="cosine", warmup=1)
    whole = tiny.federate(task, rule, 4, rounds=5, training=training)

    reports = []

    def note(report: Any) -> None:
        reports.append(report)
        if report.round == stop:
            raise Stop

    first = tiny.strategy(task, rule, training=training, on_round=note)
    with pytest.raises(Stop):
        first.start(InProcessGrid(4, tiny.handlers(task, 4)), wire.to_record(tiny.initial(task)), 5)

    Checkpoints(tmp_path).stage(Checkpoint(stop, reports[-1].arrays, first.coverage.state()), keep=1)()
    state = Checkpoints(tmp_path).restore()
    second = tiny.strategy(task, rule, training=training, on_round=reports.append)
    second.coverage.load(state.coverage)
    grid = InProcessGrid(4, tiny.handlers(task, 4))
    assert len(list(second.rounds(grid, state.arrays, 5, first_round=stop + 1))) == 5 - stop

    assert [report.round for report in reports] == [1, 2, 3, 4, 5]
    assert tiny.same(reports[-1].arrays, whole.after)
    for one, other in zip(reports, whole.reports, strict=True):
        assert (one.loss, one.coverage, one.clients) == (other.loss, other.coverage, other.clients)


def test_the_rate_of_each_round_is_that_of_the_schedule_over_the_whole_run() -> None:
    rates = []

    def watching(worker: Worker, message: Message) -> Message:
        rates.append(wire.open_order(message).lr)
        return worker.train(message)

    training = Training(lr=0.4, schedule="cosine", batch_size=8)
    tiny.federate(tiny.Tiny(), rules.Full(), 1, rounds=4, training=training, instead={0: watching})
    assert rates == pytest.approx([0.2 * (1 + cos(pi * done / 4)) for done in range(4)])


def test_units_are_dealt_out_anew_each_round_from_the_seed_and_the_round_alone() -> None:
    run = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=3)
    nodes = [rules.Node(0), rules.Node(1)]
    for round, plan in enumerate(run.plans, 1):
        expected = HALVES(round, nodes, tiny.SIZES, generator(1, round, "assign"))
        assert all(tiny.same(plan[node], expected[node]) for node in (0, 1))
    assert not tiny.same(run.plans[0][0], run.plans[1][0])


def test_the_same_inputs_give_the_same_bits_and_another_seed_others() -> None:
    one, other, third = (tiny.federate(tiny.Tiny(), HALVES, 3, rounds=2, seed=seed) for seed in (5, 5, 6))
    assert tiny.same(one.after, other.after)
    assert not tiny.same(one.after, third.after)


# --- Faults -----------------------------------------------------------------------------------------------------------


def raising(worker: Worker, message: Message) -> Message:
    raise RuntimeError("no power")


def answering(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Callable[[Worker, Message], Message]:
    """A client that trains, and then sends something else."""

    def train(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        pieces = take_pieces(worker.train(message).content, REPLY)
        trained = wire.unpack(wire.pack(order.arrays).layout, pieces)
        return wire.reply_message(order, change(dict(trained)), loss=0.1, seconds=0.1, reply_to=message)

    return train


def with_nan(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    weight = arrays["4.weight"].clone()
    weight[0, 0] = torch.nan
    return {**arrays, "4.weight": weight}


def block(arrays: Mapping[str, Tensor], run: tiny.Run, node: int) -> dict[str, Tensor]:
    """The coordinates that nobody but `node` holds in the last round."""
    part = extract(arrays, run.strategy.axes, run.plans[-1][node])
    return {name: part[name] for name, dims in run.strategy.axes.items() if any(dim.axis for dim in dims)}


def check_only_this_block_is_kept(run: tiny.Run, node: int, reason: str) -> None:
    """The round went on without `node`; its block has its old bits, every other has new ones."""
    before = run.reports[-2].arrays if len(run.reports) > 1 else run.before
    (refused,) = run.reports[-1].refused
    assert refused.client == node
    assert reason in refused.reason
    assert run.reports[-1].merged == len(run.plans[-1]) - 1
    for other in run.plans[-1]:
        kept = {name: tiny.same({name: array}, {name: block(run.after, run, other)[name]})
                for name, array in block(before, run, other).items()}  # fmt: skip
        assert all(kept.values()) if other == node else not any(kept.values()), kept


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        (raising, "the client failed: RuntimeError: no power"),
        (answering(lambda a: {**a, "1.weight": a["1.weight"].T}), "must hold the arrays that were sent"),
        (answering(lambda a: {**a, "1.weight": a["1.weight"].double()}), "must hold the arrays that were sent"),
        (answering(lambda a: {**a, "extra": a["1.weight"]}), "must hold the arrays that were sent"),
        (answering(lambda a: {}), "must hold the arrays that were sent"),
        (answering(with_nan), "must be finite, but '4.weight' holds NaN or infinity"),
        (lambda worker, message: Message(RecordDict(), reply_to=message), "must be what ist_fed's Worker answers"),
        (lambda worker, message: wire.refusal_message("it is night", reply_to=message), "did not train: it is night"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_bad_reply_is_refused_and_nothing_else_is_touched(
    instead: Callable[[Worker, Message], Message], reason: str, rounds: int
) -> None:
    run = tiny.federate(tiny.Tiny(), QUARTERS, 4, rounds=rounds, instead={2: instead})
    check_only_this_block_is_kept(run, 2, reason)


def test_the_others_get_the_same_bits_as_without_the_fault() -> None:
    good, bad = (tiny.federate(tiny.Tiny(), QUARTERS, 4, instead=instead) for instead in ({}, {2: raising}))
    for node in (0, 1, 3):
        assert tiny.same(block(good.after, good, node), block(bad.after, bad, node))


def test_data_with_nan_are_reported_by_the_client() -> None:
    run = tiny.federate(tiny.Tiny(poisoned=[1]), HALVES, 2)
    check_only_this_block_is_kept(run, 1, "did not train: the loss must stay finite, but is nan at local step 1")


def test_an_empty_share_is_reported_by_the_client() -> None:
    class Uneven(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> Any:
            return (tiny.Tiny(examples=0) if client == 0 else self.full).client_data(client, clients)

        full = tiny.Tiny()

    run = tiny.federate(Uneven(), HALVES, 2)
    check_only_this_block_is_kept(run, 0, "did not train: a client needs at least one example")


def test_a_client_that_cannot_even_be_made() -> None:
    class Lost(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> Any:
            if client == 1:
                raise FileNotFoundError("/data/one")
            return super().client_data(client, clients)

    run = tiny.federate(Lost(), HALVES, 2)
    check_only_this_block_is_kept(run, 1, "the client failed: FileNotFoundError: /data/one")


class Silent(InProcessGrid):
    """Keeps back every reply of client 1."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        mute = {name for name, message in self._inbox.items() if is_order_to(message, 1)}
        return super().pull_messages(set(message_ids) - mute)


def is_order_to(message: Message, node: int) -> bool:
    return message.metadata.dst_node_id == node and message.metadata.message_type == "train"


def test_a_client_that_never_answers_is_given_up_at_the_deadline() -> None:
    run = tiny.federate(tiny.Tiny(), HALVES, 2, timeout=1.0, grid=Silent)
    check_only_this_block_is_kept(run, 1, "no reply came before the deadline")
    assert run.reports[0].seconds["wait"] >= 0.9


class Twice(InProcessGrid):
    """Delivers every reply twice, and all of them again with every later one."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.old: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.old += replies
        return [*self.old, *replies]


def test_a_reply_that_comes_again_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ist_fed"):
        run = tiny.federate(tiny.Tiny(), HALVES, 3, rounds=3, grid=Twice)
    assert "a reply that nobody waits for was ignored" in caplog.text
    once = tiny.federate(tiny.Tiny(), HALVES, 3, rounds=3)
    assert tiny.same(run.after, once.after)
    assert [(r.merged, r.refused, r.bytes_up) for r in run.reports] == [
        (r.merged, (), r.bytes_up) for r in once.reports
    ]


class Late(InProcessGrid):
    """Delivers client 1's reply of the first round only after the first reply of the second."""

    kept: Message | None = None
    over = False

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        if not self.over:
            mute = {name for name, message in self._inbox.items() if is_order_to(message, 1)}
            if replies := super().pull_messages(wanted - mute):
                return replies
            if mute & wanted and self.kept is None:
                (self.kept,) = super().pull_messages(mute)
            return []
        replies = super().pull_messages(wanted)
        if self.kept is not None:
            replies, self.kept = [*replies, self.kept], None
        return replies

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        self.over = any(message.metadata.group_id == "2" for message in messages)
        return super().push_messages(messages)


def test_a_late_reply_of_an_earlier_round_is_ignored() -> None:
    late = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, timeout=1.0, grid=Late)
    never = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, instead={1: only_in_round(2)})
    assert [report.merged for report in late.reports] == [1, 2]
    assert tiny.same(late.after, never.after)


def only_in_round(number: int) -> Callable[[Worker, Message], Message]:
    def train(worker: Worker, message: Message) -> Message:
        return worker.train(message) if wire.open_order(message).round == number else raising(worker, message)

    return train


def test_an_old_reply_in_answer_to_a_new_order_is_refused() -> None:
    old: list[Message] = []

    def replaying(worker: Worker, message: Message) -> Message:
        old.append(worker.train(message))
        return Message(old[0].content, reply_to=message)

    run = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, instead={1: replaying})
    assert run.reports[0].refused == ()
    check_only_this_block_is_kept(run, 1, "must echo the round of its order, 2, but says 1")


def test_a_neighbours_reply_is_refused() -> None:
    """Two clients of one cohort hold the same subnet; still neither can answer for the other."""
    seen: list[Message] = []

    def honest(worker: Worker, message: Message) -> Message:
        seen.append(worker.train(message))
        return seen[-1]

    run = tiny.federate(
        tiny.Tiny(),
        rules.Full(),
        2,
        instead={0: honest, 1: lambda worker, message: Message(seen[0].content, reply_to=message)},
    )
    (refused,) = run.reports[0].refused
    assert (refused.client, run.reports[0].merged) == (1, 1)
    assert "must echo the nonce" in refused.reason


def test_numbers_that_a_client_makes_up_do_not_spoil_the_report() -> None:
    def boasting(worker: Worker, message: Message) -> Message:
        reply = worker.train(message)
        reply.content["reply"].update(loss=float("nan"), seconds=-1e20)
        return reply

    run = tiny.federate(tiny.Tiny(), HALVES, 2, instead={1: boasting})
    honest = tiny.federate(tiny.Tiny(), HALVES, 2)
    assert run.reports[0].merged == 2
    assert tiny.same(run.after, honest.after)
    assert 0 < run.reports[0].loss < 10
    assert 0 < run.reports[0].seconds["train"] < 10


def test_all_clients_failing_stops_the_run_and_says_why() -> None:
    with pytest.raises(RoundError) as caught:
        tiny.federate(tiny.Tiny(poisoned=[0, 1, 2]), HALVES, 4, instead={3: raising})
    said = str(caught.value)
    assert "round 1 needs usable replies, at least 1, but 0 of 4 clients gave one: " in said
    assert "3 × the client did not train: the loss must stay finite" in said
    assert "1 × the client failed: RuntimeError: no power" in said


def test_fewer_replies_than_asked_for_stop_the_run() -> None:
    assert tiny.federate(tiny.Tiny(), HALVES, 3, min_replies=2, instead={1: raising}).reports[0].merged == 2
    with pytest.raises(
        RoundError, match="needs usable replies, at least 3, but 2 of 3 clients gave one: 1 × the client"
    ):
        tiny.federate(tiny.Tiny(), HALVES, 3, min_replies=3, instead={1: raising})


def test_a_round_that_failed_is_not_counted_as_training() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES, min_replies=2)
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2, {1: raising}))
    with pytest.raises(RoundError):
        made.start(grid, wire.to_record(tiny.initial(tiny.Tiny())), 1)
    assert made.coverage.fraction() == 0


def test_too_few_clients_connected() -> None:
    with pytest.raises(RoundError, match="clients must be connected, at least 5, but after 0 s 2 are"):
        tiny.federate(tiny.Tiny(), HALVES, 2, min_nodes=5, timeout=0.01)


def test_that_clients_are_waited_for_is_said_and_that_they_came(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(roster, "_SAY_AGAIN_S", 0.0)
    there = iter([[0], [0], [0, 1]])
    monkeypatch.setattr(roster, "present", lambda grid: next(there, [0, 1]))
    with caplog.at_level(logging.INFO, logger=roster.WAITING):
        tiny.federate(tiny.Tiny(), HALVES, 2, min_nodes=2, timeout=60)
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == roster.WAITING]
    assert said[0] == ("WARNING", "waiting for clients: 1 of 2 are connected")
    assert said[-1] == ("INFO", "enough clients are connected: 2")


# --- Who the clients are ----------------------------------------------------------------------------------------------


def no_query(worker: Worker, message: Message) -> Message:
    raise ValueError("No query function registered with name 'default'")


def test_a_client_app_without_query_function_trains_all_the_same() -> None:
    def make(client: int) -> tiny.Client:
        task = tiny.Tiny()
        return tiny.Client(Worker(task, task.client_data(client, 2), client=client), query_instead=no_query)

    reports: list[Any] = []
    made = tiny.strategy(tiny.Tiny(), HALVES, on_round=reports.append)
    made.start(InProcessGrid(2, make), wire.to_record(tiny.initial(tiny.Tiny())), 2)
    assert [report.merged for report in reports] == [2, 2]
    assert tiny.same(reports[-1].arrays, tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2).after)


@pytest.mark.parametrize(("weighting", "weights"), [("examples", (10, 40)), ("uniform", (1, 1))])
def test_a_cohort_is_averaged_by_its_weights(weighting: str, weights: tuple[int, int]) -> None:
    class Uneven(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> Any:
            return tiny.Tiny(examples=(10, 40)[client]).client_data(client, clients)

    task = Uneven()
    run = tiny.federate(task, rules.Full(), 2, weighting=weighting)
    states = []
    for client in (0, 1):
        model = task.build(**tiny.SIZES)
        model.load_state_dict(run.before)
        tiny.plain_sgd(model, task.client_data(client, 2), tiny.TRAINING, 5, tiny.stream(1, 1, client))
        states.append(model.state_dict())
    for name, array in run.after.items():
        one, other = (state[name].double() for state in states)
        expected = (weights[0] * one + weights[1] * other) / sum(weights)
        assert torch.allclose(array.double(), expected, rtol=1e-6, atol=1e-9), name


def test_clients_are_told_apart_by_their_own_numbers_and_not_by_flowers() -> None:
    """Node ids are drawn anew on every engine; the result must not depend on them."""

    class Renamed(InProcessGrid):
        def __init__(self, clients: int, handler: Callable[[int], Any]) -> None:
            super().__init__(clients, lambda node: handler(clients - 1 - node))

    one, other = (tiny.federate(tiny.Tiny(), QUARTERS, 4, rounds=2, grid=grid) for grid in (InProcessGrid, Renamed))
    assert tiny.same(one.after, other.after)
    assert one.reports[0].clients == other.reports[0].clients == (0, 1, 2, 3)


# --- Flower's own ways to use a strategy ------------------------------------------------------------------------------


def test_flowers_own_loop_over_the_hooks_gives_the_same_bits() -> None:
    task, evaluated = tiny.Tiny(), []
    made = tiny.strategy(task, HALVES)
    grid = InProcessGrid(3, tiny.handlers(task, 3))
    result = Strategy.start(
        made,
        grid,
        wire.to_record(tiny.initial(task)),
        num_rounds=3,
        evaluate_fn=lambda round, arrays: evaluated.append(round),
    )
    own = tiny.federate(task, HALVES, 3, rounds=3)
    assert tiny.same(wire.from_record(result.arrays, own.before), own.after)
    assert evaluated == [0, 1, 2, 3]
    assert result.train_metrics_clientapp[3]["merged"] == 3


def test_configure_train_returns_a_list_of_messages_one_for_each_client() -> None:
    task = tiny.Tiny()
    made, grid = tiny.strategy(task, HALVES), InProcessGrid(3, tiny.handlers(task, 3))
    messages = made.configure_train(1, wire.to_record(tiny.initial(task)), ConfigRecord(), grid)
    assert isinstance(messages, list)  # Flower's deployment fails on a generator
    assert sorted(message.metadata.dst_node_id for message in messages) == [0, 1, 2]
    assert made.configure_evaluate(1, wire.to_record(tiny.initial(task)), ConfigRecord(), grid) == []
    assert made.aggregate_evaluate(1, []) is None


def test_replies_to_a_round_that_is_not_open_are_an_error() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES)
    with pytest.raises(RoundError, match="round 1 is not open; call configure_train for it first"):
        made.aggregate_train(1, [])
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2))
    made.configure_train(1, wire.to_record(tiny.initial(tiny.Tiny())), ConfigRecord(), grid)
    with pytest.raises(RoundError, match="round 2 is not open"):
        made.aggregate_train(2, [])


def test_a_schedule_that_needs_the_number_of_rounds_is_refused_by_the_hooks() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES, training=Training(schedule="cosine"))
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2))
    with pytest.raises(RoundError, match=r"the cosine schedule needs the number of rounds.*own start\(\)"):
        made.configure_train(1, wire.to_record(tiny.initial(tiny.Tiny())), ConfigRecord(), grid)


def context(client: int = 0) -> Context:
    return Context(run_id=1, node_id=client, node_config={}, state=RecordDict(), run_config={})


@pytest.mark.parametrize("asks", [True, False])
def test_within_anyones_flower_apps(asks: bool) -> None:
    """A ServerApp and a ClientApp as a user writes them; only the processes between them are left out."""
    task, results = tiny.Tiny(), []
    server, client = ServerApp(), ClientApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        made = tiny.strategy(task, HALVES)
        results.append(made.start(grid=grid, initial_arrays=wire.to_record(tiny.initial(task)), num_rounds=2))

    @client.train()
    def train(message: Message, context: Context) -> Message:
        number = context.node_id
        return Worker(task, task.client_data(number, 3), client=number).train(message)

    if asks:  # a ClientApp need not have a query function

        @client.query()
        def query(message: Message, context: Context) -> Message:
            number = context.node_id
            return Worker(task, task.client_data(number, 3), client=number).query(message)

    class App:
        def __init__(self, number: int) -> None:
            self.context = context(number)

        def train(self, message: Message) -> Message:
            return client(message, self.context)

        query = train

    server(InProcessGrid(3, App), context())
    own = tiny.federate(task, HALVES, 3, rounds=2)
    assert tiny.same(wire.from_record(results[0].arrays, own.before), own.after)


def test_the_users_train_config_reaches_the_clients() -> None:
    seen = []

    def watching(worker: Worker, message: Message) -> Message:
        seen.append(dict(message.content.config_records["config"]))
        return worker.train(message)

    made = tiny.strategy(tiny.Tiny(), HALVES)
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2, dict.fromkeys((0, 1), watching)))
    config = ConfigRecord({"mine": 7})
    made.start(grid, wire.to_record(tiny.initial(tiny.Tiny())), 2, train_config=config)
    assert seen == [{"mine": 7}] * 4
    assert dict(config) == {"mine": 7}  # Flower's own FedAvg writes into it


# --- What it is made and started with ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["local_steps", "min_nodes", "min_replies"])
def test_counts_are_at_least_one(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}"):
        tiny.strategy(tiny.Tiny(), HALVES, **{option: 0})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("weighting", "example", "weighting must be one of examples, uniform, but is 'example'"),
        ("min_limit", 25.0, "min_limit must be a fraction from 0 to 1, but is 25.0"),
        ("min_limit", float("nan"), "min_limit must be a fraction"),
    ],
)
def test_what_would_weigh_or_leave_out_clients_by_a_mistake_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.strategy(tiny.Tiny(), HALVES, **{option: value})


def test_sizes_that_the_factory_ignores_are_refused() -> None:
    class Fixed(tiny.Tiny):
        def build(self, **sizes: int) -> torch.nn.Module:
            return super().build(hidden1=sizes["hidden1"])

    with pytest.raises(AxesError, match="ignores 'hidden2'"):
        tiny.strategy(Fixed(), HALVES)


def test_arrays_that_are_not_finite_are_refused_before_anything_is_sent() -> None:
    arrays = tiny.initial(tiny.Tiny())
    next(iter(arrays.values()))[0, 0] = -torch.inf
    made = tiny.strategy(tiny.Tiny(), HALVES)
    with pytest.raises(AxesError, match=r"must be finite, but '.*' is not; of a mask register .* persistent=False"):
        next(made.rounds(InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2)), arrays, 1))


def test_arrays_of_another_model_are_refused_before_anything_is_sent() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES)
    other = wire.to_record(tiny.initial(tiny.Tiny(norm="layer")))
    with pytest.raises(WireError, match="the initial arrays must be this model's state"):
        made.start(InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2)), other, 1)


@pytest.mark.parametrize("start", [IndependentSubnetTraining.start, Strategy.start], ids=["start", "hooks"])
@pytest.mark.parametrize(
    "options",
    [
        {"server_optimizer": ServerOptimizer(optimizer="momentum")},
        {"training": Training(state="travels")},
        {"robust": lambda: Keeper(Robust(norm_bound=1.0))},
    ],
    ids=["server", "travels", "robust"],
)
def test_a_second_run_knows_nothing_of_the_first(start: Callable[..., Any], options: dict[str, Any]) -> None:
    task, reports = tiny.Tiny(), []
    options = {key: value() if callable(value) else value for key, value in options.items()}
    made = tiny.strategy(task, HALVES, on_round=reports.append, **options)
    for _ in range(2):
        grid = InProcessGrid(2, tiny.handlers(task, 2))
        start(made, grid=grid, initial_arrays=wire.to_record(tiny.initial(task)), num_rounds=3)
    first, second = reports[:3], reports[3:]
    assert [report.coverage for report in first] == [report.coverage for report in second]
    assert tiny.same(first[-1].arrays, second[-1].arrays)


def test_by_flowers_hooks_too_a_second_run_begins_with_equal_shares_and_without_a_number_of_rounds() -> None:
    task, reports = tiny.Tiny(), []
    made = tiny.strategy(task, HALVES, adapt=True, on_round=reports.append)
    initial = wire.to_record(tiny.initial(task))
    for start in (made.start, partial(Strategy.start, made)):
        made._roster.learn({node: ({}, 9.0**at) for at, node in enumerate(made._roster._known)})
        start(grid=InProcessGrid(2, tiny.handlers(task, 2)), initial_arrays=initial, num_rounds=1)
    assert tiny.same(reports[0].arrays, reports[1].arrays)
    assert made._rounds is None


def test_the_initial_arrays_are_not_changed() -> None:
    initial = wire.to_record(tiny.initial(tiny.Tiny()))
    made = tiny.strategy(tiny.Tiny(), HALVES)
    result = made.start(InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2)), initial, 1)
    assert tiny.same(wire.from_record(initial, tiny.initial(tiny.Tiny())), tiny.initial(tiny.Tiny()))
    assert set(result.arrays) == set(initial)


def test_training_learns() -> None:
    task = tiny.Tiny(examples=100)
    options = {"sizes": {"hidden1": 32, "hidden2": 32}, "local_steps": 10}
    run = tiny.federate(task, HALVES, 4, rounds=15, **options)
    accuracy = {
        when: evaluate(ready(model, task), task, task.test_data())["accuracy"]
        for when, arrays in (("before", run.before), ("after", run.after))
        for model in [network(task, options["sizes"], arrays, torch.device("cpu"))]
    }
    assert accuracy["after"] > 0.8 > accuracy["before"]
    assert run.reports[-1].loss < run.reports[0].loss
    assert run.reports[-1].coverage > 0.99

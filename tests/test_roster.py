"""Who is connected, what each can hold, and how shares come to follow what rounds take."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import tiny
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from ist_fed import rules, wire
from ist_fed.cost import cost
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.errors import RoundError, RuleError
from ist_fed.robust import Keeper, Robust
from ist_fed.roster import Roster
from ist_fed.round import RoundReport
from ist_fed.worker import Worker

SIZES = {"hidden1": 240, "hidden2": 360}
RULE = rules.Disjoint(groups=4, min_units=8)
TASK = tiny.Tiny()


def run(
    workers: Mapping[int, dict[str, Any]] | None = None,
    rounds: int = 1,
    rule: rules.Rule = RULE,
    train: Callable[[Worker, Message], Message] = Worker.train,
    query: Callable[[Worker, Message], Message] = Worker.query,
    **options: Any,
) -> tuple[list[rules.Plan], list[RoundReport]]:
    """Four clients, some with arguments of their own."""

    def make(client: int) -> tiny.Client:
        worker = Worker(TASK, TASK.client_data(client, 4), client=client, **(workers or {}).get(client, {}))
        return tiny.Client(worker, train, query)

    spy, reports = tiny.Spy(rule), []
    of = rule if isinstance(rule, rules.Lease) else spy  # a strategy lends under the rule itself
    strategy = tiny.strategy(TASK, of, sizes=SIZES, local_steps=1, on_round=reports.append, **options)
    strategy.start(InProcessGrid(4, make), wire.to_record(tiny.initial(TASK, SIZES)), rounds)
    return [plan for plan in spy.plans if len(plan) > 1], reports  # of one node is what each can hold, before a round


def saying(**said: Sequence[float]) -> Callable[[Worker, Message], Message]:
    """An answer to who one is, with something said differently by each client."""

    def query(worker: Worker, message: Message) -> Message:
        answer = worker.query(message)
        for name, values in said.items():
            answer.content["node"][name] = values[answer.content["node"]["client"]]
        return answer

    return query


def number_of(worker: Worker) -> int:
    return wire.open_profile(worker.query(wire.profile_question(0, 60.0))).client


def widths(plan: rules.Plan) -> list[int]:
    return [len(plan[node]["hidden2"]) for node in range(4)]


# --- Numbers ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8))
def test_no_two_clients_of_a_round_share_a_number(said: list[int]) -> None:
    """Whoever alone says a number keeps it, unless that is the id of a node that goes by it."""

    def make(client: int) -> tiny.Client:
        return tiny.Client(Worker(TASK, TASK.client_data(0, 1), client=said[client]))

    clients = Roster(1, "uniform", SIZES, tiny.TRAINING).connected(InProcessGrid(len(said), make), 60.0)
    assert len({client.number for client in clients}) == len(said) == len({client.node for client in clients})
    for client in clients:
        assert client.number in (said[client.node], client.node)
        if said.count(said[client.node]) > 1:
            assert client.number == client.node


def test_what_a_liar_does_is_not_put_down_to_the_client_that_it_says_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """It says that it is client 0, and sends an update that is refused; client 0's is merged."""

    def loud(worker: Worker, message: Message) -> Message:
        if number_of(worker) != 3:
            return worker.train(message)
        order = wire.open_order(message)
        far = {name: array + 1000 for name, array in order.arrays.items()}
        return wire.reply_message(order, far, loss=0.1, seconds=0.1, reply_to=message)

    _, reports = run(rounds=2, train=loud, query=saying(client=[0, 1, 2, 0]), robust=Keeper(Robust(norm_bound=3.0)))
    for report in reports:
        assert (report.merged, [refused.client for refused in report.refused]) == (3, [3])
    assert caplog.text.count("clients must have different numbers, but nodes 0, 3 all say 0") == 1


# --- Memory -----------------------------------------------------------------------------------------------------------


def test_who_has_little_memory_holds_what_fits_and_the_others_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    """From the client's budget through its estimate, the question, the plan, and the order: nothing is refused."""
    budget = cost(TASK, {"hidden1": 30, "hidden2": 45}, tiny.TRAINING).memory
    with caplog.at_level(logging.INFO, "ist_fed"):
        plans, reports = run({2: {"memory": budget}}, rounds=2)
    for plan in plans:
        assert widths(plan) == [105, 105, 45, 105]
    assert [report.merged for report in reports] == [4, 4]
    assert reports[0].limits == (1.0, 1.0, pytest.approx(0.125, rel=0.02), 1.0)
    assert "client 2 can hold 12." in caplog.text


def test_clients_that_cannot_hold_the_network_together_end_the_run_with_what_would_do() -> None:
    with pytest.raises(RuleError, match=r"together hold all 240 units of axis 'hidden1', .* holds 120, 120 too few"):
        run(query=saying(limit=[0.125] * 4))


@pytest.mark.parametrize("limit", [0.0, 1e-300, 0.03])
def test_one_client_that_can_hold_no_subnet_does_not_end_the_run(
    limit: float, caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out, and named once; the others train as if it were not there."""
    for rule in (
        rules.Disjoint(groups=3, min_units=8),
        rules.Balanced(groups=3, min_units=8),
        rules.Overlapping(groups=3, holders=2, min_units=8),
        rules.Independent(min_units=8),
        rules.Nested(min_units=8),
        rules.Fjord(min_units=8),
        rules.Rolling(min_units=8),
        rules.LeastTrained(min_units=8),
        rules.Private(groups=3, min_units=8),
        rules.Lease(groups=3, min_units=8),
    ):
        caplog.clear()
        _, reports = run(rounds=2, rule=rule, query=saying(limit=[1.0, limit, 1.0, 1.0]))
        for report in reports:
            assert (set(report.clients), report.merged, report.refused) == ({0, 2, 3}, 3, ())
        assert caplog.text.count("client 1 is left out: every client must be able to hold") == 1


def test_a_client_that_can_hold_no_block_is_left_out() -> None:
    rule, sizes = rules.Blocks(groups=2), {"wide": 4, "block1": 1, "block2": 1}
    assert "must be able to hold min_depth=1" in rules.why_too_little(rule, rules.Node(1, limit=0.4), sizes)
    assert not rules.why_too_little(rule, rules.Node(1, limit=0.5), sizes)


def test_nobody_is_left_out_for_what_is_wrong_with_the_rule() -> None:
    wrong = rules.Disjoint(groups=400, min_units=8)
    assert not rules.why_too_little(wrong, rules.Node(1, limit=0.0), SIZES)
    with pytest.raises(RuleError, match="use at most 30 groups"):
        run(rule=wrong, query=saying(limit=[0.5] * 4))


def test_clients_none_of_which_can_hold_a_subnet_end_the_run() -> None:
    with pytest.raises(RoundError, match="all 4 are such: every client must be able to hold min_units=8"):
        run(query=saying(limit=[0.0] * 4))


# --- Time -------------------------------------------------------------------------------------------------------------

SPEEDS = [1.0, 1.0, 4.0, 16.0]


def taking(worker: Worker, message: Message) -> Message:
    """Training whose clock says what a client of its speed would take."""
    order, reply = wire.open_order(message), worker.train(message)
    share = order.sizes["hidden2"] / SIZES["hidden2"]
    reply.content["reply"]["seconds"] = (share**2 + 0.05 * share) / SPEEDS[number_of(worker)]
    return reply


def times(plan: rules.Plan) -> list[float]:
    shares = [width / SIZES["hidden2"] for width in widths(plan)]
    return [(share**2 + 0.05 * share) / speed for share, speed in zip(shares, SPEEDS, strict=True)]


def test_shares_come_to_follow_the_time_that_rounds_take() -> None:
    plans, reports = run(rounds=8, train=taking, adapt=True)
    assert widths(plans[0]) == [90] * 4
    assert max(times(plans[0])) == pytest.approx(16 * min(times(plans[0])))
    assert max(times(plans[-1])) < 1.15 * min(times(plans[-1]))  # to the unit
    assert all(report.merged == 4 for report in reports)
    assert reports[-1].capacities == pytest.approx([0.5, 0.5, 1.0, 2.0], rel=0.1)


def test_unless_it_is_asked_for_shares_follow_what_clients_say() -> None:
    plans, reports = run({3: {"capacity": 2.0}}, rounds=3, train=taking)
    assert all(widths(plan) == [72, 72, 72, 144] for plan in plans)
    assert all(report.capacities == (1.0, 1.0, 1.0, 2.0) for report in reports)


def test_a_client_that_has_trained_before_says_how_fast_it_was() -> None:
    """Four times as long for a step is half the share, from the first round on; who says nothing keeps its own."""
    plans, _ = run(query=saying(step_seconds=[0.0, 0.01, 0.01, 0.04]), adapt=True)
    assert widths(plans[0]) == [90, 108, 108, 54]
    plans, _ = run(query=saying(step_seconds=[0.0, 0.01, 0.01, 0.04]))
    assert widths(plans[0]) == [90] * 4

"""Whole runs under the rule `Lease`: what the laws of rounds become where there are none."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ist_fed import Merge, extract, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.axes import infer
from ist_fed.cohort import Outcome
from ist_fed.coverage import Coverage
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid
from ist_fed.errors import RoundError, RuleError
from ist_fed.lending import Conditions
from ist_fed.lending.lender import Lender
from ist_fed.network import Network, Tier, Virtual
from ist_fed.phases import Phase
from ist_fed.round import Client, RoundReport
from ist_fed.rules import Lease, Leases, Node
from ist_fed.run import Run
from ist_fed.scenario import Record, Scenario
from ist_fed.seeds import generator
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.train import Training
from ist_fed.worker import Worker

LEASE = Lease(groups=4, min_units=2)
AXES = infer(tiny.Tiny().build, tiny.SIZES)
UNEVEN = Network(step_seconds=0.1, spread=8)
TERMS = Conditions(seed=1, local_steps=5, training=tiny.TRAINING, scales=lambda sizes: {}, rounds=4, min_replies=1)


class Stop(Exception):
    pass


def virtual(network: Network, clients: int = 4) -> Virtual:
    return Virtual(network, 1, clients, lambda sizes, training: 1e3 * sum(sizes.values()))


def local(task: tiny.Tiny, clients: int = 4, only: str | None = "one by one") -> LocalGrid:
    def worker(client: int) -> Worker:
        return Worker(task, task.client_data(client, clients), client=client)

    return LocalGrid(clients, worker, task, torch.device("cpu"), only=only)  # type: ignore[arg-type]


def train(
    grid: InProcessGrid,
    *,
    rule: rules.Rule = LEASE,
    network: Virtual | None = None,
    rounds: int = 4,
    task: tiny.Tiny | None = None,
    timeout: float = 60,
    **options: object,
) -> list[RoundReport]:
    reports = list[RoundReport]()
    made = tiny.strategy(task or tiny.Tiny(), rule, network=network, on_round=reports.append, **options)
    made.start(grid, wire.to_record(tiny.initial(task or tiny.Tiny())), rounds, timeout)
    return reports


def told(report: RoundReport) -> tuple[object, ...]:
    return (report.clients, report.merged, report.refused, report.bytes_down, report.bytes_up, report.coverage)


# --- The laws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [False, True])
def test_one_client_that_borrows_everything_is_plain_sgd(messages: bool) -> None:
    """Law 7: its optimiser starts afresh with every lease."""
    task = tiny.Tiny()
    grid = InProcessGrid(1, tiny.handlers(task, 1)) if messages else local(task, 1)
    reports = train(grid, rule=Lease(groups=1, free=0.0, min_units=2), rounds=3)
    model = task.build(**tiny.SIZES)
    model.load_state_dict(tiny.initial(task))
    for report in reports:
        losses = tiny.plain_sgd(model, task.client_data(0, 1), tiny.TRAINING, 5, tiny.stream(1, report.round, 0))
        assert report.loss == pytest.approx(sum(losses) / 5, rel=1e-12)
    found, expected = reports[-1].arrays, arrays_of(model)
    shared = "7.bias"  # what everyone holds moves by the change, in float64
    assert tiny.same({**found, shared: expected[shared]}, expected)
    assert torch.allclose(found[shared], expected[shared], rtol=1e-6, atol=0)


SHARED = ("7.bias", "2.num_batches_tracked", "5.num_batches_tracked")
"""What no axis splits, and everyone holds."""


@settings(max_examples=10)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_what_a_holder_returns_is_what_is_read_back_and_nothing_else_moves(order: list[int], seed: int) -> None:
    """Laws 2, 3 and 4, and one oracle: `Merge` of the same parts, but for what everyone holds."""
    task, sizes = tiny.Tiny(), tiny.SIZES
    wide, axes = tiny.initial(task), AXES
    lender = Lender(TERMS, wide, axes, Coverage(wide, axes, sizes), total=4.0)
    ledger, merge, loans, parts = Leases(rule=LEASE, sizes=sizes), Merge(wide, axes), [], []
    for node in range(4):
        ledger, grant = ledger.grant(Node(node), 0.0, generator(seed, node))
        assert grant is not None
        asked = lender.lend(grant, Client(node=node, number=node, capacity=1.0, weight=1.0), 1)
        loans.append(asked)
        parts.append({name: array + node + 1 for name, array in asked.arrays.items()})
        merge.add(asked.units, parts[node])
    for node in order:
        lender.take_back(outcome(loans[node], parts[node]))
    report, expected = lender.report(1, None), merge.result()
    assert tiny.same(without(report.arrays), without(expected))
    change = torch.stack([part["7.bias"].double() - wide["7.bias"].double() for part in parts]).mean(0)
    assert torch.allclose(report.arrays["7.bias"].double(), wide["7.bias"].double() + change, atol=1e-6)
    assert int(report.arrays["2.num_batches_tracked"]) == 4  # integers their maximum
    for asked, part in zip(loans, parts, strict=True):
        assert tiny.same(without(extract(report.arrays, axes, asked.units)), without(part))
    assert report.merged == 4
    assert report.bytes_up == report.bytes_down == sum(asked.size for asked in loans)


def without(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: array for name, array in arrays.items() if name not in SHARED}


def outcome(asked: object, part: Mapping[str, Tensor]) -> Outcome:
    return Outcome(assignment=asked, nodes=(0,), losses=torch.ones(1).numpy(), seconds=0.0, arrays=part, weight=1.0)  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_bits_and_another_others() -> None:
    one, other, third = (train(local(tiny.Tiny()), network=virtual(UNEVEN), seed=seed) for seed in (5, 5, 6))
    assert tiny.same(one[-1].arrays, other[-1].arrays)
    assert not tiny.same(one[-1].arrays, third[-1].arrays)
    assert [report.virtual for report in one] == [report.virtual for report in other]


FAULTY = Network(step_seconds=0.1, latency=0.02, spread=6, dropout=0.2, churn=0.2, up=1e5, server_down=2e5)


def test_messages_and_assignments_give_the_same_bits_and_seconds() -> None:
    """Law 10."""
    task = tiny.Tiny(dropout=0.2)
    direct = train(local(task), network=virtual(FAULTY), task=task)
    messages = train(InProcessGrid(4, tiny.handlers(task, 4)), network=virtual(FAULTY), task=task)
    assert tiny.same(direct[-1].arrays, messages[-1].arrays)
    assert [told(report) for report in direct] == [told(report) for report in messages]
    assert [report.virtual for report in direct] == [report.virtual for report in messages]
    assert any(report.refused for report in direct)


@pytest.mark.parametrize("way", ["stacked", "factored"])
def test_leases_that_are_out_are_trained_at_once_with_the_same_result(way: str) -> None:
    """Law 10, and the clients of one computation draw by leases of their own."""
    task = tiny.Tiny(norm="layer")
    one, together = (train(local(task, only=only), network=virtual(UNEVEN), task=task) for only in ("one by one", way))
    assert [told(report) for report in one] == [told(report) for report in together]
    for name, array in one[-1].arrays.items():
        assert torch.allclose(array, together[-1].arrays[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("way", ["one by one", "stacked"])
@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("network", [UNEVEN, FAULTY], ids=["uneven", "faulty"])
def test_resume(network: Network, stop: int, way: str) -> None:
    """Law 11, bit for bit, with leases that are out when the run stops."""
    task = tiny.Tiny(dropout=0.0 if way == "stacked" else 0.2)
    training = Training(lr=0.1, batch_size=8, schedule="cosine", warmup=1)
    whole = train(local(task, only=way), network=virtual(network), rounds=5, task=task, training=training)
    reports = list[RoundReport]()

    def note(report: RoundReport) -> None:
        reports.append(report)
        if report.round == stop:
            raise Stop

    first = tiny.strategy(task, LEASE, training=training, network=virtual(network), on_round=note)
    with pytest.raises(Stop):
        first.start(local(task, only=way), wire.to_record(tiny.initial(task)), 5)
    assert reports[-1].loans
    second = tiny.strategy(task, LEASE, training=training, network=virtual(network), on_round=reports.append)
    second.coverage.load(first.coverage.state())
    second.loans = reports[-1].loans
    second.start(local(task, only=way), wire.to_record(reports[-1].arrays), 5, first_round=stop + 1)
    assert tiny.same(reports[-1].arrays, whole[-1].arrays)
    for one, other in zip(reports, whole, strict=True):
        assert (one.round, one.loss, one.virtual, told(one)) == (other.round, other.loss, other.virtual, told(other))


def test_a_run_on_disk_is_taken_up_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    from ist_fed.engines.local import one_by_one

    scenario = Scenario(
        name="x",
        task="digits",
        sizes={"hidden1": 64, "hidden2": 64},
        rule={"name": "lease", "groups": 3, "min_units": 4},
        clients=3,
        rounds=4,
        local_steps=2,
        device="cpu",
        network=Network(step_seconds=1.0, spread=8.0),
        record=Record(checkpoint_every=1, tensorboard=False),
    )
    whole, run = (Run.create(tmp_path / name, scenario) for name in ("whole", "run"))
    one_by_one(whole)

    def stop(line: Mapping[str, object]) -> None:
        if line["round"] == 2:
            raise RoundError("stopped")

    with pytest.raises(RoundError):
        one_by_one(run, on_line=stop)
    one_by_one(run, resume=True)
    times = [line["virtual"] for line in whole.metrics()]
    assert [line["virtual"] for line in run.metrics()] == times
    assert times[-1]["total"] == pytest.approx(sum(each["round"] for each in times))
    assert tiny.same(run.restore().arrays, whole.restore().arrays)


# --- What goes wrong --------------------------------------------------------------------------------------------------


def raising(worker: Worker, message: Message) -> Message:
    raise RuntimeError("no power")


@pytest.mark.parametrize("network", [None, virtual(UNEVEN)], ids=["real time", "virtual time"])
def test_a_client_that_cannot_train_holds_nobody_up(network: Virtual | None) -> None:
    task = tiny.Tiny()
    reports = train(InProcessGrid(4, tiny.handlers(task, 4, {2: raising})), network=network, rounds=3)
    refused = [each for report in reports for each in report.refused]
    assert {each.client for each in refused} == {2}
    assert "no power" in refused[0].reason
    assert sum(report.merged for report in reports) + len(refused) == 12


def test_a_run_in_which_nobody_can_train_ends_and_says_why() -> None:
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2, {0: raising, 1: raising}))
    with pytest.raises(RoundError, match=r"round 1 needs usable replies, at least 1, but 0 of 2 leases.*no power"):
        train(grid)


class Silent(InProcessGrid):
    """Node 1 takes its first order, and never answers it."""

    silent: str | None = None

    def push_messages(self, messages: object) -> list[str]:
        given = list(messages)  # type: ignore[call-overload]
        names = super().push_messages(given)
        for name, message in zip(names, given, strict=True):
            if self.silent is None and message.metadata.dst_node_id == 1 and message.metadata.message_type == "train":
                self.silent = name
                del self._inbox[name]
        return names


def test_by_the_servers_clock_a_lease_expires_and_its_holder_may_come_again() -> None:
    task, reports = tiny.Tiny(), list[RoundReport]()

    def note(report: RoundReport) -> None:
        reports.append(report)
        lost = [report.round for report in reports if report.refused]
        if lost and any(1 in report.clients for report in reports[lost[0] :]):
            raise Stop

    made = tiny.strategy(task, Lease(groups=3, min_units=2, term=1.0), on_round=note)
    with pytest.raises(Stop):
        made.start(Silent(3, tiny.handlers(task, 3)), wire.to_record(tiny.initial(task)), 100_000, 60)
    refused = [each for report in reports for each in report.refused]
    assert refused[0].client == 1
    assert {each.reason for each in refused} == {"its lease expired before it returned"}


def test_in_real_time_everyone_trains_and_the_network_learns() -> None:
    task = tiny.Tiny()
    reports = train(InProcessGrid(4, tiny.handlers(task, 4)), rounds=15)
    assert {client for report in reports for client in report.clients} == {0, 1, 2, 3}
    assert reports[-1].loss < reports[0].loss
    assert all(report.merged == 4 and report.virtual is None for report in reports)


def test_a_strategy_with_leases_is_asked_through_start_alone() -> None:
    made = IndependentSubnetTraining(build=tiny.Tiny().build, sizes=tiny.SIZES, rule=LEASE)
    grid = InProcessGrid(2, tiny.handlers(tiny.Tiny(), 2))
    from flwr.app import ConfigRecord

    with pytest.raises(RoundError, match=r"leases know no rounds.*start\(\)"):
        made.configure_train(1, wire.to_record(tiny.initial(tiny.Tiny())), ConfigRecord(), grid)


def test_on_a_network_whose_times_are_measured_nothing_can_be_lent() -> None:
    with pytest.raises(RuleError, match=r"known when a lease ends before anything is trained.*set compute to 'flops'"):
        train(local(tiny.Tiny()), network=virtual(Network(compute="measured")))


@pytest.mark.parametrize(
    "options", [{"phases": [Phase(rounds=1), Phase()]}, {"server_optimizer": ServerOptimizer(optimizer="momentum")}]
)
def test_what_is_about_rounds_is_refused_where_there_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match=r"there are no rounds that phases, a merge or a server optimiser could be"):
        tiny.strategy(tiny.Tiny(), LEASE, **options)
    with pytest.raises(RuleError, match="but the rule is 'lease' and phases was asked for"):
        tiny.strategy(tiny.Tiny(), rules.Full(), phases=[Phase(rounds=1, rule=LEASE), Phase()])


def test_one_tier_of_stragglers_does_not_hold_the_others_up() -> None:
    tiers = {"slow": Tier(share=1, step_seconds=1.0), "fast": Tier(share=3)}
    network = virtual(Network(step_seconds=0.1, tiers=tiers))
    synchronous = train(local(tiny.Tiny()), rule=rules.Disjoint(groups=4, min_units=2), network=network)
    leases = train(local(tiny.Tiny()), network=network)
    assert sum(report.virtual or 0 for report in synchronous) == pytest.approx(4 * 5)
    assert sum(report.virtual or 0 for report in leases) == pytest.approx(16 / 3 * 0.5, abs=0.6)

"""A simulated network: what is drawn for its clients, and what a run on it says and does."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import runs
import tiny
import torch

from ist_fed import rules, wire
from ist_fed.cost import cost
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.network import Asked, Network, Tier, Virtual
from ist_fed.round import RoundReport
from ist_fed.train import Training

HALVES = rules.Disjoint(groups=2, min_units=2)
ASKED = Asked(client=0, sizes={"hidden1": 6}, bytes=1000, steps=5, training=tiny.TRAINING)


def virtual(network: Network, clients: int = 8, seed: int = 1) -> Virtual:
    return Virtual(network, seed, clients, lambda sizes, training: 1e6 * sum(sizes.values()))


@dataclass(frozen=True)
class Someone:
    number: int


# --- What is drawn ----------------------------------------------------------------------------------------------------


def test_a_trip_is_made_of_what_the_network_says() -> None:
    network = Network(flops=1e7, step_seconds=0.1, down=4000, up=2000, latency=0.25)
    trip = virtual(network).trip(ASKED)
    assert trip.compute == pytest.approx(5 * (6e6 / 1e7 + 0.1))
    assert trip.alone == pytest.approx(0.25 + 8000 / 4000 + 3.5 + 8000 / 2000 + 0.25)


def test_tiers_are_dealt_by_their_shares_and_fill_in_what_they_do_not_say() -> None:
    tiers = {"slow": Tier(share=1, flops=1e6), "fast": Tier(share=7)}
    made = virtual(Network(flops=1e7, latency=2, tiers=tiers))
    trips = [made.trip(replace(ASKED, client=client)) for client in range(8)]
    assert Counter(round(trip.compute, 9) for trip in trips) == {30: 1, 3: 7}
    assert all(trip.latency == 2 for trip in trips)
    other = virtual(Network(flops=1e7, tiers=tiers), seed=3)
    assert len({tuple(m.trip(replace(ASKED, client=c)).compute for c in range(8)) for m in (made, other)}) == 2


def test_a_spread_is_log_uniform_and_belongs_to_the_client() -> None:
    made, again = (virtual(Network(flops=1e7, down=8000, spread=8), clients=2000) for _ in range(2))
    slower = torch.tensor([made.trip(replace(ASKED, client=client)).compute / 3 for client in range(2000)])
    assert 1 <= slower.min() < 1.01
    assert 7.9 < slower.max() <= 8
    assert slower.log2().mean() == pytest.approx(1.5, abs=0.06)
    quarters = slower.log2().quantile(torch.tensor([0.25, 0.75]).to(slower))
    assert quarters.tolist() == pytest.approx([0.75, 2.25], abs=0.12)
    assert again.trip(replace(ASKED, client=1234)) == made.trip(replace(ASKED, client=1234))


def test_measured_seconds_are_slowed_down_by_the_clients_factor() -> None:
    network = Network(compute="measured", flops=1e9, tiers={"slow": Tier(flops=1e8)})
    assert virtual(network).trip(replace(ASKED, seconds=2.0)).compute == pytest.approx(20)


def test_who_fails_and_who_is_away_is_drawn_each_round_anew() -> None:
    made = virtual(Network(dropout=0.2, churn=0.4))
    fails = [made.fails(turn, client) for turn in range(1, 201) for client in range(8)]
    away = [made.is_absent(turn, client) for turn in range(1, 201) for client in range(8)]
    assert sum(fails) / 1600 == pytest.approx(0.2, abs=0.04)
    assert sum(away) / 1600 == pytest.approx(0.4, abs=0.05)
    everyone = [Someone(number) for number in range(8)]
    assert made.present(3, everyone) == made.present(3, everyone) != everyone
    assert all(virtual(Network(churn=0.95)).present(turn, everyone[:1]) for turn in range(20))  # one waits for somebody


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"flops": -1.0}, "flops must be a finite number, not negative, but is -1.0"),
        ({"down": float("nan")}, "down must be a finite number"),
        ({"dropout": 1.0}, "dropout must be a probability below 1, but is 1.0"),
        ({"spread": 0.5}, "spread must be at least 1, but is 0.5"),
        (
            {"compute": "measured", "tiers": {"a": Tier(flops=1.0)}},
            r"tiers.a.flops says how much slower",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Mapping[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Network(**wrong)


# --- A run on it ------------------------------------------------------------------------------------------------------


def run(network: Network, *, direct: bool = True, clients: int = 4, **options: object) -> list[RoundReport]:
    task = tiny.Tiny()

    def flops(sizes: Mapping[str, int], training: Training) -> float:
        return cost(task, sizes, training).flops

    grid = runs.local_grid(task, clients) if direct else InProcessGrid(clients, tiny.handlers(task, clients))
    return runs.train_on(grid, task, HALVES, 4, network=Virtual(network, 1, clients, flops), **options)


def test_a_round_lasts_as_long_as_its_slowest_client() -> None:
    network = Network(flops=1e6, down=1e5, up=1e4, latency=0.5, tiers={"slow": Tier(flops=1e5), "fast": Tier(share=3)})
    report = run(network)[0]
    sizes = {axis: units // 2 for axis, units in tiny.SIZES.items()}
    compute = 5 * cost(tiny.Tiny(), sizes, tiny.TRAINING).flops / 1e5
    bits = 8 * report.bytes_down / 4
    assert report.virtual == pytest.approx(1 + bits / 1e5 + compute + bits / 1e4)


def test_the_network_changes_no_bit_of_what_is_learnt() -> None:
    slow, ideal = run(Network(flops=1e6, latency=3, spread=8)), run(Network(latency=0))
    assert tiny.same(slow[-1].arrays, ideal[-1].arrays)
    assert all(report.virtual and report.virtual > 6 for report in slow)


def test_who_is_away_is_not_asked_and_who_fails_leaves_its_units_as_they_were() -> None:
    faulty = Network(dropout=0.3, churn=0.3)
    reports, before = run(faulty, seed=7), tiny.initial(tiny.Tiny())
    asked = [len(report.clients) for report in reports]
    assert 0 < min(asked) < max(asked) <= 4
    assert [report.merged + len(report.refused) for report in reports] == asked
    assert sum(len(report.refused) for report in reports) > 0
    reasons = {refused.reason for report in reports for refused in report.refused}
    assert reasons == {"it dropped out of the simulated network"}
    for report in reports:
        assert report.bytes_up / max(1, report.merged) == report.bytes_down / len(report.clients)
        if report.merged < len(report.clients) and report.round == 1:
            assert not tiny.same(before, report.arrays)


def test_units_of_those_who_failed_keep_their_bits() -> None:
    spy, task = tiny.Spy(HALVES), tiny.Tiny()
    made = Virtual(Network(dropout=0.5), 5, 2, lambda sizes, training: 0)
    (failing,) = [client for client in (0, 1) if made.fails(1, client)]
    reports: list[RoundReport] = []
    strategy = tiny.strategy(task, spy, network=made, on_round=reports.append)
    strategy.start(InProcessGrid(2, tiny.handlers(task, 2)), wire.to_record(before := tiny.initial(task)), 1)
    assert [refused.client for refused in reports[0].refused] == [failing]
    units = spy.plans[0][failing]["hidden1"]
    assert torch.equal(reports[0].arrays["1.weight"][units], before["1.weight"][units])
    other = spy.plans[0][1 - failing]["hidden1"]
    assert not torch.equal(reports[0].arrays["1.weight"][other], before["1.weight"][other])


def test_messages_and_assignments_give_the_same_bits_and_seconds() -> None:
    network = Network(flops=1e6, up=1e4, server_down=2e4, dropout=0.2, churn=0.2, spread=4)
    direct, messages = run(network, seed=7), run(network, direct=False, seed=7)
    assert tiny.same(direct[-1].arrays, messages[-1].arrays)
    for one, other in zip(direct, messages, strict=True):
        assert (one.virtual, one.clients, one.refused, one.bytes_down, one.bytes_up) == (
            other.virtual,
            other.clients,
            other.refused,
            other.bytes_down,
            other.bytes_up,
        )


def test_shares_that_adapt_follow_virtual_time() -> None:
    network = Network(flops=1e6, tiers={"slow": Tier(flops=2e5), "fast": Tier(share=3)})
    even, adapted = run(network), run(network, adapt=True)
    assert adapted[-1].virtual < even[-1].virtual
    assert adapted[-1].capacities == run(network, adapt=True)[-1].capacities

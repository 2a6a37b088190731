"""Who borrows what when, in virtual time."""

from collections import Counter
from collections.abc import Mapping

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.lending.schedule import Event, Schedule
from ist_fed.network import Asked, Network, Tier, Virtual
from ist_fed.round import Client
from ist_fed.rules import Lease, Node
from ist_fed.rules.lease import first_loans

SIZES = {"hidden1": 96, "hidden2": 64}
FASTER = {"slow": Tier(share=1, step_seconds=10.0), "fast": Tier(share=7, step_seconds=1.0)}


def schedule(network: Network, clients: int = 8, seed: int = 1, **lease: float) -> Schedule:
    people = [Client(node=100 + number, number=number, capacity=1.0, weight=1.0) for number in range(clients)]
    virtual = Virtual(network, seed, clients, lambda sizes, training: sum(sizes.values()))

    def asked(client: Client, sizes: Mapping[str, int]) -> Asked:
        return Asked(client=client.number, sizes=sizes, bytes=1000, steps=1, training=tiny.TRAINING)

    rule = Lease(**{"groups": clients, "min_units": 2, **lease})
    return Schedule(rule, SIZES, people, virtual, seed, asked)


def rounds(made: Schedule, count: int) -> list[Event]:
    return [event for _ in range(count) for event in made.round()]


def plain(events: list[Event]) -> list[tuple[str, int, int, float, tuple[tuple[int, ...], ...]]]:
    def units(event: Event) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(held.tolist()) for held in event.grant.units.values())

    return [(event.fate, event.client.number, event.grant.number, event.at, units(event)) for event in events]


NETWORKS = st.builds(
    Network,
    step_seconds=st.floats(0.1, 2),
    spread=st.floats(1, 8),
    latency=st.sampled_from([0.0, 0.3]),
    up=st.sampled_from([0.0, 4000.0]),
    server_down=st.sampled_from([0.0, 9000.0]),
    dropout=st.sampled_from([0.0, 0.3]),
    churn=st.sampled_from([0.0, 0.3]),
)


@settings(max_examples=40)
@given(network=NETWORKS, term=st.sampled_from([1.5, 5.0, 1000.0]), clients=st.integers(1, 6), groups=st.integers(1, 8))
def test_whatever_happens_a_unit_has_one_holder_and_a_lease_one_end(
    network: Network, term: float, clients: int, groups: int
) -> None:
    made, now = schedule(network, clients, term=term, groups=groups), 0.0
    out, ended = dict[int, Event](), set[int]()
    for event in rounds(made, 5):
        assert event.at >= now
        now, number = event.at, event.grant.number
        if event.fate == "granted":
            assert all(other.client != event.client for other in out.values())
            for axis, held in event.grant.units.items():
                taken = {unit for other in out.values() for unit in other.grant.units[axis].tolist()}
                assert not taken & set(held.tolist())
            out[number] = event
            continue
        assert number not in ended
        ended.add(number)
        lent = out.pop(number)
        assert lent.client == event.client
        late = event.at - lent.at >= term * (1 - 1e-9)
        assert late if event.fate == "expired" else not late or event.at == pytest.approx(lent.at + term)
    assert len(ended) == 5 * clients


def test_the_same_seed_gives_the_same_events_and_another_others() -> None:
    network = Network(step_seconds=1, spread=8, dropout=0.1, churn=0.1)
    one, other, third = (plain(rounds(schedule(network, seed=seed), 4)) for seed in (1, 1, 2))
    assert one == other != third


def test_nobody_waits_for_a_straggler() -> None:
    made = schedule(Network(tiers=FASTER))
    ended = Counter(event.client.number for event in rounds(made, 9) if event.fate == "returned")
    assert made.now == 11  # 7 clients once a second, and once the slow one; synchronous rounds would have taken 90
    assert sorted(ended.values()) == [1, 10, 10, 10, 10, 10, 10, 11]


def test_equal_clients_come_back_together_as_in_rounds_in_an_order_that_is_drawn() -> None:
    orders = set()
    for seed in range(4):
        made = schedule(Network(step_seconds=2.0), seed=seed)
        for round in range(1, 4):
            ended = [event.client.number for event in made.round() if event.fate == "returned"]
            assert sorted(ended) == list(range(8))
            assert made.now == 2.0 * round
            orders.add((seed, *ended))
    assert len(orders) == len({order[1:] for order in orders}) == 4  # one for each seed


def test_more_clients_than_groups_take_turns() -> None:
    ended = Counter(event.client.number for event in rounds(schedule(Network(step_seconds=1), groups=3), 6)
                    if event.fate == "returned")  # fmt: skip
    assert sum(ended.values()) == 48
    assert set(ended.values()) == {6}


def test_a_lease_that_is_not_back_within_its_term_is_lost_and_its_holder_comes_again() -> None:
    made = schedule(Network(tiers=FASTER), term=4.0)
    events = rounds(made, 8)
    (slow,) = {event.client.number for event in events if event.fate == "expired"}
    assert not [event for event in events if event.fate == "returned" and event.client.number == slow]
    lent = [event.at for event in events if event.fate == "granted" and event.client.number == slow]
    assert lent[0] == 0
    late = [event.at for event in events if event.fate == "expired"]
    assert late[0] == pytest.approx(4)
    assert all(at == pytest.approx(10 * turn) for turn, at in enumerate(lent))  # it is busy until it comes back


def test_what_was_lent_out_first_can_be_drawn_again() -> None:
    events = schedule(Network(step_seconds=1, spread=8), seed=4).round()[:8]
    plan = first_loans(Lease(groups=8, min_units=2), [Node(number) for number in range(8)], SIZES, 4)
    assert [event.fate for event in events] == ["granted"] * 8
    for event in events:
        drawn = plan[event.client.number]
        assert all(held.tolist() == drawn[axis].tolist() for axis, held in event.grant.units.items())


def test_who_fails_is_missed_when_it_would_have_been_back() -> None:
    events = rounds(schedule(Network(step_seconds=1, dropout=0.5)), 4)
    assert {event.fate for event in events} == {"granted", "returned", "failed"}
    assert {event.at for event in events} == {0, 1, 2, 3, 4}

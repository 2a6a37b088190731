"""Trips in virtual time: closed forms, and a fluid that is followed in small steps by a loop with nothing of ours."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed.network import Traffic, Trip
from ist_fed.network.traffic import fair, last_of

RATES = st.floats(0.5, 20)


def ends(trips: list[Trip], **links: float) -> dict[int, float]:
    traffic, found = Traffic(**links), {}
    for number, trip in enumerate(trips):
        traffic.begin(number, trip)
    while (key := traffic.next()) is not None:
        found[key] = traffic.now
    return found


def test_alone_a_trip_takes_the_sum_of_its_parts() -> None:
    trip = Trip(latency=0.5, down=100, down_rate=50, compute=3, up=100, up_rate=25)
    assert trip.alone == 0.5 + 2 + 3 + 4 + 0.5
    assert ends([trip] * 3) == dict.fromkeys(range(3), trip.alone)
    assert ends([trip], server_up=1000, server_down=1000) == {0: pytest.approx(trip.alone)}
    assert ends([Trip(compute=2, down=10, up=10)]) == {0: 2}


def test_equal_clients_share_the_servers_link() -> None:
    trip = Trip(down=100, down_rate=50, compute=3, up=100, up_rate=50)
    found = ends([trip] * 4, server_up=50, server_down=50)
    assert found == dict.fromkeys(range(4), pytest.approx(4 * 2 + 3 + 4 * 2))


def test_what_a_slow_client_cannot_use_the_others_get() -> None:
    assert fair(10, np.array([1.0, np.inf, np.inf])).tolist() == [1, 4.5, 4.5]
    assert fair(10, np.array([np.inf, 2.0])).tolist() == [8, 2]
    assert fair(10, np.array([2.0, 3.0])).tolist() == [2, 3]


@given(rate=RATES, most=st.lists(RATES | st.just(np.inf), min_size=1, max_size=8))
def test_shares_are_max_min_fair(rate: float, most: list[float]) -> None:
    shares = fair(rate, np.array(most))
    assert (shares <= np.array(most)).all()
    assert shares.sum() == pytest.approx(min(rate, sum(most)))
    level = shares.max()  # who has less than another has all it can take
    assert all(share == pytest.approx(level) or share == bound for share, bound in zip(shares, most, strict=True))


TRIPS = st.builds(
    Trip,
    latency=st.floats(0, 1),
    down=st.floats(1, 30),
    down_rate=RATES,
    compute=st.floats(0, 3),
    up=st.floats(1, 30),
    up_rate=RATES | st.just(0.0),
)


@settings(max_examples=20)
@given(trips=st.lists(TRIPS, min_size=1, max_size=4), server=RATES)
def test_a_fluid_followed_in_small_steps_ends_at_the_same_time(trips: list[Trip], server: float) -> None:
    found = ends(trips, server_up=server, server_down=server)
    expected = in_small_steps(trips, server, step := 0.02)
    assert found.keys() == expected.keys()
    for number, at in found.items():
        assert at == pytest.approx(expected[number], abs=4 * step + 0.02 * at)
    assert list(found.values()) == sorted(found.values())
    assert last_of(Traffic(server, server), trips) == max(found.values())


def in_small_steps(trips: list[Trip], server: float, step: float) -> dict[int, float]:
    """Each trip is a list of stages, each with something left; transfers of one kind share the server's rate."""
    left = [[trip.latency, trip.down, trip.compute, trip.up, trip.latency] for trip in trips]
    at, over = 0.0, dict[int, float]()
    while len(over) < len(trips):
        stages = [next((stage for stage, rest in enumerate(of_one) if rest > 1e-9), 5) for of_one in left]
        speed = [1.0] * len(trips)
        for stage in (1, 3):
            sharing = [i for i, now in enumerate(stages) if now == stage]
            own = [(trips[i].down_rate, trips[i].up_rate)[stage == 3] or 1e9 for i in sharing]
            free, count = server, len(own)
            for bound, i in sorted(zip(own, sharing, strict=True)):
                speed[i] = min(bound, free / count)
                free, count = free - speed[i], count - 1
        at += step
        for i, stage in enumerate(stages):
            if stage == 5:
                over.setdefault(i, at - step)
            else:
                left[i][stage] -= step * speed[i]
    return over


def test_more_on_the_way_is_never_sooner() -> None:
    trip = Trip(latency=0.1, down=10, down_rate=7, compute=1, up=10, up_rate=3)
    lasts = [last_of(Traffic(8.0, 8.0), [trip] * count) for count in (1, 2, 4, 8)]
    assert all(one <= other for one, other in pairwise(lasts))


def test_equal_moments_come_in_the_order_in_which_they_became_known() -> None:
    assert list(ends([Trip(compute=1)] * 5)) == [0, 1, 2, 3, 4]


def test_a_clock_can_be_woken() -> None:
    traffic = Traffic(now=5.0)
    traffic.begin("trip", Trip(compute=3))
    traffic.wake("alarm", 6.0)
    assert [(traffic.next(), traffic.now), (traffic.next(), traffic.now)] == [("alarm", 6.0), ("trip", 8.0)]
    assert traffic.next() is None

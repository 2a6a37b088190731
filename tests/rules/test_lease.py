"""The ledger of leases, over random schedules: nothing is lent to two, returned twice, or returned too late."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ist_fed import rules
from ist_fed.errors import RuleError
from ist_fed.rules import Grant, Lease, Leases, Node
from ist_fed.seeds import generator

SIZES = {"hidden1": 64, "hidden2": 41}
NODES = st.integers(0, 5)


class Bookkeeping(RuleBasedStateMachine):
    """Grants, returns, crashes, replays and time passing, against books kept with nothing of the ledger's."""

    @initialize(
        groups=st.integers(1, 8),
        free=st.sampled_from([0.0, 0.25, 0.5]),
        term=st.floats(1, 30),
        keep=st.sampled_from([1, 2, 8]),
    )
    def open(self, groups: int, free: float, term: float, keep: int) -> None:
        self.rule = Lease(groups=groups, free=free, term=term, min_units=2, keep=keep)
        self.ledger, self.now, self.seed = Leases(rule=self.rule, sizes=SIZES), 0.0, 0
        self.books: dict[int, Grant] = {}  # node → lease
        self.past: list[Grant] = []
        self.merged: list[int] = []

    @rule(node=NODES, capacity=st.floats(0.3, 3))
    def grant(self, node: int, capacity: float) -> None:
        before, self.seed = self.ledger, self.seed + 1
        wants = Node(node, capacity)
        if node in self.books:
            with pytest.raises(RuleError, match="holds one lease at a time"):
                self.ledger.grant(wants, self.now, generator(self.seed))
            return
        self.ledger, grant = self.ledger.grant(wants, self.now, generator(self.seed))
        if grant is None:
            assert self.ledger is before
            least = min(len(self.free(axis)) - SIZES[axis] + self.rule.lendable(SIZES[axis]) for axis in SIZES)
            assert least < self.rule.min_units, "it was refused though there was enough"
            return
        assert grant.node == node
        assert grant.until == self.now + self.rule.term
        assert grant.number not in {old.number for old in self.past}
        for axis, held in grant.units.items():
            assert set(held.tolist()) <= self.free(axis), "what somebody holds was lent again"
            assert bool((held.diff() > 0).all())
            assert len(held) >= self.rule.min_units
        assert grant.node not in before.held, "an entry changed the ledger before it"
        again = [old for old in self.past if old.units is grant.units]
        assert grant.times == len(again) + 1 <= self.rule.keep
        assert not again or again[-1].node != node, "it trains at once again what it had"
        self.books[node] = grant
        self.past.append(grant)

    def free(self, axis: str) -> set[int]:
        return set(range(SIZES[axis])) - {unit for held in self.books.values() for unit in held.units[axis].tolist()}

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """Any lease there ever was, by its holder or by somebody else: once, in time, or never."""
        grant = data.draw(st.sampled_from(self.past))
        node = data.draw(st.sampled_from([grant.node, (grant.node + 1) % 6]))
        sound = self.books.get(node) is grant and self.now < grant.until
        if not sound:
            with pytest.raises(RuleError, match=r"returned once, by its holder|expired before it was returned"):
                self.ledger.give_back(node, grant.number, self.now)
            return
        self.ledger, given = self.ledger.give_back(node, grant.number, self.now)
        assert given is grant
        assert grant.number not in self.merged
        self.merged.append(grant.number)
        del self.books[node]

    @rule(node=NODES)
    def crash(self, node: int) -> None:
        self.ledger, gone = self.ledger.end(node)
        assert gone is self.books.pop(node, None)

    @rule(seconds=st.floats(0, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        self.ledger, over = self.ledger.expire(self.now)
        late = {node for node, grant in self.books.items() if self.now >= grant.until}
        assert {grant.node for grant in over} == late
        for node in late:
            del self.books[node]

    @invariant()
    def books_agree_and_a_share_stays_free(self) -> None:
        if not hasattr(self, "books"):
            return
        assert dict(self.ledger.held) == self.books
        for axis, size in SIZES.items():
            held = [unit for grant in self.books.values() for unit in grant.units[axis].tolist()]
            assert len(held) == len(set(held)), "two hold one unit"
            assert len(held) <= (1 - self.rule.free) * size
            assert self.ledger.free(axis).tolist() == sorted(self.free(axis))
            kept = [unit for old in self.ledger.kept for unit in old.units[axis].tolist()]
            assert len(kept) == len(set(kept))
            assert set(kept) <= self.free(axis)


Bookkeeping.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBookkeeping = Bookkeeping.TestCase


@given(
    st.integers(1, 8),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.lists(st.floats(0.5, 2), min_size=1, max_size=8),
    st.integers(0, 99),
)
def test_those_who_come_at_once_hold_what_nobody_else_holds(
    groups: int, free: float, capacities: list[float], seed: int
) -> None:
    lease = Lease(groups=groups, free=free, min_units=2)
    plan = lease(1, [Node(i, c) for i, c in enumerate(capacities)], SIZES, generator(seed))
    for axis, size in SIZES.items():
        held = torch.cat([units[axis] for units in plan.values()])
        assert len(held.unique()) == len(held) <= (1 - free) * size
    assert len(plan) >= 1
    if len(capacities) <= groups and len(set(capacities)) == 1:
        assert len(plan) == len(capacities)
        widths = [{axis: len(held) for axis, held in units.items()} for units in plan.values()]
        assert all(width == {axis: lease.lendable(n) // groups for axis, n in SIZES.items()} for width in widths)


def test_units_that_are_drawn_anew_meet_others() -> None:
    """With a quarter free, a client's next lease is not its last one; with nothing free it would be."""

    def again(free: float) -> float:
        ledger = Leases(rule=Lease(groups=4, free=free, keep=1), sizes={"hidden1": 256})
        kept = []
        for number in range(4):
            ledger, _ = ledger.grant(Node(number), 0, generator(number))
        for turn in range(40):
            before = ledger.held[turn % 4]
            ledger, _ = ledger.give_back(turn % 4, before.number, 0)
            ledger, after = ledger.grant(Node(turn % 4), 0, generator(100 + turn))
            assert after is not None
            kept.append(
                len(np.intersect1d(before.units["hidden1"], after.units["hidden1"])) / len(after.units["hidden1"])
            )
        return float(np.mean(kept))

    assert again(0.0) == 1
    assert again(0.25) == pytest.approx((3 / 16) / (3 / 16 + 1 / 4), abs=0.05)


def turns(ledger: Leases, nodes: list[Node], count: int) -> list[Grant]:
    """Clients that borrow, and then return and borrow again in turn."""
    grants = list[Grant]()
    for turn in range(count):
        node = nodes[turn % len(nodes)]
        ledger, _ = ledger.end(node.id)
        ledger, grant = ledger.grant(node, 0, generator(turn))
        assert grant is not None
        grants.append(grant)
    return grants


def test_units_stay_together_while_clients_move_on_and_are_then_drawn_anew() -> None:
    ledger = Leases(rule=Lease(groups=4, keep=5), sizes={"hidden1": 256, "hidden2": 128})
    sets: dict[int, list[Grant]] = {}
    for grant in turns(ledger, [Node(number) for number in range(4)], 120):
        sets.setdefault(id(grant.units), []).append(grant)
    whole = [grants for grants in sets.values() if grants[-1].number < 90]
    for grants in whole:
        assert [grant.times for grant in grants] == list(range(1, len(grants) + 1))
        assert all(one.node != other.node for one, other in pairwise(grants))
    assert np.mean([len(grants) == 5 for grants in whole]) > 0.7  # the others only their last holder could have got
    assert len(whole) >= 10
    assert {unit for grants in whole for unit in grants[0].units["hidden1"].tolist()} == set(range(256))


def test_units_do_not_stay_together_for_one_who_borrows_far_fewer() -> None:
    """Nor are they lent to nobody because of that: all are drawn, again and again."""
    ledger = Leases(rule=Lease(groups=4, min_units=2), sizes={"hidden1": 256})
    nodes = [Node(number, capacity) for number, capacity in enumerate((0.4, 0.7, 1.1, 1.8))]
    grants = turns(ledger, nodes, 400)
    for grant in grants:
        assert len(grant.units["hidden1"]) == int(nodes[grant.node].capacity * 48)
        assert len(grant.units["hidden1"]) <= 192
    late = np.bincount(np.concatenate([grant.units["hidden1"].numpy() for grant in grants[200:]]), minlength=256)
    assert late.min() > 0


@pytest.mark.parametrize(
    ("wrong", "sizes", "said"),
    [
        ({"groups": 0}, SIZES, "groups, min_units and keep must be at least 1"),
        ({"groups": 2, "keep": 0}, SIZES, "groups, min_units and keep must be at least 1, but are 2, 16 and 0"),
        ({"groups": 2, "free": 1.0}, SIZES, "free must be a share from 0 to below 1, but is 1.0"),
        ({"groups": 2, "term": 0.0}, SIZES, "term must be a positive number of seconds"),
        ({"groups": 1, "free": 0.5}, {"h": 20}, r"axis 'h' has 20 units, of which 10 are lent.*widen 'h' to 32"),
    ],
)
def test_what_cannot_be_lent_is_refused(wrong: Mapping[str, object], sizes: Mapping[str, int], said: str) -> None:
    with pytest.raises(RuleError, match=said):
        Lease(**wrong)(1, [Node(0)], sizes, generator(0))


def test_a_node_never_borrows_more_than_it_can_hold() -> None:
    ledger = Leases(rule=Lease(groups=2), sizes={"hidden1": 256})
    ledger, grant = ledger.grant(Node(0, capacity=3.0, limit=0.1), 0, generator(0))
    assert grant is not None
    assert len(grant.units["hidden1"]) == 25
    with pytest.raises(RuleError, match="memory of node 1 holds 10 of axis"):
        ledger.grant(Node(1, limit=0.04), 0, generator(0))


def test_the_rule_stands_in_a_scenario() -> None:
    assert rules.RULES["lease"](groups=3) == Lease(groups=3, free=0.25, term=3600.0, min_units=16, keep=8)

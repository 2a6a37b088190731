"""Leases: a client borrows units that nobody else holds, and when it returns them borrows others; nobody waits.

What a client holds is never stale, for nobody else could have changed it. A share of every axis stays free, so that
units go from client to client and, drawn anew, meet others than those they were lent with before.

Source: an asynchronous form of Independent Subnet Training (Yuan et al., PVLDB 15(8), 2022), our own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from types import MappingProxyType

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.places import Units
from ist_fed.rules.plan import Node, Plan, average_of_one, check_nodes
from ist_fed.rules.shares import is_a_block
from ist_fed.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Lend units of every axis out, to at most about `groups` clients at a time.

    A strategy with this rule keeps no rounds: it merges what a client returns at once, and lends it other units. A
    client of average capacity borrows `(1 - free) / groups` of every axis, others in proportion, none more than its
    limit and than there is; one for whom there is too little waits for the next return.

    Units that come back stay together, and go to somebody else who borrows about as many (within a quarter), the set
    that came back first before the others. Who has borrowed something is so followed by others with other examples,
    before what it learnt is torn apart.

    Args:
        groups: average clients that can borrow at once; with as many as there are clients nobody waits.
        free: share of every axis that is never lent out; with nothing free units would never meet others.
        term: seconds after which a client that has not returned its units loses them.
        min_units: fewest units of any axis in any subnet.
        keep: times that units are lent together, before they are drawn anew; 1 draws anew for every lease, which is
            better where clients' data differ much.
    """

    groups: int
    free: float = 0.25
    term: float = 3600.0
    min_units: int = 16
    keep: int = 8

    def __post_init__(self) -> None:
        """Refuse what could not be lent."""
        if min(self.groups, self.min_units, self.keep) < 1:
            found = f"{self.groups}, {self.min_units} and {self.keep}"
            raise RuleError(f"groups, min_units and keep must be at least 1, but are {found}")
        if not 0 <= self.free < 1:
            raise RuleError(f"free must be a share from 0 to below 1, but is {self.free}")
        if not 0 < self.term < inf:
            raise RuleError(f"term must be a positive number of seconds, but is {self.term}")

    def lendable(self, size: int) -> int:
        """How many units of an axis may be out at once."""
        return size - ceil(self.free * size)

    def wish(self, node: Node, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many units of each axis a node borrows if they are there; its capacity is relative to the average's 1.

        Raises:
            RuleError: it could never be lent `min_units`.
        """
        wished = {}
        for axis, size in sizes.items():
            lendable, most = self.lendable(size), int(node.limit * size)
            if lendable < self.min_units and size == 1:
                raise RuleError(is_a_block(axis))
            if lendable < self.min_units:
                raise RuleError(
                    f"every lease needs at least min_units={self.min_units} units of every axis, but axis '{axis}' has "
                    f"{size} units, of which {lendable} are lent; keep less free, widen '{axis}' to "
                    f"{ceil(self.min_units / (1 - self.free))}, or lower min_units"
                )
            if most < self.min_units:
                raise RuleError(
                    f"every client must be able to hold min_units={self.min_units} units of every axis, but the memory "
                    f"of node {node.id} holds {most} of axis '{axis}'; leave it out, raise its budget, lower "
                    f"batch_size, or lower min_units"
                )
            fair = int(node.capacity * lendable / self.groups)
            # One weaker than most still gets as much as learns anything; then fewer than `groups` borrow at once.
            wished[axis] = min(max(fair, self.min_units), most, lendable)
        return wished

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """What is lent out when everyone comes at once, in the order given; who finds too little is left out."""
        return _lent(self, nodes, sizes, lambda number: rng)


def first_loans(rule: Lease, nodes: Sequence[Node], sizes: Mapping[str, int], seed: int) -> Plan:
    """What a run with this seed lends out first, if all these nodes are there."""
    return _lent(rule, first_come(nodes, seed), sizes, lambda number: stream(seed, number))


def first_come(nodes: Sequence[Node], seed: int) -> list[Node]:
    """The order in which nodes that come at once borrow: drawn, as rounds draw who trains a subnet after whom."""
    return [nodes[i] for i in stream(seed, 0).permutation(len(nodes))]


def stream(seed: int, number: int) -> np.random.Generator:
    """From which the units of a lease are drawn."""
    return generator(seed, number, "lease")


def _lent(
    rule: Lease, nodes: Sequence[Node], sizes: Mapping[str, int], rng: Callable[[int], np.random.Generator]
) -> Plan:
    check_nodes(nodes)
    ledger, grants = Leases(rule=rule, sizes=sizes), list[Grant]()
    for node in average_of_one(nodes):
        ledger, grant = ledger.grant(node, 0.0, rng(ledger.granted + 1))
        grants += [grant] if grant else []
    return Plan(subnets=tuple(grant.units for grant in grants), cohorts=tuple((grant.node,) for grant in grants))


@dataclass(frozen=True, kw_only=True, eq=False)
class Grant:
    """A lease that was granted.

    Args:
        number: of all leases of a run, from 1; it names this one when it is returned.
        node: who borrows.
        units: what is lent.
        until: the moment from which it has expired.
        times: that these units have been lent together, this one counted.
    """

    number: int
    node: int
    units: Units
    until: float
    times: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Leases:
    """The ledger: who holds which units now. Frozen; every entry gives a new one.

    Args:
        rule: by which units are lent.
        sizes: units of each axis of the full network.
        held: node → its lease.
        granted: leases so far.
        kept: leases that have ended and whose units are to be lent together again, the first that ended first.
    """

    rule: Lease
    sizes: Mapping[str, int]
    held: Mapping[int, Grant] = field(default_factory=lambda: MappingProxyType({}))
    granted: int = 0
    kept: tuple[Grant, ...] = ()

    def free(self, axis: str) -> np.ndarray:
        """The units that nobody holds, in order."""
        free = np.ones(self.sizes[axis], dtype=bool)
        for grant in self.held.values():
            free[grant.units[axis].numpy()] = False
        return np.flatnonzero(free)

    def grant(self, node: Node, now: float, rng: np.random.Generator) -> "tuple[Leases, Grant | None]":
        """Lend units that are free to a node; none if there are too few.

        What was never lent, or is to be drawn anew, goes first, if there is enough of it.

        Args:
            node: who borrows; its capacity is relative to the average client's 1.
            now: the time.
            rng: the only randomness.

        Raises:
            RuleError: it holds a lease already, or it could never be lent enough.
        """
        if node.id in self.held:
            raise RuleError(f"a node holds one lease at a time, but node {node.id} holds {self.held[node.id].number}")
        wish = self.rule.wish(node, self.sizes)
        there = {axis: len(self.free(axis)) - (size - self.rule.lendable(size)) for axis, size in self.sizes.items()}
        if min(there.values()) < self.rule.min_units:
            return self, None
        wish = {axis: min(wished, there[axis]) for axis, wished in wish.items()}
        most = {axis: min(int(node.limit * size), there[axis]) for axis, size in self.sizes.items()}
        old, kept = self._kept_for(node, wish, most)
        units = old.units if old else {axis: _some(self._loose(axis, kept), many, rng) for axis, many in wish.items()}
        number, times = self.granted + 1, old.times + 1 if old else 1
        grant = Grant(number=number, node=node.id, units=units, until=now + self.rule.term, times=times)
        held = MappingProxyType({**self.held, node.id: grant})
        return replace(self, held=held, granted=number, kept=kept), grant

    def _kept_for(
        self, node: Node, wish: Mapping[str, int], most: Mapping[str, int]
    ) -> tuple[Grant | None, tuple[Grant, ...]]:
        """A lease whose units suit a node, if there are not enough loose ones, and what is kept after that.

        The first that another node had is either lent now or not kept, or what suits nobody would lie there for ever.
        """
        kept = self.kept
        while any(len(self._loose(axis, kept)) < wished for axis, wished in wish.items()):
            first = next((old for old in kept if old.node != node.id), kept[0])
            kept = tuple(old for old in kept if old is not first)
            many = {axis: len(units) for axis, units in first.units.items()}
            alike = all(abs(many[axis] - wished) <= wished // 4 for axis, wished in wish.items())
            if alike and first.node != node.id and all(many[axis] <= most[axis] for axis in many):
                return first, kept
        return None, kept

    def _loose(self, axis: str, kept: Sequence[Grant]) -> np.ndarray:
        """The units that nobody holds and nothing keeps together, in order."""
        free = self.free(axis)
        return np.setdiff1d(free, np.concatenate([old.units[axis].numpy() for old in kept])) if kept else free

    def give_back(self, node: int, number: int, now: float) -> "tuple[Leases, Grant]":
        """Take a lease back; what it lent may then be merged, and lent again.

        Raises:
            RuleError: the node does not hold this lease, or it has expired; nothing of it may be merged.
        """
        grant = self.held.get(node)
        if grant is None or grant.number != number:
            raise RuleError(f"a lease is returned once, by its holder, but node {node} does not hold lease {number}")
        if now >= grant.until:
            raise RuleError(f"lease {number} of node {node} expired before it was returned")
        return self._without([grant]), grant

    def end(self, node: int) -> "tuple[Leases, Grant | None]":
        """Take from a node what it holds, if anything: nothing of it will be merged."""
        grant = self.held.get(node)
        return (self._without([grant]), grant) if grant else (self, None)

    def expire(self, now: float) -> "tuple[Leases, tuple[Grant, ...]]":
        """Take what was not returned within its term."""
        over = tuple(grant for grant in self.held.values() if now >= grant.until)
        return (self._without(over), over) if over else (self, ())

    def _without(self, grants: Sequence[Grant]) -> "Leases":
        gone = {grant.number for grant in grants}
        left = {node: grant for node, grant in self.held.items() if grant.number not in gone}
        kept = tuple(grant for grant in grants if grant.times < self.rule.keep)
        return replace(self, held=MappingProxyType(left), kept=(*self.kept, *kept))


def _some(units: np.ndarray, many: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(np.sort(rng.choice(units, many, replace=False)))

"""A rule's answer for one round: who holds which units."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from ist_fed.errors import RuleError
from ist_fed.places import Units
from ist_fed.seeds import generator


@dataclass(frozen=True)
class Node:
    """A client as a rule sees it.

    Args:
        id: Flower's node id.
        capacity: how much it should hold, relative to the others; only ratios count.
        limit: largest fraction of every axis that it can hold; of a network with blocks, the fraction of these.
    """

    id: int
    capacity: float = 1.0
    limit: float = 1.0


def average_of_one(nodes: Sequence[Node]) -> list[Node]:
    """The same with capacities relative to their average."""
    average = sum(node.capacity for node in nodes) / max(1, len(nodes))
    return [replace(node, capacity=node.capacity / average) for node in nodes]


@dataclass(frozen=True)
class Plan(Mapping[int, Units]):
    """Node → units, frozen. Nodes of one cohort hold the same subnet, and the very same `Units`.

    Args:
        subnets: the units of each subnet that someone holds.
        cohorts: for each subnet, the ids of the nodes that hold it.
    """

    subnets: tuple[Units, ...]
    cohorts: tuple[tuple[int, ...], ...]

    def __getitem__(self, node: int) -> Units:
        """The units that `node` holds."""
        return self.subnets[self._numbers[node]]

    def __iter__(self) -> Iterator[int]:
        """Node by node, in the order of the subnets."""
        return iter(self._numbers)

    def __len__(self) -> int:
        """How many nodes hold something."""
        return len(self._numbers)

    def subnet_of(self, node: int) -> int:
        """The number of the subnet that `node` holds."""
        return self._numbers[node]

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {node: number for number, cohort in enumerate(self.cohorts) for node in cohort}


def held_only(subnets: Sequence[Units], cohorts: Sequence[Sequence[Node]]) -> Plan:
    """The plan of groups and their cohorts: a group of nobody is left out, and groups of the very same units are one.

    Args:
        subnets: the units of each group, every axis in each.
        cohorts: the nodes of each group.
    """
    alike: dict[bytes, tuple[Units, list[int]]] = {}
    for units, cohort in zip(subnets, cohorts, strict=True):
        if cohort:
            key = b"".join(len(held).to_bytes(8, "little") + held.numpy().tobytes() for held in units.values())
            alike.setdefault(key, (units, []))[1].extend(node.id for node in cohort)
    return Plan(
        subnets=tuple(units for units, _ in alike.values()), cohorts=tuple(tuple(ids) for _, ids in alike.values())
    )


class Rule(Protocol):
    """Decides who holds which units in a round: a pure function of its arguments."""

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal the units out.

        Args:
            round: from 1.
            nodes: the clients of this round, in an order that does not change from round to round.
            sizes: units of each axis of the full network.
            rng: the only randomness allowed.

        Raises:
            RuleError: it cannot be done; the message says what would have to change.
        """
        ...


def plan_round(
    rule: Rule,
    round: int,
    nodes: Sequence[Node],
    sizes: Mapping[str, int],
    seed: int,
    trained: Mapping[str, Tensor] | None = None,
) -> Plan:
    """The rule's plan with the random stream that belongs to the round.

    A rule that keeps a draw for several rounds says by `draw(round)` which one a round belongs to; rounds of one draw
    get the same stream. One that heeds what was trained so far has `knowing(trained)`, which gives the rule to ask.

    Args:
        rule: to be asked.
        round: from 1.
        nodes: the clients of this round.
        sizes: units of each axis of the full network.
        seed: of the run.
        trained: how often each unit of each axis was trained in the rounds before; None before the first.
    """
    draw = rule.draw(round) if hasattr(rule, "draw") else round
    if trained is not None and hasattr(rule, "knowing"):
        rule = rule.knowing(trained)
    return rule(round, nodes, sizes, generator(seed, draw, "assign"))


def why_too_little(rule: Rule, node: Node, sizes: Mapping[str, int]) -> str:
    """Why a node can hold no subnet that a rule might deal it; empty if it can, or if its limit is not what is wrong.

    The rule is asked for a plan with this node alone, so what it needs is written down in one place, the rule itself.
    """
    why = _no_plan(rule, node, sizes)
    return why if why and not _no_plan(rule, replace(node, limit=1.0), sizes) else ""


def _no_plan(rule: Rule, node: Node, sizes: Mapping[str, int]) -> str:
    try:
        rule(1, [node], sizes, generator(0, "alone"))
    except RuleError as error:
        return str(error)
    return ""


def check_nodes(nodes: Sequence[Node]) -> None:
    """Refuse what no rule can plan for.

    Raises:
        RuleError: no node, one node twice, a capacity that is not positive, or a limit that is no fraction.
    """
    if not nodes:
        raise RuleError("a round needs at least one client, but none is connected")
    if len({node.id for node in nodes}) < len(nodes):
        raise RuleError("a node stands in a round once, but an id occurs twice")
    for node in nodes:
        if not 0 < node.capacity < float("inf"):
            raise RuleError(f"a capacity must be positive, but node {node.id} reports {node.capacity}")
        if not 0 <= node.limit <= 1:
            raise RuleError(f"a limit must lie between 0 and 1, but node {node.id} reports {node.limit}")

"""Who held which units: not stored, but drawn again, since randomness is an argument."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from ist_fed.coverage import count_trained, untrained
from ist_fed.errors import RunError
from ist_fed.places import Units
from ist_fed.report.curves import Line
from ist_fed.report.network import Key, Network
from ist_fed.rules import Disjoint, Lease, Node, Plan, plan_round
from ist_fed.rules.lease import first_loans
from ist_fed.scenario import Scenario


def plans_of(scenario: Scenario, lines: Sequence[Line]) -> list[Plan]:
    """The plan of each line's round, its nodes named by the clients' own numbers; of leases what was lent out first."""
    if scenario.privacy.mode == "central":
        raise RunError(
            "a report shows who held which units, which nobody knows of a private run; its metrics are in "
            "metrics.jsonl, and what it spent in privacy.jsonl"
        )
    if isinstance(rule := scenario.make_rule(), Lease):
        return [_first_loans(rule, scenario, lines)]
    plans, trained = list[Plan](), untrained(scenario.sizes)
    rules = {phase: scenario.during(phase).make_rule() for phase in {line.get("phase", 0) for line in lines}}
    for line in lines:
        clients = line["clients"]
        if len(set(clients)) < len(clients):
            clients = range(len(clients))  # two devices were given one number; places tell them apart
        limits = line.get("limits", [1.0] * len(clients))
        nodes = [Node(*node) for node in zip(clients, line["capacities"], limits, strict=True)]
        rule = rules[line.get("phase", 0)]
        plans.append(plan_round(rule, line["round"], nodes, scenario.sizes, scenario.seed, trained))
        for number in _brought_back(plans[-1], line):
            count_trained(trained, plans[-1].subnets[number])
    return plans


def _first_loans(rule: Lease, scenario: Scenario, lines: Sequence[Line]) -> Plan:
    keys = ("clients", "capacities", "limits")
    nodes = {node[0]: Node(*node) for line in lines for node in zip(*(line[key] for key in keys), strict=True)}
    return first_loans(rule, [nodes[client] for client in sorted(nodes)], scenario.sizes, scenario.seed)


def held(plan: Plan, axis: str, size: int) -> np.ndarray:
    """Whether a subnet holds a unit, as booleans `(subnets, units)`."""
    marks = np.zeros((len(plan.subnets), size), dtype=bool)
    for row, units in zip(marks, plan.subnets, strict=True):
        row[units[axis].numpy() if axis in units else slice(None)] = True  # an axis left out is held whole
    return marks


def sizes_of(plan: Plan, sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """Units of each axis in each subnet."""
    return [{axis: len(units.get(axis, range(n))) for axis, n in sizes.items()} for units in plan.subnets]


def lack_blocks(plans: Sequence[Plan], sizes: Mapping[str, int]) -> bool:
    """Whether some subnet was without a block, which is an axis of one unit."""
    return any(n == 1 and not held(plan, axis, n).all() for plan in plans for axis, n in sizes.items())


def blocks_as_units(plans: Sequence[Plan], sizes: Mapping[str, int]) -> tuple[list[Plan], dict[str, int]]:
    """The same for people to look at: blocks are the units of one axis, and what everyone holds whole is left out.

    Returns:
        The plans, and the sizes of the full network, as if its blocks were units of an axis `blocks`.
    """
    blocks = [axis for axis, size in sizes.items() if size == 1]
    cut = [axis for axis, n in sizes.items() if n > 1 and any(not held(plan, axis, n).all() for plan in plans)]

    def one(units: Units) -> Units:
        own = [at for at, axis in enumerate(blocks) if len(units.get(axis, range(1)))]
        return {**{axis: units[axis] for axis in cut if axis in units}, "blocks": torch.tensor(own, dtype=torch.int64)}

    seen = [Plan(subnets=tuple(map(one, plan.subnets)), cohorts=plan.cohorts) for plan in plans]
    return seen, {**{axis: sizes[axis] for axis in cut}, "blocks": len(blocks)}


def followed(plans: Sequence[Plan]) -> int:
    """The client that the report follows through the rounds, as an example."""
    return min(plans[0])


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """What the plans of a run have in common.

    Args:
        subnets: fewest and most subnets of a round.
        cohort: most clients that held one subnet.
        units: smallest and largest share of the hidden units that one client held at once, 0 to 1.
        parameters: the same of the network's parameters; None where the network is not known.
        whole: some client held every unit of every axis at once.
        always_whole: every client did, in every round.
        disjoint: no unit was ever in two subnets of one round.
        redrawn: subnets changed from round to round.
        seen: share of the hidden units that the client `followed` held at one time or another.
    """

    subnets: tuple[int, int]
    cohort: int
    units: tuple[float, float]
    parameters: tuple[float, float] | None
    whole: bool
    always_whole: bool
    disjoint: bool
    redrawn: bool
    seen: float


def summarise(plans: Sequence[Plan], sizes: Mapping[str, int], network: Network | None) -> Holdings:
    """Read off the plans of a run what the report says about them."""
    counts = [len(plan.subnets) for plan in plans]
    subnets = [subnet for plan in plans for subnet in sizes_of(plan, sizes)]
    shares = [sum(subnet.values()) / sum(sizes.values()) for subnet in subnets]
    parameters = [network.parameters(subnet) / network.parameters() for subnet in subnets] if network else []
    return Holdings(
        subnets=(min(counts), max(counts)),
        cohort=max(len(cohort) for plan in plans for cohort in plan.cohorts),
        units=(min(shares), max(shares)),
        parameters=(min(parameters), max(parameters)) if parameters else None,
        whole=max(shares) == 1,
        always_whole=min(shares) == 1,
        disjoint=all((held(plan, axis, n).sum(axis=0) <= 1).all() for plan in plans for axis, n in sizes.items()),
        redrawn=any(_subnets(plan) != _subnets(plans[0]) for plan in plans),
        seen=_seen(plans, sizes),
    )


def _subnets(plan: Plan) -> set[bytes]:
    """The subnets of a plan, whoever holds them."""
    return {_named(units) for units in plan.subnets}


def _named(units: Units) -> bytes:
    """A name of a subnet, by what it holds."""
    return b"".join(axis.encode() + units[axis].numpy().tobytes() for axis in sorted(units))


def _seen(plans: Sequence[Plan], sizes: Mapping[str, int]) -> float:
    """Share of all units that one client ever held."""
    client = followed(plans)
    rounds = [(plan, plan.subnet_of(client)) for plan in plans if client in plan]
    units = {axis: np.any([held(plan, axis, n)[at] for plan, at in rounds], axis=0) for axis, n in sizes.items()}
    return float(sum(marks.sum() for marks in units.values()) / sum(sizes.values()))


def expected_coverage(
    scenario: Scenario, lines: Sequence[Line], plans: Sequence[Plan], network: Network | None
) -> list[float] | None:
    """The share of the network that random draws are expected to have trained after each round.

    The subnets of a draw train the share p = Σ over subnets Π over axes (units held / units) of an array; draws are
    independent, so after r of them 1 − (1 − p)^r of it is expected to be trained. With n equal groups p is 1 where one
    axis splits an array, and 1/n where two do.

    Returns:
        Shares from 0 to 1; None with phases, where the rule does not draw afresh, where an axis splits an array twice,
        or where subnets are of unequal shares and do not last a draw.

    Source: Yuan et al., PVLDB 15(8), 2022 (disjoint groups, one draw an axis); independence gives the power.
    """
    rule = scenario.make_rule()
    if network is None or scenario.phases or not isinstance(rule, Disjoint):
        return None
    if any(len(set(key)) < len(key) for key in network.coordinates) or (rule.keep > 1 and not _alike(lines)):
        return None
    missed, curve, draw = dict.fromkeys(network.coordinates, 1.0), [], 0
    for line, plan in zip(lines, plans, strict=True):
        if rule.draw(line["round"]) != draw:
            draw, before, merged = rule.draw(line["round"]), missed, dict[bytes, dict[str, int]]()
        sizes = sizes_of(plan, scenario.sizes)
        merged |= {_named(plan.subnets[number]): sizes[number] for number in _brought_back(plan, line)}
        missed = {key: old * max(0.0, 1 - _share(key, merged.values(), scenario.sizes)) for key, old in before.items()}
        left = sum(count * missed[key] for key, count in network.coordinates.items())
        curve.append(1 - left / network.coordinates.total())
    return curve


def _brought_back(plan: Plan, line: Line) -> list[int]:
    """The numbers of the subnets that at least one client brought back."""
    refused = {refused["client"] for refused in line.get("refused", ())}
    return [number for number, cohort in enumerate(plan.cohorts) if not refused.issuperset(cohort)]


def _alike(lines: Sequence[Line]) -> bool:
    """Whether the clients of every round were equally strong, and could hold equally much."""
    return all(len(set(line[key])) <= 1 for line in lines for key in ("capacities", "limits") if key in line)


def _share(key: Key, subnets: Collection[dict[str, int]], sizes: Mapping[str, int]) -> float:
    return float(min(1.0, sum(prod(subnet[axis] / sizes[axis] for axis in key) for subnet in subnets)))

"""How wide each subnet is where subnets may overlap: a share of every axis, by capacity and limit."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan
from ist_fed.rules.shares import check_groups, check_limits


def check_share(share: float, least: int) -> None:
    """Refuse a fraction that is none, and subnets without units."""
    if not 0 < share <= 1:
        raise RuleError(f"share is a fraction of every axis, above 0 and at most 1, but is {share}")
    if least < 1:
        raise RuleError(f"min_units must be at least 1, but is {least}")


def check_draws(share: float, groups: int, least: int) -> None:
    """Refuse what is no share, and no number of draws."""
    check_share(share, least)
    if groups < 0:
        raise RuleError(f"groups must not be negative, but is {groups}; 0 is one for each client")


def widths(
    sizes: Mapping[str, int], shares: np.ndarray, limits: np.ndarray, least: int, nodes: Sequence[Node]
) -> np.ndarray:
    """Units that each subnet holds of each axis, `(subnets, axes)`: its share, from `least` up to its limit.

    Args:
        sizes: units of each axis of the full network.
        shares: of every axis that each subnet should hold.
        limits: largest share that it can hold.
        least: fewest units of any axis.
        nodes: the clients, of whom a message names the weakest.

    Raises:
        RuleError: an axis has fewer units than `least`, or a limit allows fewer.
    """
    check_groups(1, sizes, least)
    columns = []
    for axis, size in sizes.items():
        most = np.floor(limits * size).astype(np.int64)
        check_limits(axis, int(most.min()), least, nodes)
        columns.append(np.rint(shares * size).astype(np.int64).clip(least, most))
    return np.stack(columns, axis=1)


def strengths(nodes: Sequence[Node]) -> tuple[np.ndarray, np.ndarray]:
    """Of each node: its capacity as a fraction of the largest, and its limit."""
    capacities = np.array([node.capacity for node in nodes])
    return capacities / capacities.max(), np.array([node.limit for node in nodes])


def plan_by_width(
    nodes: Sequence[Node], sizes: Mapping[str, int], wide: np.ndarray, take: Callable[[int, int], np.ndarray]
) -> Plan:
    """The plan of a rule by which a subnet follows from its widths: nodes of equal widths are one cohort.

    Args:
        nodes: the clients.
        sizes: units of each axis of the full network.
        wide: units that each node holds of each axis, `(nodes, axes)`.
        take: `take(size, width)`, the units of a subnet along an axis of `size` units, sorted.
    """
    kinds, kind_of = np.unique(wide, axis=0, return_inverse=True)
    order = np.argsort(kind_of.ravel(), kind="stable")
    members = np.split(order, np.cumsum(np.bincount(kind_of.ravel()))[:-1])
    subnets = [
        {axis: torch.from_numpy(take(size, int(n))) for (axis, size), n in zip(sizes.items(), kind, strict=True)}
        for kind in kinds
    ]
    return Plan(
        subnets=tuple(subnets[::-1]),  # widest first
        cohorts=tuple(tuple(nodes[i].id for i in some) for some in members[::-1]),
    )

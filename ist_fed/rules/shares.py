"""Who trains together, and how many units of an axis each group is dealt."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node


def check_counts(groups: int, least: int) -> None:
    """Refuse what no network could be cut into."""
    if min(groups, least) < 1:
        raise RuleError(f"groups and min_units must be at least 1, but are {groups} and {least}")


def cohorts_of(nodes: Sequence[Node], groups: int, rng: np.random.Generator) -> list[list[Node]]:
    """One cohort for each group, strongest first, their numbers of clients as even as possible.

    Clients of like capacity meet; equals are dealt at random.
    """
    whole = groups * sum(node.capacity for node in nodes) / len(nodes)

    def share(node: Node) -> tuple[float, float]:
        return min(node.capacity / whole, node.limit), node.capacity

    # The sort is stable: equals keep their random order.
    nodes = sorted([nodes[i] for i in rng.permutation(len(nodes))], key=share, reverse=True)
    bounds = [group * len(nodes) // groups for group in range(groups + 1)]
    return [list(nodes[start:end]) for start, end in pairwise(bounds)]


def bounds_of(cohorts: Sequence[Sequence[Node]], nodes: Sequence[Node]) -> tuple[np.ndarray, np.ndarray]:
    """Capacity and limit of the weakest client of each cohort.

    A group that nobody holds counts as an average client, and holds whatever it is dealt.
    """
    typical = sum(node.capacity for node in nodes) / len(nodes)
    weights = np.array([min((node.capacity for node in cohort), default=typical) for cohort in cohorts])
    limits = np.array([min((node.limit for node in cohort), default=1.0) for cohort in cohorts])
    return weights, limits


def dealt(
    size: int,
    weights: np.ndarray,
    limits: np.ndarray,
    least: int,
    *,
    axis: str,
    nodes: Sequence[Node],
    holders: int = 1,
) -> np.ndarray:
    """Units of one axis for each group, so that every unit is held by exactly `holders` groups.

    In proportion to the weights, from `least` units up to what each group's limit allows.

    Raises:
        RuleError: a group's limit is below `least` units, or all together cannot hold the axis.
    """
    most = np.floor(limits * size).astype(np.int64)
    check_limits(axis, int(most.min()), least, nodes)
    if most.sum() < holders * size:
        alone = sum(int(node.limit * size) for node in nodes)  # if each client had a group of its own
        enough = alone >= holders * size
        more_groups = f"use {len(nodes)} groups, which hold {alone}, " if enough else "add clients and groups, "
        times = f" {holders} times" * (holders > 1)
        raise RuleError(
            f"the clients must together hold all {size} units of axis '{axis}'{times}, but the memory of {len(most)} "
            f"groups holds {most.sum()}, {holders * size - most.sum()} too few (group by group: {most.tolist()}); "
            f"{more_groups}raise the clients' budgets, lower batch_size, or narrow '{axis}'"
        )
    return apportion(holders * size, weights, least, most)


def check_groups(groups: int, sizes: Mapping[str, int], least: int, holders: int = 1) -> None:
    """Refuse to deal a network out to more groups than it has units for."""
    axis, size = min(sizes.items(), key=lambda item: item[1])
    if holders * size < groups * least and size == 1:
        raise RuleError(is_a_block(axis))
    if holders * size < groups * least:
        times = f", each held {holders} times," * (holders > 1)
        fewer = f"use at most {holders * size // least} groups, " * (size >= least)
        raise RuleError(
            f"every subnet needs at least min_units={least} units of every axis, but axis '{axis}' has {size} units"
            f"{times} for {groups} groups; {fewer}widen '{axis}' to {-(-groups * least // holders)}, or lower min_units"
        )


def is_a_block(axis: str) -> str:
    """Why the units of an axis cannot be dealt out."""
    return (
        f"this rule deals out the units of an axis, but '{axis}' has one unit, which is a whole block; use the rule "
        f"'blocks', or leave '{axis}' out of the sizes"
    )


def check_limits(axis: str, most: int, least: int, nodes: Sequence[Node]) -> None:
    """Refuse a client that cannot hold `least` units; `most` is what the weakest can."""
    if most < least:
        weakest = min(nodes, key=lambda node: node.limit)
        raise RuleError(
            f"every client must be able to hold min_units={least} units of every axis, but the memory of node "
            f"{weakest.id} holds {most} of axis '{axis}'; leave it out, raise its budget, lower batch_size, or lower "
            f"min_units"
        )


def apportion(size: int, weights: np.ndarray, least: int, most: np.ndarray) -> np.ndarray:
    """Whole shares that sum to `size`, in proportion to `weights` within their bounds, each within one unit of exact.

    By largest remainders (Hamilton). What a bound frees or takes is shared in proportion by those within theirs.
    """
    exact = size * weights / weights.sum()
    fixed = np.zeros(len(weights), dtype=bool)
    while ((bounded := np.maximum(np.minimum(exact, most), least)) != exact).any():  # quicker than `clip`
        excess = bounded - exact
        # Lower and upper bounds pull against each other; only those that prevail are sure to hold at the end.
        fixed |= (excess > 0) & (excess.sum() >= 0) | (excess < 0) & (excess.sum() <= 0)
        exact[fixed] = bounded[fixed]
        exact[~fixed] = (size - exact[fixed].sum()) * weights[~fixed] / weights[~fixed].sum()
    shares: np.ndarray = np.floor(exact).astype(np.int64)
    short = size - int(shares.sum())
    if short:
        shares[np.argsort(-(exact - shares), kind="stable")[:short]] += 1
    return shares

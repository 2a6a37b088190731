"""Independent Subnet Training: every axis is cut at random into disjoint groups of units.

Source: Yuan et al., PVLDB 15(8), 2022, section 3; shares by capacity after AdapTrain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes


@dataclass(frozen=True, kw_only=True)
class Disjoint:
    """Cut each axis into `groups` disjoint groups, drawn at random; each group is one subnet.

    With as many clients as groups everyone trains a subnet of its own. With more, clients form cohorts that train the
    same subnet and are averaged; clients of like capacity meet. With fewer, some groups rest for the round. A group's
    share of the units follows the smallest capacity of its cohort, from `min_units` up to the smallest limit in it;
    what a bound frees or takes, the other groups get or give in proportion.

    Args:
        groups: how many subnets the network is cut into.
        min_units: fewest units of any axis in any subnet; narrower ones do not learn (Pilot; GIST).
        keep: rounds for which a draw is kept, the cohorts moving on by one group a round. 1 draws anew every round, as
            the paper does; `groups` lets every cohort train every subnet before units are dealt out anew, which on
            `digits` was worth half a point of accuracy at 8 groups, and covers the network `groups` times more slowly.
            With unequal capacities the order in which units are dealt is kept, and shares go with the cohorts.
        rotate: False lets every cohort keep its group while a draw is kept; with a `keep` as long as the run nobody
            ever gets other units, which is the paper's ablation.
    """

    groups: int
    min_units: int = 16
    keep: int = 1
    rotate: bool = True

    def __post_init__(self) -> None:
        """Refuse what no network could be cut into."""
        if min(self.groups, self.min_units, self.keep) < 1:
            raise RuleError(
                f"groups, min_units and keep must be at least 1, but are {self.groups}, {self.min_units} and "
                f"{self.keep}"
            )

    def draw(self, round: int) -> int:
        """The number of the draw that a round belongs to, from 1."""
        return (round - 1) // self.keep + 1

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """Deal every unit to exactly one group and every node to exactly one cohort."""
        check_nodes(nodes)
        self._check_width(sizes)
        # Units first: who is there may change while a draw is kept, and must not change it.
        orders = {axis: rng.permutation(size) for axis, size in sizes.items()}
        cohorts = self._cohorts(round, nodes, rng)
        # A group that nobody holds counts as an average client, and holds whatever it is dealt.
        typical = float(np.mean([node.capacity for node in nodes]))
        weights = np.array([min((node.capacity for node in cohort), default=typical) for cohort in cohorts])
        limits = np.array([min((node.limit for node in cohort), default=1.0) for cohort in cohorts])
        subnets: list[dict[str, torch.Tensor]] = [{} for _ in range(self.groups)]
        for axis, size in sizes.items():
            most = np.floor(limits * size).astype(np.int64)
            self._check_limits(axis, size, most, nodes)
            shares = _apportion(size, weights, self.min_units, most)
            for subnet, units in zip(subnets, np.split(orders[axis], np.cumsum(shares)[:-1]), strict=True):
                subnet[axis] = torch.from_numpy(np.sort(units))  # sorted: memory is then read in order
        held = [group for group, cohort in enumerate(cohorts) if cohort]
        return Plan(
            subnets=tuple(subnets[group] for group in held),
            cohorts=tuple(tuple(node.id for node in cohorts[group]) for group in held),
        )

    def _cohorts(self, round: int, nodes: Sequence[Node], rng: np.random.Generator) -> list[list[Node]]:
        """One cohort for each group, their numbers of clients as even as possible."""
        whole = self.groups * sum(node.capacity for node in nodes) / len(nodes)

        def share(node: Node) -> tuple[float, float]:
            return min(node.capacity / whole, node.limit), node.capacity

        # The sort is stable: equals keep their random order.
        nodes = sorted([nodes[i] for i in rng.permutation(len(nodes))], key=share, reverse=True)
        bounds = [group * len(nodes) // self.groups for group in range(self.groups + 1)]
        cohorts = [list(nodes[start:end]) for start, end in pairwise(bounds)]
        shift = (round - 1) % self.keep % self.groups if self.rotate else 0
        return [*cohorts[shift:], *cohorts[:shift]]

    def _check_width(self, sizes: Mapping[str, int]) -> None:
        axis, size = min(sizes.items(), key=lambda item: item[1])
        if size < self.groups * self.min_units:
            raise RuleError(
                f"every subnet needs at least min_units={self.min_units} units of every axis, but axis '{axis}' has "
                f"{size} units for {self.groups} groups; use at most {max(1, size // self.min_units)} groups, widen "
                f"'{axis}' to {self.groups * self.min_units}, or lower min_units"
            )

    def _check_limits(self, axis: str, size: int, most: np.ndarray, nodes: Sequence[Node]) -> None:
        if most.min() < self.min_units:
            weakest = min(nodes, key=lambda node: node.limit)
            raise RuleError(
                f"every client must be able to hold min_units={self.min_units} units of every axis, but the memory of "
                f"node {weakest.id} holds {most.min()} of axis '{axis}'; leave it out, raise its budget, lower "
                f"batch_size, or lower min_units"
            )
        if most.sum() < size:
            alone = sum(int(node.limit * size) for node in nodes)  # if each client had a group of its own
            more_groups = (
                f"use {len(nodes)} groups, which hold {alone}, " if alone >= size else "add clients and groups, "
            )
            raise RuleError(
                f"the clients must together hold all {size} units of axis '{axis}', but the memory of {self.groups} "
                f"groups holds {most.sum()}, {size - most.sum()} too few (group by group: {most.tolist()}); "
                f"{more_groups}raise the clients' budgets, lower batch_size, or narrow '{axis}'"
            )


def _apportion(size: int, weights: np.ndarray, least: int, most: np.ndarray) -> np.ndarray:
    """Whole shares that sum to `size`, in proportion to `weights` within their bounds, each within one unit of exact.

    By largest remainders (Hamilton). What a bound frees or takes is shared in proportion by those within theirs.
    """
    exact = size * weights / weights.sum()
    fixed = np.zeros(len(weights), dtype=bool)
    while ((bounded := exact.clip(least, most)) != exact).any():
        excess = bounded - exact
        # Lower and upper bounds pull against each other; only those that prevail are sure to hold at the end.
        fixed |= (excess > 0) & (excess.sum() >= 0) | (excess < 0) & (excess.sum() <= 0)
        exact[fixed] = bounded[fixed]
        exact[~fixed] = (size - exact[fixed].sum()) * weights[~fixed] / weights[~fixed].sum()
    shares: np.ndarray = np.floor(exact).astype(np.int64)
    short = size - int(shares.sum())
    shares[np.argsort(-(exact - shares), kind="stable")[:short]] += 1
    return shares

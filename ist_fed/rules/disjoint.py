"""Independent Subnet Training: every axis is cut at random into disjoint groups of units.

Source: Yuan et al., PVLDB 15(8), 2022, section 3; shares by capacity after AdapTrain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.errors import RuleError
from ist_fed.rules.plan import Node, Plan, check_nodes
from ist_fed.rules.shares import bounds_of, check_groups, cohorts_of, dealt


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
            the paper does; `groups` lets every cohort train every subnet before units are dealt out anew, which is more
            accurate where clients' data are alike, less where they differ (docs/rules.md says by how much), and covers
            the network `groups` times more slowly. With unequal capacities the order in which units are dealt is kept,
            and shares go with the cohorts.
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
        check_groups(self.groups, sizes, self.min_units)
        # Units first: who is there may change while a draw is kept, and must not change it.
        orders = {axis: rng.permutation(size) for axis, size in sizes.items()}
        cohorts = cohorts_of(nodes, self.groups, rng)
        shift = (round - 1) % self.keep % self.groups if self.rotate else 0
        cohorts = [*cohorts[shift:], *cohorts[:shift]]
        weights, limits = bounds_of(cohorts, nodes)
        subnets: list[dict[str, torch.Tensor]] = [{} for _ in range(self.groups)]
        shares = dict[int, np.ndarray]()  # by size: layers are often equally wide
        for axis, size in sizes.items():
            if size not in shares:
                shares[size] = dealt(size, weights, limits, self.min_units, axis=axis, nodes=nodes)
            for subnet, units in zip(subnets, _hands(orders[axis], shares[size]), strict=True):
                subnet[axis] = units
        held = [
            (units, tuple(node.id for node in cohort)) for units, cohort in zip(subnets, cohorts, strict=True) if cohort
        ]
        return Plan(subnets=tuple(units for units, _ in held), cohorts=tuple(cohort for _, cohort in held))


def _hands(order: np.ndarray, shares: np.ndarray) -> Sequence[torch.Tensor]:
    """Units in the order in which they are dealt out, as each group's own, sorted: memory is then read in order."""
    behind = np.repeat(np.arange(len(shares)) * len(order), shares)  # keeps a group's units behind those of the last
    hands = order + behind
    hands.sort()
    hands -= behind
    return torch.from_numpy(hands).split_with_sizes(shares.tolist())

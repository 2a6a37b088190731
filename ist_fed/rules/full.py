"""Everything to everyone: federated averaging.

Source: McMahan et al., AISTATS 2017, algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ist_fed.rules.plan import Node, Plan, check_nodes


@dataclass(frozen=True)
class Full:
    """Every client trains the whole network; the merge is FedAvg."""

    def __call__(self, round: int, nodes: Sequence[Node], sizes: Mapping[str, int], rng: np.random.Generator) -> Plan:
        """One cohort of everyone, holding every unit."""
        check_nodes(nodes)
        units = {axis: torch.arange(size) for axis, size in sizes.items()}
        return Plan(subnets=(units,), cohorts=(tuple(node.id for node in nodes),))

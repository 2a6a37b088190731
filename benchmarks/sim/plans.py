"""The product's plan and orders of examples of a round, drawn beforehand for the hand-written loops."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ist_fed.batches import batches
from ist_fed.rules import Disjoint, Full, Node, Rule, plan_round
from ist_fed.seeds import generator
from sim.workload import BATCH, GROUPS, HIDDEN, SAMPLES, SEED, STEPS

SIZES = {"hidden1": HIDDEN, "hidden2": HIDDEN}


@dataclass(frozen=True)
class Cohort:
    """Clients that train the same subnet, the units that make it, and the order of each client's examples.

    Args:
        in_one_piece: clients are neighbours, in order; so it is where there is one cohort.
    """

    clients: Tensor
    hidden1: Tensor
    hidden2: Tensor
    orders: Tensor
    in_one_piece: bool = False


def rule_of(name: str) -> Rule:
    return Full() if name == "fedavg" else Disjoint(groups=GROUPS)


def orders(clients: int, round: int) -> Tensor:
    """Which examples each client takes one after another: clients × samples."""
    drawn = [batches(SAMPLES, BATCH, generator(SEED, round, "batches", client)) for client in range(clients)]
    return torch.from_numpy(np.stack([np.concatenate([next(each) for _ in range(STEPS)]) for each in drawn]))


def cohorts(rule: str, clients: int, round: int, device: str = "cpu") -> list[Cohort]:
    plan = plan_round(rule_of(rule), round, [Node(client) for client in range(clients)], SIZES, SEED)
    taken = orders(clients, round)
    return [
        Cohort(
            clients=torch.tensor(cohort, device=device),
            hidden1=units["hidden1"].to(device),
            hidden2=units["hidden2"].to(device),
            orders=taken[list(cohort)].to(device),
            in_one_piece=list(cohort) == list(range(clients)),
        )
        for units, cohort in zip(plan.subnets, plan.cohorts, strict=True)
    ]

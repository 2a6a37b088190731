"""Who takes turns in simulated rounds, and by which names the book knows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.workload import GROUPS

RULES = {"fedavg": "FedAvg", "ist": f"IST, {GROUPS} subnets"}


@dataclass(frozen=True)
class Contestant:
    """Who takes turns.

    Args:
        name: in tables.
        module: that runs it, in `benchmarks/sim`.
        order: what it is told beside the rule and the number of clients.
        rules: what it can do.
        peer: whose environment it needs.
        slow: with many clients it takes every other turn only.
    """

    name: str
    module: str
    order: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ("fedavg", "ist")
    peer: str | None = None
    slow: bool = False


FLOWER, PFL, FEDLAB = "Flower simulation (Ray), two actors", "pfl-research", "FedLab"
AUTO, AUTO_2 = "ist_fed, auto", "ist_fed, auto, 2 threads"
ONE_BY_ONE, LIMIT, LIMIT_2 = "ist_fed, one by one", "loop, factored", "loop, factored, 2 threads"

PEERS = [
    Contestant(FLOWER, "flower_ray", {"rounds": 2}, ("fedavg",), slow=True),
    Contestant(PFL, "pfl", {}, ("fedavg",), "pfl", slow=True),
    Contestant(FEDLAB, "fedlab", {}, ("fedavg",), "fedlab", slow=True),
]
PRODUCT = [
    Contestant(ONE_BY_ONE, "product", {"only": "one by one", "check": True}, slow=True),
    Contestant("ist_fed, stacked", "product", {"only": "stacked", "check": True}, slow=True),
    Contestant("ist_fed, factored", "product", {"only": "factored", "check": True}),
    Contestant(AUTO, "product", {"check": True}),
]
LOOPS = [
    Contestant("loop, sequential", "loops", {"loop": "sequential"}),
    Contestant("loop, stacked", "loops", {"loop": "stacked"}),
    Contestant(LIMIT, "loops", {"loop": "factored"}),
]
TWO_THREADS = [
    Contestant(AUTO_2, "product", {"check": True, "threads": 2}),
    Contestant(LIMIT_2, "loops", {"loop": "factored", "threads": 2}),
]


def contestants(device: str) -> list[Contestant]:
    return [*PEERS, *PRODUCT, *LOOPS, *TWO_THREADS] if device == "cpu" else [*PRODUCT, *LOOPS]


def key_of(name: str, rule: str, clients: int) -> str:
    return f"{name} / {rule} / {clients}"

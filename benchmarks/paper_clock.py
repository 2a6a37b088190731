"""How long a round, or a step, lasts on the IST paper's clusters: the product's virtual network, and an honest ring."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from ist_fed.cost import Cost, cost
from ist_fed.network import Asked, Network, Virtual
from ist_fed.tasks import load_task
from ist_fed.train import Training

FLOPS, STEP_SECONDS, LATENCY = 1e11, 1e-3, 1e-4
"""A worker like an m5.2xlarge, four cores: one core of this machine takes 1.0 ms for a step of next to nothing, and
7.4 ms for one of 0.21 GFLOP, so 33 GFLOP/s net of that, of which four cores reach three times as much; a message is on
its way a tenth of a millisecond."""

_BACKWARD = 2 / 3  # of a step's arithmetic


@dataclass(frozen=True)
class Work:
    """What a worker is asked for at a time: `steps` on a network of `sizes`."""

    task: str
    options: tuple[tuple[str, object], ...]
    sizes: tuple[tuple[str, int], ...]
    training: Training
    steps: int

    @property
    def cost(self) -> Cost:
        return _cost(self.task, self.options, self.sizes, self.training)


@cache
def _cost(task: str, options: tuple[tuple[str, object], ...], sizes: tuple[tuple[str, int], ...], by: Training) -> Cost:
    return cost(load_task(task, dict(options)), dict(sizes), by)


def by_server(work: Work, workers: int, rate: float, *, server: float = 0.0) -> float:
    """Seconds of a round through a server, by the product's virtual network.

    Args:
        work: of each worker.
        workers: how many.
        rate: bits a second of each worker's link, each way.
        server: the same of the server's own link; 0 sets no bound.
    """
    links = {"down": rate, "up": rate, "server_down": server, "server_up": server}
    network = Network(flops=FLOPS, step_seconds=STEP_SECONDS, latency=LATENCY, **links)

    def flops(sizes: Mapping[str, int], training: Training) -> float:
        return work.cost.flops

    virtual = Virtual(network, 0, workers, flops)
    asked = {"sizes": dict(work.sizes), "bytes": work.cost.bytes, "steps": work.steps, "training": work.training}
    return virtual.round_seconds(virtual.trip(Asked(client=worker, **asked)) for worker in range(workers))


def by_ring(work: Work, workers: int, rate: float) -> float:
    """Seconds of `steps` steps and one all-reduce of the parameters, in a ring.

    The last step's backward pass hides as much of it as it lasts, as torch DDP does at its best.
    """
    arithmetic = work.cost.flops / FLOPS
    sums = 8 * ring_bytes(work, workers) / rate + 2 * (workers - 1) * LATENCY
    return work.steps * (STEP_SECONDS + arithmetic) + max(0.0, sums - _BACKWARD * arithmetic)


def ring_bytes(work: Work, workers: int) -> float:
    """Bytes that each worker sends in a ring all-reduce of the parameters; it receives as many at the same time."""
    return 2 * (workers - 1) / workers * 4 * work.cost.parameters

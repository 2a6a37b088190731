"""First weights, the first round's orders, and what must come of it, by the plain loop in float64.

python -m sim.prepare '{"clients": 100}'
"""

import torch

from ist_fed.models import mlp
from ist_fed.seeds import seeded
from sim import plans
from sim.loops import Buffers, one_hot, one_round, sequential
from sim.workload import CACHE, INPUTS, OUTPUTS, data, order, report, start_file


@torch.inference_mode()
def main() -> None:
    clients = order()["clients"]
    with seeded(0):
        weights = {name: part.detach() for name, part in mlp(INPUTS, OUTPUTS, "none")(**plans.SIZES).named_parameters()}
    x, y = data(clients, dtype=torch.float64)
    targets, net = one_hot(y, x.dtype), [part.double() for part in weights.values()]
    right = {}
    for rule in ("fedavg", "ist"):
        made = one_round(sequential, net, x, targets, plans.cohorts(rule, clients, 1), Buffers(x), clients)
        right[rule] = dict(zip(weights, made, strict=True))
    CACHE.mkdir(exist_ok=True)
    torch.save({"weights": weights, "orders": plans.orders(clients, 1), **right}, start_file(clients))
    report([0.0])


if __name__ == "__main__":
    main()

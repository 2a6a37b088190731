"""FedAvg rounds in Flower's own simulation: its FedAvg strategy, Ray, two actors with a thread each.

    python -m sim.flower_ray '{"clients": 100, "rounds": 3}'

The client is tuned: an actor keeps one network, and the examples of all clients as one file mapped into memory; its
step is the hand-written one of `loops.py`, and it answers with the same arrays, changed in place. What is left is
Flower's and Ray's.
"""

import logging
import time
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor

from sim.loops import Buffers, one_hot, one_step
from sim.workload import BATCH, CACHE, SAMPLES, data, difference, in_order_of_round_one, order, report, start

client = ClientApp()


@cache
def examples(path: str) -> tuple[Tensor, Tensor, Buffers]:
    """Of all clients, once in an actor."""
    torch.set_num_threads(1)
    x, y = torch.load(path, mmap=True, weights_only=True)
    return x, one_hot(y, x.dtype), Buffers(x)


@client.train()
@torch.inference_mode()
def train(message: Message, context: Context) -> Message:
    """One epoch."""
    x, targets, buffers = examples(message.content["config"]["file"])
    number = int(context.node_config["partition-id"])
    state = message.content["arrays"].to_torch_state_dict()
    own = list(state.values())
    for index in torch.arange(SAMPLES).split(BATCH):
        one_step(own, x[number], targets[number], index, buffers)
    content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": SAMPLES})}
    return Message(content=RecordDict(content), reply_to=message)


class Watched(FedAvg):
    """Notes when rounds end."""

    def __init__(self, clients: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self._clients, self.marks, self.off = clients, list[float](), float("nan")

    def aggregate_train(self, server_round: int, replies: Any) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 1:
            assert arrays is not None
            self.off = difference(arrays.to_torch_state_dict(), self._clients, "fedavg")
        self.marks.append(time.perf_counter())
        return arrays, metrics


def main() -> None:
    asked = order()
    clients, path = asked["clients"], CACHE / f"data-{asked['clients']}.pt"
    known = start(clients)
    if not path.exists():
        x, y = data(clients)
        in_order_of_round_one(x, y, known["orders"])
        torch.save((x, y), path)
        del x, y
    logging.getLogger("flwr").setLevel(logging.WARNING)
    server, watched = ServerApp(), Watched(clients)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        config = ConfigRecord({"file": str(path)})
        watched.start(grid, ArrayRecord(known["weights"]), asked.get("rounds", 3) + 1, train_config=config)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(server, client, clients, backend_config={"client_resources": resources})
    report([after - before for before, after in pairwise(watched.marks)], difference=watched.off)


if __name__ == "__main__":
    from sim import flower_ray  # under its own name, so that Ray sends the name and not the code

    flower_ray.main()

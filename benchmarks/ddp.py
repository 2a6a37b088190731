"""One rank of torch's DistributedDataParallel over gloo on digits, for `bench_net.py`.

    python benchmarks/ddp.py RANK RANKS ADDRESS LR STEPS EVERY SEED OUT

The network, the data's split and the batches are those of the clients of `ist_fed`; gradients are averaged after every
step. Rank 0 measures the test accuracy every few steps, recalibrated as the product's server does; the clock stops
meanwhile. It ends at 97 %, or after STEPS.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from bench_digits import OPTIONS, SIZES, TARGET
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ist_fed.batches import batches, fetch, length
from ist_fed.evaluate import evaluate, ready
from ist_fed.seeds import generator, seeded
from ist_fed.tasks import Task, load_task
from ist_fed.train import Training


def main(rank: int, ranks: int, lr: float, steps: int, every: int, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    task = load_task("digits", OPTIONS)
    with seeded(seed):
        inner = task.build(**SIZES)
    distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    model = DistributedDataParallel(inner)
    training = Training()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=training.momentum)
    data = task.client_data(rank, ranks)
    order = batches(length(data), training.batch_size, generator(seed, 1, "batches", rank))
    distributed.barrier()
    took, accuracy, marks = 0.0, 0.0, []
    for step in range(1, steps + 1):
        began = time.monotonic()
        optimizer.zero_grad()
        images, labels = fetch(data, next(order), torch.device("cpu"))
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        took += time.monotonic() - began
        if step % every == 0:
            accuracy = shared_accuracy(rank, inner, task)
            marks.append([step, round(took, 3), round(accuracy, 4)])
            if accuracy >= TARGET:
                break
    if rank == 0:
        out.write_text(json.dumps({"steps": step, "seconds": took, "accuracy": accuracy, "marks": marks}))
    distributed.destroy_process_group()


def shared_accuracy(rank: int, model: nn.Module, task: Task) -> float:
    """Of rank 0's network, told to all; the network is left as it was."""
    said = torch.zeros(1)
    if rank == 0:
        held = {name: value.clone() for name, value in model.state_dict().items()}
        said[0] = evaluate(ready(model, task), task, task.test_data())["accuracy"]
        model.load_state_dict(held)
        model.train()
    distributed.broadcast(said, 0)
    return float(said)


if __name__ == "__main__":
    rank, ranks, address, lr, steps, every, seed, out = sys.argv[1:]
    host, port = address.rsplit(":", 1)
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "eth0"}
    main(int(rank), int(ranks), float(lr), int(steps), int(every), int(seed), Path(out))

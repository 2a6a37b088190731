"""A process of its own that trains one subnet and says what memory that took: `python tests/peak.py JSON`."""

import gc
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ist_fed import wire
from ist_fed.arrays import arrays_of
from ist_fed.cost import cost
from ist_fed.models import cnn, mlp, resnet
from ist_fed.tasks import Batch, Task
from ist_fed.train import Training
from ist_fed.worker import Worker

INPUTS, CLASSES = 784, 10


@dataclass(frozen=True)
class Wide(Task):
    """An MLP of any norm."""

    norm: str

    def build(self, **sizes: int) -> nn.Module:
        return mlp(INPUTS, CLASSES, self.norm)(**sizes)

    def client_data(self, client: int, clients: int) -> TensorDataset:
        rng = np.random.default_rng(0)
        inputs = torch.from_numpy(rng.standard_normal((8192, INPUTS), dtype=np.float32))
        return TensorDataset(inputs, torch.from_numpy(rng.integers(CLASSES, size=8192)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])


@dataclass(frozen=True)
class Images(Wide):
    """The same numbers as images, for another network."""

    model: str

    def build(self, **sizes: int) -> nn.Module:
        if self.model == "cnn":
            return cnn((1, 28, 28), CLASSES, self.norm)(**sizes)
        return resnet(1, CLASSES, (16, 32), self.norm)(**sizes)

    def client_data(self, client: int, clients: int) -> TensorDataset:
        inputs, targets = super().client_data(client, clients).tensors
        return TensorDataset(inputs.view(-1, 1, 28, 28), targets)


def order(task: Task, sizes: Mapping[str, int], training: Training) -> Message:
    parcel = wire.pack(arrays_of(task.build(**sizes)))
    fields = {"round": 1, "nonce": "n", "seed": 1, "local_steps": 3, "lr": 0.01, "sizes": dict(sizes)}
    message = wire.order_message(5, parcel, {**fields, "training": asdict(training)}, ConfigRecord(), 60.0)
    message.metadata.__dict__["_message_id"] = "m"
    return message


def status(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main(
    norm: str, sizes: dict[str, int], training: dict[str, Any], amp: str | None = None, model: str = "mlp"
) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    torch.set_num_threads(1)
    task = Wide(norm) if model == "mlp" else Images(norm, model)
    described = Training(**training)
    data = task.client_data(0, 1)
    worker = Worker(task, data, client=0, amp=amp, memory=None)
    worker.train(order(task, dict.fromkeys(sizes, 8), described))  # what torch takes once, it has taken now
    estimate = cost(task, sizes, described, data=data, amp=amp)
    gc.collect()
    before = status("VmRSS")
    reply = worker.train(order(task, sizes, described))
    assert "error" not in reply.content["reply"], reply.content["reply"]
    print(json.dumps({"estimate": estimate.memory, "measured": status("VmHWM") - before, "bytes": estimate.bytes}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

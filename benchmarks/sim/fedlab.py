"""FedAvg rounds in FedLab's standalone simulation; runs in an environment of its own.

.cache/envs/fedlab/bin/python -m sim.fedlab '{"clients": 100}'
"""

import logging
import sys
import time
from itertools import pairwise
from unittest.mock import MagicMock

# FedLab imports these for its MNIST and CIFAR, of which nothing is used here.
sys.modules.update({name: MagicMock() for name in ("torchvision", "torchvision.transforms", "torchvision.datasets")})

import torch  # noqa: E402
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.contrib.algorithm.basic_server import SyncServerHandler  # noqa: E402
from fedlab.contrib.dataset.basic_dataset import FedDataset  # noqa: E402
from fedlab.core.standalone import StandalonePipeline  # noqa: E402
from torch import Tensor  # noqa: E402

from sim.workload import (  # noqa: E402
    BATCH,
    LR,
    data,
    difference,
    enough,
    in_order_of_round_one,
    network,
    order,
    peak_mb,
    report,
    start,
)


class Clients(FedDataset):
    """Batches as slices, which is quicker than any DataLoader."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.num, self._x, self._y = len(x), x, y

    def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> list[tuple[Tensor, Tensor]]:
        return list(zip(self._x[id].split(batch_size), self._y[id].split(batch_size), strict=True))


class Pipeline(StandalonePipeline):
    """Notes when rounds end, and stops when there are enough."""

    def __init__(self, handler: SyncServerHandler, trainer: SGDSerialClientTrainer) -> None:
        super().__init__(handler, trainer)
        self._marks, self.off = list[float](), float("nan")

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in pairwise(self._marks)]

    def evaluate(self) -> None:
        if self.handler.round == 1:
            self.off = difference(self.handler.model.state_dict(), self.trainer.num_clients, "fedavg")
        self._marks.append(time.perf_counter())
        if enough(self.seconds):
            self.handler.global_round = self.handler.round


def main() -> None:
    clients = order()["clients"]
    torch.set_num_threads(1)
    logging.disable()
    x, y = data(clients)
    known = start(clients)
    in_order_of_round_one(x, y, known["orders"])
    net = network()
    net.load_state_dict(known["weights"])
    handler = SyncServerHandler(net, global_round=10**6, sample_ratio=1.0)
    trainer = SGDSerialClientTrainer(net, clients)
    trainer.setup_dataset(Clients(x, y))
    trainer.setup_optim(1, BATCH, LR)
    pipeline = Pipeline(handler, trainer)
    pipeline.main()
    report(pipeline.seconds, peak=peak_mb(), difference=pipeline.off)


if __name__ == "__main__":
    main()

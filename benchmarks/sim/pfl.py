"""FedAvg rounds in pfl-research; runs in an environment of its own.

.cache/envs/pfl/bin/python -m sim.pfl '{"clients": 100}'
"""

import time
from itertools import pairwise
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from sim.workload import (
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


class Network(nn.Module):
    """With the loss inside, as pfl wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def loss(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> Tensor:
        return nn.functional.cross_entropy(self.layers(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor, eval: bool = False) -> dict[str, Any]:
        return {}


class Watch(TrainingProcessCallback):
    """Notes when rounds end, and stops when there are enough."""

    def __init__(self, clients: int) -> None:
        self._clients, self._marks, self.off = clients, list[float](), float("nan")

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in pairwise(self._marks)]

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if central_iteration == 0:
            self.off = difference(dict(model.pytorch_model.layers.state_dict()), self._clients, "fedavg")
        self._marks.append(time.perf_counter())
        return enough(self.seconds), Metrics()


def main() -> None:
    asked = order()
    clients = asked["clients"]
    torch.set_num_threads(1)
    x, y = data(clients)
    known = start(clients)
    in_order_of_round_one(x, y, known["orders"])
    users = [PyTorchTensorDataset((x[client], y[client]), user_id=str(client)) for client in range(clients)]
    net = Network()
    net.layers.load_state_dict(known["weights"])
    model = PyTorchModel(
        net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0)
    )
    dataset = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(range(clients))))
    watch = Watch(clients)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10**6, evaluation_frequency=10**9, train_cohort_size=clients, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset),
        model=model,
        model_train_params=NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[watch],
        send_metrics_to_platform=False,
    )
    report(watch.seconds, peak=peak_mb(), difference=watch.off)


if __name__ == "__main__":
    main()

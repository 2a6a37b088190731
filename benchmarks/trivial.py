"""A task whose local step is next to nothing, to measure what a round costs apart from training."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed.models import mlp
from ist_fed.tasks import Batch, Task


class Trivial(Task):
    """An MLP of 64 inputs of whose numbers the loss reads one bias only, so that the others have no gradient."""

    def build(self, **sizes: int) -> nn.Module:
        return mlp(64, 10, "none")(**sizes)

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        return self.test_data()

    def local_data(self, path: Path) -> Dataset[Batch]:
        return self.test_data()

    def test_data(self) -> Dataset[Batch]:
        return TensorDataset(torch.zeros(2, 64), torch.zeros(2, dtype=torch.int64))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        last = list(model.children())[-1]
        assert isinstance(last, nn.Linear)
        return last.bias.square().mean()

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.zeros(())

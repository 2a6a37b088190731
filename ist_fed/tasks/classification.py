"""What tasks share whose targets are one class for each example."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ist_fed.tasks.task import Batch, Task


class Classification(Task):
    """Cross-entropy, and the share of examples whose class is told right; inherit from it."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy."""
        inputs, labels = batch
        return functional.cross_entropy(model(inputs), labels)

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        """Share of examples whose class is told right."""
        inputs, labels = batch
        right: Tensor = model(inputs).argmax(dim=1) == labels
        return right.to(torch.float32).mean()

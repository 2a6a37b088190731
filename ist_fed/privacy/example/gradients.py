"""Gradients of single examples, each of which depends on that example alone, whatever goes wrong with another."""

import logging

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import device_of
from ist_fed.batches import fetch
from ist_fed.tasks.task import Batch, Task

logger = logging.getLogger("ist_fed")


class Gradients:
    """Leaves every example's gradient beside each parameter, as Opacus' optimiser takes it.

    A batch that fails would tell of the example with which it does. So from then on each example is taken alone,
    without Opacus, and one that fails counts as nothing.

    Args:
        model: gets hooks, until `close`.
        task: gives the loss.
        data: the client's examples.
    """

    def __init__(self, model: nn.Module, task: Task, data: Dataset[Batch]) -> None:
        self._model, self._task, self._data = model, task, data
        self._hooked, self._together = GradSampleModule(model), True
        self._failed: set[int] = set()

    def __call__(self, index: np.ndarray) -> None:
        """Of the examples at these places, of which there may be none."""
        if self._together and len(index):
            try:
                self._of_all(index)
            except Exception as error:
                logger.error("a batch failed; examples are taken one by one from now on", exc_info=error)
                self._hooked.disable_hooks()
                self._together = False
            else:
                return
        found = [rows for rows in map(self._of_one, index.tolist()) if rows]
        for at, parameter in enumerate(self._model.parameters()):
            rows = [each[at] for each in found]
            parameter.grad_sample = torch.stack(rows) if rows else parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Leave nothing of Opacus on the network."""
        self._hooked.to_standard_module()

    def _of_all(self, index: np.ndarray) -> None:
        self._loss(index).backward()  # type: ignore[no-untyped-call]
        for parameter in self._model.parameters():
            rows = parameter.grad_sample  # type: ignore[attr-defined]
            if not isinstance(rows, Tensor) or len(rows) != len(index):
                raise ValueError(f"{len(index)} examples have gradients of their own, but Opacus did not find them")

    def _of_one(self, example: int) -> tuple[Tensor, ...]:
        if example in self._failed:
            return ()
        try:
            loss, parameters = self._loss(np.array([example])), list(self._model.parameters())
            return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        except Exception as error:
            logger.error("example %d counts as nothing", example, exc_info=None if self._failed else error)
            self._failed.add(example)
            return ()

    def _loss(self, index: np.ndarray) -> Tensor:
        return self._task.loss(self._model, fetch(self._data, index, device_of(self._model)))

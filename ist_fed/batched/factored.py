"""Linear layers of many clients that started from the same weights, none of which is ever written out.

After local steps of SGD a client's weights are `a W₀ + Σ cₛ Dₛᵀ Xₛ`, with the inputs Xₛ of its steps, the gradients Dₛ
of its outputs, and numbers a and cₛ that are the same for all clients. So the product with W₀ is one matrix product for
the whole cohort, and each client's own part is two thin ones. Momentum and weight decay only change the numbers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ist_fed.train import Training


class Factored(nn.Module):
    """Takes the place of a `Linear` in a network that is called under `torch.vmap` over clients.

    Args:
        linear: whose place it takes; its bias stays a parameter of each client's own.
        start: the weights W₀ of each cohort, cohorts × outputs × inputs; clients stand cohort by cohort, in equal
            numbers.
        history: numbers a and c.
    """

    def __init__(self, linear: nn.Linear, start: Tensor, history: "History") -> None:
        super().__init__()
        self.bias = linear.bias
        self._start, self._history = start, history
        self.inputs: list[Tensor] = []
        self.grads: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """As the `Linear`."""
        outputs: Tensor = _AllClients.apply(inputs, self)  # type: ignore[no-untyped-call]
        return outputs if self.bias is None else outputs + self.bias

    def of_all(self, inputs: Tensor) -> Tensor:
        """The outputs, without bias, of all clients: clients × … × inputs to clients × … × outputs."""
        clients, cohorts = len(inputs), len(self._start)
        rows = inputs.reshape(clients, -1, inputs.shape[-1])
        shared = torch.bmm(rows.reshape(cohorts, -1, rows.shape[-1]), self._start.mT)
        outputs = self._history.decay * shared.view(clients, rows.shape[1], -1)
        if self.grads:
            seen, moved = torch.cat(self.inputs, 1), self._moved()
            outputs = torch.baddbmm(outputs, torch.bmm(rows, seen.mT), moved)
        self.inputs.append(rows.detach())
        if not outputs.requires_grad:
            outputs.requires_grad_()
        outputs.register_hook(self.grads.append)  # type: ignore[no-untyped-call]
        return outputs.view(*inputs.shape[:-1], outputs.shape[-1])

    def square_norms(self) -> Tensor:
        """Of the last step's gradient of each client's weights, squared."""
        grads, rows = self.grads[-1], self.inputs[-1]
        return (torch.bmm(grads, grads.mT) * torch.bmm(rows, rows.mT)).sum((1, 2))

    def mean(self, weights: Tensor) -> Tensor:
        """Each cohort's mean weights, cohorts × outputs × inputs; `weights` of each client sum to one in a cohort."""
        cohorts = len(self._start)
        moved = (self._moved() * weights[:, None, None]).reshape(cohorts, -1, self._start.shape[1])
        seen = torch.cat(self.inputs, 1).reshape(cohorts, -1, self._start.shape[2])
        return torch.baddbmm(self._start, moved.mT, seen, beta=self._history.decay)

    def _moved(self) -> Tensor:
        """How far each row of inputs has moved the weights: clients × rows × outputs."""
        return torch.cat([grads * c for grads, c in zip(self.grads, self._history.moves, strict=True)], 1)


class History:
    """The numbers by which weights stand in the starting weights and the gradients of the steps taken.

    Args:
        training: SGD, with momentum and weight decay.
        lr: learning rate.
    """

    def __init__(self, training: Training, lr: float) -> None:
        self._momentum, self._weight_decay, self._lr = training.momentum, training.weight_decay, lr
        self.decay, self.moves = 1.0, list[float]()  # of the weights
        self._slide, self._pushes = 0.0, list[float]()  # of the velocity

    def step(self) -> None:
        """One step of torch's SGD."""
        self.moves, self._pushes = [*self.moves, 0.0], [*self._pushes, 0.0]
        last = len(self.moves) - 1
        grads = [self._weight_decay * c + (s == last) for s, c in enumerate(self.moves)]
        self._slide = self._momentum * self._slide + self._weight_decay * self.decay
        self._pushes = [self._momentum * push + grad for push, grad in zip(self._pushes, grads, strict=True)]
        self.decay -= self._lr * self._slide
        self.moves = [c - self._lr * push for c, push in zip(self.moves, self._pushes, strict=True)]


class _AllClients(torch.autograd.Function):
    """Leaves `vmap` for a moment: what it is given there for one client, the layer is given for all."""

    @staticmethod
    def forward(inputs: Tensor, layer: Factored) -> Tensor:
        """Never called: there is no computation for one client."""
        raise RuntimeError("a factored layer works under torch.vmap over clients only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[object], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], inputs: Tensor, layer: Factored) -> tuple[Tensor, int]:
        """The outputs of all clients, by operations that autograd knows."""
        if in_dims[0] is None:
            inputs = inputs.expand(info.batch_size, *inputs.shape)
        else:
            inputs = inputs.movedim(in_dims[0], 0)
        return layer.of_all(inputs), 0

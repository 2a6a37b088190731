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


class OfAll(nn.Module):
    """A layer that takes the place of a `Linear` under `torch.vmap` over clients, and computes for all of them.

    Args:
        linear: whose place it takes; its bias stays a parameter of each client's own.
        start: the weights W₀ of each cohort, cohorts × outputs × inputs; clients stand cohort by cohort, in equal
            numbers.
        history: of the steps taken.

    Attributes:
        last: of this step, each call: inputs, and the gradient of the outputs once it is known.
    """

    def __init__(self, linear: nn.Linear, start: Tensor, history: "History") -> None:
        super().__init__()
        self.bias = linear.bias
        self._start, self._history = start, history
        self.last: list[tuple[Tensor, list[Tensor]]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """As the `Linear`."""
        outputs: Tensor = AllClients.apply(inputs, self)  # type: ignore[no-untyped-call]
        return outputs if self.bias is None else outputs + self.bias

    def of_all(self, inputs: Tensor) -> Tensor:
        """The outputs, without bias: clients × … × inputs to clients × … × outputs, by what autograd knows."""
        raise NotImplementedError

    def watch(self, inputs: Tensor, outputs: Tensor) -> None:
        """Remember a call, and the gradient that will come back to it."""
        if not outputs.requires_grad:
            outputs.requires_grad_()
        grads: list[Tensor] = []
        dtype = self._start.dtype  # in mixed precision gradients come in another, but are added up in this one
        outputs.register_hook(lambda grad: grads.append(grad.to(dtype)))  # type: ignore[no-untyped-call]
        self.last.append((inputs.to(dtype), grads))


class Factored(OfAll):
    """Keeps the inputs and gradients of all steps."""

    def __init__(self, linear: nn.Linear, start: Tensor, history: "History") -> None:
        super().__init__(linear, start, history)
        self._inputs, self._grads = Tensor(), Tensor()  # of the steps taken: clients × rows of all steps × width

    def of_all(self, inputs: Tensor) -> Tensor:
        """By the starting weights, and by what the inputs seen have in common with these."""
        clients, cohorts = len(inputs), len(self._start)
        rows = inputs.reshape(clients, -1, inputs.shape[-1])
        outputs = torch.bmm(rows.reshape(cohorts, -1, rows.shape[-1]), self._start.mT).view(clients, rows.shape[1], -1)
        if self._history.decay != 1:
            outputs = self._history.decay * outputs
        if seen := self._history.steps * rows.shape[1]:
            alike = torch.bmm(rows, self._inputs[:, :seen].mT) * self._moves(rows)
            outputs = torch.baddbmm(outputs, alike, self._grads[:, :seen])
        self.watch(rows.detach(), outputs)
        return outputs.view(*inputs.shape[:-1], outputs.shape[-1])

    def square_norms(self) -> Tensor:
        """Of the last step's gradient of each client's weights, squared."""
        ((rows, (grads,)),) = self.last
        return (torch.bmm(grads, grads.mT) * torch.bmm(rows, rows.mT)).sum((1, 2))

    def keep(self, steps: int) -> None:
        """Keep the factors of the step just taken, of so many that there will be."""
        ((rows, (grads,)),) = self.last
        if not self._history.steps:
            self._inputs, self._grads = (
                part.new_empty(len(part), steps * part.shape[1], part.shape[2]) for part in (rows, grads)
            )
        new = slice(self._history.steps * rows.shape[1], (self._history.steps + 1) * rows.shape[1])
        self._inputs[:, new], self._grads[:, new] = rows, grads
        self.last.clear()

    def is_finite(self) -> Tensor:
        """Of each client, whether its gradients are."""
        return self._grads.sum((1, 2)).isfinite()

    def forget(self, client: int) -> None:
        """Let a client's weights be those it started from."""
        self._grads[client] = self._inputs[client] = 0

    def mean(self, weights: Tensor) -> Tensor:
        """Each cohort's mean weights, cohorts × outputs × inputs; `weights` of each client sum to one in a cohort."""
        cohorts, outputs, inputs = self._start.shape
        moves = self._moves(self._grads[:, : self._grads.shape[1] // self._history.steps])
        moved = self._grads * (weights.to(moves)[:, None] * moves)[..., None]
        moved, seen = moved.view(cohorts, -1, outputs), self._inputs.view(cohorts, -1, inputs)
        return torch.baddbmm(self._start, moved.mT, seen, beta=self._history.decay)

    def _moves(self, rows: Tensor) -> Tensor:
        """How far each row of the inputs seen has moved the weights."""
        moves = torch.tensor(self._history.moves, dtype=self._start.dtype, device=rows.device)
        return moves.repeat_interleave(rows.shape[1])


class History:
    """The numbers by which weights stand in the starting weights and the gradients of the steps taken.

    Args:
        training: SGD, with momentum and weight decay.
        lr: learning rate.
    """

    def __init__(self, training: Training, lr: float) -> None:
        self._momentum, self._weight_decay, self.lr = training.momentum, training.weight_decay, lr
        self.remembers = bool(training.momentum or training.weight_decay)
        self.decay, self.moves = 1.0, list[float]()  # of the weights
        self._slide, self._pushes = 0.0, list[float]()  # of the velocity

    @property
    def steps(self) -> int:
        """How many have been taken."""
        return len(self.moves)

    def slow(self, velocity: Tensor, moves: Tensor) -> None:
        """What momentum and weight decay make of a velocity before the gradient is added."""
        velocity.mul_(self._momentum).add_(moves, alpha=self._weight_decay)

    def step(self) -> None:
        """One step of torch's SGD."""
        self.moves, self._pushes = [*self.moves, 0.0], [*self._pushes, 0.0]
        last = len(self.moves) - 1
        grads = [self._weight_decay * c + (s == last) for s, c in enumerate(self.moves)]
        self._slide = self._momentum * self._slide + self._weight_decay * self.decay
        self._pushes = [self._momentum * push + grad for push, grad in zip(self._pushes, grads, strict=True)]
        self.decay -= self.lr * self._slide
        self.moves = [c - self.lr * push for c, push in zip(self.moves, self._pushes, strict=True)]


class AllClients(torch.autograd.Function):
    """Leaves `vmap` for a moment: what it is given there for one client, the layer is given for all."""

    @staticmethod
    def forward(inputs: Tensor, layer: OfAll) -> Tensor:
        """Never called: there is no computation for one client."""
        raise RuntimeError("a factored layer works under torch.vmap over clients only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Sequence[object], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], inputs: Tensor, layer: OfAll) -> tuple[Tensor, int]:
        """The outputs of all clients, by operations that autograd knows."""
        if in_dims[0] is None:
            inputs = inputs.expand(info.batch_size, *inputs.shape)
        else:
            inputs = inputs.movedim(in_dims[0], 0)
        return layer.of_all(inputs), 0

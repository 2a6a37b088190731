"""Linear layers of many clients that started from the same weights, none of which is ever written out.

After local steps of SGD a client's weights are `a W₀ + Σ cₛ Dₛᵀ Xₛ`, with the inputs Xₛ of its steps, the gradients Dₛ
of its outputs, and numbers a and cₛ that are the same for all clients. So the product with W₀ is one matrix product for
the whole cohort, and each client's own part is two thin ones. Momentum and weight decay only change the numbers.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._functorch.pyfunctorch import (
    VmapInterpreter,
    retrieve_all_functorch_interpreters,
    temporarily_pop_interpreter_stack,
)

from ist_fed.batched.workspace import Workspace
from ist_fed.train import Training


class OfAll(nn.Module):
    """A layer that takes the place of a `Linear` under `torch.vmap` over clients, and computes for all of them.

    Args:
        name: by which its arrays are kept.
        linear: whose place it takes; its bias stays a parameter of each client's own.
        start: the weights W₀ of each cohort, cohorts × outputs × inputs; clients stand cohort by cohort, in equal
            numbers.
        history: of the steps taken.

    Attributes:
        last: of this step, each call: inputs, and the gradient of the outputs once it is known.
    """

    def __init__(self, name: str, linear: nn.Linear, start: Tensor, history: "History") -> None:
        super().__init__()
        self.bias, self.start = linear.bias, start
        self._name, self._history = name, history
        self.last: list[tuple[Tensor, list[Tensor]]] = []
        self.anchor = start.new_empty(0).requires_grad_()  # for which autograd comes back even where nothing else asks

    def forward(self, inputs: Tensor) -> Tensor:
        """As the `Linear`: what is one client's under `vmap` is taken out of it for all, and what comes of it put back.

        An `autograd.Function` with a `vmap` of its own does the same, in half a millisecond of torch's Python.
        """
        match retrieve_all_functorch_interpreters():
            case [VmapInterpreter() as clients]:
                level, count = clients.level(), clients.batch_size()
            case _:
                raise RuntimeError("a factored layer works under torch.vmap over clients only")
        all_inputs, bias = (
            None if part is None else _functorch._remove_batch_dim(part, level, count, 0)
            for part in (inputs, self.bias)
        )
        with temporarily_pop_interpreter_stack(), torch._C.DisableTorchFunction():  # nor has any mode a part in it
            outputs: Tensor = _Product.apply(all_inputs, bias, self.anchor, self)  # type: ignore[no-untyped-call]
        return _functorch._add_batch_dim(outputs, 0, level)

    def empty(self, what: str, like: Tensor, *shape: int) -> Tensor:
        """Room for one of its arrays, which nobody needs any more when it is asked for again."""
        return self._history.workspace.empty((self._name, what), like, shape)

    def product(self, rows: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Clients × rows × inputs to clients × rows × outputs."""
        raise NotImplementedError

    def back(self, grads: Tensor) -> Tensor | None:
        """The gradient of the rows, from that of the outputs."""
        raise NotImplementedError


class Factored(OfAll):
    """Keeps the inputs and gradients of all steps."""

    def __init__(self, name: str, linear: nn.Linear, start: Tensor, history: "History") -> None:
        super().__init__(name, linear, start, history)
        self._inputs, self._grads = Tensor(), Tensor()  # of the steps taken: clients × rows of all steps × width

    def product(self, rows: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """By the starting weights, and by what the inputs seen have in common with these."""
        self._multiply(rows, self.start.mT, self._inputs, self._grads, out)
        if bias is not None:
            out.add_(bias[:, None])

    def back(self, grads: Tensor) -> Tensor:
        """The same the other way."""
        out = self.empty("back", grads, *grads.shape[:2], self.start.shape[2])
        self._multiply(grads, self.start, self._grads, self._inputs, out)
        return out

    def _multiply(self, rows: Tensor, start: Tensor, seen: Tensor, made: Tensor, out: Tensor) -> None:
        """Rows by each client's own weights: those of its cohort, and of each row seen what was made of it."""
        kind, cohorts = rows.dtype, len(start)
        torch.bmm(rows.reshape(cohorts, -1, rows.shape[2]), start.to(kind), out=out.view(cohorts, -1, out.shape[2]))
        if self._history.decay != 1:
            out.mul_(self._history.decay)
        if past := self._history.steps * rows.shape[1]:
            alike, alpha = torch.bmm(rows, seen[:, :past].mT.to(kind)), self._history.same
            if alpha is None:
                alike, alpha = alike * self._moves(rows), 1.0
            out.baddbmm_(alike, made[:, :past].to(kind), alpha=alpha)

    def square_norms(self) -> Tensor:
        """Of the last step's gradient of each client's weights, squared."""
        ((rows, (grads,)),) = self.last
        return (torch.bmm(grads, grads.mT) * torch.bmm(rows, rows.mT)).sum((1, 2))

    def keep(self, steps: int) -> None:
        """Keep the factors of the step just taken, of so many that there will be."""
        ((rows, (grads,)),) = self.last
        if not self._history.steps:
            self._inputs, self._grads = (
                self.empty(what, part, len(part), steps * part.shape[1], part.shape[2])
                for what, part in (("inputs", rows), ("grads", grads))
            )
        new = slice(self._history.steps * rows.shape[1], (self._history.steps + 1) * rows.shape[1])
        self._inputs[:, new], self._grads[:, new] = rows, grads
        self.last.clear()

    def is_finite(self) -> Tensor:
        """Of each client, whether the sums of its gradients are."""
        return self._grads.sum((1, 2)).isfinite()

    def forget(self, client: int) -> None:
        """Let a client's weights be those it started from."""
        self._grads[client] = self._inputs[client] = 0

    def mean(self, weights: Tensor) -> Tensor:
        """Each cohort's mean weights, in the place of `start`; `weights` of each client sum to one in a cohort."""
        cohorts, outputs, inputs = self.start.shape
        moves = self._moves(self._grads[:, : self._grads.shape[1] // self._history.steps])
        shares, grads = weights.to(moves)[:, None] * moves, self._grads
        if (alpha := one_of(shares)) is None:
            alpha, grads = 1.0, grads * shares[..., None]
        moved, seen = grads.view(cohorts, -1, outputs), self._inputs.view(cohorts, -1, inputs)
        return self.start.baddbmm_(moved.mT, seen, beta=self._history.decay, alpha=alpha)

    def _moves(self, rows: Tensor) -> Tensor:
        """How far each row of the inputs seen has moved the weights."""
        moves = torch.tensor(self._history.moves, dtype=rows.dtype, device=rows.device)
        return moves.repeat_interleave(rows.shape[1])


class History:
    """The numbers by which weights stand in the starting weights and the gradients of the steps taken.

    Args:
        training: SGD, with momentum and weight decay.
        lr: learning rate.
        workspace: for what is kept of the steps.
    """

    def __init__(self, training: Training, lr: float, workspace: Workspace) -> None:
        self.workspace = workspace
        self._momentum, self._weight_decay, self.lr = training.momentum, training.weight_decay, lr
        self.remembers = bool(training.momentum or training.weight_decay)
        self.decay, self.moves = 1.0, list[float]()  # of the weights
        self._slide, self._pushes = 0.0, list[float]()  # of the velocity

    @property
    def steps(self) -> int:
        """How many have been taken."""
        return len(self.moves)

    @property
    def same(self) -> float | None:
        """The number by which all gradients stand in the weights, if it is one, as with plain SGD."""
        return self.moves[0] if len(set(self.moves)) == 1 else None

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


def one_of(shares: Tensor) -> float | None:
    """The number that all of them are, as with plain SGD and equal weights: no array need be multiplied by it."""
    first = shares.flatten()[0]
    return float(first) if bool((shares == first).all()) else None


class _Product(torch.autograd.Function):
    """A layer's product, without autograd's copies; what the layer will move by is left in its `last`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor | None, anchor: Tensor, layer: OfAll) -> Tensor:
        """In mixed precision in the dtype that a `Linear` would take; what is kept is kept in the weights' own."""
        ctx.layer, ctx.grads, device = layer, [], inputs.device.type
        rows = given = _rows_of(inputs)
        mixed = torch.is_autocast_enabled(device) and rows.dtype != torch.float64  # which it leaves alone
        if mixed:
            kind = torch.get_autocast_dtype(device)
            given, bias, rows = rows.to(kind), None if bias is None else bias.to(kind), rows.to(layer.start.dtype)
        outputs = layer.empty("outputs", given, *inputs.shape[:-1], layer.start.shape[1])
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            layer.product(given, bias, _rows_of(outputs))
        layer.last.append((rows, ctx.grads))
        return outputs

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The gradients of inputs and biases."""
        of_inputs, of_bias, *_ = ctx.needs_input_grad
        rows = _rows_of(grads)
        ctx.grads.append(rows.to(ctx.layer.start.dtype))
        made = ctx.layer.back(rows) if of_inputs else None
        made = None if made is None else made.view(*grads.shape[:-1], -1)
        return made, rows.sum(1) if of_bias else None, None, None


def _rows_of(array: Tensor) -> Tensor:
    """Clients × rows × width."""
    return array if array.ndim == 3 else array.reshape(len(array), -1, array.shape[-1])

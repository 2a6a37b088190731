"""The first linear layer of many clients, written in terms of their examples.

A layer that alone reads the examples moves by sums of them only: after any number of steps of SGD a client's weights
are `a W₀ + Fᵀ X`, with its examples X and a matrix F of as many rows. So F is trained in place of the weights. What W₀
makes of the examples is worked out once a round, what the examples make of each other once and for all, and no batch
of examples is ever put together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ist_fed.batched.factored import AllClients, History


@dataclass(frozen=True, eq=False)
class Examples:
    """Of the clients that are trained at once.

    Args:
        rows: of each client: its examples × features.
        products: clients × examples × examples: of each two, the sum over features; zeros where a client has fewer.
        orders: steps × clients × examples of a batch: which ones, numbered within each client.
    """

    rows: Sequence[Tensor]
    products: Tensor
    orders: Tensor


class InData(nn.Module):
    """Takes the place of a `Linear` in a network that is called under `torch.vmap` over clients.

    Args:
        linear: whose place it takes; its bias stays a parameter of each client's own.
        start: the weights W₀ of each cohort, cohorts × outputs × inputs; clients stand cohort by cohort, in equal
            numbers.
        history: of the steps taken.
        examples: of the clients.
    """

    def __init__(self, linear: nn.Linear, start: Tensor, history: History, examples: Examples) -> None:
        super().__init__()
        self.bias = linear.bias
        self._start, self._history, self._examples = start, history, examples
        self._each = len(examples.rows) // len(start)
        shape = (*examples.products.shape[:2], start.shape[1])
        self._made, self._moves = start.new_empty(shape), start.new_zeros(shape)  # by W₀, and F
        self._velocity = start.new_zeros(shape if history.remembers else (0,))
        columns = start.mT.contiguous()  # twice as fast as its transpose
        for client, rows in enumerate(examples.rows):
            torch.mm(rows, columns[client // self._each], out=self._made[client, : len(rows)])
        self.last: list[tuple[Tensor, list[Tensor]]] = []  # as of `Factored`

    def forward(self, inputs: Tensor) -> Tensor:
        """As the `Linear`; the numbers in `inputs` do not matter, for it knows the examples."""
        outputs: Tensor = AllClients.apply(inputs, self)  # type: ignore[no-untyped-call]
        return outputs if self.bias is None else outputs + self.bias

    def of_all(self, inputs: Tensor) -> Tensor:
        """The outputs, without bias, of all clients."""
        outputs = self._chosen(self._made)
        if self._history.decay != 1:
            outputs *= self._history.decay
        if self._history.steps:
            outputs.baddbmm_(self._chosen(self._examples.products), self._moves)
        outputs.requires_grad_()
        grads: list[Tensor] = []
        outputs.register_hook(grads.append)  # type: ignore[no-untyped-call]
        self.last.append((outputs.detach(), grads))
        return outputs

    def square_norms(self) -> Tensor:
        """Of the last step's gradient of each client's weights, squared."""
        ((_, (grads,)),) = self.last
        alike = self._chosen(self._examples.products)
        order = self._order[:, None, :].expand(-1, alike.shape[1], -1)
        return (torch.bmm(grads, grads.mT) * alike.gather(2, order)).sum((1, 2))

    def keep(self, steps: int) -> None:
        """Take the step."""
        ((_, (grads,)),) = self.last
        order = self._order[..., None].expand_as(grads)
        if self._history.remembers:
            self._history.slow(self._velocity, self._moves)
            self._velocity.scatter_add_(1, order, grads)
            self._moves.sub_(self._velocity, alpha=self._history.lr)
        else:
            self._moves.scatter_add_(1, order, grads * -self._history.lr)
        self.last.clear()

    def is_finite(self) -> Tensor:
        """Of each client, whether its weights are."""
        return self._moves.sum((1, 2)).isfinite()

    def forget(self, client: int) -> None:
        """Let a client's weights be those it started from."""
        self._moves[client] = 0

    def mean(self, weights: Tensor) -> Tensor:
        """Each cohort's mean weights, cohorts × outputs × inputs; `weights` of each client sum to one in a cohort."""
        mean = self._history.decay * self._start
        for client, (rows, weight) in enumerate(zip(self._examples.rows, weights.tolist(), strict=True)):
            mean[client // self._each].addmm_(self._moves[client, : len(rows)].mT, rows, alpha=weight)
        return mean

    @property
    def _order(self) -> Tensor:
        return self._examples.orders[self._history.steps]

    def _chosen(self, table: Tensor) -> Tensor:
        """The rows of the examples in this step's batches."""
        return table.gather(1, self._order[..., None].expand(-1, -1, table.shape[2]))

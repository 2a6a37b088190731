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

from ist_fed.batched.factored import History, OfAll


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


class InData(OfAll):
    """Knows the examples; the numbers in its inputs do not matter.

    Args:
        linear: as `OfAll`.
        start: as `OfAll`.
        history: as `OfAll`.
        examples: of the clients.
    """

    def __init__(self, linear: nn.Linear, start: Tensor, history: History, examples: Examples) -> None:
        super().__init__(linear, start, history)
        self._examples = examples
        self._each = len(examples.rows) // len(start)
        shape = (*examples.products.shape[:2], start.shape[1])
        self._made, self._moves = start.new_empty(shape), start.new_zeros(shape)  # by W₀, and F
        self._velocity = start.new_zeros(shape if history.remembers else (0,))
        columns = start.mT.contiguous()  # twice as fast as its transpose
        for client, rows in enumerate(examples.rows):
            torch.mm(rows, columns[client // self._each], out=self._made[client, : len(rows)])

    def of_all(self, inputs: Tensor) -> Tensor:
        """By what W₀ makes of the examples, and by what they have in common."""
        outputs = self._chosen(self._made)
        if self._history.decay != 1:
            outputs *= self._history.decay
        if self._history.steps:
            outputs.baddbmm_(self._chosen(self._examples.products), self._moves)
        self.watch(inputs, outputs)
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

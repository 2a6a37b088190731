"""The first linear layer of many clients, written in terms of their examples.

A layer that alone reads the examples moves by sums of them only: after any number of steps of SGD a client's weights
are `a W₀ + Fᵀ X`, with its examples X and a matrix F of as many rows. So F is trained in place of the weights. What W₀
makes of the examples is worked out once a round, what the examples make of each other once and for all, and no batch
of examples is ever put together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ist_fed.batched.factored import History, OfAll, one_of

_EVEN = 64
"""Outputs in multiples of which a matrix product is twice as fast."""
_WIDE = 256
"""Outputs from which on it is quicker to bring examples into the order in which they come than what is made of them."""
_BLOCK = 1 << 21
"""Bytes of examples that are brought together at once: they stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Of the clients that are trained at once.

    Args:
        rows: of each client: its examples × features.
        lengths: how many each client has.
        products: of each two examples of a client the sum over features: a matrix for each client, these and others,
            one behind the other.
        starts: where in it that of each client begins.
        orders: steps × clients × examples of a batch: which ones, numbered within each client.
    """

    rows: Sequence[Tensor]
    lengths: Sequence[int]
    products: Tensor
    starts: Tensor
    orders: Tensor

    @cached_property
    def counts(self) -> Tensor:
        """How many each client has: clients × 1."""
        return torch.tensor(self.lengths, device=self.starts.device)[:, None]

    def alike(self, some: Tensor, others: Tensor) -> Tensor:
        """Products of some of each client's examples with others: clients × some × others, numbered as in `orders`."""
        firsts = self.starts[:, None] + some * self.counts
        short = torch.int32 if len(self.products) < 1 << 31 else torch.int64  # half the memory to go through
        pairs = firsts.to(short)[..., None] + others.to(short)[:, None]
        return self.products.index_select(0, pairs.view(-1)).view(pairs.shape)


class InData(OfAll):
    """Knows the examples; the numbers in its inputs do not matter.

    Where no example comes twice the tables stand in the order in which the examples come, and are no longer than that:
    what belongs to a step is a slice.

    Args:
        name: as `OfAll`.
        linear: as `OfAll`.
        start: as `OfAll`.
        history: as `OfAll`.
        examples: of the clients.
    """

    def __init__(self, name: str, linear: nn.Linear, start: Tensor, history: History, examples: Examples) -> None:
        super().__init__(name, linear, start, history)
        self._examples, self._batch = examples, examples.orders.shape[2]
        self._orders = examples.orders.movedim(0, 1).flatten(1)  # of all steps: clients × examples
        counts = examples.lengths
        self._most, self._each = max(counts), len(counts) // len(start)
        self._even, self._once = min(counts) == self._most, self._orders.shape[1] <= min(counts)
        self._wide = self._once and start.shape[1] >= _WIDE
        self._made = self._by_start()[..., : start.shape[1]]
        # F; where no example comes twice a step's rows of it take the place of what W₀ made, which is read but once.
        own = self._once and not history.remembers
        self._moves = self._made if own else torch.zeros_like(self._made, memory_format=torch.contiguous_format)
        self._velocity = torch.zeros_like(self._moves if history.remembers else self._moves[:0])

    def product(self, rows: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """By what W₀ makes of the examples, and by what they have in common."""
        kind, decay, made = rows.dtype, self._history.decay, self._chosen(self._made).to(rows.dtype)
        if bias is None:
            torch.mul(made, decay, out=out)
        else:
            torch.add(bias[:, None], made, alpha=decay, out=out)
        if self._history.steps:
            moved = self._moved
            alike, moves = self._examples.alike(self._order, moved), self._moves[:, : moved.shape[1]]
            out.baddbmm_(alike.to(kind), moves.to(kind))

    def back(self, grads: Tensor) -> None:
        """None: the rows are the examples."""

    def square_norms(self) -> Tensor:
        """Of the last step's gradient of each client's weights, squared."""
        ((_, (grads,)),) = self.last
        return (torch.bmm(grads, grads.mT) * self._examples.alike(self._order, self._order)).sum((1, 2))

    def keep(self, steps: int) -> None:
        """Take the step."""
        ((_, (grads,)),) = self.last
        if self._history.remembers:
            self._history.slow(self._velocity, self._moves)
            self._add(self._velocity, grads)
            self._moves.sub_(self._velocity, alpha=self._history.lr)
        elif self._once:
            torch.mul(grads, -self._history.lr, out=self._moves[:, self._now])
        else:
            self._add(self._moves, grads * -self._history.lr)
        self.last.clear()

    def _add(self, table: Tensor, rows: Tensor) -> None:
        """Add to the rows of the examples in this step's batches."""
        if self._once:
            table[:, self._now].add_(rows)
        else:
            table.scatter_add_(1, self._order[..., None].expand_as(rows), rows)

    def is_finite(self) -> Tensor:
        """Of each client, whether its weights are."""
        return self._moves.sum((1, 2)).isfinite()

    def forget(self, client: int) -> None:
        """Let a client's weights be those it started from."""
        self._moves[client] = 0

    def mean(self, weights: Tensor) -> Tensor:
        """Each cohort's mean weights, in the place of `start`; `weights` of each client sum to one in a cohort."""
        mean = self.start.mul_(self._history.decay)
        cohorts, moves = mean.unbind(), self._moves
        if self._wide:
            if (alpha := one_of(weights)) is None:
                alpha = 1.0
                moves.mul_(weights.to(moves)[:, None, None])
            for some, rows in self._taken():
                cohorts[some.start // self._each].addmm_(moves[some].flatten(0, 1).mT, rows, alpha=alpha)
            return mean
        if self._once:
            room = moves.new_empty if self._even and self._most == moves.shape[1] else moves.new_zeros
            moves = room(len(moves) * self._most, moves.shape[2])
            moves.index_copy_(0, self._in_order().flatten(), self._moves.flatten(0, 1))
            moves = moves.view(len(self._moves), self._most, -1)
        each = zip(self._examples.rows, moves.mT.unbind(), weights.tolist(), strict=True)
        for client, (rows, moved, weight) in enumerate(each):
            own = moved if self._even else moved[:, : len(rows)]
            cohorts[client // self._each].addmm_(own, rows, alpha=weight)
        return mean

    def _by_start(self) -> Tensor:
        """What W₀ makes of the examples, clients × examples × outputs or more."""
        outputs = self.start.shape[1]
        columns = self.empty("columns", self.start, *self.start.mT.shape[:2], outputs + -outputs % _EVEN)
        columns[..., :outputs] = self.start.mT  # by columns, which are twice as fast
        columns[..., outputs:] = 0
        cohorts = columns.unbind()
        if self._wide:
            made = self.empty("made", columns, *self._orders.shape, columns.shape[2])
            for some, rows in self._taken():
                torch.mm(rows, cohorts[some.start // self._each], out=made[some].view(len(rows), -1))
            return made
        made = self.empty("made", columns, len(self._examples.rows), self._most, columns.shape[2])
        for client, (rows, out) in enumerate(zip(self._examples.rows, made.unbind(), strict=True)):
            torch.mm(rows, cohorts[client // self._each], out=out if self._even else out[: len(rows)])
        if not self._once:
            return made
        order = self._in_order()
        ordered = self.empty("in order", made, order.numel(), made.shape[2])
        return torch.index_select(made.flatten(0, 1), 0, order.flatten(), out=ordered).view(*order.shape, -1)

    def _taken(self) -> Iterator[tuple[slice, Tensor]]:
        """The examples of some clients of a cohort after another, in the order in which they come."""
        rows, orders = self._examples.rows, self._orders
        clients, taken = orders.shape
        most = max(1, _BLOCK // (taken * rows[0][0].nbytes))
        room = self.empty("taken", rows[0], min(most, self._each), taken, rows[0].shape[1])
        for first in range(0, clients, self._each):
            for at in range(first, first + self._each, most):
                some = slice(at, min(at + most, first + self._each))
                for client, out in zip(range(clients)[some], room, strict=False):
                    torch.index_select(rows[client], 0, orders[client], out=out)
                yield some, room[: some.stop - some.start].flatten(0, 1)

    def _in_order(self) -> Tensor:
        """The same, numbered through all clients."""
        first = torch.arange(len(self._examples.rows), device=self.start.device) * self._most
        return first[:, None] + self._orders

    @property
    def _order(self) -> Tensor:
        return self._examples.orders[self._history.steps]

    @property
    def _moved(self) -> Tensor:
        """The examples of the first rows of F, clients × examples; those behind them have not moved it.

        Where a client has fewer than others its last is there again, for a row of zeros.
        """
        if self._once:
            return self._orders[:, : self._history.steps * self._batch]
        counts = self._examples.counts
        return torch.arange(self._most, device=counts.device).minimum(counts - 1)

    @property
    def _now(self) -> slice:
        return slice(self._history.steps * self._batch, (self._history.steps + 1) * self._batch)

    def _chosen(self, table: Tensor) -> Tensor:
        """The rows of the examples in this step's batches."""
        if self._once:
            return table[:, self._now]
        return table.gather(1, self._order[..., None].expand(-1, -1, table.shape[2]))

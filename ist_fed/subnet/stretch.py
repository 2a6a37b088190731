"""Copying what many subnets of one size have of a network that is laid out flat, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ist_fed.places import write


@dataclass(frozen=True, eq=False)
class Stretch:
    """Neighbours in a subnet's run: numbers, or whole rows of an array of which an axis splits the first dimension.

    Args:
        span: where they lie in the subnet's run.
        places: subnets × numbers, or × rows: where they stand in the wide run, or which rows they are.
        rows: where in the wide run the array of these rows lies; None for numbers.
        length: of a row.
    """

    span: slice
    places: Tensor
    rows: slice | None = None
    length: int = 1

    def read(self, wide: Tensor, subnets: Sequence[int], out: Tensor) -> None:
        """Copy what some subnets have of a wide run into `out`, subnets × numbers of their whole run."""
        if self.rows is None:
            at = _rows_of(self.places, subnets).to(wide.device)
            if at.shape == out.shape:
                torch.index_select(wide, 0, at.view(-1), out=out.view(-1))
            else:
                out[:, self.span] = wide.index_select(0, at.view(-1)).view(at.shape)
            return
        rows = wide[self.rows].view(-1, self.length)
        for subnet, own in zip(subnets, out[:, self.span].unbind(), strict=True):
            torch.index_select(rows, 0, self.places[subnet].to(wide.device), out=own.view(-1, self.length))

    def write(self, wide: Tensor, subnets: Sequence[int], numbers: Tensor) -> None:
        """Copy what some subnets have into a wide run; `numbers` as `out` of `read`."""
        if self.rows is None:
            at = _rows_of(self.places, subnets).to(wide.device)
            wide.index_copy_(0, at.view(-1), numbers[:, self.span].reshape(-1))  # quicker than by two dimensions
            return
        rows = wide[self.rows].view(-1, self.length)
        for subnet, own in zip(subnets, numbers[:, self.span].unbind(), strict=True):
            write(rows, (self.places[subnet].to(wide.device), None), own.view(-1, self.length))


def _rows_of(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a table; the table itself if it is all of them."""
    return table if [*rows] == [*range(len(table))] else table[[*rows]]

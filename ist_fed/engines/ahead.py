"""Subnets that clients of this process train together, before a message asks each of them for its own."""

from collections.abc import Iterator

import torch

from ist_fed import wire
from ist_fed.arrays import Arrays
from ist_fed.cohort import Assignment, Outcome
from ist_fed.errors import TrainingError
from ist_fed.secrecy import ordered
from ist_fed.updates import order_hash


class Ahead:
    """What the clients of one round make of their subnets, each kept until its client asks for it.

    Args:
        outcomes: of assignments to one client each; the next is made when somebody asks for what is not there yet.
    """

    def __init__(self, outcomes: Iterator[Outcome]) -> None:
        self._outcomes, self._made = outcomes, dict[int, Outcome]()

    def take(self, node: int, order: wire.Order) -> Arrays | None:
        """The subnet that a client has trained; None if it has not trained these very arrays by this very order.

        Raises:
            TrainingError: it could not train.
        """
        while node not in self._made and (outcome := next(self._outcomes, None)) is not None:
            self._made[outcome.nodes[0]] = outcome
        made = self._made.pop(node, None)
        if made is None or not _is_ordered(made.assignment, order):
            return None
        if made.arrays is None:
            raise TrainingError(made.refused[node])
        return made.arrays


def _is_ordered(asked: Assignment, order: wire.Order) -> bool:
    """Whether an order, as it came, says what was asked."""
    sent = order.arrays
    return (
        order_hash(asked.order) == order_hash(ordered(order))
        and asked.arrays.keys() == sent.keys()
        and all(torch.equal(array.cpu(), sent[name]) for name, array in asked.arrays.items())
    )

"""A client in secure rounds: the steps that come as messages, between them the training, and what a member keeps."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Message
from torch import nn

from ist_fed import wire
from ist_fed.arrays import arrays_of
from ist_fed.errors import SecureError, WireError
from ist_fed.privacy.secure import Grid, Member
from ist_fed.privacy.secure import messages as say
from ist_fed.privacy.secure.skellam import draw
from ist_fed.updates import as_vector, model_hash, order_hash, trained_names

logger = logging.getLogger("ist_fed")

_ORDERED = ("round", "seed", "sizes", "local_steps", "lr", "training", "scales")


def ordered(order: wire.Order) -> dict[str, Any]:
    """The fields of an order that all of a cohort agree on."""
    return {name: value for name, value in vars(order).items() if name in _ORDERED}


class Secrecy:
    """Answers the steps of secure rounds; nothing of a client leaves but through here.

    Args:
        member: its state between messages.
        trained: trains the subnet of an order.
    """

    def __init__(self, member: Member, trained: Callable[[wire.Order], nn.Module]) -> None:
        self._member, self._trained = member, trained

    def answer(self, step: wire.Step, message: Message) -> Message:
        """Take one step; whatever goes wrong ends the round for this client.

        Raises:
            SecureError: something does not fit, or this client's disk or lists cannot be used; of that it says no more.
                All secrets of the round are erased.
            WireError: a message cannot be read; the same.
        """
        try:
            return wire.step_answer(self._body(step, message), reply_to=message)
        except BaseException as error:
            self._member.forget()
            if isinstance(error, (SecureError, WireError)) or not isinstance(error, Exception):
                raise
            logger.error("round %s: this client broke off", message.metadata.group_id, exc_info=error)
            raise SecureError("it broke off; its own log says why") from None

    def _body(self, step: wire.Step, message: Message) -> bytes:
        member, body = self._member, step.body
        if step.name == "advertise":
            return member.advertise(say.Call.unpack(body)).pack()
        if step.name == "share":
            return member.share(say.Roster.unpack(body)).pack()
        if step.name == "upload":
            return self._upload(say.Boxes.unpack(body), wire.open_order(message, take=True)).pack()
        if step.name == "agree":
            return member.agree(say.Survivors.unpack(body)).pack()
        if step.name == "unmask":
            return member.unmask(say.Votes.unpack(body)).pack()
        raise SecureError("a secure round has five steps, and this is none; server and client must be of one version")

    def _upload(self, boxes: say.Boxes, order: wire.Order) -> say.Masked:
        model = model_hash(wire.layout_of_flat(order.arrays), order.digest)
        terms = self._member.receive(boxes, model=model, order=order_hash(ordered(order)))
        grid = Grid(step=terms.grid, clip=terms.clip, length=terms.length, variance=terms.variance, bound=terms.bound)
        values = self._quantised(order, grid)
        if grid.variance:
            values += draw(grid.variance, values.size)
        np.clip(values, -grid.bound, grid.bound, out=values)  # noise is beyond it with a chance below 1e-27
        return self._member.mask(values)

    def _quantised(self, order: wire.Order, grid: Grid) -> np.ndarray:
        """A client's update on the grid; zero if it could not train.

        That must not show. A server that crafts a subnet on which the loss is finite for some data only would else
        learn of each member by name whether it has such data, past the noise.

        Raises:
            WireError: the subnet or the order cannot be trained by anyone here, whatever the data.
        """
        before = order.arrays
        try:
            trained = self._trained(order)
            names = trained_names(trained, before)
            return grid.quantise(as_vector(arrays_of(trained), names) - as_vector(before, names))
        except WireError:
            raise
        except Exception as error:
            logger.error("round %d: this client could not train, and adds zero", order.round, exc_info=error)
            return np.zeros(grid.length, np.int64)

"""A client that stays: one process that holds its data and its device, and answers one message after another.

It runs the same ClientApp as Flower's SuperNode does, which starts a new process, and imports torch anew, for every
message.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from flwr.app import Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run as FlowerRun

from ist_fed.engines.apps import Config, defaults, installed_app
from ist_fed.engines.fleet import Fleet
from ist_fed.errors import FleetOver, FleetRefused, FleetUnknown, FleetUnreachable
from ist_fed.wire import open_step
from ist_fed.wire.excerpt import excerpt

logger = logging.getLogger("ist_fed")

_POLL_S, _IDLE_S = 0.3, 1.0  # between two questions for work that are not held: during a run, without one
_PATIENCE = 5.0  # a server that answers slowly has much to do: so many times as long as it took until the next question
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0  # after a failure of the network
_FETCHED_S = 3.0  # in which a reply is fetched: a strategy asks twice a second

APP_RAISED = 2
"""Flower's error code for an exception in a ClientApp."""

NO_ANSWER = "it could not answer; its own log says why"
"""All that a server is told of such an exception: what it says may be of the data, and where they lie."""

ADMISSION_S = 60.0
"""Seconds in which a server comes to know a client."""

LINK = "link"
"""Record of a client's state that says how fast its link was last."""

Answer = TypeVar("Answer")


class Resident:
    """Answers a server's messages until it is stopped.

    Args:
        fleet: the connection.
        node_config: what the operator says of this node: its data, its device; as Flower's `--node-config`.
        load: gives the ClientApp that answers the messages of a run; by default that of the installed package,
            whatever the server sent.
    """

    def __init__(
        self,
        fleet: Fleet,
        node_config: Config,
        load: Callable[[FlowerRun], ClientApp] | None = None,
    ) -> None:
        self._fleet, self._node_config, self._load = fleet, dict(node_config), load or (lambda run: installed_app())
        self._runs: dict[int, tuple[ClientApp, Context]] = {}
        self._node = 0
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask it to end when it has answered what it holds."""
        self._stop.set()

    def serve(self) -> None:
        """Answer messages until `stop`.

        Raises:
            FleetRefused: the server will not have this node.
        """
        _warm_up()
        self._node = self._insist(self._join) or 0
        if self._stop.is_set():
            return
        logger.info("connected to %s as node %d", self._fleet.address, self._node)
        last = float("-inf")  # when a message was last answered
        while not self._stop.is_set():
            asked = time.monotonic()
            try:
                message = self._insist(self._fleet.pull)
            except FleetOver as error:  # while its bytes came
                logger.warning("a message is not answered (%s)", error)
                continue
            if message is not None:
                self._answer(message)
                last = time.monotonic()
            elif not self._fleet.held:
                now = time.monotonic()
                pause = _POLL_S if now - last < 30 else _IDLE_S
                self._stop.wait(max(pause, _PATIENCE * (now - asked)))
        # Flower forgets the reply of a node that has left, if nobody has fetched it yet.
        time.sleep(max(0.0, last + _FETCHED_S - time.monotonic()))

    def _join(self) -> int:
        """Join; a server that starts with this client may not know it for a moment."""
        deadline, said = time.monotonic() + ADMISSION_S, False
        while True:
            try:
                return self._fleet.join()
            except FleetUnknown as error:
                if time.monotonic() > deadline or self._stop.is_set():
                    raise
                if not said:
                    logger.warning("%s; trying for a minute", error)
                said = True
                self._stop.wait(ADMISSION_S / 20)

    def _answer(self, message: Message) -> None:
        """Work, and send the reply; while there is no network it is kept, and nothing else is taken up."""
        began, group = time.monotonic(), excerpt(message.metadata.group_id or "-", 20)
        try:
            if message.metadata.message_type == MessageType.TRAIN:
                logger.info("round %s: %s", group, _doing(message))
            app, context = self._run_of(message)
            if self._fleet.link:
                context.state[LINK] = MetricRecord({"bytes_per_second": self._fleet.link})
            reply = app(message=message, context=context)
        except Exception:
            logger.exception("round %s: this client could not answer", group)
            reply = Message(Error(APP_RAISED, NO_ANSWER), reply_to=message)
        seconds = time.monotonic() - began
        try:
            self._insist(lambda: self._fleet.push(reply, seconds), until_done=True)
        except FleetRefused as error:
            logger.warning("round %s: the reply is no longer wanted (%s)", group, error)

    def _run_of(self, message: Message) -> tuple[ClientApp, Context]:
        number = message.metadata.run_id
        if number not in self._runs:
            run = self._fleet.run(number)
            context = Context(
                run_id=number,
                node_id=self._node,
                node_config=self._node_config,
                state=RecordDict(),
                run_config={**defaults(), **run.override_config},
                series_id=run.series_id,
            )
            self._runs = {number: (self._load(run), context)}  # a node works for one run at a time
        return self._runs[number]

    def _insist(self, call: Callable[[], Answer], until_done: bool = False) -> Answer | None:
        """Try again while the server cannot be reached, ever less often; None if that ends because of `stop`."""
        wait, said = _FIRST_WAIT_S, False
        while True:
            try:
                answer = call()
                if said:
                    logger.info("the server at %s answers again", self._fleet.address)
                return answer
            except FleetUnreachable as error:
                if not said:
                    logger.warning("%s; trying again until it answers", error)
                said = True
                if self._stop.is_set() and not until_done:
                    return None
                self._stop.wait(wait * random.uniform(0.8, 1.2))
                wait = min(2 * wait, _LONGEST_WAIT_S)


def _doing(message: Message) -> str:
    step = open_step(message)
    return "training" if step is None or step.name == "upload" else f"secure step '{excerpt(step.name, 20)}'"


def _warm_up() -> None:
    """Let torch import now what it would with the first optimiser: seconds for which a round would wait."""
    torch.optim.SGD([torch.zeros(1)], lr=0.0)

"""Who is connected: every client is asked once who it is, and put in an order that is the same on every engine."""

import logging
import time
from typing import Literal

from flwr.serverapp import Grid

from ist_fed import wire
from ist_fed.errors import RoundError, WireError
from ist_fed.round import Client

logger = logging.getLogger("ist_fed")

Weighting = Literal["examples", "uniform"]

_SAY_AGAIN_S = 10.0  # between two messages that clients are waited for


class Roster:
    """The clients of one Grid.

    Args:
        min_nodes: how many are waited for.
        weighting: within a cohort, weigh clients by their `examples` or `uniform`ly.
    """

    def __init__(self, min_nodes: int, weighting: Weighting) -> None:
        self._min_nodes, self._weighting = min_nodes, weighting
        self._known: dict[int, Client] = {}

    def connected(self, grid: Grid, timeout: float) -> list[Client]:
        """The clients connected now, in the order of their own numbers.

        One that does not answer in time takes part as an unknown, last and with weight one, and is asked again in the
        next round; one that answers with an error (a ClientApp without a query function) stays one.

        Raises:
            RoundError: fewer than `min_nodes` are connected after `timeout` seconds.
        """
        nodes = self._wait(grid, timeout)
        silent = self._ask([node for node in nodes if node not in self._known], grid, timeout)
        clients = [self._known.get(node) or _unknown(node) for node in nodes]
        if silent:
            node, reason = next(iter(silent.items()))
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            logger.warning("node %d%s did not say who it is (%s)", node, more, reason)
        if len({client.number for client in clients}) < len(clients):
            logger.warning("clients should have different numbers, but some share one; each still trains its own data")
        return sorted(clients, key=lambda client: (client.number, client.node))

    def _wait(self, grid: Grid, timeout: float) -> list[int]:
        started = said = time.monotonic()
        while len(nodes := list(grid.get_node_ids())) < self._min_nodes:
            now = time.monotonic()
            if now > started + timeout:
                raise RoundError(
                    f"{self._min_nodes} clients must be connected, but after {timeout:.0f} s {len(nodes)} are"
                )
            if now > said + _SAY_AGAIN_S:
                logger.warning("waiting for clients: %d of %d are connected", len(nodes), self._min_nodes)
                said = now
            time.sleep(min(0.5, max(0.0, started + timeout - now)))
        return nodes

    def _ask(self, nodes: list[int], grid: Grid, timeout: float) -> dict[int, str]:
        """Ask nodes who they are; what those that did not say gave as a reason."""
        if not nodes:
            return {}
        questions = {node: wire.profile_question(node, timeout) for node in nodes}
        answers = list(grid.send_and_receive(list(questions.values()), timeout=timeout))
        given = {answer.metadata.reply_to_message_id: answer for answer in answers}
        silent: dict[int, str] = {}
        for node, question in questions.items():
            answer = given.get(question.metadata.message_id)
            if answer is None:
                silent[node] = "no answer in time"
                continue
            try:
                self._known[node] = self._client(node, wire.open_profile(answer))
            except WireError as error:
                silent[node] = str(error)
                self._known[node] = _unknown(node)
        return silent

    def _client(self, node: int, profile: wire.Profile) -> Client:
        weight = float(max(1, profile.examples)) if self._weighting == "examples" else 1.0
        return Client(node=node, number=profile.client, capacity=profile.capacity, weight=weight)


def _unknown(node: int) -> Client:
    return Client(node=node, number=node, capacity=1.0, weight=1.0)

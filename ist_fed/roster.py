"""Who is connected: every client is asked once who it is, and put in an order that is the same on every engine."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Literal, get_args

from flwr.serverapp import Grid

from ist_fed import wire
from ist_fed.capacity import adapted, share
from ist_fed.cohort import is_direct
from ist_fed.device import format_bytes
from ist_fed.errors import RoundError, WireError
from ist_fed.exchange import exchange
from ist_fed.liveness import present
from ist_fed.places import Units
from ist_fed.round import Client
from ist_fed.rules import Node, Rule, why_too_little
from ist_fed.train import Training

WAITING = "ist_fed.waiting"
"""Logger that warns while clients are waited for, and says so at level INFO when enough have come."""

logger, waiting = logging.getLogger("ist_fed"), logging.getLogger(WAITING)

Weighting = Literal["examples", "uniform"]

_SAY_AGAIN_S = 10.0  # between two messages that clients are waited for


class Roster:
    """The clients of one Grid.

    Args:
        min_nodes: how many are waited for.
        weighting: within a cohort, weigh clients by their `examples` or `uniform`ly.
        sizes: units of each axis of the full network, of which clients say what they can hold.
        training: how it is trained.
        adapt: let capacities follow the times that rounds take.
        min_limit: leave out clients that can hold less than this fraction of every axis.
        width: client's number → largest fraction of every axis that it can hold on a simulated network; it is less
            capable by as much.

    Raises:
        ValueError: there is no such weighting, or `min_limit` is no fraction.
    """

    def __init__(
        self,
        min_nodes: int,
        weighting: Weighting,
        sizes: Mapping[str, int],
        training: Training,
        adapt: bool = False,
        min_limit: float = 0.0,
        width: Callable[[int], float] = lambda client: 1.0,
    ) -> None:
        if weighting not in get_args(Weighting):
            raise ValueError(f"weighting must be one of {', '.join(get_args(Weighting))}, but is {weighting!r}")
        if not 0 <= min_limit <= 1:
            raise ValueError(f"min_limit must be a fraction from 0 to 1, but is {min_limit}")
        self._min_limit, self._width = min_limit, width
        self._min_nodes, self._weighting, self._adapt = min_nodes, weighting, adapt
        self._sizes, self._training = dict(sizes), asdict(training)
        self._known: dict[int, Client] = {}
        self._said = set[str]()  # warnings, each of which is worth saying once
        self._rule: Rule | None = None
        self._enough, self._short = 1.0, dict[int, str]()  # the least limit that is enough; node → why its is not

    def under(self, rule: Rule) -> "Roster":
        """The same, from now on leaving out clients that can hold no subnet of this rule: one must not end the run."""
        if rule is not self._rule:
            self._rule, self._enough, self._short = rule, 1.0, {}
        return self

    def connected(self, grid: Grid, timeout: float) -> list[Client]:
        """The clients connected now, in the order of their own numbers.

        One that does not answer in time takes part as an unknown, last and with weight one, and is asked again in the
        next round; one that answers with an error (a ClientApp without a query function) stays one.

        Raises:
            RoundError: fewer than `min_nodes` are connected after `timeout` seconds, or none of them can hold a subnet.
        """
        return self._among(self._wait(grid, timeout), grid, timeout)

    def here(self, grid: Grid, timeout: float) -> list[Client]:
        """The same, be they few or many: nobody is waited for."""
        return self._among(present(grid), grid, timeout)

    def _among(self, nodes: list[int], grid: Grid, timeout: float) -> list[Client]:
        silent = self._ask([node for node in nodes if node not in self._known], grid, timeout)
        clients = self._told_apart([self._known.get(node) or _unknown(node) for node in nodes])
        if silent:
            node, reason = next(iter(silent.items()))
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            logger.warning("node %d%s did not say who it is (%s)", node, more, reason)
        wide = [client for client in clients if client.limit >= self._min_limit]
        if clients and not wide:
            raise RoundError(
                f"clients that can hold less than {self._min_limit:.0%} of each axis are left out, and all "
                f"{len(clients)} are such; lower round.min_limit, or raise the clients' budgets"
            )
        able = [client for client in wide if self._is_able(client)]
        if wide and not able:
            raise RoundError(
                f"clients that can hold no subnet are left out, and all {len(wide)} are such: "
                f"{self._short[wide[0].node]}"
            )
        return sorted(able, key=lambda client: (client.number, client.node))

    def _is_able(self, client: Client) -> bool:
        """Whether a client can hold a subnet of the rule, which is asked about those only of whom it is not clear."""
        if self._rule is None or client.limit >= self._enough:
            return True
        if client.node not in self._short:
            node = Node(client.node, client.capacity, client.limit)
            if not (why := why_too_little(self._rule, node, self._sizes)):
                self._enough = client.limit
                return True
            self._short[client.node] = why
            self._warn(f"client {client.number} is left out: {why}")
        return False

    def _told_apart(self, clients: list[Client]) -> list[Client]:
        """The same, no two of one number: those who say the same one go by their nodes' ids.

        Nobody can tell whose it is, and what a liar does must not be put down to somebody else.
        """
        while len({client.number for client in clients}) < len(clients):
            sharing = defaultdict[int, list[int]](list)
            for client in clients:
                sharing[client.number].append(client.node)
            for number, nodes in sharing.items():
                if len(nodes) > 1:
                    self._warn(
                        f"clients must have different numbers, but nodes {', '.join(map(str, sorted(nodes)))} all say "
                        f"{number}; each trains its own data and goes by its node's id until they are told apart"
                    )
            # An id may be a number that somebody else says: then those two share it, and the next turn is theirs.
            clients = [
                replace(client, number=client.node) if len(sharing[client.number]) > 1 else client for client in clients
            ]
        return clients

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def learn(self, times: Mapping[int, tuple[Units, float]]) -> None:
        """Let capacities follow what a round took, if that is wanted.

        Args:
            times: node → what it held of the network, and seconds.
        """
        if not self._adapt:
            return
        nodes = [node for node in times if node in self._known]
        capacities = [self._known[node].capacity for node in nodes]
        shares, seconds = [share(times[node][0], self._sizes) for node in nodes], [times[node][1] for node in nodes]
        for node, capacity in zip(nodes, adapted(capacities, shares, seconds), strict=True):
            self._known[node] = replace(self._known[node], capacity=capacity)

    def _wait(self, grid: Grid, timeout: float) -> list[int]:
        started = said = time.monotonic()
        while len(nodes := present(grid)) < self._min_nodes:
            now = time.monotonic()
            if now > started + timeout:
                raise RoundError(
                    f"clients must be connected, at least {self._min_nodes}, but after {timeout:.0f} s {len(nodes)} are"
                )
            if now > said + _SAY_AGAIN_S:
                waiting.warning("waiting for clients: %d of %d are connected", len(nodes), self._min_nodes)
                said = now
            time.sleep(min(0.5, max(0.0, started + timeout - now)))
        if said > started:
            waiting.info("enough clients are connected: %d", len(nodes))
        return nodes

    def _ask(self, nodes: list[int], grid: Grid, timeout: float) -> dict[int, str]:
        """Ask nodes who they are; what those that did not say gave as a reason."""
        if not nodes:
            return {}
        silent = dict.fromkeys(nodes, "no answer in time")
        if is_direct(grid):
            said = grid.profiles(nodes, wire.Question(sizes=self._sizes, training=self._training))
        else:
            said = self._answers(nodes, grid, timeout, silent.__setitem__)
        steps: dict[int, tuple[Units, float]] = {}
        for node, profile in said:
            if isinstance(profile, wire.Profile):
                del silent[node]
                self._known[node], steps[node] = self._client(node, profile), ({}, profile.step_seconds)
            else:
                silent[node], self._known[node] = profile, _unknown(node)
        self.learn(steps)
        return silent

    def _answers(
        self, nodes: list[int], grid: Grid, timeout: float, lost: Callable[[int, str], None]
    ) -> Iterator[tuple[int, wire.Profile | str]]:
        """What each node that answers says, or why it cannot be read."""
        questions = {node: wire.profile_question(node, timeout, self._sizes, self._training) for node in nodes}
        answers = list(exchange(grid, [list(questions.values())], timeout, lost))
        given = {answer.metadata.reply_to_message_id: answer for answer in answers}
        for node, question in questions.items():
            if answer := given.get(question.metadata.message_id):
                try:
                    yield node, wire.open_profile(answer)
                except WireError as error:
                    yield node, str(error)

    def _client(self, node: int, profile: wire.Profile) -> Client:
        weight = float(max(1, profile.examples)) if self._weighting == "examples" else 1.0
        if profile.limit < 1:
            memory = format_bytes(profile.memory)
            logger.info("client %d can hold %.1f %% of each axis in %s", profile.client, 100 * profile.limit, memory)
        width = self._width(profile.client)
        return Client(
            node=node,
            number=profile.client,
            capacity=profile.capacity * width,
            weight=weight,
            limit=min(profile.limit, width),
            link=profile.link,
        )


def _unknown(node: int) -> Client:
    return Client(node=node, number=node, capacity=1.0, weight=1.0)

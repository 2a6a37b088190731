"""The clients of a simulated network, drawn from the seed: how long their trips take, who is absent and who fails."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from ist_fed.cohort import Assignment
from ist_fed.errors import RuleError
from ist_fed.network.description import Network, Tier
from ist_fed.network.traffic import Traffic, Trip, last_of
from ist_fed.rules import Node
from ist_fed.seeds import generator
from ist_fed.train import Training


class _Numbered(Protocol):
    """Whoever has a client's number."""

    @property
    def number(self) -> int: ...


_Client = TypeVar("_Client", bound=_Numbered)
_Sizes = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a client was asked: to train a subnet.

    Args:
        client: its number.
        sizes: of the subnet.
        bytes: of the subnet.
        steps: local steps.
        training: how they are taken.
        seconds: that they took on this machine, if it is known.
    """

    client: int
    sizes: Mapping[str, int]
    bytes: int
    steps: int
    training: Training
    seconds: float = 0.0

    @classmethod
    def of(cls, client: int, asked: Assignment) -> "Asked":
        """An assignment without its arrays."""
        steps, training = asked.local_steps, asked.training
        return cls(client=client, sizes=asked.sizes, bytes=asked.size, steps=steps, training=training)


class Virtual:
    """Interprets a `Network`.

    Args:
        network: what it is like.
        seed: of every draw.
        clients: how many there are; tiers are dealt to them by their shares, in random order.
        flops: floating-point operations of one local step of a subnet of some sizes.
    """

    def __init__(
        self,
        network: Network,
        seed: int,
        clients: int,
        flops: Callable[[Mapping[str, int], Training], float],
    ) -> None:
        self.network, self._seed, self._flops = network, seed, flops
        self._known: dict[tuple[_Sizes, Training], float] = {}
        self._tiers = _dealt(network, seed, clients)
        self._hosts: dict[int, tuple[Tier, float]] = {}

    # --- Who takes part -----------------------------------------------------------------------------------------------

    def present(self, turn: int, clients: Sequence[_Client]) -> list[_Client]:
        """Those that are there. If nobody is, one waits until somebody comes: it is drawn again."""
        attempt, here = 0, list[_Client]()
        while not here and clients:
            here = [client for client in clients if not self.is_absent(turn, client.number, attempt)]
            attempt += 1
        return here

    def is_absent(self, turn: int, client: int, attempt: int = 0) -> bool:
        """Whether a client is away."""
        churn = self._host(client)[0].churn or 0.0
        return churn > 0 and bool(generator(self._seed, turn, "churn", client, attempt).random() < churn)

    def fails(self, turn: int, client: int) -> bool:
        """Whether a client that was asked never answers."""
        dropout = self._host(client)[0].dropout or 0.0
        return dropout > 0 and bool(generator(self._seed, turn, "dropout", client).random() < dropout)

    def width(self, client: int) -> float:
        """The largest fraction of every axis that a client can hold."""
        return self._host(client)[0].width

    # --- How long it takes --------------------------------------------------------------------------------------------

    def trip(self, asked: Asked) -> Trip:
        """The way of a subnet to its client and back."""
        host, slower = self._host(asked.client)
        bits = 8.0 * asked.bytes
        return Trip(
            latency=host.latency or 0.0,
            down=bits,
            down_rate=host.down or 0.0,
            compute=self._compute(asked, host, slower),
            up=bits,
            up_rate=host.up or 0.0,
        )

    def traffic(self, now: float = 0.0) -> Traffic:
        """Nothing under way yet."""
        return Traffic(self.network.server_up, self.network.server_down, now)

    def round_seconds(self, trips: Iterable[Trip]) -> float:
        """How long a synchronous round lasts: until its slowest client is back.

        One that fails is waited for as long: that is when the server knows.
        """
        return self.network.round_seconds + last_of(self.traffic(), trips)

    def _compute(self, asked: Asked, host: Tier, slower: float) -> float:
        if self.network.compute == "measured":
            slower *= self.network.flops / host.flops if host.flops else 1.0
            return slower * asked.seconds
        seconds = host.step_seconds or 0.0
        if host.flops:
            seconds += self._flops_of(asked) / host.flops
        return slower * seconds * asked.steps

    def _flops_of(self, asked: Asked) -> float:
        key = (tuple(asked.sizes.items()), asked.training)
        if key not in self._known:
            self._known[key] = self._flops(asked.sizes, asked.training)
        return self._known[key]

    def _host(self, client: int) -> tuple[Tier, float]:
        """What a client is like, and how many times slower than its tier it computes."""
        if client not in self._hosts:
            network, tier = self.network, self._tiers[client % len(self._tiers)]
            # The spread may be drawn though nothing is spread: what a client gets does not depend on other keys.
            slower, thinner = generator(self._seed, "network", client).random(2).tolist()
            link = network.link_spread**-thinner
            tier = replace(tier, down=(tier.down or 0.0) * link, up=(tier.up or 0.0) * link)
            self._hosts[client] = (tier, network.spread**slower)
        return self._hosts[client]


class SimulatedRound:
    """One synchronous round on a simulated network.

    Args:
        virtual: the network.
        number: of the round, from 1.
        clients: node → the client's own number.
    """

    def __init__(self, virtual: Virtual, number: int, clients: Mapping[int, int]) -> None:
        self._virtual, self._number, self._clients = virtual, number, clients
        self._asked: dict[int, Asked] = {}

    def ask(self, assignments: Iterable[Assignment], on_failed: Callable[[int, int], None]) -> Iterator[Assignment]:
        """The same without the clients that will fail, each of which is named with the bytes it was sent."""
        for asked in assignments:
            self._asked |= {node: Asked.of(self._clients[node], asked) for node in asked.nodes}
            failing = {node for node in asked.nodes if self._virtual.fails(self._number, self._clients[node])}
            for node in sorted(failing):
                on_failed(node, asked.size)
            if not failing:
                yield asked
            elif left := [pair for pair in zip(asked.nodes, asked.weights, strict=True) if pair[0] not in failing]:
                nodes, weights = zip(*left, strict=True)
                yield replace(asked, nodes=nodes, weights=weights)

    def trips(self, measured: Mapping[int, float]) -> dict[int, Trip]:
        """The way of each node's subnet; `measured` are the seconds that nodes trained on this machine."""
        timed = {node: replace(asked, seconds=measured.get(node, 0.0)) for node, asked in self._asked.items()}
        return {node: self._virtual.trip(asked) for node, asked in timed.items()}


def nodes_of(network: Network, seed: int, clients: int, min_limit: float = 0.0) -> list[Node]:
    """The clients as a rule would see them if all were there, but for those that can hold less than `min_limit`."""
    widths = [tier.width for tier in _dealt(network, seed, clients)]
    nodes = [Node(client, width, width) for client, width in enumerate(widths) if width >= min_limit]
    if not nodes:
        raise RuleError(
            f"clients that can hold less than {min_limit:.0%} of each axis are left out, and all {clients} are such; "
            f"lower round.min_limit, or widen a tier"
        )
    return nodes


def _dealt(network: Network, seed: int, clients: int) -> list[Tier]:
    """A tier for each client: numbers by the largest remainders, who is in which at random."""
    tiers = [network.of(tier) for tier in network.tiers.values()] or [network.of(Tier())]
    whole = sum(tier.share for tier in tiers)
    exact = [clients * tier.share / whole for tier in tiers]
    counts = [int(share) for share in exact]
    rest = sorted(range(len(tiers)), key=lambda at: counts[at] - exact[at])
    for at in rest[: clients - sum(counts)]:
        counts[at] += 1
    dealt = [tier for tier, number in zip(tiers, counts, strict=True) for _ in range(number)]
    order = generator(seed, "network", "tiers").permutation(clients)
    return [dealt[at] for at in order]

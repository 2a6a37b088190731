"""Which nodes are there, and which have gone while a reply of theirs was waited for.

Flower gives a node up after twice the interval in which it promised to be heard of. A node that is heard of more often
than it promised, as resident clients are, is missed sooner: as soon as its promise is broken.
"""

import time
from collections.abc import Iterable
from typing import Protocol, TypeGuard

from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from ist_fed.cohort import is_direct

_PATIENCE = 1.2  # of a node's interval
_HORIZON = 2.0  # intervals that Flower counts from the last heartbeat to the moment when it gives a node up
_LOOK_S = 1.0


class Describing(Protocol):
    """A grid between processes, which knows more of its nodes than their ids."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are connected."""
        ...


def present(grid: Grid) -> list[int]:
    """The nodes that are connected and keep their promise: Flower still lists those for a while that do not."""
    if not _describes(grid):
        return list(grid.get_node_ids())
    now = time.time()
    return [about.node_id for about in grid.get_nodes() if _broken_for(about, now) is None]


class Liveness:
    """Looks after the nodes of one round; a grid that does not describe its nodes loses none.

    Args:
        grid: where the nodes are.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid if _describes(grid) else None
        self._next = time.monotonic() + _LOOK_S
        self._began = self._activations()

    def expect(self, nodes: Iterable[int]) -> None:
        """Say that nodes were sent something anew; that they had started anew before does not matter."""
        now = self._activations()
        self._began |= {node: now[node] for node in nodes if node in now}

    def gone(self, nodes: Iterable[int]) -> dict[int, str]:
        """Those of the nodes that have gone, and how one can tell; asked at most once a second."""
        if self._grid is None or time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + _LOOK_S
        found = {node.node_id: node for node in self._grid.get_nodes()}
        now = time.time()
        lost = {}
        for node in nodes:
            about = found.get(node)
            if about is None:
                lost[node] = "it disconnected"
            elif (silent := _broken_for(about, now)) is not None:
                lost[node] = f"nothing was heard of it for {silent:.0f} s"
            elif about.last_activated_at != self._began.get(node, about.last_activated_at):
                lost[node] = "it started anew, and no longer holds its order"
        return lost

    def _activations(self) -> dict[int, str]:
        """When each node last came."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()} if self._grid else {}


def _describes(grid: Grid) -> TypeGuard[Describing]:
    return hasattr(grid, "get_nodes") and not is_direct(grid)  # clients in this process are always there


def _broken_for(about: NodeInfo, now: float) -> float | None:
    """Seconds since the last heartbeat, if they are more than was promised."""
    silent = _HORIZON * about.heartbeat_interval - (about.online_until - now)
    return silent if about.online_until and silent > _PATIENCE * about.heartbeat_interval else None

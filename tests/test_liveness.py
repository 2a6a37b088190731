"""Which nodes have gone, told from what Flower says of them."""

import time
from typing import Any, cast

import pytest
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from ist_fed import liveness
from ist_fed.liveness import Liveness, present


class Described:
    def __init__(self, *nodes: NodeInfo) -> None:
        self.nodes = nodes

    def get_nodes(self) -> tuple[NodeInfo, ...]:
        return self.nodes


def node(number: int, silent: float, interval: float = 10.0, came: str = "noon") -> NodeInfo:
    until = time.time() + 2 * interval - silent
    return NodeInfo(node_id=number, online_until=until, heartbeat_interval=interval, last_activated_at=came)


def gone(grid: Any, nodes: list[int], later: Any = None) -> dict[int, str]:
    watch = Liveness(cast(Grid, grid))
    if later is not None:
        grid.nodes = later
    return watch.gone(nodes)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_LOOK_S", 0.0)


@pytest.mark.parametrize(
    ("silent", "interval", "lost"),
    [(0, 10, False), (11, 10, False), (13, 10, True), (13, 30, False), (35, 30, False), (37, 30, True)],
)
def test_a_node_is_missed_when_it_breaks_its_own_promise(silent: float, interval: float, lost: bool) -> None:
    found = gone(Described(node(1, silent, interval), node(2, 0)), [1, 2])
    assert found == ({1: f"nothing was heard of it for {silent} s"} if lost else {})


def test_a_node_that_broke_its_promise_is_not_there_though_flower_lists_it() -> None:
    grid: Any = Described(node(1, 13), node(2, 0), node(3, 13, interval=30))
    assert present(grid) == [2, 3]


def test_a_grid_that_does_not_describe_its_nodes_is_believed() -> None:
    class Plain:
        def get_node_ids(self) -> list[int]:
            return [3, 1]

    assert present(cast(Grid, Plain())) == [3, 1]


def test_a_node_that_is_no_longer_listed_disconnected() -> None:
    assert gone(Described(node(1, 0)), [1, 2]) == {2: "it disconnected"}


def test_a_node_that_came_again_lost_its_order() -> None:
    found = gone(Described(node(1, 0), node(2, 0)), [1, 2], later=(node(1, 0, came="one"), node(2, 0)))
    assert found == {1: "it started anew, and no longer holds its order"}


def test_a_node_that_came_again_before_it_was_sent_something_lost_nothing() -> None:
    grid: Any = Described(node(1, 0), node(2, 0))
    watch = Liveness(cast(Grid, grid))
    grid.nodes = (node(1, 0, came="one"), node(2, 0, came="one"))
    watch.expect([1])
    assert watch.gone([1, 2]) == {2: "it started anew, and no longer holds its order"}


def test_a_node_of_which_nothing_is_said_is_not_missed() -> None:
    assert gone(Described(NodeInfo(node_id=1, heartbeat_interval=10)), [1]) == {}


def test_a_grid_that_describes_no_node_loses_none() -> None:
    assert gone(object(), [1, 2]) == {}

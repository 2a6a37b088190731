"""The link of a client is cut in the middle of a round, and comes back: nobody starts anything again."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Network, why_not
from stage import Stage

ROUNDS, LOST_S = 6, 15
SETTINGS = (
    "clients=2",
    "rule.groups=2",
    "rule.keep=2",
    f"rounds={ROUNDS}",
    "local_steps=1000",  # a round of some seconds, to cut a link in
    "record.tensorboard=false",
    "device=cpu",
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with Network(["server", "client0", "client1"], 100) as made:
        yield made


def plug(network: Network, where: str, state: str) -> None:
    """Take client 1's link down or up: its own interface, so that it knows; or the switch's end, so that packets get
    lost and nobody is told.
    """
    host, device = ("client1", "eth0") if where == "interface" else ("hub", network._port("client1"))
    command = ["ip", "netns", "exec", network._name(host), "ip", "link", "set", device, state]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("where", ["interface", "switch"])
def test_a_client_whose_link_was_cut_is_missed_and_takes_part_again(
    tmp_path: Path, network: Network, where: str
) -> None:
    with Stage(
        tmp_path,
        2,
        host=network.address("server"),
        server=network.prefix("server"),
        client=lambda number: network.prefix(f"client{number}"),
    ) as stage:
        stage.start_server("digits", SETTINGS)
        stage.start_clients()
        log = tmp_path / "client1.log"
        stage.watch(lambda lines: lines and "round 2: training" in log.read_text(), seconds=300)
        plug(network, where, "down")
        stage.watch(lambda lines: any(line.metrics["refused"] for line in lines), seconds=300)
        plug(network, where, "up")
        lines = [line.metrics for line in stage.watch(seconds=500)]  # it fails when a client ends
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    lost = next(line for line in lines if line["refused"])
    assert lost["merged"] == 1
    assert [refused["client"] for refused in lost["refused"]] == [1]
    silent = re.fullmatch(r"nothing was heard of it for (\d+) s", lost["refused"][0]["reason"])
    assert silent
    assert int(silent[1]) <= LOST_S
    assert lines[-1]["merged"] == 2
    assert not lines[-1]["refused"]
    assert log.read_text().count("connected to") == 1  # the process is the one that was cut off

"""Server and clients on hosts of their own: network namespaces, joined by links of a limited rate. `make test-net`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench_digits import state_bytes
from namespaces import Network, why_not
from stage import Stage

CLIENTS, ROUNDS, MBIT = 4, 5, 100
SETTINGS = (
    "clients=4",
    f"rounds={ROUNDS}",
    "local_steps=2",
    "sizes={hidden1=2048,hidden2=2048}",
    'rule={name="disjoint",groups=4}',
    "record.tensorboard=false",
    "device=cpu",
)

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with Network(["server", *(f"client{number}" for number in range(CLIENTS))], MBIT) as made:
        yield made


def test_the_interfaces_count_what_the_formula_says(tmp_path: Path, network: Network) -> None:
    """Law 9, measured under everything that Flower, gRPC, TLS and TCP add, from the first handshake to the last."""
    with Stage(
        tmp_path,
        CLIENTS,
        host=network.address("server"),
        server=network.prefix("server"),
        client=lambda number: network.prefix(f"client{number}"),
    ) as stage:
        before = network.counted("server")
        stage.start_server("digits", SETTINGS)
        stage.start_clients()
        lines = stage.watch(seconds=500)
        counted = network.counted("server") - before
    formula = state_bytes(512, 512) * CLIENTS * 2 * ROUNDS
    assert [line.metrics["merged"] for line in lines] == [CLIENTS] * ROUNDS
    assert sum(line.metrics["bytes_down"] + line.metrics["bytes_up"] for line in lines) == formula
    assert formula < counted.interface < 1.05 * formula
    assert counted.interface <= counted.wire
    wait = min(line.metrics["seconds"]["wait"] for line in lines)
    assert wait > 0.9 * CLIENTS * state_bytes(512, 512) * 8 / (MBIT * 1e6)  # the link does limit: one way, at least
    print(f"interface {counted.interface / formula:.4f}, with every header {counted.wire / formula:.4f} of the formula")

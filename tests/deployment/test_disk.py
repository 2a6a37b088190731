"""What happens when a disk is full: real processes, on a small file system of their own."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk import fill, small_disk
from federation import SETTINGS, Local
from safetensors.torch import load_file

from ist_fed.engines.local import one_by_one as simulate
from ist_fed.run import Run
from ist_fed.scenario import load_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # busy machines are slow

SCENARIO = Path(__file__).parents[2] / "scenarios" / "digits.toml"
LONG = "local_steps=500"  # a round of some seconds, for the disk to be full in


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Local]:
    """A federation whose server lives on a small disk."""
    with small_disk(tmp_path / "disk", 256) as disk:
        made = Local(tmp_path, disk=disk)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("restarted", [False, True], ids=["the server stays", "the server is restarted"])
def test_a_full_disk_on_the_server_delays_a_run_and_loses_nothing(cramped: Local, restarted: bool) -> None:
    server = cramped.server(LONG)
    cramped.client(0), cramped.client(1)
    cramped.wait(lambda: len(cramped.lines()) >= 2)
    taken = fill(cramped.run_folder.parent)
    cramped.wait(lambda: "there is no room" in cramped.log("server.log"))
    if restarted:
        server.kill()
        server.wait()
        server = cramped.server(run=False)
        cramped.wait(lambda: cramped.log("server.log").count("there is no room") == 2)
    assert server.poll() is None
    taken.unlink()
    cramped.wait(lambda: server.poll() is not None)
    assert server.returncode == 0
    assert [line["round"] for line in cramped.lines()] == list(range(1, 7))
    assert not any(line["refused"] for line in cramped.lines())
    expected = Run.create(cramped.folder / "expected", load_scenario(SCENARIO, [*SETTINGS, LONG]))
    simulate(expected)
    found, whole = (load_file(folder / "model.safetensors") for folder in (cramped.run_folder, expected.folder))
    assert found.keys() == whole.keys()
    assert max(float((found[name].double() - whole[name].double()).abs().max()) for name in whole) < 1e-6


def test_a_client_whose_disk_is_full_trains(local: Local, tmp_path: Path) -> None:
    """It writes nothing: its key and its data are read, and what it says goes to whoever started it."""
    with small_disk(tmp_path / "disk", 1) as disk:
        shutil.move(local.kits[1].parent, disk / "client1")
        local.kits[1] = disk / "client1" / local.kits[1].name
        fill(disk)
        server = local.server("rounds=2")
        local.client(0), local.client(1, HOME=str(disk), TMPDIR=str(disk))
        local.wait(lambda: server.poll() is not None)
        local.close()
    assert server.returncode == 0
    assert [line["merged"] for line in local.lines()] == [2, 2]

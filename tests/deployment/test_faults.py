"""What happens to a run when processes are killed, stopped, cut off or restarted: real ones, over gRPC and TLS."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from federation import SETTINGS, Local
from safetensors.torch import load_file
from torch import Tensor

from ist_fed.engines.control import _app
from ist_fed.engines.deployment import deploy
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.engines.server import _SUBMITTED_S, Server
from ist_fed.errors import EngineError
from ist_fed.run import Run
from ist_fed.scenario import load_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # busy machines are slow

SCENARIO = Path(__file__).parents[2] / "scenarios" / "digits.toml"
LONG = "local_steps=1000"  # a round of some seconds, to do things in


def expected(folder: Path, *settings: str) -> dict[str, Tensor]:
    """What the same run gives in one process."""
    run = Run.create(folder / "expected", load_scenario(SCENARIO, [*SETTINGS, *settings]))
    simulate(run)
    return load_file(run.folder / "model.safetensors")


def largest_difference(folder: Path, arrays: dict[str, Tensor]) -> float:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == arrays.keys()
    return max(float((found[name].double() - arrays[name].double()).abs().max()) for name in arrays)


@pytest.mark.parametrize("supernode", [False, True], ids=["resident", "stock"])
def test_engines_agree(tmp_path: Path, supernode: bool) -> None:
    """Law 10 over gRPC, with resident clients and with Flower's own SuperNodes."""
    run = Run.create(tmp_path / "run", load_scenario(SCENARIO, [*SETTINGS, "rounds=3"]))
    deploy(run, supernode=supernode)
    assert largest_difference(run.folder, expected(tmp_path, "rounds=3")) < 1e-6
    assert not (run.folder / "deployment").exists()


def test_on_this_machine_a_scenario_says_where_the_data_lie(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(chr(ord("A") + number) * 400)
    options = ("options.context=8", f"options.path='{tmp_path}'", "options.suffix='.txt'")
    settings = ("clients=2", "rule.groups=2", "rounds=1", "local_steps=2", "device=cpu", "record.tensorboard=false")
    run = Run.create(tmp_path / "run", load_scenario(SCENARIO.with_name("text.toml"), [*settings, *options]))
    deploy(run)
    (line,) = run.metrics()
    assert (line["merged"], line["refused"]) == (2, [])


def test_on_this_machine_a_task_may_be_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_digits.py").write_text("from ist_fed.tasks.digits import Digits\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("task='my_digits:Digits'", "clients=2", "rule.groups=2", "rounds=1", "local_steps=2", "device=cpu")
    run = Run.create(tmp_path / "run", load_scenario(SCENARIO, [*settings, "record.tensorboard=false"]))
    deploy(run)
    assert [line["merged"] for line in run.metrics()] == [2]


@pytest.mark.parametrize("rounds", [0, 1])
def test_on_this_machine_ctrl_c_says_what_can_be_resumed_and_leaves_no_keys(rounds: int, local: Local) -> None:
    settings = [word for setting in (*SETTINGS, "rounds=1000") for word in ("--set", setting)]
    process = local.start("deploy.log", "deploy", "local", "digits", "--run", str(local.run_folder), *settings)
    job = local.run_folder / "deployment" / "superlink" / "jobs" / "0001.json"
    local.wait(lambda: job.exists() and "running" in job.read_text())
    local.wait(lambda: len(local.lines()) >= rounds)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    if rounds:
        said = f"stopped; resume with `ist-fed simulate --resume {local.run_folder}`"
        assert not (local.run_folder / "deployment").exists()
        assert Run.open(local.run_folder).has_checkpoint()
    else:
        said = "stopped before the first round was over; there is nothing to resume"
        assert not local.run_folder.exists()
    assert local.log("deploy.log") == f"{said}\n"


def test_of_a_failure_on_this_machine_the_logs_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(server: Server) -> Server:
        (server.site.home).mkdir()
        (server.site.home / "superexec.log").write_text("why")
        raise EngineError("no power")

    monkeypatch.setattr(Server, "__enter__", fail)
    run = Run.create(tmp_path / "run", load_scenario(SCENARIO, [*SETTINGS]))
    with pytest.raises(EngineError, match="no power"):
        deploy(run)
    left = {path.suffix for path in (run.folder / "deployment").rglob("*") if path.is_file()}
    assert left == {".log"}


def test_clients_over_grpc_train_the_blocks_they_were_dealt(tmp_path: Path) -> None:
    """Law 10 under the rule `blocks`, whose subnets differ in which arrays they have."""
    settings = ("clients=2", "rule.groups=2", "rounds=3", "local_steps=2", "device=cpu", "record.tensorboard=false")
    narrow = [f"sizes.mid{number}=4" for number in range(1, 7)]
    scenario = load_scenario(SCENARIO.with_name("digits-resnet-blocks.toml"), [*settings, *narrow])
    here, there = (Run.create(tmp_path / name, scenario) for name in ("here", "there"))
    simulate(here)
    deploy(there)
    for one, other in zip(here.metrics(), there.metrics(), strict=True):
        assert one["merged"] == other["merged"] == 2
        assert all(one[key] == other[key] for key in ("bytes_down", "bytes_up", "coverage"))
    assert largest_difference(there.folder, load_file(here.folder / "model.safetensors")) < 1e-5


def test_a_server_killed_in_a_round_goes_on_without_a_person(local: Local) -> None:
    server = local.server()
    clients = [local.client(0), local.client(1)]
    local.wait(lambda: len(local.lines()) >= 2)
    server.kill()
    server.wait()
    done = len(local.lines())
    again = local.server(run=False)
    local.wait(lambda: again.poll() is not None)
    assert again.returncode == 0
    assert [line["round"] for line in local.lines()] == list(range(1, 7))
    assert done < 6
    assert all(client.poll() is None for client in clients)  # they waited, and joined again
    assert largest_difference(local.run_folder, expected(local.folder)) < 1e-6


def test_a_killed_client_is_missed_within_15_seconds_and_may_come_back(local: Local) -> None:
    local.server(LONG, "round.min_clients=1")
    clients = [local.client(0), local.client(1)]
    local.wait(lambda: len(local.lines()) >= 1)
    clients[1].kill()
    local.wait(lambda: any(line["refused"] for line in local.lines()))
    lost = next(line for line in local.lines() if line["refused"])
    assert [refused["client"] for refused in lost["refused"]] == [1]
    silent = re.fullmatch(r"nothing was heard of it for (\d+) s", lost["refused"][0]["reason"])
    assert silent
    assert int(silent[1]) <= 15
    assert lost["merged"] == 1
    local.client(1)
    local.wait(lambda: len(local.lines()) == 6 or local.lines()[-1]["merged"] == 2)


def test_a_client_told_to_stop_finishes_what_it_holds(local: Local) -> None:
    local.server(LONG, "round.min_clients=1")
    clients = [local.client(0), local.client(1)]
    local.wait(lambda: "round 2: training" in local.log("client1.log"))
    clients[1].send_signal(signal.SIGTERM)
    assert clients[1].wait(120) == 0
    local.wait(lambda: len(local.lines()) >= 3)
    assert [line["merged"] for line in local.lines()[:3]] == [2, 2, 1]
    assert not any(line["refused"] for line in local.lines()[:2])


def test_whoever_asks_the_server_hears_that_clients_are_missing(local: Local) -> None:
    local.server("rounds=1")
    local.client(0)
    said = "waiting for clients: 1 of 2 are connected"
    local.wait(lambda: said in local.log("server.log"))
    status = local.start("status.log", "server", "status", "--federation", str(local.home))
    assert status.wait(60) == 0
    assert said in local.log("status.log")
    local.client(1)
    local.wait(lambda: len(local.lines()) == 1)


def test_a_superlink_that_is_killed_is_started_again(local: Local) -> None:
    server = local.server(LONG)
    local.client(0), local.client(1)
    local.wait(lambda: len(local.lines()) >= 1)
    subprocess.run(["pkill", "-KILL", "-P", str(server.pid), "-f", "superlink"], check=True)
    local.wait(lambda: server.poll() is not None)
    assert server.returncode == 0
    assert [line["round"] for line in local.lines()] == list(range(1, 7))
    assert largest_difference(local.run_folder, expected(local.folder, LONG)) < 1e-6


def test_a_client_runs_the_servers_app_only_where_its_hash_was_allowed(local: Local) -> None:
    server = local.server("rounds=2")
    local.client(0, "--allow-app", _app().hash_str), local.client(1, "--allow-app", "0" * 64)
    local.wait(lambda: server.poll() is not None)
    assert server.returncode == 0
    ran, other = local.folder / "client0", local.folder / "client1"
    assert list((ran / "apps").rglob("client/app.py"))
    assert not (other / "apps").exists()
    assert json.loads((ran / "allowed-apps.json").read_text()) == [_app().hash_str]  # remembered
    assert largest_difference(local.run_folder, expected(local.folder, "rounds=2")) < 1e-6


def test_a_run_that_dies_before_it_begins_is_noticed_soon_and_goes_on(local: Local) -> None:
    server = local.server("rounds=2")
    link, scenario = local.home / "superlink" / "superlink.log", local.run_folder / "scenario.toml"
    local.wait(lambda: link.exists() and "ControlServicer.StartRun" in link.read_text(errors="replace"))
    text = scenario.read_text()
    scenario.write_text("")  # its process cannot open its folder, and ends before it has said that it works
    waited = local.wait(lambda: "it ended before it began: failed" in local.log("server.log"))
    scenario.write_text(text)
    assert waited < _SUBMITTED_S
    local.client(0), local.client(1)
    local.wait(lambda: server.poll() is not None)
    assert server.returncode == 0
    assert [line["round"] for line in local.lines()] == [1, 2]

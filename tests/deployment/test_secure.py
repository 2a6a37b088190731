"""Secure rounds over gRPC and TLS, with real processes, one of which is killed."""

import json
import signal
from pathlib import Path

import pytest
from federation import PASSPHRASE, Local
from safetensors.torch import load_file

from ist_fed.engines.deployment import deploy
from ist_fed.engines.local import simulate
from ist_fed.errors import EngineError
from ist_fed.pki.signing import certify, create_authority, request_member
from ist_fed.run import Run
from ist_fed.scenario import load_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # busy machines are slow

SECURE = ("round.weighting=uniform", "privacy.mode=secure", "secure.clip=10.0", "secure.min_cohort=3")
ONE_COHORT = ("rule.groups=1", "rule.keep=1", "sizes.hidden1=64", "sizes.hidden2=64")
SCENARIO = Path(__file__).parents[2] / "scenarios" / "digits-secure.toml"


def test_secure_rounds_over_grpc_give_what_they_give_in_one_process(tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIO, ["clients=5", "rounds=2", *ONE_COHORT, "device=cpu"])
    over = Run.create(tmp_path / "over", scenario)
    deploy(over)
    here = Run.create(tmp_path / "here", scenario)
    simulate(here)
    assert [line["merged"] for line in over.metrics()] == [5, 5]
    for one, other in zip(over.metrics(), here.metrics(), strict=True):
        assert abs(one["bytes_up"] - other["bytes_up"]) < 100  # a certificate's signature is a byte longer or shorter
    one, other = (load_file(run.folder / "model.safetensors") for run in (over, here))
    assert max(float((one[name].double() - other[name].double()).abs().max()) for name in one) < 1e-5


def test_a_client_killed_in_a_secure_round_costs_nobody_else_theirs(tmp_path: Path) -> None:
    local = Local(tmp_path, clients=4)
    try:
        create_authority(tmp_path / "members", "members", PASSPHRASE)
        certificates = [
            certify(tmp_path / "members", request_member(kit.parent, kit.parent.name), PASSPHRASE, kit.parent)
            for kit in local.kits
        ]
        server = local.server(*SECURE, *ONE_COHORT, "clients=4", "rounds=3", "local_steps=300", "round.min_clients=3")
        clients = [
            local.client(number, "--signer", str(path), "--min-cohort", "3") for number, path in enumerate(certificates)
        ]
        local.wait(lambda: "round 2: training" in local.log("client3.log"))
        clients[3].send_signal(signal.SIGKILL)
        local.wait(lambda: server.poll() is not None, 600)
        assert server.returncode == 0, local.log("server.log")[-3000:]
        lines = local.lines()
        assert [line["round"] for line in lines] == [1, 2, 3]
        assert lines[0]["merged"] == 4
        assert [line["merged"] for line in lines[1:]] == [3, 3]
        assert any(refused["client"] == 3 for line in lines[1:] for refused in line["refused"]), json.dumps(lines)
    finally:
        local.close()


def test_stock_supernodes_are_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_scenario(SCENARIO))
    with pytest.raises(EngineError, match="leave --supernode out"):
        deploy(run, supernode=True)

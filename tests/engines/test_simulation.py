"""Flower's own simulation, for real: SuperLink, `flwr run`, Ray. Law 10: engines agree."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ist_fed.engines import ENGINES, flower, simulation
from ist_fed.errors import EngineError
from ist_fed.run import Run
from ist_fed.scenario import Scenario, load_scenario

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scenario() -> Scenario:
    settings = ["clients=4", "rounds=3", "local_steps=5", "sizes.hidden1=64", "sizes.hidden2=64", "device=cpu"]
    return load_scenario(ROOT / "scenarios" / "digits.toml", [*settings, "record.tensorboard=false"])


@pytest.mark.slow
def test_engines_agree(scenario: Scenario, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    runs = {name: Run.create(tmp_path / name, scenario) for name in ENGINES}
    for name, run in runs.items():
        seen: list[int] = []
        ENGINES[name](run, on_line=lambda line, seen=seen: seen.append(line["round"]))  # type: ignore[misc]
        assert seen == [1, 2, 3]
    here, *others = (run.metrics() for run in runs.values())
    for one, other in [pair for there in others for pair in zip(here, there, strict=True)]:
        for key in ("accuracy", "loss", "train_loss", "coverage"):
            # The order of arrival differs, and threads may; both show below the sixth digit.
            assert one[key] == pytest.approx(other[key], abs=1e-5)
        for key in ("bytes_down", "bytes_up", "clients", "merged", "refused", "lr"):
            assert one[key] == other[key]
    assert not (tmp_path / "ray" / "flower").exists()


@pytest.mark.slow
def test_rays_clients_train_the_blocks_they_were_dealt(tmp_path: Path) -> None:
    """Under the rule `blocks` subnets differ in depth: in which arrays travel, not in their widths alone."""
    pytest.importorskip("ray")
    settings = ["clients=4", "rounds=3", "local_steps=2", "device=cpu", "record.tensorboard=false"]
    narrow = [f"sizes.mid{number}=4" for number in range(1, 7)]
    scenario = load_scenario(ROOT / "scenarios" / "digits-resnet-blocks.toml", [*settings, *narrow])
    runs = {name: Run.create(tmp_path / name, scenario) for name in ("inprocess", "ray")}
    for name, run in runs.items():
        ENGINES[name](run)
    for one, other in zip(*(run.metrics() for run in runs.values()), strict=True):
        assert one["merged"] == other["merged"] == 4
        assert one["bytes_down"] == other["bytes_down"]
        for key in ("accuracy", "loss", "train_loss", "coverage"):
            assert one[key] == pytest.approx(other[key], abs=1e-5)
    here, there = (load_file(run.folder / "model.safetensors") for run in runs.values())
    assert all(torch.allclose(there[name], array, atol=1e-5) for name, array in here.items())


def _processes() -> list[str]:
    commands = Path("/proc").glob("[0-9]*/environ")
    lines = []
    for command in commands:
        with suppress(OSError):
            lines.append(command.read_bytes().decode(errors="replace"))
    return lines


@pytest.mark.slow
def test_a_stopped_simulation_leaves_no_process_and_resumes(scenario: Scenario, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "long.toml").write_text(scenario.to_toml().replace("rounds = 3", "rounds = 500"))
    command = [sys.executable, "-c", "from ist_fed.cli import main; main()", "simulate", "long.toml", "--engine", "ray"]
    process = subprocess.Popen(
        [*command, "--run", "cut", "--format", "json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "--resume cut" in err
    run = Run.open(tmp_path / "cut")
    done = len(run.metrics())
    assert 1 <= done < 500
    assert run.restore().round == done
    until = time.monotonic() + 60  # Ray's own take some seconds to end, on a busy machine more
    while left := [line for line in _processes() if str(tmp_path) in line]:
        assert time.monotonic() < until, left
        time.sleep(0.2)


def test_a_failure_of_flower_shows_its_log(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "flower-superlink").write_text("#!/bin/sh\necho the port is taken >&2\nexit 7\n")
    (programs / "flower-superlink").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))  # where its programs are looked for
    with pytest.raises(EngineError, match="the port is taken"):
        simulation.simulate(Run.create(tmp_path / "run", scenario))


def test_without_ray_the_message_says_what_to_install(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install 'ist-fed\[ray\]'"):
        simulation.simulate(Run.create(tmp_path / "run", scenario))


def test_the_checkout_is_the_app() -> None:
    assert flower.app_folder() == ROOT
    assert shutil.which("flwr", path=str(Path(sys.executable).parent))

"""What is left of a run, a comparison or a search that was stopped, killed or failed, and how it goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_cli import Command, ist_fed  # noqa: F401 - a fixture

from ist_fed.cli import methods
from ist_fed.engines import flower, jobs
from ist_fed.engines.programs import Programs
from ist_fed.engines.server import Server
from ist_fed.errors import EngineError, Interrupted, IstFedError, RunError
from ist_fed.run import Run
from ist_fed.scenario import Scenario


def start(*arguments: str, **more: str) -> "subprocess.Popen[str]":
    """`ist-fed …` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "ist_fed", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more},
    )


def test_a_folder_that_was_there_before_is_never_removed(ist_fed: Command) -> None:  # noqa: F811
    ist_fed("simulate", "tiny.toml", "--run", "done")
    mine = Path("mine")
    mine.mkdir()
    for name in ("scenario.toml", "model.safetensors"):
        (mine / name).write_bytes(Path("done", name).read_bytes())
    (mine / "notes.txt").write_text("precious")
    code, _, err = ist_fed("simulate", "--resume", "mine")
    assert code == 1
    assert "resumed from a checkpoint" in err
    left = ["lock", "model.safetensors", "notes.txt", "scenario.toml"]
    assert sorted(path.name for path in mine.iterdir()) == left


def test_a_new_run_that_fails_before_its_first_round_leaves_no_folder(ist_fed: Command) -> None:  # noqa: F811
    assert ist_fed("simulate", "tiny.toml", "--set", "rule.groups=3")[0] == 1
    assert not Path("runs/tiny").exists()


def test_a_run_killed_before_its_first_checkpoint_starts_over(ist_fed: Command) -> None:  # noqa: F811
    settings = ["--set", "rounds=100", "--set", "record.checkpoint_every=100"]
    ist_fed("simulate", "tiny.toml", "--run", "whole", *settings)
    process = start("simulate", "tiny.toml", "--run", "cut", "--format", "json", *settings)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=60)
    assert Path("cut/metrics.jsonl").read_text().count("\n") >= 1
    assert not list(Path("cut/checkpoints").glob("*.json"))
    code, out, err = ist_fed("simulate", "--resume", "cut")
    assert code == 0, err
    assert "after 100 rounds" in out
    assert Path("cut/metrics.jsonl").read_text().count("\n") == 100
    whole, cut = load_file("whole/model.safetensors"), load_file("cut/model.safetensors")
    assert all(whole[name].equal(cut[name]) for name in whole)


LONG = ["--set", "rounds=100"]
SEARCH = ["search", "tiny.toml", "--vary", "training.lr=0.1,0.2", "--trials", "1", "--folder", "both", *LONG]
METHODS = [
    "compare",
    "tiny.toml",
    "--methods",
    "ist",
    "--tune",
    "0.1,0.2",
    "--seeds",
    "1",
    "--folder",
    "several",
    *LONG,
]


def test_ctrl_c_stops_a_search_which_goes_on_when_repeated(ist_fed: Command) -> None:  # noqa: F811
    process = start(*SEARCH)
    while not (begun := [path for path in Path("both").rglob("metrics.jsonl") if path.stat().st_size]):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped; repeat the command, and it goes on with what was saved\n"
    cut = json.loads(begun[0].read_text().splitlines()[0])["seconds"]
    code, out, err = ist_fed(*SEARCH)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in begun[0].read_text().splitlines()]
    assert [line["round"] for line in lines] == [*range(1, 101)]
    assert lines[0]["seconds"] == cut  # gone on with, not run again


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted("stopped"), 130), (RunError("a run"), 1), (EngineError("Ray"), 1)]
)
def test_what_says_nothing_about_a_learning_rate_ends_the_comparison(
    error: IstFedError,
    code: int,
    ist_fed: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(scenario: Scenario, folder: Path) -> Run:
        raise error

    monkeypatch.setattr(methods, "train_or_go_on", fail)
    assert ist_fed(*METHODS, "--tune", "0.1,0.2")[0] == code


def test_a_learning_rate_whose_run_was_killed_early_is_tried_again(ist_fed: Command) -> None:  # noqa: F811
    command = [*METHODS, "--tune", "0.001,0.3"]
    rows = json.loads(ist_fed(*command, "--format", "json")[1].splitlines()[-1])["rows"]
    assert rows[0]["lr"] == 0.3
    killed = Path("both/tuning/ist-0.3")
    for path in [*killed.glob("model.*"), *killed.glob("checkpoints/*")]:
        path.unlink()
    code, out, err = ist_fed(*command, "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["rows"] == rows


def test_a_learning_rate_that_is_left_out_is_named(ist_fed: Command) -> None:  # noqa: F811
    code, out, err = ist_fed(*METHODS, "--tune", "0.1,1e30")
    assert code == 0
    assert "learning rate 1e+30 is left out for 'ist': " in err
    assert "ist" in out


def test_ctrl_c_while_a_run_begins_is_heeded_with_a_word(ist_fed: Command) -> None:  # noqa: F811
    process = start("simulate", "tiny.toml", "--set", "rounds=1000")
    while not Path("runs/tiny").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.startswith("stopped")
    assert err.count("\n") == 1


@pytest.mark.parametrize("module", ["torch", "flwr", "typer"])
def test_ctrl_c_during_imports_is_heeded_with_a_word(module: str, ist_fed: Command) -> None:  # noqa: F811
    """A module of that name stands before the real one, and is interrupted."""
    Path("first").mkdir()
    Path("first", f"{module}.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\n")
    process = start("inspect", "tiny.toml", PYTHONPATH=f"first{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "stopped; nothing was lost\n")


def test_a_server_that_cannot_start_leaves_no_job_and_no_folder(
    ist_fed: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the same command would find the folder in its way, and one for a second server be done by the first."""
    monkeypatch.setattr(flower, "_ANSWERS_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = ["server", "start", "tiny.toml", "--run", "--insecure", "--streams", "0"]
        for _ in range(2):
            code, _, err = ist_fed(*command, "--listen", f"127.0.0.1:{port}")
            assert code == 1
            assert "in use" in err
    assert not Path("runs").exists()
    assert not jobs.jobs(Path("federation", "superlink"))


def test_a_folder_that_is_in_the_way_is_said_before_a_server_is_started(
    ist_fed: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Programs, "start", lambda programs: pytest.fail("Flower's programs were started"))
    Path("mine").mkdir()
    code, _, err = ist_fed("server", "start", "tiny.toml", "--run", "--folder", "mine", "--insecure")
    assert code == 1
    assert "'mine' exists; choose another folder with --folder, or remove it" in err


def test_a_server_that_was_killed_goes_on_with_a_run_that_it_is_told_to_resume(
    ist_fed: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ist_fed("simulate", "tiny.toml")
    home = Path("federation", "superlink")
    home.mkdir(parents=True)
    jobs.mark(home, jobs.add(home, Path("runs/tiny")), "running")
    monkeypatch.setattr(Programs, "start", lambda programs: None)
    monkeypatch.setattr(Server, "serve", lambda server, views, until_idle: None)
    code, _, err = ist_fed("server", "start", "--insecure", "--resume", "runs/tiny")
    assert (code, "error" in err) == (0, False)
    assert [job.state for job in jobs.jobs(home)] == ["running"]


def test_the_status_of_a_server_says_how_a_run_that_failed_goes_on(ist_fed: Command) -> None:  # noqa: F811
    home = Path("federation", "superlink")
    home.mkdir(parents=True)
    jobs.mark(home, jobs.add(home, Path("runs/tiny")), "failed", "no power")
    code, out, _ = ist_fed("server", "status")
    assert code == 3
    run = Path("runs/tiny").absolute()
    assert f"no power; once that is mended, `ist-fed server run --resume {run}` goes on with it" in out


@pytest.mark.parametrize("output", ["text", "json"])
def test_the_status_of_a_server_is_said_though_a_run_cannot_be_read(output: str, ist_fed: Command) -> None:  # noqa: F811
    home = Path("federation", "superlink")
    home.mkdir(parents=True)
    (run := Path("runs", "torn")).mkdir(parents=True)
    (run / "scenario.toml").write_text("[[")
    jobs.mark(home, jobs.add(home, run), "running")
    code, out, err = ist_fed("server", "status", "--format", output)
    assert (code, err) == (3, "")
    assert "running" in out
    assert str(run) in out

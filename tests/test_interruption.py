"""A run that is stopped, killed, pulled away or taken up twice: what is left of it, and what is said."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import DIGITS

from ist_fed.checkpoints import Checkpoint
from ist_fed.cli.arguments import Format
from ist_fed.cli.simulate import train
from ist_fed.engines import ENGINES
from ist_fed.errors import Interrupted, RunError
from ist_fed.progress import _born, progress, reported
from ist_fed.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "a run", replace(DIGITS, rounds=4, clients=2))


def checkpoint(round: int) -> Checkpoint:
    return Checkpoint(round, {"weight": torch.full((2,), float(round))}, {})


def rounds(run: Run) -> list[int]:
    return [line["round"] for line in run.metrics()]


def test_two_processes_do_not_work_on_one_run(run: Run) -> None:
    """They wrote every round twice, and dropped each other's checkpoints."""
    with pytest.raises(Interrupted):
        ENGINES["inprocess"](run, on_line=lambda line: run.ask_to_stop(line["round"] == 2))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"}
    longer = replace(run.scenario, rounds=9)
    with Run(run.folder, run.scenario).held():
        for work in (
            partial(train, run, "inprocess", True, Format.text),
            partial(ENGINES["inprocess"], run, resume=True),
            partial(Run.open, run.folder, longer),
        ):
            with pytest.raises(
                RunError, match=rf"one process at a time .* one does on '.*a run'; wait .* \(process {os.getpid()}\)"
            ):
                work()
    assert {path: path.read_bytes() for path in before} == before
    train(run, "inprocess", True, Format.text)
    assert rounds(run) == [1, 2, 3, 4]


def test_a_process_that_was_forked_meanwhile_holds_nothing(run: Run) -> None:
    """A task's pool of workers outlives a process that is killed, and the run could not go on."""
    ready, done = os.pipe(), os.pipe()
    with run.held():
        child = os.fork()
        if not child:
            os.close(done[1])
            os.write(ready[1], b".")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        with pytest.raises(RunError, match="one process at a time"), run.held():
            pass
    with run.held():
        pass
    for end in (done[1], done[0], *ready):
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_that_knows_no_locks_is_no_reason_not_to_train(
    number: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    ENGINES["inprocess"](run)
    assert rounds(run) == [1, 2, 3, 4]


def test_lines_that_were_lost_or_doubled_are_named_or_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for round in (1, 2, 2, 4, 1, 6):
        run.record({"round": round})
    run.checkpoint(checkpoint(5))
    with caplog.at_level(logging.WARNING):
        assert run.restore().round == 5
    assert rounds(run) == [1, 2, 4]
    assert "lacks the lines of 2 rounds before its checkpoint, the first of them round 3" in caplog.text


def test_a_checkpoint_counts_when_its_lines_are_on_the_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut might leave a checkpoint without them."""
    done: list[str] = []
    fsync, move = os.fsync, Path.replace

    def synced(file: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    def moved(path: Path, to: Path) -> Path:
        done.append(to.name)
        return move(path, to)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    run.record({"round": 1})
    run.checkpoint(checkpoint(1))
    assert done.index("metrics.jsonl") < done.index("round-000001.json")


@pytest.mark.parametrize("away", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("elsewhere"))])
def test_a_folder_that_goes_while_it_is_worked_in_is_said_to_be_gone(away: Any, run: Run) -> None:
    with pytest.raises(RunError, match=r"cannot be written: its folder is gone; put it back"):
        train(run, "inprocess", False, Format.json, on_line=lambda line: away(run.folder))


def test_a_folder_that_nobody_may_write_in_is_said_to_be_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(RunError, match=r"stop' cannot be written: Read-only file system; make room, or give the right"):
        ENGINES["inprocess"](run)


@pytest.mark.parametrize(
    ("engine", "memory", "words"),
    [
        ("auto", None, ""),
        ("inprocess", None, "--engine inprocess "),
        ("factored", 1 << 20, "--engine factored --memory 1048576 "),
    ],
)
def test_who_stops_a_run_is_told_how_it_goes_on_in_the_same_way(
    engine: str, memory: int | None, words: str, run: Run
) -> None:
    """Another engine gives other last bits, and a folder's name may have blanks."""
    with pytest.raises(Interrupted) as caught:
        ENGINES[engine](run, on_line=lambda line: run.ask_to_stop(), **({"memory": memory} if memory else {}))
    assert str(caught.value).endswith(f"Resume with: ist-fed simulate {words}--resume '{run.folder}'")


def test_a_second_ctrl_c_does_not_spoil_what_the_first_saves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Run.checkpoint

    def impatient(run: Run, state: Checkpoint) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(run, state)

    long = Run(run.folder, replace(run.scenario, record=replace(run.scenario.record, checkpoint_every=100)))
    monkeypatch.setattr(Run, "checkpoint", impatient)
    with pytest.raises(Interrupted, match="after round 2 of 4; its state is saved"):
        ENGINES["inprocess"](long, on_line=lambda line: long.ask_to_stop(line["round"] == 2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert long.restore().round == 2


@pytest.mark.parametrize(
    "late",
    [
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)",
        "def late(): threading.main_thread().join(); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "threading.Thread(target=late).start()",
    ],
    ids=["end", "thread"],
)
def test_a_ctrl_c_after_the_last_word_ends_without_another(late: str) -> None:
    """Also where Python would wait for a thread of the task's."""
    code = "import atexit, os, signal, sys, threading, time; from ist_fed.__main__ import main\n"
    code += f"{late}\nsys.argv[1:] = ['--help']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert done.returncode == -signal.SIGINT


@contextmanager
def at_work(run: Run, how: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that works on the run, under `held` or `reported`, until it is given a line."""
    work = (
        "import sys; from pathlib import Path; from ist_fed.progress import reported; from ist_fed.run import Run\n"
        f"run = Run.open(Path(sys.argv[1]))\nwith {how}:\n    print(flush=True)\n    input()"
    )
    command = [sys.executable, "-c", work, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_a_process_that_was_ended_holds_nothing_any_more(run: Run) -> None:
    with reported(run):
        pass
    with at_work(run, "run.held()") as holder:
        with pytest.raises(RunError, match="one process at a time"), run.held():
            pass
        about = json.loads((run.folder / "progress.json").read_text())
        about |= {"state": "working", "process": holder.pid, "born": _born(holder.pid)}
        (run.folder / "progress.json").write_text(json.dumps(about))
        said = progress(run)
        assert said is not None
        assert said.alive
        said.end()
        with run.held():
            pass


def test_who_comes_second_does_not_speak_for_the_first(run: Run) -> None:
    """A server that is told of the second's failure would give up a run that goes on."""
    with at_work(run, "reported(run)") as first:
        with pytest.raises(RunError, match=f"process {first.pid} does"), reported(run):
            pytest.fail("two worked on one run")
        said = progress(run)
        assert said is not None
        assert (said.state, said.process) == ("working", first.pid)
        first.communicate(b"\n", timeout=60)
    with reported(run):
        pass

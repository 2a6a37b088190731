"""How far a run has come, written into its folder by whoever trains it and read by whoever watches."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ist_fed.errors import Interrupted, RunError, out_of_room
from ist_fed.roster import WAITING
from ist_fed.run import Run

State = Literal["working", "done", "stopped", "failed", "full"]

_GONE_S = 5.0  # in which a process that was killed is gone


@dataclass(frozen=True)
class Progress:
    """What a run's folder says of the run.

    Args:
        state: `working`; `done`; `stopped` as someone asked, with its state saved; `failed`, and why; `full`, as it
            failed for want of room on a disk.
        process: id of the process that trains.
        reason: why it failed.
        born: when that process began, for its id may be another's by now; empty where the system does not tell.
        waiting: what it waits for, in a sentence; empty if for nothing.
    """

    state: State
    process: int
    reason: str = ""
    born: str = ""
    waiting: str = ""

    @property
    def alive(self) -> bool:
        """Whether it is working, and the process that says so is there."""
        with suppress(OSError):
            os.kill(self.process, 0)
            return self.state == "working" and self.born == _born(self.process)
        return False

    def end(self) -> None:
        """End the process at once if it is alive, and certainly the one that said so; what it held is free then."""
        if self.alive and self.born:
            with suppress(OSError):
                os.kill(self.process, signal.SIGKILL)
            deadline = time.monotonic() + _GONE_S
            while self.alive and time.monotonic() < deadline:
                time.sleep(0.02)


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Say in the run's folder that this process works on it, what it waits for, and how that ended.

    Raises:
        RunError: another process says so already; what it said stays.
    """
    said = progress(run)
    if said is not None and said.state == "working" and said.process != os.getpid() and said.alive:
        raise RunError(
            f"one process at a time works on a run, and process {said.process} does on '{run.folder}'; wait for its end"
        )
    _write(run, "working")
    logger, notes = logging.getLogger(WAITING), _Notes(run)
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    try:
        yield
    except (Interrupted, KeyboardInterrupt, SystemExit):
        _write(run, "stopped")
        raise
    except BaseException as error:
        if out_of_room(error):
            _write(run, "full", str(error))
        else:
            _write(run, "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        logger.removeHandler(notes)
    _write(run, "done")


class _Notes(logging.Handler):
    """Writes into a run's folder what is waited for: nobody but its process hears of it otherwise."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        """A warning says it; anything less, that it is over."""
        _write(self._run, "working", waiting=record.getMessage() if record.levelno >= logging.WARNING else "")


def progress(run: Run) -> Progress | None:
    """What was last said; None if nobody has worked on the run under `reported`."""
    try:
        return Progress(**json.loads(_path(run).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def forget(run: Run) -> None:
    """Drop what was said by whoever worked on it before."""
    _path(run).unlink(missing_ok=True)


def _write(run: Run, state: State, reason: str = "", waiting: str = "") -> None:
    temporary = _path(run).with_suffix(".tmp")
    with suppress(OSError):  # a full disk must not hide the error that is being reported
        said = Progress(state, os.getpid(), reason, _born(os.getpid()), waiting)
        temporary.write_text(json.dumps(asdict(said)))
        temporary.replace(_path(run))


def _born(process: int) -> str:
    """Which start of the machine a process began after, and how long after; of one that has ended, nothing."""
    with suppress(OSError, IndexError):
        # Its name, in brackets, may hold anything; of what follows, the 1st is its state, the 18th how many threads it
        # has, and the 20th the time.
        facts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        if facts[0] != "Z" or int(facts[17]) > 1:  # one whom nobody asks how it ended stays, but holds nothing
            return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {facts[19]}"
    return ""


def _path(run: Run) -> Path:
    return run.folder / "progress.json"

"""What a server was asked to run, one file a job, so that it is still known after a restart."""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ist_fed.errors import EngineError, RunError
from ist_fed.progress import progress
from ist_fed.run import Run

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """One run that was asked for.

    Args:
        number: jobs are done in their order.
        run: the run's folder.
        state: `running` also while the server is down: it goes on with it.
        reason: why it failed.
    """

    number: int
    run: Path
    state: State = "waiting"
    reason: str = ""


def add(home: Path, run: Path) -> Job:
    """Ask for a run.

    Raises:
        EngineError: it was asked for already.
    """
    if (job := asked(home, run)) is not None:
        raise EngineError(f"the run in '{run}' is {job.state} already, as job {job.number}")
    numbers = [job.number for job in jobs(home)]
    while True:
        job = Job(max(numbers, default=0) + 1, run.absolute())
        try:
            _path(home, job).parent.mkdir(exist_ok=True)
            os.close(os.open(_path(home, job), os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:  # somebody else asked at the same moment
            numbers.append(job.number)
            continue
        return mark(home, job, "waiting")


def asked(home: Path, run: Path) -> Job | None:
    """The job that a run is, if it was asked for and is not over."""
    of_run = (job for job in jobs(home) if job.run == run.absolute() and job.state in ("waiting", "running"))
    return next(of_run, None)


def mark(home: Path, job: Job, state: State, reason: str = "") -> Job:
    """Write down how far a job is."""
    job = replace(job, state=state, reason=reason)
    temporary = _path(home, job).with_suffix(".tmp")
    temporary.write_text(json.dumps({"run": str(job.run), "state": job.state, "reason": job.reason}))
    temporary.replace(_path(home, job))
    return job


def end_strays(home: Path) -> None:
    """End those whom a server that was killed has left behind: they work on its runs, and hold one of its ports."""
    for job in jobs(home):
        if job.state == "running":
            with suppress(RunError):  # which is said when it is this job's turn
                if (said := progress(Run.open(job.run))) is not None:
                    said.end()


def jobs(home: Path) -> list[Job]:
    """Every job, in the order in which they were asked for."""
    found = []
    for path in sorted((home / "jobs").glob("*.json")):
        if re.fullmatch(r"\d+", path.stem) and (text := path.read_bytes()):
            try:
                about = json.loads(text)
                found.append(Job(int(path.stem), Path(about["run"]), about["state"], about["reason"]))
            except (ValueError, LookupError, TypeError) as error:
                raise EngineError(
                    f"a job is a JSON object of run, state and reason, but '{path}' is not: {error}; remove it, and "
                    f"ask for its run again with --resume"
                ) from error
    return found


def _path(home: Path, job: Job) -> Path:
    return home / "jobs" / f"{job.number:04d}.json"

"""A server that people deploy: Flower's SuperLink and SuperExec, kept running, and the runs that it was asked for.

What it is doing stands on disk: the SuperLink's database, the jobs, each run's folder. So whatever is killed, a start
goes on where the last one ended.
"""

import fcntl
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ist_fed.engines import jobs
from ist_fed.engines.programs import Programs
from ist_fed.engines.room import Room
from ist_fed.engines.site import Site, about_file
from ist_fed.engines.work import Work
from ist_fed.errors import EngineError, Interrupted, RoundError, RunError, out_of_room
from ist_fed.federation import Line
from ist_fed.files import is_gone
from ist_fed.progress import forget, progress
from ist_fed.run import Run

logger = logging.getLogger("ist_fed")

_LOOK_S = 0.2  # between two looks at the programs and at the run's folder
_ASK_S = 1.0  # between two questions to Flower whether a submitted run has ended before it began
_SUBMITTED_S = 120.0  # in which a submitted run must have begun
_ATTEMPTS = 5  # to go on with a run that ended without a reason, and made no progress
_LEAVE_S = 20.0  # for a run to end its round when the server is stopped


class Server:
    """The programs of one site, as a context: started on entry, ended on exit.

    Args:
        site: where it lives.
    """

    def __init__(self, site: Site) -> None:
        self.site, self._home = site, site.home.absolute()
        self._programs, self._room = Programs(site), Room()
        self._resting = False  # for want of room
        self._current: Work | None = None
        self._failed = ""  # how the last run that failed did

    def __enter__(self) -> "Server":
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (self._home / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is let go however this process ends
        except OSError:
            raise EngineError(
                f"one server at a time works in '{self._home}', and one does; stop it with `ist-fed server stop`"
            ) from None
        about_file(self._home).unlink(missing_ok=True)  # of one that was killed: its process id may be another's by now
        try:
            jobs.end_strays(self._home)
            if self._has_room():
                self._programs.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        about_file(self._home).unlink(missing_ok=True)
        self._lock.close()

    def _end(self) -> None:
        """End the programs, and see that nobody works on the run any more: another will."""
        self._programs.end()
        work = self._current
        if work is None or work.submitted is None:
            return
        self._await_end(work.run)
        if (said := progress(work.run)) is not None:
            said.end()
        work.submitted = None

    def _has_room(self) -> bool:
        """See whether there is room to write; if not, everything rests until there is."""
        lacking = self._room.lacking(self._home, *([self._current.run.folder] if self._current else []))
        if lacking and not self._resting:
            logger.error("%s", lacking)
            self._end()
        elif self._resting and not lacking:
            logger.warning("there is room again; the server goes on")
        self._resting = bool(lacking)
        return not lacking

    # --- The work -----------------------------------------------------------------------------------------------------

    def serve(self, on_line: Callable[[Run, Line], None] = lambda run, line: None, *, until_idle: bool = False) -> None:
        """Keep the programs running and do the jobs, one after another.

        Args:
            on_line: called with each round's line of metrics.
            until_idle: return when there is nothing left to do, instead of waiting for more.

        Raises:
            EngineError: the programs cannot be kept running, or, with `until_idle`, a run failed.
            Interrupted: Ctrl-C; the run in progress was stopped, and goes on at the next start.
        """
        try:
            while self._try(on_line, until_idle):
                time.sleep(_LOOK_S)
        except KeyboardInterrupt:
            self._leave()
            raise Interrupted(
                f"the server in '{self._home}' stopped; what it was running goes on when it is started again"
            ) from None

    def _try(self, on_line: Callable[[Run, Line], None], until_idle: bool) -> bool:
        """A step; one that fails for want of room is done again when there is some."""
        try:
            return self._step(on_line, until_idle)
        except (OSError, EngineError) as error:
            if out_of_room(error):
                self._room.failed(str(error))
            elif self._has_room():
                raise
            return True

    def _step(self, on_line: Callable[[Run, Line], None], until_idle: bool) -> bool:
        """See to everything once; whether there is more to do."""
        if not self._has_room():
            return True
        if self._programs.died:
            logger.warning("a program of Flower's ended; all are started again, and the run goes on")
            self._end()
        if not self._programs.started:
            self._programs.start()
        self._programs.admit()
        self._programs.read_logs()
        if self._current is None:
            self._current = self._next()
        if self._current is not None:
            self._look(self._current, on_line)
            return True
        if until_idle and self._failed:
            raise EngineError(self._failed)
        return not until_idle

    def _next(self) -> Work | None:
        for job in jobs.jobs(self._home):
            if job.state in ("waiting", "running"):
                try:
                    return Work(jobs.mark(self._home, job, "running"))
                except RunError as error:  # its folder is gone, say
                    logger.error("job %d cannot be done: %s", job.number, error)
                    jobs.mark(self._home, job, "failed", str(error))
                    self._failed = f"the run in '{job.run}' failed: {error}"
        return None

    def _look(self, work: Work, on_line: Callable[[Run, Line], None]) -> None:
        """See how the run does, and do what that asks for."""
        if is_gone(work.run.folder):
            self._programs.end()  # and with them whoever trains it: nobody hears of it any more
            self._finish(work, "failed", "its folder is gone")
            return
        if work.submitted is None:
            self._submit(work)
        for line in work.new_lines():
            on_line(work.run, line)
        said = progress(work.run)
        if said is None:
            if why := self._why_not_begun(work):
                self._again(work, why)
        elif said.state == "working" and said.alive:
            work.tell(said.waiting)
        elif said.state == "working":
            self._again(work, "its process ended without a word")
        elif said.state == "stopped":
            self._again(work, "it was stopped")
        elif said.state == "full":
            self._room.failed(said.reason)
        elif said.state == "failed" and said.reason.startswith(RoundError.__name__):
            self._again(work, said.reason)  # clients may come back
        elif said.state == "failed" and self._has_room():  # else it may have failed for that
            self._finish(work, "failed", said.reason)
        elif said.state == "done":
            for line in work.new_lines():
                on_line(work.run, line)
            self._finish(work, "done")

    def _submit(self, work: Work) -> None:
        run = work.run
        if (said := progress(run)) is not None:  # of whom a server of another folder has left behind
            said.end()
        forget(run)
        config: dict[str, str | bool] = {
            "scenario": run.scenario.to_toml(),
            "set": "",
            "run": str(run.folder.absolute()),
            "resume": run.has_checkpoint(),
        }
        with self._programs.control() as control:
            work.number = control.start(config)
        work.submitted = work.asked = time.monotonic()

    def _why_not_begun(self, work: Work) -> str:
        """Why a run that was submitted will not begin; empty while it still may."""
        now = time.monotonic()
        if now > (work.submitted or 0.0) + _SUBMITTED_S:
            return "it was submitted, but did not begin"
        if now < work.asked + _ASK_S:
            return ""
        work.asked, end = now, ""
        with suppress(EngineError), self._programs.control() as control:  # one that has just died is started again
            end = control.end_of(work.number)
        return f"it ended before it began: {end}" if end and progress(work.run) is None else ""

    def _again(self, work: Work, why: str) -> None:
        """Go on with a run that ended, but not by its own fault; give up if it gets no further."""
        rounds = len(work.run.metrics())
        work.attempts = work.attempts + 1 if rounds <= work.rounds else 1
        work.rounds, work.submitted = rounds, None
        if work.attempts > _ATTEMPTS:
            self._finish(work, "failed", f"{why}, {_ATTEMPTS} times without progress; see {self._home}/superexec.log")
        else:
            logger.warning("run '%s': %s; it goes on from its last checkpoint", work.run.scenario.name, why)

    def _finish(self, work: Work, state: jobs.State, reason: str = "") -> None:
        if state == "failed":
            logger.error("run '%s' failed: %s", work.run.scenario.name, reason)
            self._failed = f"the run in '{work.run.folder}' failed: {reason}"
        jobs.mark(self._home, work.job, state, reason)
        self._current = None

    def _leave(self) -> None:
        """Let the run in progress end its round and save; it stays `running`, for the next start."""
        if self._current is None:
            return
        with suppress(RunError):  # somebody removed its folder: there is nothing to save
            self._current.run.ask_to_stop()
        self._await_end(self._current.run)

    def _await_end(self, run: Run) -> None:
        """Wait for the process that trains a run, but not for ever."""
        deadline = time.monotonic() + _LEAVE_S
        while (said := progress(run)) is not None and said.alive and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

"""Clients in Flower's own simulation (Ray): a SuperLink of our own on loopback, and `flwr run` on the app's folder."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any

from ist_fed.engines import flower
from ist_fed.errors import EngineError, Interrupted
from ist_fed.run import Run

_POLL_S = 1.0


def simulate(run: Run, *, resume: bool = False, on_line: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
    """Run a scenario in Flower's simulation. Its ServerApp writes the run's folder; here it is watched.

    Args:
        run: its folder exists.
        resume: go on from the newest checkpoint.
        on_line: called with each round's line of metrics.

    Raises:
        EngineError: Ray is not installed, rounds are secure, examples are private, precision is `tf32`, or a process
            failed; the message shows the end of its log.
        Interrupted: Ctrl-C.
    """
    if run.scenario.is_secure:
        raise EngineError(
            "in secure rounds clients keep their secrets between messages, which they do not in Flower's simulation; "
            "use --engine inprocess"
        )
    if find_spec("ray") is None:
        raise EngineError("Flower's simulation needs Ray: pip install 'ist-fed[ray]', or use --engine inprocess")
    if run.scenario.example_privacy.on:
        raise EngineError(
            "privacy of single examples is counted on each client's disk, which nodes of Flower's simulation have not; "
            "use --engine inprocess, or deploy"
        )
    if run.scenario.precision == "tf32":
        raise EngineError("precision 'tf32' is for clients in this process; use --engine auto, or 'bf16'")
    home = run.folder.absolute() / "flower"
    with run.held():
        shutil.rmtree(home, ignore_errors=True)  # what an earlier, interrupted run left
        home.mkdir()
        if resume:
            run.restore()  # drops the lines of rounds that will be run again
    seen = len(run.metrics())
    with _superlink(home):
        number = _submit(run, home, resume)
        try:
            _watch(run, number, home, seen, on_line)
        except KeyboardInterrupt:
            run.ask_to_stop()
            with suppress(EngineError):  # it ends as failed, since it did not finish
                _watch(run, number, home, seen, lambda line: None)
            raise Interrupted(
                f"stopped after round {len(run.metrics())} of {run.scenario.rounds}; its state is saved. "
                f"Resume with: ist-fed simulate --engine ray --resume {quote(str(run.folder))}"
            ) from None
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _superlink(home: Path) -> Iterator[None]:
    """A SuperLink for this run alone."""
    port = flower.free_port()
    flower.write_link(home, port)
    command = [
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    ]
    process = flower.start(command, home, "superlink.log")
    try:
        flower.await_health(process, port, home / "superlink.log")
        yield
    finally:
        flower.stop(process)


def _submit(run: Run, home: Path, resume: bool) -> str:
    config = {"scenario": run.scenario.to_toml(), "set": "", "run": str(run.folder.absolute()), "resume": resume}
    federation = f"num-supernodes={run.scenario.clients} client-resources-num-cpus=1"
    return flower.submit(home, config, "--federation-config", federation)


def _watch(run: Run, number: str, home: Path, seen: int, on_line: Callable[[dict[str, Any]], None]) -> None:
    """Pass lines of metrics on until Flower says that the run is over."""
    while True:
        time.sleep(_POLL_S)
        status = flower.status(home, number)
        lines = run.metrics()
        for line in lines[seen:]:
            on_line(line)
        seen = len(lines)
        if status.startswith("finished"):
            break
    if status != "finished:completed":
        raise EngineError(f"the run ended as '{status}'. The end of its log:\n{flower.tail(home / 'superlink.log')}")

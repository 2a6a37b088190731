"""Clients in Flower's own simulation (Ray): a SuperLink of our own on loopback, and `flwr run` on the app's folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import tomli_w

from ist_fed.errors import EngineError, Interrupted
from ist_fed.run import Run

_START_S, _POLL_S = 60.0, 1.0


def app_folder() -> Path:
    """The Flower app: the checkout itself, or its copy inside an installed wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent, package / "app"):
        if (folder / "server" / "app.py").exists() and (folder / "pyproject.toml").exists():
            return folder
    raise EngineError(
        f"the Flower app (server/, client/, pyproject.toml) lies neither beside '{package}' nor in it; reinstall"
    )


def simulate(run: Run, *, resume: bool = False, on_line: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
    """Run a scenario in Flower's simulation. Its ServerApp writes the run's folder; here it is watched.

    Args:
        run: its folder exists.
        resume: go on from the newest checkpoint.
        on_line: called with each round's line of metrics.

    Raises:
        EngineError: Ray is not installed, or a process failed; the message shows the end of its log.
        Interrupted: Ctrl-C.
    """
    if find_spec("ray") is None:
        raise EngineError("Flower's simulation needs Ray: pip install 'ist-fed[ray]', or use --engine inprocess")
    home = run.folder.absolute() / "flower"
    shutil.rmtree(home, ignore_errors=True)  # what an earlier, interrupted run left
    home.mkdir()
    if resume:
        run.restore()  # drops the lines of rounds that will be run again
    seen = len(run.metrics())
    with _superlink(home) as environment:
        number = _submit(run, home, environment, resume)
        try:
            _watch(run, number, home, environment, seen, on_line)
        except KeyboardInterrupt:
            run.ask_to_stop()
            with suppress(EngineError):  # it ends as failed, since it did not finish
                _watch(run, number, home, environment, seen, lambda line: None)
            raise Interrupted(
                f"stopped after round {len(run.metrics())} of {run.scenario.rounds}; its state is saved. "
                f"Resume with: ist-fed simulate --engine ray --resume {run.folder}"
            ) from None
    shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _superlink(home: Path) -> Iterator[dict[str, str]]:
    """A SuperLink for this run alone, and the environment to speak to it."""
    port = _free_port()
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": "local", "local": {"address": f"127.0.0.1:{port}", "insecure": True}}})
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Flower starts its programs by bare name, and a user's own task may lie in the folder of the command.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    command = [
        *("flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation"),
    ]
    with (home / "superlink.log").open("wb") as log:
        # Its working directory is an empty folder: Flower imports the ClientApp from there before the bundle.
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        _await_health(process, port, home)
        yield environment
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _await_health(process: "subprocess.Popen[bytes]", port: int, home: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                return
        time.sleep(0.2)
    raise EngineError(f"Flower's SuperLink did not start. The end of its log:\n{_tail(home)}")


def _submit(run: Run, home: Path, environment: dict[str, str], resume: bool) -> str:
    config = {"scenario": run.scenario.to_toml(), "set": "", "run": str(run.folder.absolute()), "resume": resume}
    (home / "run.toml").write_text(tomli_w.dumps(config))
    federation = f"num-supernodes={run.scenario.clients} client-resources-num-cpus=1"
    arguments = ["run", str(app_folder()), "local", "--run-config", str(home / "run.toml")]
    answer = _flwr([*arguments, "--federation-config", federation], home, environment)
    return str(answer["run-id"])


def _watch(
    run: Run, number: str, home: Path, environment: dict[str, str], seen: int, on_line: Callable[[dict[str, Any]], None]
) -> None:
    """Pass lines of metrics on until Flower says that the run is over."""
    while True:
        time.sleep(_POLL_S)
        status = str(_flwr(["ls", "local", "--run-id", number], home, environment)["runs"][0]["status"])
        lines = run.metrics()
        for line in lines[seen:]:
            on_line(line)
        seen = len(lines)
        if status.startswith("finished"):
            break
    if status != "finished:completed":
        raise EngineError(f"the run ended as '{status}'. The end of its log:\n{_tail(home)}")


def _flwr(arguments: list[str], home: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a `flwr` command and read its JSON."""
    command = ["flwr", *arguments, "--format", "json"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    with suppress(ValueError):
        answer = json.loads(done.stdout)
        if isinstance(answer, dict) and answer.get("success"):
            return answer
    raise EngineError(f"`flwr {arguments[0]}` failed: {done.stdout.strip()} {done.stderr.strip()}")


def _tail(home: Path, lines: int = 25) -> str:
    return "\n".join((home / "superlink.log").read_text(errors="replace").splitlines()[-lines:])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

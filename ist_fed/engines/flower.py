"""Flower's own programs, started and spoken to: SuperLink, SuperExec, and the command `flwr`."""

import ctypes
import errno
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import tomli_w
from flwr.supercore.inflatable.inflatable_utils import pull_objects

from ist_fed.errors import EngineError
from ist_fed.pki.address import split_port

_START_S = 60.0
_RELEASE_S = 5.0  # in which a port that nobody answers on any more is let go
_ANSWERS_S = 1.0  # in which a program that was told to end answers no longer
OBJECT_S = 0.05
"""Seconds before an object that is still on its way to the SuperLink is asked for again; Flower waits one."""

LINK = "local"
"""Name under which `flwr` knows the SuperLink of a home."""


def app_folder() -> Path:
    """The Flower app: the checkout itself, or its copy inside an installed wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent, package / "app"):
        if (folder / "server" / "app.py").exists() and (folder / "pyproject.toml").exists():
            return folder
    raise EngineError(
        f"the Flower app (server/, client/, pyproject.toml) lies neither beside '{package}' nor in it; reinstall"
    )


def environment(home: Path) -> dict[str, str]:
    """What Flower's programs find in their environment: a home of our own, and nothing that phones home."""
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0",  # seconds until a ServerApp starts; each look costs milliseconds
        "RAY_USAGE_STATS_ENABLED": "0",
        # See `device.return_freed_memory`; but what comes and goes while a large subnet is on its way stays.
        "MALLOC_MMAP_THRESHOLD_": str(1 << 22),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 26),
        "GRPC_VERBOSITY": "INFO",  # a failed handshake is said at this level
        # Flower starts its programs by bare name, and a user's own task may lie in the folder of the command.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


def start(
    command: Sequence[str], home: Path, log: str, more: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start one of Flower's programs; it ends with this process, however this one ends.

    Args:
        command: its words.
        home: its folder.
        log: name of the file in it that gets what it prints.
        more: what it finds in its environment besides.
    """
    with (home / log).open("ab") as file:
        # Its working directory is an empty folder: Flower imports the ClientApp from there before the bundle.
        return subprocess.Popen(
            command,
            cwd=home,
            env=environment(home) | dict(more or {}),
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def stop(process: "subprocess.Popen[bytes]", patience: float = 20.0) -> None:
    """End a program and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def await_health(process: "subprocess.Popen[bytes]", port: int, log: Path, ca: Path | None = None) -> None:
    """Wait until a SuperLink answers.

    Raises:
        EngineError: it ended, or does not answer; the message shows the end of its log.
    """
    scheme, verify = ("https", ssl.create_default_context(cafile=ca)) if ca else ("http", True)
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{scheme}://127.0.0.1:{port}/health", timeout=2, verify=verify).is_success:
                return
        time.sleep(0.2)
    raise EngineError(f"Flower's SuperLink did not start. The end of its log:\n{tail(log)}")


def write_link(home: Path, port: int, ca: Path | None = None) -> None:
    """Tell `flwr` where the SuperLink of this home is."""
    link: dict[str, Any] = {"address": f"127.0.0.1:{port}"}
    link |= {"root-certificates": str(ca)} if ca else {"insecure": True}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": LINK, LINK: link}}))


def submit(home: Path, config: Mapping[str, object], *more: str) -> str:
    """Hand the app to the SuperLink, with a run's configuration; the number of the run."""
    path = home / "run.toml"
    path.write_text(tomli_w.dumps(config))
    return str(flwr(["run", str(app_folder()), LINK, "--run-config", str(path), *more], home)["run-id"])


def status(home: Path, number: str) -> str:
    """What Flower says of a run, such as `running` or `finished:completed`."""
    return str(flwr(["ls", LINK, "--run-id", number], home)["runs"][0]["status"])


def flwr(arguments: Sequence[str], home: Path) -> dict[str, Any]:
    """Run a `flwr` command and read its JSON.

    Raises:
        EngineError: it failed; the message holds what it said.
    """
    command = ["flwr", *arguments, "--format", "json"]
    done = subprocess.run(
        command, cwd=home, env=environment(home), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    with suppress(ValueError):
        answer = json.loads(done.stdout)
        if isinstance(answer, dict) and answer.get("success"):
            return answer
    raise EngineError(f"`flwr {arguments[0]}` failed: {done.stdout.strip()} {done.stderr.strip()}")


def poll_faster() -> None:
    """Let a ServerApp ask sooner for an object that is still on its way; Flower waits a second."""
    defaults = pull_objects.__kwdefaults__ or {}
    defaults.update(initial_backoff=OBJECT_S, backoff_cap=20 * OBJECT_S)


def tail(log: Path, lines: int = 25) -> str:
    """The end of a log."""
    with suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def check_free(address: str, use: str, option: str) -> None:
    """Try to listen there, for of a port that is taken Flower says so in a traceback, and of any other fault the same.

    Args:
        address: `host:port`.
        use: what it is for, for the message.
        option: that chooses another, for the message.

    Raises:
        EngineError: nobody can.
    """
    host, port = split_port(address)
    began = time.monotonic()
    while True:
        try:
            socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
            return
        except OSError as error:
            patience = _ANSWERS_S if _answers(host, port) else _RELEASE_S
            if error.errno == errno.EADDRINUSE and time.monotonic() < began + patience:
                time.sleep(0.1)
                continue
            why = str(error.strerror).partition(" (while")[0]
            raise EngineError(
                f"{use} '{address}', but it cannot be listened on: {why}; end what listens there, or choose another "
                f"with {option}"
            ) from error


def _answers(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=0.5):
        return True
    return False


def check_tls(ca: Path, certificate: Path, key: Path) -> None:
    """Read them as TLS will, for of one that cannot be read Flower says so in a traceback.

    Raises:
        EngineError: they cannot be used.
    """
    try:
        ssl.create_default_context(cafile=ca).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"a server shows the certificate '{certificate}' with its key and its CA's '{ca}', but they cannot be "
            f"used: {error}; see which by `ist-fed provision verify`, and restore it, or `provision rotate`"
        ) from error


def free_port() -> int:
    """A port on loopback that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

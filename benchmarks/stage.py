"""A server and clients as real processes, for benchmarks: on loopback, or each in a network namespace or a cgroup.

Whatever was started ends with the stage, and with the process that made it, however that one ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bench_core import machine

from ist_fed.engines.flower import _end_with_parent, free_port
from ist_fed.pki import Federation, make_request
from ist_fed.run import Run

PASSPHRASE = b"thrown away with the benchmark"
HERE = Path(__file__).parent
LOOK_S = 0.005  # between two looks at the run's folder


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process as Ctrl-C does, so that everything is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: cleaning up takes its time
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)


@dataclass(frozen=True)
class Line:
    """A round's line of metrics, and when it was written, by `time.monotonic`."""

    at: float
    metrics: Mapping[str, Any]

    @property
    def phases(self) -> float:
        """Seconds that the server's own clock saw in the round."""
        return sum(self.metrics["seconds"].get(key, 0.0) for key in ("assign", "extract", "wait", "evaluate", "record"))


@dataclass
class Peaks:
    """Largest resident memory of each process below a stage, by what it is, in bytes."""

    by_role: dict[str, int] = field(default_factory=dict)

    def see(self, roots: Mapping[int, str]) -> None:
        """Look at the processes now."""
        for pid, role in descendants(roots).items():
            self.by_role[role] = max(self.by_role.get(role, 0), peak_of(pid))


class Stage:
    """A federation: identities, a server, clients.

    Args:
        folder: where everything lies; the caller throws it away.
        clients: how many.
        host: the server's address, as the clients call it.
        server: what stands before the server's command, such as `ip netns exec NAME`.
        client: the same for client number i.
        supernode: let Flower's own SuperNode run the clients.
    """

    def __init__(
        self,
        folder: Path,
        clients: int,
        *,
        host: str = "127.0.0.1",
        server: Sequence[str] = (),
        client: Callable[[int], Sequence[str]] = lambda number: (),
        supernode: bool = False,
    ) -> None:
        self.folder, self.run_folder = folder, folder / "run"
        self._server, self._client, self._supernode = server, client, supernode
        self.address = f"{host}:{free_port()}"
        self.federation = Federation.create(
            folder / "federation", name="bench", address=self.address, hosts=[host, "127.0.0.1"], passphrase=PASSPHRASE
        )
        self.kits = [self._kit(f"client{number}") for number in range(clients)]
        self.roots: dict[int, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.lines: list[Line] = []

    def _kit(self, name: str) -> Path:
        request = make_request(self.folder / name, name)
        return self.federation.approve(request, passphrase=PASSPHRASE, out=self.folder / name / f"{name}.kit.json")

    # --- Processes ----------------------------------------------------------------------------------------------------

    def start(self, name: str, prefix: Sequence[str], *arguments: str) -> "subprocess.Popen[bytes]":
        """Start `ist-fed …` behind a prefix."""
        command = [*prefix, sys.executable, "-m", "ist_fed", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
        with (self.folder / f"{name}.log").open("ab") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, stdout=file, stderr=file, env=environment, preexec_fn=_end_with_parent
            )
        self.processes[name], self.roots[process.pid] = process, name
        return process

    def start_server(self, scenario: str | Path, settings: Sequence[str]) -> None:
        """Start the server, which runs the scenario as soon as its clients are there, and then ends."""
        sets = [word for setting in settings for word in ("--set", setting)]
        job = [str(scenario), "--run", "--folder", str(self.run_folder), *sets]
        self.start("server", self._server, "server", "start", "--once", "--listen", self.address, *job)

    def start_clients(self, *more: str) -> None:
        """Start the clients, once the server knows them all: it registers one after another, and refuses strangers."""
        log = self.folder / "federation" / "superlink" / "superlink.log"
        deadline = time.monotonic() + 300
        while _said_in(log, "[ControlServicer.RegisterNode] Created") < len(self.kits):
            if self.processes["server"].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not register its clients\n{self.logs()}")
            time.sleep(0.1)
        for number, kit in enumerate(self.kits):
            share = f"{number}/{len(self.kits)}"
            words = ["client", "start", "--kit", str(kit), "--partition", share, *more]
            self.start(f"client{number}", self._client(number), *words, *(["--supernode"] if self._supernode else []))

    # --- What it does -------------------------------------------------------------------------------------------------

    def watch(
        self,
        until: Callable[[Sequence[Line]], object] = lambda lines: False,
        *,
        seconds: float,
        peaks: Peaks | None = None,
        on_line: Callable[[Line], None] = lambda line: None,
    ) -> list[Line]:
        """Note every round's line as it is written, until the server ends or `until` says so.

        Raises:
            RuntimeError: the server failed, or that took too long; the message shows the ends of the logs.
        """
        file, seen, looked = self.run_folder / "metrics.jsonl", 0, 0.0
        deadline = time.monotonic() + seconds
        while True:
            ended = self.processes["server"].poll()
            now = time.monotonic()
            if file.exists() and (size := file.stat().st_size) > seen:
                seen = size
                known = Run.open(self.run_folder).metrics()
                for metrics in known[len(self.lines) :]:
                    self.lines.append(Line(now, metrics))
                    on_line(self.lines[-1])
            if peaks is not None and now > looked + 0.1:
                looked = now
                peaks.see(self.roots)
            if until(self.lines) or ended == 0:
                return self.lines
            gone = [name for name, process in self.processes.items() if process.poll()]
            if gone or now > deadline:
                raise RuntimeError(f"{' and '.join(gone)} ended, or it took too long\n{self.logs()}")
            time.sleep(LOOK_S)

    def logs(self) -> str:
        paths = [*self.folder.glob("*.log"), *self.folder.rglob("super*.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2500:]}" for path in paths)

    def close(self) -> None:
        """End whatever still runs, with all it has started."""
        below = descendants(self.roots)
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 12
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in below:
            if str(self.folder) in _said(pid, "cmdline") + _said(pid, "environ"):  # not a stranger with its number
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# --- Processes of the machine -----------------------------------------------------------------------------------------

_ROLES = {
    "ist_fed.engines.superlink": "SuperLink",
    "flower-superexec": "SuperExec",
    "flwr-serverapp": "ServerApp",
    "flower-supernode": "SuperNode",
    "flwr-clientapp": "ClientApp",
}


def descendants(roots: Mapping[int, str]) -> dict[int, str]:
    """The processes below some, and those themselves: number → `root: what it is`."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (status := _said(int(entry.name), "stat")):
            children.setdefault(int(status.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: dict[int, str] = {}
    todo = [(pid, name) for pid, name in roots.items() if Path(f"/proc/{pid}").exists()]
    while todo:
        pid, name = todo.pop()
        command = _said(pid, "cmdline")
        role = next((role for mark, role in _ROLES.items() if mark in command), "")
        found[pid] = f"{name}: {role}" if role and role != name else name
        todo += [(child, name) for child in children.get(pid, [])]
    return found


def peak_of(pid: int) -> int:
    """Largest resident memory so far, in bytes; 0 of a process that is gone."""
    return next(
        (1024 * int(line.split()[1]) for line in _said(pid, "status").splitlines() if line.startswith("VmHWM")), 0
    )


def cpu_of(roots: Mapping[int, str]) -> dict[str, float]:
    """Processor seconds of each process so far, those of the children it has waited for included, by what it is."""
    used: dict[str, float] = {}
    for pid, role in descendants(roots).items():
        if fields := _said(pid, "stat").rpartition(")")[2].split():
            used[role] = used.get(role, 0.0) + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return used


def _said_in(log: Path, text: str) -> int:
    """How often a log says something."""
    return log.read_text(errors="replace").count(text) if log.exists() else 0


def _said(pid: int, file: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


# --- Results ----------------------------------------------------------------------------------------------------------


def busy_machine() -> dict[str, Any]:
    """What was measured on, and how busy it was: more than the cores can do makes every time longer."""
    return machine() | {"threads": "1 a process", "load average": f"{os.getloadavg()[1]:.0f}"}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Write a results file in the shape that `table.py` renders."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


class Kept:
    """Runs that are finished, in a results file that is written after each.

    Args:
        path: of the file.
        fresh: begin anew, whatever is there.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self.results: dict[str, Any] = {"runs": {}}
        if path.exists() and not fresh:
            self.results = json.loads(path.read_text(encoding="utf-8"))

    def save(self) -> None:
        """Write the file."""
        save(self._path, self.results)

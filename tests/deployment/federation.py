"""A federation of real processes on loopback, for tests: identities, a server, clients."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ist_fed.engines.flower import free_port
from ist_fed.pki import Federation, make_request
from ist_fed.run import Run

PASSPHRASE = b"only for this test"
SETTINGS = ("clients=2", "rule.groups=2", "rule.keep=2", "rounds=6", "record.checkpoint_every=1", "device=cpu")


class Local:
    """Processes of one federation; whatever still runs at the end is killed.

    Args:
        folder: where everything lies.
        clients: how many.
        disk: where the server's folder and the run's lie, if it is not there.
    """

    def __init__(self, folder: Path, clients: int = 2, disk: Path | None = None) -> None:
        self.folder = folder
        self.home = (disk or folder) / "federation"
        self.address = f"127.0.0.1:{free_port()}"
        self.federation = Federation.create(
            self.home, name="test", address=self.address, hosts=["127.0.0.1"], passphrase=PASSPHRASE
        )
        self.kits = [self.kit(f"client{number}") for number in range(clients)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.run_folder = (disk or folder) / "run"

    def kit(self, name: str) -> Path:
        request = make_request(self.folder / name, name)
        return self.federation.approve(request, passphrase=PASSPHRASE, out=self.folder / name / f"{name}.kit.json")

    def start(self, log: str, *arguments: str, **environment: str) -> "subprocess.Popen[bytes]":
        with (self.folder / log).open("ab") as file:
            command = [sys.executable, "-m", "ist_fed", *arguments]
            there = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file, env=there)
        self.processes.append(process)
        return process

    def server(self, *settings: str, run: bool = True, scenario: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start the server, with `digits` made small or with another scenario."""
        changed = [word for setting in (*SETTINGS * (scenario is None), *settings) for word in ("--set", setting)]
        what = str(scenario or "digits")
        job = [what, "--run", "--folder", str(self.run_folder), *changed] if run else []
        where = ["--federation", str(self.home), "--listen", self.address]
        return self.start("server.log", "server", "start", "--once", *where, "--format", "json", *job)

    def client(self, number: int, *more: str, **environment: str) -> "subprocess.Popen[bytes]":
        share = f"{number}/{len(self.kits)}"
        kit = str(self.kits[number])
        words = ["client", "start", "--kit", kit, "--partition", share, *more]
        return self.start(f"client{number}.log", *words, **environment)

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        return Run.open(self.run_folder).metrics() if (self.run_folder / "scenario.toml").exists() else []

    def wait(self, until: Callable[[], object], seconds: float = 240.0) -> float:
        """Wait for something; how long that took."""
        began = time.monotonic()
        while not until():
            assert time.monotonic() < began + seconds, "\n".join(
                f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.rglob("*.log")
            )
            time.sleep(0.05)
        return time.monotonic() - began

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

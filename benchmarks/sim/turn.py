"""One turn of a contestant: a process of its own, what it says it measured, and what memory it took."""

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stage import descendants

from sim.environments import interpreter

HERE = Path(__file__).parents[1]
LONGEST_S = 3600.0  # of a turn

Turn = dict[str, Any]


def take_turn(module: str, order: Mapping[str, Any], peer: str | None = None, with_children: bool = False) -> Turn:
    """Run a process of `benchmarks/sim`, and return what it says it measured.

    Raises:
        RuntimeError: it failed; the message says how.
    """
    threads = str(order.get("threads", 1))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE)])),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [interpreter(peer), "-m", f"sim.{module}", json.dumps(order)]
    process = subprocess.Popen(
        command, cwd=HERE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    memory = Memory(process.pid) if with_children else None
    try:
        said, complaints = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took more than {LONGEST_S:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        peak = memory.stop() if memory else None
    result = next((line for line in said.splitlines() if line.startswith("RESULT ")), None)
    if result is None:
        last = [line for line in complaints.splitlines() if line.strip()]
        raise RuntimeError(last[-1].strip() if last else f"it ended with {process.returncode} and said nothing")
    turn: Turn = json.loads(result.removeprefix("RESULT "))
    return turn | ({"peak": peak} if peak else {})


class Memory(threading.Thread):
    """Watches what a process and all below it take together; what they share counts once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._peak, self._over = pid, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._over.wait(1.0):
            self._peak = max(self._peak, sum(map(proportional_mb, descendants({self._pid: ""}))))

    def stop(self) -> float:
        """The largest sum seen, in MB."""
        self._over.set()
        self.join()
        return self._peak


def proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0

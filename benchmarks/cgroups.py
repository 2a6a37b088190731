"""Memory limits that the kernel enforces: cgroups, version 1 or 2, whichever is mounted. Needs root.

The names hold the number of the process that made them, so that what a killed one has left is taken away by the next.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_MARK = "istfed"
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def _is_v1() -> bool:
    return (_V1 / "memory.limit_in_bytes").exists()


class Limited:
    """A cgroup with a memory limit, as a context: made on entry, taken away on exit.

    Args:
        name: short.
        limit: bytes.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.path = _root() / f"{_MARK}.{os.getpid()}.{name}"
        self._limit, self._v1 = limit, _is_v1()

    def __enter__(self) -> "Limited":
        if not self._v1:
            with suppress(OSError):
                (_V2 / "cgroup.subtree_control").write_text("+memory")
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self._v1 else "memory.max")).write_text(str(self._limit))
        with suppress(OSError):  # no swap there, or none accounted
            swap = ("memory.memsw.limit_in_bytes", self._limit) if self._v1 else ("memory.swap.max", 0)
            (self.path / swap[0]).write_text(str(swap[1]))
        return self

    def __exit__(self, *error: object) -> None:
        _remove(self.path)

    def prefix(self) -> list[str]:
        """What stands before a command that is to run in it."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs")]

    def peak(self) -> int:
        """Most bytes that were charged to it."""
        return int((self.path / ("memory.max_usage_in_bytes" if self._v1 else "memory.peak")).read_text())

    def kills(self) -> int:
        """How many processes the kernel killed because the limit was met."""
        text = (self.path / ("memory.oom_control" if self._v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def why_not() -> str:
    """Why there can be no limits here, in words; empty if there can."""
    if os.geteuid() != 0:
        return "cgroups need root"
    try:
        sweep()
        with Limited("probe", 1 << 26):
            return ""
    except OSError as error:
        return f"cgroups cannot be used here: {error}"


def sweep() -> None:
    """Take away what killed processes have left."""
    for path in _root().glob(f"{_MARK}.*"):
        if not Path(f"/proc/{path.name.split('.')[1]}").exists():
            _remove(path)


def _root() -> Path:
    return _V1 if _is_v1() else _V2


def _remove(path: Path) -> None:
    for _ in range(100):
        with suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # what was killed is not gone yet
            time.sleep(0.05)
        else:
            return

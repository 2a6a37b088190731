"""Whether the disks that a server writes to have room. One that is full breaks Flower's database in the middle of a
round, so a server stops in time, and waits.
"""

import math
import shutil
import time
from pathlib import Path

_LEAST = 16 << 20  # bytes that must be free to go on
_ENOUGH = 2 * _LEAST  # bytes that must be free to begin again: what the pause itself frees must not count
_REST_S = 60.0  # before what has failed is tried again


class Room:
    """What is known of the disks."""

    def __init__(self) -> None:
        self._least = _LEAST
        self._failed, self._until = "", -math.inf

    def lacking(self, *folders: Path) -> str:
        """What lacks, in a sentence; empty if nothing does.

        Args:
            folders: that will be written to; those that are not there count as their parents.
        """
        for folder in folders:
            there = next(path for path in (folder, *folder.parents) if path.exists())
            if (free := shutil.disk_usage(there).free) < self._least:
                self._least = _ENOUGH
                return (
                    f"there is no room: the disk of '{folder}' must have {_ENOUGH >> 20} MiB free, but has "
                    f"{free / (1 << 20):.1f}; make room, and the server goes on by itself; what was saved is safe"
                )
        if time.monotonic() < self._until:
            return f"there is no room: {self._failed}; the server tries again in a minute; what was saved is safe"
        self._least = _LEAST
        return ""

    def failed(self, reason: str) -> None:
        """Something could not be written although that much was free; nothing is tried for a minute."""
        self._failed, self._until = reason, time.monotonic() + _REST_S

"""The logs of Flower's programs, which write without end: no more than two files of a limited size each."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

NAMES = ("superlink.log", "superexec.log")
"""The logs in a server's home."""

_LARGEST = 10 << 20


def rotate(log: Path, largest: int = _LARGEST) -> None:
    """Empty a log that has grown too large, and keep what was in it as `NAME.1`, in place of what was kept before.

    The program goes on writing to the same file, which `flower.start` opened to append; what it writes between the copy
    and the cut is lost.

    Args:
        log: it need not be there.
        largest: bytes that it may have.
    """
    if not log.exists() or log.stat().st_size <= largest:
        return
    with suppress(OSError):  # a full disk: the room that the log takes is worth more than what is in it
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
    os.truncate(log, 0)

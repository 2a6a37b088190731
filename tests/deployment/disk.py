"""A disk that is soon full, for tests: a small file system in memory, and a file that takes all of its room."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_BLOCK, _MARK = 1 << 16, "istfed"


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of that size, mounted at a new folder; the test is skipped where that may not be done."""
    sweep()
    folder.mkdir()
    name = f"{_MARK}.{os.getpid()}"
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", name, str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk takes the right to mount one: {getattr(error, 'stderr', None) or error}")
    try:
        yield folder
    finally:  # lazily: a process that hangs must not leave it behind
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def sweep() -> None:
    """Take away the disks of test runs that were killed."""
    for line in Path("/proc/mounts").read_text().splitlines() if Path("/proc/mounts").exists() else []:
        name, folder = line.split()[:2]
        if name.startswith(f"{_MARK}.") and not Path("/proc", name.partition(".")[2]).exists():
            subprocess.run(["umount", "--lazy", folder], check=False)


def fill(disk: Path) -> Path:
    """Take all the room there is, to the last byte; the file that does."""
    taken = disk / "taken"
    with taken.open("wb", buffering=0) as file:
        for size in (_BLOCK, 1):
            with suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    assert room(disk) == 0
    return taken


def room(disk: Path) -> int:
    """Bytes that can still be written."""
    there = os.statvfs(disk)
    return there.f_bavail * there.f_frsize

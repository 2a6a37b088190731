"""Files that are either the old ones or the whole new ones, and what JSON can say in them."""

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

from ist_fed.errors import RunError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_held = set[int]()


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def write_atomically(path: Path, data: bytes | bytearray | Iterable[bytes | memoryview]) -> None:
    """Either the old file or the whole new one is there, also after a power cut or on a full disk.

    Args:
        path: of the file.
        data: its content, or the pieces of it, each of which is asked for when those before it are written.

    Raises:
        RunError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines([data] if isinstance(data, (bytes, bytearray)) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # half a file takes the room that others need
            temporary.unlink(missing_ok=True)
        raise unwritable(path, error) from error


@contextmanager
def held_alone(path: Path) -> Iterator[int]:
    """Hold a file, its descriptor open, while no other process does; it and its folder are made if there are none.

    Raises:
        RunError: it cannot be opened, or nothing can be done with it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def held_by_one(path: Path, taken: str) -> Iterator[None]:
    """Hold a file, which is made if there is none, in a folder that is there, unless another process does.

    A process that is forked meanwhile, for a pool of workers, say, holds nothing, and so cannot hold it for longer. On
    a file system that knows no locks nobody is kept away.

    Args:
        path: of the file.
        taken: what to say if another process holds it; its id, which the file holds, is added.

    Raises:
        RunError: that, or it cannot be opened.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unwritable(path, error) from error
    _held.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is let go however this process ends
        except BlockingIOError:
            process = os.pread(file, 20, 0).decode()
            raise RunError(f"{taken} (process {process})" if process else taken) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise unwritable(path, error) from error
        with suppress(OSError):  # a full disk is the affair of whoever has something to write
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        if file in _held:  # and this is not a process that was forked
            _held.remove(file)
            os.close(file)


def settle(path: Path) -> None:
    """Wait until what was written to a file, if there is one, is on the disk.

    Raises:
        RunError: it cannot be written.
    """
    try:
        with suppress(FileNotFoundError), path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def append_durably(file: int, path: Path, at: int, line: bytes) -> None:
    """Write a line to an open file, and wait until it is on the disk, even if the file is new.

    Args:
        file: descriptor, open for writing.
        path: of the file.
        at: where the last whole line ends; what a crash left behind it is cut off.
        line: with its line break.

    Raises:
        RunError: it cannot be written.
    """
    try:
        os.ftruncate(file, at)
        os.lseek(file, at, os.SEEK_SET)
        while line:
            line = line[os.write(file, line) :]
        os.fsync(file)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # else a new file might be gone after a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error


def is_gone(folder: Path) -> bool:
    """Whether there is no such folder; while its disk does not answer, that is not known."""
    try:
        folder.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return False


def unwritable(path: Path, error: OSError) -> RunError:
    """What to say of a file that cannot be written."""
    if isinstance(error, FileNotFoundError):
        return RunError(f"'{path}' cannot be written: its folder is gone; put it back, or begin anew")
    return RunError(f"'{path}' cannot be written: {error.strerror}; make room, or give the right to write there")


def finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite, for JSON knows none."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value

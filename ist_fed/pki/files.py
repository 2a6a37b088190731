"""Files of secrets: private to their owner, never written over, reached through no link."""

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ist_fed.errors import PkiError

LIMIT = 64 * 1024
"""Bytes of the largest file that is read from elsewhere; each of ours has a few kilobytes."""


def check_name(name: str) -> str:
    """A name that is safe as part of a file's name.

    Raises:
        PkiError: it is not.
    """
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9._-]{1,64}", name):
        raise PkiError(
            f"a name is 1 to 64 letters, digits, '-', '_' or '.', and does not begin with '.', but is {name[:80]!r}"
        )
    return name


def inside(root: Path, *parts: str) -> Path:
    """The path of a file below a root.

    Raises:
        PkiError: a link on the way leads elsewhere.
    """
    path = root.joinpath(*parts)
    if os.path.realpath(path.parent) != os.path.join(os.path.realpath(root), *parts[:-1]):
        raise PkiError(f"links are not followed, but '{path.parent}' is one; put the folder itself there")
    return path


def read(path: Path, private: bool = False, limit: int = LIMIT) -> bytes:
    """A small file's bytes.

    Args:
        path: of a regular file; not of a link.
        private: whether nobody else may have any right to it.
        limit: bytes of the largest one that is read.

    Raises:
        PkiError: it is none, too large, or open to others.
    """
    try:
        with open(path, "rb", opener=_opened) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PkiError(f"'{path}' cannot be read: it is not a regular file")
            if private and status.st_mode & 0o077:
                raise PkiError(
                    f"a private key is for its owner alone, but '{path}' has mode {status.st_mode & 0o777:04o}; "
                    f"run: chmod 600 {path}"
                )
            data = file.read(limit + 1)
    except OSError as error:
        reason = "it is a link, and links are not followed" if os.path.islink(path) else error.strerror
        raise PkiError(f"'{path}' cannot be read: {reason}") from error
    if len(data) > limit:
        raise PkiError(f"'{path}' cannot be read: it has more than {limit} bytes")
    return data


def create(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read.

    Raises:
        PkiError: there is one already, or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise PkiError(f"nothing is overwritten, but '{path}' exists; move it away first") from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        _fill(handle, data)
    except OSError as error:
        path.unlink()
        raise unwritable(path, error) from error


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: either the old one or the whole new one is there, also after a power cut.

    Raises:
        PkiError: it cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
        try:
            _fill(handle, data)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise unwritable(path, error) from error


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can enter; one that is there already stays as it is.

    Raises:
        PkiError: it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def check_folder(path: Path) -> None:
    """Check that only its owner can enter a folder.

    Raises:
        PkiError: others can, or it is missing or a link.
    """
    if os.path.islink(path) or not os.path.isdir(path):
        raise PkiError(f"a federation has a folder '{path}', but it is missing or a link; restore it from a backup")
    if mode := path.stat().st_mode & 0o077:
        raise PkiError(
            f"a federation's folders are for their owner alone, but '{path}' gives others {mode:03o}; "
            f"run: chmod 700 {path}"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change a folder."""
    import fcntl  # not on every system; only the server's side needs it

    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def unwritable(path: Path, error: OSError) -> PkiError:
    """What to tell when the system refuses to write."""
    return PkiError(f"'{path}' cannot be written: {error.strerror}; make room, or give the right to write there")


def _opened(path: str, flags: int) -> int:
    """Open without following a link, and without waiting for a writer where the path is a named pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _fill(handle: int, data: bytes) -> None:
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(handle)

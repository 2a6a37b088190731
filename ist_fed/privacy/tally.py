"""What was spent, counted on a client's own disk: a line for every round, written before the round."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ist_fed.errors import RunError
from ist_fed.files import append_durably, held_alone

Entries = list[Mapping[str, Any]]


class Tally:
    """Lines that outlive the process, whatever the run. The file is only ever added to.

    A line is on the disk before what it counts is done. So a client that dies in between has counted what it may not
    have done, and never the other way round.

    Args:
        path: of the file; its folder is made if there is none.
        whose: privacy it counts, in words.
    """

    def __init__(self, path: Path, whose: str) -> None:
        self.path, self._whose = path.absolute(), whose

    def entries(self) -> Entries:
        """What was counted so far; a last line that is not whole was never acted upon.

        Raises:
            RunError: a line cannot be read.
        """
        try:
            return self._entries(self.path.read_bytes())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self.unknown(error.strerror or str(error)) from error

    def add(self, entry: Mapping[str, Any], check: Callable[[Entries], None] | None = None) -> None:
        """Count something. Once this returns it may be done, and not before.

        Args:
            entry: what the line says.
            check: given all that was counted before, raises if this is too much. No other process adds a line between
                it and this one: whoever looks at `entries` before allows what two may take at once.

        Raises:
            RunError: it cannot be written, or what `check` is given cannot be read; nothing must be done.
        """
        line = (json.dumps(dict(entry)) + "\n").encode()
        with held_alone(self.path) as file:
            data = b"".join(iter(lambda: os.read(file, 1 << 16), b""))
            if check is not None:
                check(self._entries(data))
            append_durably(file, self.path, data.rfind(b"\n") + 1, line)

    def unknown(self, reason: str) -> RunError:
        """What to say when it cannot be read."""
        return RunError(
            f"'{self.path}' says what was spent of {self._whose} privacy, but {reason}; while nobody knows that, no "
            f"more is spent. Restore it from a backup"
        )

    def _entries(self, data: bytes) -> Entries:
        try:
            return [_entry(line) for line in data.split(b"\n")[:-1]]
        except (ValueError, TypeError) as error:
            raise self.unknown(f"a line of it cannot be read ({error})") from error


def _entry(line: bytes) -> Mapping[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"it says {entry!r}")
    return entry

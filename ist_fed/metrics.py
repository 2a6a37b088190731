"""The lines of a run: one JSON object a round, in a file that grows."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ist_fed.errors import RunError
from ist_fed.files import finite, settle, unwritable, write_atomically

logger = logging.getLogger("ist_fed")


class Metrics:
    """A file of lines, which need not be there yet.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """The lines written so far; a last one that is not whole yet is left out.

        Raises:
            RunError: a line cannot be read; the message says which.
        """
        lines = []
        for number, text in enumerate(self._lines(), 1):
            if (line := _object(text)) is None:
                raise RunError(
                    f"every line of '{self._path}' is a JSON object, but line {number} is not: {text[:80]!r}; "
                    f"mend or remove it"
                )
            lines.append(line)
        return lines

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one more; a number that is not finite is written as null, for JSON knows none."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(line), allow_nan=False) + "\n")
        except OSError as error:
            raise unwritable(self._path, error) from error

    def settle(self) -> None:
        """Wait until the lines are on the disk."""
        settle(self._path)

    def forget_after(self, round: int) -> None:
        """Drop the lines of rounds that will be run again, and those that no reader could read, or has read already."""
        kept = dict[float, str]()
        for text in self._lines():
            if (number := _round_of(_object(text))) <= round:
                kept.setdefault(number, text + "\n")
        if self._path.exists():
            write_atomically(self._path, "".join(kept.values()).encode())
        if lost := sorted({*range(1, round + 1)} - {*kept}):
            logger.warning(
                "'%s' lacks the lines of %d rounds before its checkpoint, the first of them round %d; the run goes on "
                "without them, and so do its reports",
                self._path,
                len(lost),
                lost[0],
            )

    def _lines(self) -> list[str]:
        """The whole lines: what follows the last line break is still being written, or was cut short by a crash."""
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"'{self._path}' cannot be read: {error.strerror}") from error
        return text.split("\n")[:-1]


def _object(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _round_of(line: Mapping[str, Any] | None) -> float:
    """The round of a line; infinity, so after every other, if it does not say."""
    number = (line or {}).get("round")
    return number if isinstance(number, int) else float("inf")

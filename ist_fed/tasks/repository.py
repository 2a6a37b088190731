"""Files of the Extreme Classification Repository: sparse examples with several labels each, as text.

The first line says how many points, features and labels there are; then each point has a line, `l1,l2 f:v f:v`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from ist_fed.errors import TaskError

_LINES = 8192  # handled at once
_NUMERIC = b"0123456789.eE+-"


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points behind one another.

    Args:
        features: how many there are at all.
        labels: the same.
        feature_starts: where each point's features begin in `index` and `values`, and at last where they end.
        index: numbers of features.
        values: of the features.
        label_starts: as `feature_starts`, in `labels_of`.
        labels_of: numbers of labels.
    """

    features: int
    labels: int
    feature_starts: np.ndarray
    index: np.ndarray
    values: np.ndarray
    label_starts: np.ndarray
    labels_of: np.ndarray

    def __len__(self) -> int:
        return len(self.feature_starts) - 1


def read_points(path: Path, limit: int | None = None) -> Points:
    """Read a file.

    Args:
        path: of the file.
        limit: points read at most, the first ones.

    Raises:
        TaskError: it cannot be read, or is not of this format; the message says which file, which line and what.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, limit)
    except OSError as error:
        raise TaskError(f"'{path}' cannot be read: {error.strerror}") from error


def _read(path: Path, file: BinaryIO, limit: int | None) -> Points:
    points, features, labels = _header(path, file.readline(1000))
    wanted = points if limit is None else min(points, limit)
    blocks, seen = [], 0
    while seen < wanted and (lines := list(islice(file, min(_LINES, wanted - seen)))):
        block = _block(lines, features, labels)
        if block is None:
            _blame(path, lines, seen + 2, features, labels)
        blocks.append(block)
        seen += len(lines)
    if seen < wanted:
        raise TaskError(f"the header of '{path}' says {points} points, but the file ends after {seen}; get it again")
    if wanted == points and file.readline().strip():
        raise TaskError(f"the header of '{path}' says {points} points, but there are more lines than that")
    counts, labels_of, feature_counts, index, values = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Points(
        features=features,
        labels=labels,
        feature_starts=_starts(feature_counts),
        index=index,
        values=values,
        label_starts=_starts(counts),
        labels_of=labels_of,
    )


def _header(path: Path, line: bytes) -> tuple[int, int, int]:
    numbers = line.split()
    if len(numbers) != 3 or not all(number.isdigit() and 0 < int(number) < 1 << 31 for number in numbers):
        raise TaskError(
            f"the first line of '{path}' must say how many points, features and labels there are, three positive whole "
            f"numbers, but is {_shown(line)}"
        )
    points, features, labels = map(int, numbers)
    return points, features, labels


_Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _block(lines: Sequence[bytes], features: int, labels: int) -> _Block | None:
    """Counts of labels, labels, counts of features, their numbers and values; None if anything is wrong."""
    parts = [_parts(line) for line in lines]
    pairs = [b" ".join(rest.split()) for _, rest in parts]
    feature_counts = np.array([pair.count(b":") for pair in pairs])
    label_counts = np.array([head.count(b",") + 1 if head else 0 for head, _ in parts])
    for pair, count in zip(pairs, feature_counts.tolist(), strict=True):
        if pair.translate(None, _NUMERIC) != (b": " * count)[:-1]:
            return None
    try:
        labels_of = np.array([int(label) for head, _ in parts if head for label in head.split(b",")], dtype=np.int64)
        numbers = np.array([float(number) for pair in pairs for number in pair.replace(b":", b" ").split()])
    except (ValueError, OverflowError):
        return None
    if len(numbers) != 2 * feature_counts.sum():
        return None
    index = numbers[::2]
    with np.errstate(over="ignore"):
        values = numbers[1::2].astype(np.float32)
    sound = np.isfinite(values).all() and _whole_below(index, features) and _whole_below(labels_of, labels)
    return (label_counts, labels_of, feature_counts, index.astype(np.int32), values) if sound else None


def _parts(line: bytes) -> tuple[bytes, bytes]:
    """Labels and features; a point without labels has a space where they would stand."""
    head, _, rest = line.rstrip().partition(b" ")
    return head, rest


def _whole_below(numbers: np.ndarray, end: int) -> bool:
    return not len(numbers) or bool(numbers.min() >= 0 and numbers.max() < end and (numbers % 1 == 0).all())


def _blame(path: Path, lines: Sequence[bytes], first: int, features: int, labels: int) -> NoReturn:
    """Say which line is wrong, and what in it."""
    wrong = next(at for at, line in enumerate(lines) if _block([line], features, labels) is None)
    raise TaskError(
        f"a line must be 'label,label feature:value feature:value' with labels from 0 to {labels - 1}, features from 0 "
        f"to {features - 1} and finite values, but line {first + wrong} of '{path}' has "
        f"{_fault(lines[wrong], features, labels)}"
    )


def _fault(line: bytes, features: int, labels: int) -> str:
    head, rest = _parts(line)
    for label in head.split(b",") if head else []:
        if not (label.isdigit() and int(label) < labels):
            return f"the label {_shown(label)}"
    for pair in rest.split():
        feature, _, value = pair.partition(b":")
        if not (feature.isdigit() and int(feature) < features):
            return f"the feature {_shown(feature)} in {_shown(pair)}"
        if _block([b" " + pair], features, labels) is None:
            return f"the value {_shown(value)} in {_shown(pair)}"
    return f"something else: {_shown(line)}"


def _shown(text: bytes) -> str:
    cut = text[:40].decode("ascii", "backslashreplace").strip()
    return f"'{cut}…'" if len(text) > 40 else f"'{cut}'"


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])

"""Numbers read off the lines of a run's metrics: pure functions, no pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from ist_fed.errors import RunError
from ist_fed.run import Run

Line = Mapping[str, Any]
"""One round, as `Run.record` wrote it."""

_KEYS = {"round", "metric", "bytes_down", "bytes_up", "clients", "capacities", "refused", "coverage", "seconds"}


def lines_of(run: Run) -> list[dict[str, Any]]:
    """The rounds written so far, at least one.

    Raises:
        RunError: there is none yet, or one lacks something.
    """
    lines = run.metrics()
    if not lines:
        raise RunError(
            f"a report needs at least one finished round, but run '{run.folder.name}' has none yet; "
            f"wait for its first round, or start it"
        )
    for line in lines:
        if missing := _KEYS - line.keys():
            raise RunError(
                f"every line of metrics.jsonl says {', '.join(sorted(_KEYS))}, but one of run '{run.folder.name}' "
                f"lacks {', '.join(sorted(missing))}; was it written by another program?"
            )
    return lines


def model_of(run: Run) -> dict[str, Any]:
    """What `model.json` says of the final network; nothing if the run has not come to its end.

    Raises:
        RunError: the file cannot be read.
    """
    path = run.folder / "model.json"
    if not path.exists():
        return {}
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' cannot be read: {error}; remove it, and the report is made without it") from error
    return about


def metric_of(lines: Sequence[Line]) -> str:
    """Name of the headline metric."""
    return str(lines[-1]["metric"])


def rounds_of(lines: Sequence[Line]) -> list[int]:
    """The number of each line's round."""
    return [int(line["round"]) for line in lines]


def values_of(lines: Sequence[Line], key: str) -> list[float]:
    """One value a round; NaN where a round has none, or one that was not finite (which is written as null)."""
    given = [line.get(key) for line in lines]
    return [math.nan if value is None else float(value) for value in given]


def per_client(lines: Sequence[Line], *keys: str) -> list[float]:
    """What the mean client of each round moved, in bytes; `keys` are `bytes_down` and `bytes_up`."""
    return [sum(line[key] for key in keys) / max(1, len(line["clients"])) for line in lines]


def megabytes_of(lines: Sequence[Line]) -> list[float]:
    """What a client had sent and received after each round, in megabytes of 10⁶ bytes.

    A client that took part in every round is meant: the sum over rounds of what the round's mean client moved.
    """
    return [total / 1e6 for total in accumulate(per_client(lines, "bytes_down", "bytes_up"))]


def virtual_of(lines: Sequence[Line]) -> list[float] | None:
    """Seconds on the simulated network's clock after each round; None where no network was simulated."""
    given = [line.get("virtual") for line in lines]
    return [float(virtual["total"]) for virtual in given if virtual] if all(given) else None


def best_of(lines: Sequence[Line]) -> tuple[int, float] | None:
    """Round and value of the best metric so far; higher is better, and of equals the first counts."""
    metric = metric_of(lines)
    found = [(at, value) for at, value in zip(rounds_of(lines), values_of(lines, metric), strict=True)]
    known = [(at, value) for at, value in found if not math.isnan(value)]
    return max(known, key=lambda item: item[1]) if known else None


def is_final(lines: Sequence[Line], model: Mapping[str, Any]) -> bool:
    """Whether the model is that of the last line, and not of an end that the run has gone on from since."""
    return int(model.get("round", 0)) >= int(lines[-1]["round"])


def final_of(lines: Sequence[Line], model: Mapping[str, Any]) -> float | None:
    """The metric of the final network, or of the last round evaluated."""
    metric = metric_of(lines)
    if isinstance(model.get(metric), (int, float)) and is_final(lines, model):
        return float(model[metric])
    known = [value for value in values_of(lines, metric) if not math.isnan(value)]
    return known[-1] if known else None


def reached(lines: Sequence[Line], target: float) -> tuple[int, float] | None:
    """Round, and megabytes per client, at which the metric first was at least `target`."""
    values = values_of(lines, metric_of(lines))
    for at, moved, value in zip(rounds_of(lines), megabytes_of(lines), values, strict=True):
        if value >= target:  # False for NaN
            return at, moved
    return None

"""Several runs in numbers: a row for each."""

from collections.abc import Sequence
from typing import Any

from ist_fed.errors import RunError
from ist_fed.report.curves import (
    Line,
    best_of,
    final_of,
    lines_of,
    megabytes_of,
    metric_of,
    model_of,
    reached,
    rounds_of,
    virtual_of,
)
from ist_fed.report.numbers import rule_text
from ist_fed.run import Run


def comparison_rows(runs: Sequence[Run], target: float | None) -> list[dict[str, Any]]:
    """The numbers of each run, in the order given.

    Args:
        runs: each with at least one finished round, all with the same metric.
        target: of the metric; None asks for none.

    Returns:
        For each run `name` (of its folder), `rule` as text, `metric` (its name), `rounds`, `final` and `best` of the
        metric (None where it was never evaluated), `mb_per_client` and `steps_per_client` of the whole run, and
        `target_round` and `target_mb_per_client`, where the target was first reached (None where it was not).
        A run on a simulated network has `virtual_seconds` and `target_virtual_seconds`, too.
        Megabytes are of 10⁶ bytes, sent and received, of a client that took part in every round.

    Raises:
        RunError: a run has no finished round, or the runs measure different things.
    """
    rows = [_row(run, lines_of(run), target) for run in runs]
    if len(metrics := {row["metric"] for row in rows}) > 1:
        raise RunError(
            f"runs are compared by one metric, but these measure {', '.join(sorted(metrics))}; compare runs of one task"
        )
    return rows


def _row(run: Run, lines: Sequence[Line], target: float | None) -> dict[str, Any]:
    best = best_of(lines)
    at, moved = (reached(lines, target) if target is not None else None) or (None, None)
    return {
        "name": run.folder.resolve().name,
        "rule": rule_text(run.scenario.rule),
        "metric": metric_of(lines),
        "rounds": len(lines),
        "final": final_of(lines, model_of(run)),
        "best": best[1] if best else None,
        "mb_per_client": megabytes_of(lines)[-1],
        "steps_per_client": sum(run.scenario.during(line.get("phase", 0)).local_steps for line in lines),
        "target_round": at,
        "target_mb_per_client": moved,
        **_virtual(lines, at),
    }


def _virtual(lines: Sequence[Line], at: int | None) -> dict[str, Any]:
    if (seconds := virtual_of(lines)) is None:
        return {}
    there = None if at is None else seconds[rounds_of(lines).index(at)]
    return {"virtual_seconds": seconds[-1], "target_virtual_seconds": there}

"""The page about several runs: a table, their curves beside each other, and what differs between their scenarios."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ist_fed.report.canvas import Drawn, draw
from ist_fed.report.curves import lines_of
from ist_fed.report.numbers import amount, score
from ist_fed.report.overlay import overlays
from ist_fed.report.page import Html, figure, fold, page, paragraph, table, tag, write
from ist_fed.run import Run
from ist_fed.scenario import differences

_COLUMNS = {
    "name": "run",
    "rule": "rule",
    "rounds": "rounds",
    "final": "final {metric}",
    "best": "best {metric}",
    "target_round": "round that reached {target}",
    "target_mb_per_client": "MB per client until then",
    "target_gflops_per_client": "GFLOPs per client until then",
    "target_virtual_seconds": "virtual seconds until then",
    "mb_per_client": "MB per client in all",
    "gflops_per_client": "GFLOPs per client in all",
    "virtual_seconds": "virtual seconds in all",
    "steps_per_client": "local steps per client",
}
"""Key of a row → heading; keys that a row does not have are left out, and others come last, under their own name."""
_TEXTS = 2  # columns that are not numbers


def write_comparison(runs: Sequence[Run], rows: Sequence[dict[str, Any]], folder: Path, target: float | None) -> Path:
    """Write `comparison.html` and `comparison.png` into a folder.

    Args:
        runs: as given to `comparison_rows`.
        rows: what it gave, perhaps with more keys, which become more columns.
        folder: made if it is not there.
        target: of the metric.

    Returns:
        The page. It is one file: pictures are embedded, and it asks for nothing else.

    Raises:
        RunError: matplotlib is missing, or the folder cannot be written.
    """
    curves = [(str(row["name"]), lines_of(run)) for row, run in zip(rows, runs, strict=True)]
    drawn = {picture.name: draw(picture) for picture in overlays(curves, target)}
    return write(folder, "comparison.html", _page(runs, rows, drawn, target), drawn.values())


def _page(runs: Sequence[Run], rows: Sequence[dict[str, Any]], drawn: dict[str, Drawn], target: float | None) -> str:
    title = "Comparison of " + ", ".join(str(row["name"]) for row in rows)
    return page(
        title,
        tag("h1", title),
        paragraph(*_findings(rows, target)),
        _table(rows, target),
        tag("div", figure(drawn["comparison-rounds"]), figure(drawn["comparison-megabytes"]), class_="pair"),
        tag("h2", "How to read it"),
        paragraph(
            "Megabytes are what one client sent and received together; their axis is logarithmic, so that equal "
            "distances are equal ratios.",
            "The metric is that of the whole network, put together on the server, on held-out data.",
            "A dot marks where a run first reached the target." if target is not None else "",
            "One run of each is one draw of chance: differences smaller than those between seeds mean nothing.",
        ),
        *_differences(runs, rows),
    )


def _findings(rows: Sequence[dict[str, Any]], target: float | None) -> list[str]:
    """The comparison in a sentence or two."""
    if target is None:
        return []
    goal = f"{rows[0]['metric']} {score(rows[0]['metric'], target)}"
    there = sorted(
        (row for row in rows if row["target_round"] is not None), key=lambda row: row["target_mb_per_client"]
    )
    never = [str(row["name"]) for row in rows if row["target_round"] is None]
    said = []
    if there:
        least, most = there[0], there[-1]
        said.append(f"{least['name']} reached {goal} with {amount(least['target_mb_per_client'])} MB per client.")
        if most is not least and least["target_mb_per_client"]:
            times = amount(most["target_mb_per_client"] / least["target_mb_per_client"])
            said.append(
                f"{most['name']} moved {amount(most['target_mb_per_client'])} MB for the same, {times} times as much."
            )
    if never:
        said.append(f"{', '.join(never)} did not reach {goal}.")
    return said


def _table(rows: Sequence[dict[str, Any]], target: float | None) -> Html:
    metric = str(rows[0]["metric"])
    words = {"metric": metric, "target": score(metric, target) if target is not None else ""}
    given = {key for row in rows for key in row if target is not None or not key.startswith("target_")} - {"metric"}
    keys = [*(key for key in _COLUMNS if key in given), *sorted(given - _COLUMNS.keys())]
    head = [_COLUMNS[key].format(**words) if key in _COLUMNS else key.replace("_", " ") for key in keys]
    return table(head, [[_cell(key, row.get(key), metric) for key in keys] for row in rows], numbers=_TEXTS)


def _cell(key: str, value: Any, metric: str) -> str:
    if value is None:
        return "never" if key.startswith("target_") else "–"
    if key in ("final", "best"):
        return score(metric, value)
    if isinstance(value, float):
        return amount(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _differences(runs: Sequence[Run], rows: Sequence[dict[str, Any]]) -> list[Html]:
    """What else differs, lest something be put down to the rule that is not its doing."""
    first, name = runs[0].scenario, rows[0]["name"]
    lists = []
    for run, row in list(zip(runs, rows, strict=True))[1:]:
        found = differences(first, run.scenario) or ["nothing"]
        lists.append(fold(f"{name} → {row['name']}", tag("ul", *(tag("li", tag("code", text)) for text in found))))
    return [tag("h2", "What differs between the scenarios"), *lists] if lists else []

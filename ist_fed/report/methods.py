"""Methods on one scenario, several seeds each: a table with the spread, and their curves as bands."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ist_fed.report.canvas import Drawn, Picture, Theme, canvas, draw, frame, plain
from ist_fed.report.curves import Line, lines_of, megabytes_of, metric_of, rounds_of, values_of, virtual_of
from ist_fed.report.figures import score_axis
from ist_fed.report.numbers import amount, score
from ist_fed.report.overlay import CURVES, STYLES
from ist_fed.report.page import Html, figure, page, paragraph, table, tag, write
from ist_fed.report.rows import comparison_rows
from ist_fed.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, Sequence[Run]]
"""Method → its runs, one for each seed."""


def _steps(run: Run, lines: Sequence[Line]) -> list[float]:
    return [number * run.scenario.local_steps for number in rounds_of(lines)]


_X: dict[str, tuple[str, Callable[[Run, Sequence[Line]], list[float]]]] = {
    "steps": ("local steps of a client", _steps),
    "megabytes": ("MB sent and received by a client", lambda run, lines: megabytes_of(lines)),
    "seconds": ("virtual seconds", lambda run, lines: virtual_of(lines) or []),
}
_SPREAD = ("final", "target_round", "target_mb_per_client", "target_virtual_seconds")


def method_rows(runs: Runs, target: float | None, about: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method.

    Args:
        runs: each with at least one finished round.
        target: of the metric; None asks for none.
        about: method → more of its row, such as its learning rate.

    Returns:
        For each method its `name`, the `metric`'s name, `seeds`, `rounds`, and medians over its runs of what
        `comparison_rows` says; of `final`, and of when the target was reached, also the `…_range`. A target that not
        every run reached has no median, and `target_reached` says how many did.
    """
    rows = []
    for name, of_one in runs.items():
        each = comparison_rows(of_one, target)
        row: dict[str, Any] = {"name": name, "metric": each[0]["metric"], "seeds": len(each), **about.get(name, {})}
        for key in ("rounds", "mb_per_client", "steps_per_client", "virtual_seconds", "final", *_SPREAD[1:]):
            values = [one[key] for one in each if one.get(key) is not None]
            row[key] = median(values) if len(values) == len(each) else None
            if key in _SPREAD:
                row[f"{key}_range"] = (min(values), max(values)) if values else None
        row["target_reached"] = sum(one["target_round"] is not None for one in each)
        rows.append(row)
    return rows


def write_methods(runs: Runs, rows: Sequence[dict[str, Any]], folder: Path, target: float | None, budget: str) -> Path:
    """Write `methods.html` and its pictures into a folder.

    Args:
        runs: as given to `method_rows`.
        rows: what it gave.
        folder: made if it is not there.
        target: of the metric.
        budget: what the methods were given equally, in words.

    Returns:
        The page.

    Raises:
        RunError: matplotlib is missing, or the folder cannot be written.
    """
    curves = {name: [(run, lines_of(run)) for run in of_one] for name, of_one in runs.items()}
    timed = all((virtual_of(lines) or [0.0])[-1] > 0 for each in curves.values() for _, lines in each)
    panels = ("steps", "megabytes", *(("seconds",) if timed else ()))
    drawn = {panel: draw(_picture(panel, curves, target)) for panel in panels}
    return write(folder, "methods.html", _page(rows, drawn, target, budget), drawn.values())


_Curves = Mapping[str, Sequence[tuple[Run, Sequence[Line]]]]


def _picture(panel: str, curves: _Curves, target: float | None) -> Picture:
    words = f"metric of each method against {_X[panel][0]}"
    return Picture(f"methods-{panel}", words, lambda theme: _figure(theme, panel, curves, target))


def _figure(theme: Theme, panel: str, curves: _Curves, target: float | None) -> "Figure":
    drawn = canvas(theme, 5.2, 3.8 + 0.22 * ((len(curves) + 2) // 3))
    axes = frame(drawn.subplots(), theme)
    for at, (name, runs) in enumerate(curves.items()):
        colour = theme.palette[CURVES[at % len(CURVES)]]
        _band(axes, [(_X[panel][1](run, lines), lines) for run, lines in runs], colour, name, STYLES[at // len(CURVES)])
    if target is not None:
        axes.axhline(target, color=theme.muted, linestyle=(0, (2, 2)), linewidth=1, zorder=0)
    axes.set_xlabel(_X[panel][0])
    if panel != "steps":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: amount(value))
    score_axis(axes, metric_of(next(iter(curves.values()))[0][1]))
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=theme.ink, fontsize=9)
    return drawn


def _band(axes: "Axes", runs: Sequence[tuple[list[float], Sequence[Line]]], colour: str, name: str, style: str) -> None:
    """The median of the runs as a line, and from the least to the most of them as a band."""
    columns = zip(*(zip(x, values_of(lines, metric_of(lines)), strict=True) for x, lines in runs), strict=False)
    known = [points for points in columns if not any(math.isnan(y) for _, y in points)]
    x = [median(x for x, _ in points) for points in known]
    y = [[y for _, y in points] for points in known]
    axes.fill_between(x, list(map(min, y)), list(map(max, y)), color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, list(map(median, y)), color=colour, linestyle=style, linewidth=1.8, label=plain(name))


_COLUMNS = {
    "name": "method",
    "lr": "learning rate",
    "final": "final {metric}",
    "target_round": "rounds to {target}",
    "target_mb_per_client": "MB per client until then",
    "target_virtual_seconds": "virtual seconds until then",
    "rounds": "rounds",
    "mb_per_client": "MB per client",
    "gflops_per_client": "GFLOPs per client",
    "virtual_seconds": "virtual seconds",
}


def _page(rows: Sequence[dict[str, Any]], drawn: Mapping[str, Drawn], target: float | None, budget: str) -> str:
    title = f"{len(rows)} methods at equal {budget}"
    seeds = rows[0]["seeds"]
    return page(
        title,
        tag("h1", title),
        paragraph(
            f"Median over {seeds} seeds, and in brackets from the least to the most of them. "
            if seeds > 1
            else "One run of each: differences smaller than those between seeds mean nothing. ",
            "Every method has the learning rate that was best for it on examples that no test sees, on another seed.",
        ),
        _table(rows, target),
        tag("div", *(figure(each) for each in drawn.values()), class_="pair"),
    )


def _table(rows: Sequence[dict[str, Any]], target: float | None) -> Html:
    metric = str(rows[0]["metric"])
    words = {"metric": metric, "target": score(metric, target) if target is not None else ""}
    asked = [key for key in _COLUMNS if target is not None or not key.startswith("target_")]
    keys = [key for key in asked if any(row.get(key) is not None for row in rows) or key.startswith("target_round")]
    return table(
        [_COLUMNS[key].format(**words) for key in keys],
        [[method_cell(key, row) for key in keys] for row in rows],
        numbers=1,
    )


def method_cell(key: str, row: Mapping[str, Any], *, ranges: bool = True) -> str:
    """One cell of a table of methods: the median, and the range where there are several seeds."""
    value, spread = row.get(key), row.get(f"{key}_range") if ranges else None
    if value is None:
        if not key.startswith("target_"):
            return "–"
        return f"{row['target_reached']} of {row['seeds']} runs" if row["target_reached"] else "never"

    def told(number: Any) -> str:
        if key == "final":
            return score(str(row["metric"]), number)
        return amount(number) if isinstance(number, float) else str(number)

    return (
        told(value) if spread is None or spread[0] == spread[1] else f"{told(value)} ({' to '.join(map(told, spread))})"
    )

"""Several runs beside each other: a table, and their curves in one picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ist_fed.errors import RunError
from ist_fed.report.canvas import Drawn, Picture, Theme, canvas, draw, frame
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
    values_of,
    virtual_of,
)
from ist_fed.report.figures import curve, round_axis, score_axis
from ist_fed.report.numbers import amount, rule_text, score
from ist_fed.report.page import Html, figure, fold, page, paragraph, table, tag, write
from ist_fed.run import Run
from ist_fed.scenario import differences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
CURVES = (0, 1, 2, 3, 4, 5, 7, 6)  # yellow last: it is faint as a line
STYLES = ("-", "--", ":", "-.")


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
    drawn = {picture.name: draw(picture) for picture in _pictures(curves, target)}
    return write(folder, "comparison.html", _page(runs, rows, drawn, target), drawn.values())


# --- Pictures ---------------------------------------------------------------------------------------------------------

_Curves = Sequence[tuple[str, Sequence[Line]]]


def _pictures(curves: _Curves, target: float | None) -> list[Picture]:
    metric = metric_of(curves[0][1])
    return [
        Picture(
            "comparison",
            f"{metric} of each run against rounds, and against megabytes per client",
            lambda theme: _figure(theme, curves, target, (False, True)),
        ),
        Picture(
            "comparison-rounds",
            f"{metric} of each run against rounds",
            lambda theme: _figure(theme, curves, target, (False,)),
        ),
        Picture(
            "comparison-megabytes",
            f"{metric} of each run against megabytes per client",
            lambda theme: _figure(theme, curves, target, (True,)),
        ),
    ]


def _figure(theme: Theme, curves: _Curves, target: float | None, panels: Sequence[bool]) -> "Figure":
    columns = 2 * len(panels)
    figure = canvas(theme, 5.2 * len(panels), 3.8 + 0.22 * (len(curves) // columns))
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, megabytes in zip(row, panels, strict=True):
        _panel(frame(axes, theme), theme, curves, target, megabytes)
        if axes is row[0]:
            score_axis(axes, metric_of(curves[0][1]))
    handles, names = row[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False, labelcolor=theme.ink, fontsize=9
    )
    return figure


def _panel(axes: "Axes", theme: Theme, curves: _Curves, target: float | None, megabytes: bool) -> None:
    for at, (name, lines) in enumerate(curves):
        colour = theme.palette[CURVES[at % len(CURVES)]]
        x = megabytes_of(lines) if megabytes else rounds_of(lines)
        values = values_of(lines, metric_of(lines))
        curve(axes, x, values, colour, name, style=STYLES[at // len(CURVES) % len(STYLES)])
        if target is not None and (hit := reached(lines, target)) is not None:
            there = rounds_of(lines).index(hit[0])
            axes.plot(x[there], values[there], marker="o", markersize=7, color=colour, markeredgecolor=theme.paper)
    if target is not None:
        axes.axhline(target, color=theme.muted, linestyle=(0, (2, 2)), linewidth=1, zorder=0)
    if megabytes:
        axes.set_xscale("log")
        axes.set_xlabel("MB sent and received by a client")
        axes.xaxis.set_major_formatter(lambda value, _: amount(value))
    else:
        rounds = [at for _, lines in curves for at in rounds_of(lines)]
        round_axis(axes, min(rounds), max(rounds))


# --- The page ---------------------------------------------------------------------------------------------------------


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

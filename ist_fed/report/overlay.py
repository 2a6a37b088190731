"""The curves of several runs in one picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ist_fed.report.canvas import Picture, Theme, canvas, frame
from ist_fed.report.curves import Line, megabytes_of, metric_of, reached, rounds_of, values_of
from ist_fed.report.figures import curve, round_axis, score_axis
from ist_fed.report.numbers import amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = (0, 1, 2, 3, 4, 5, 7, 6)  # yellow last: it is faint as a line
STYLES = ("-", "--", ":", "-.")

_Curves = Sequence[tuple[str, Sequence[Line]]]


def overlays(curves: _Curves, target: float | None) -> list[Picture]:
    """The metric of named runs against rounds, against megabytes, and both in one."""
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

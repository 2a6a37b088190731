"""Curves and bars of one run."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ist_fed.report.canvas import Picture, Theme, canvas, frame, plain
from ist_fed.report.curves import Line, megabytes_of, metric_of, per_client, rounds_of, values_of, virtual_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (5.2, 3.3)  # inches; two stand beside each other on a desk, one fills a phone
_TALL = (5.2, 4.7)

PHASES = ("assign", "extract", "train", "other", "merge", "evaluate", "record")
"""What a round's seconds go to, in the order of the round."""


def pictures(lines: Sequence[Line], expected: Sequence[float] | None, full_bytes: int | None) -> list[Picture]:
    """Every curve of a run.

    Args:
        lines: of the metrics.
        expected: coverage that random draws would give, if it can be said.
        full_bytes: of the full network, if it is known.
    """
    metric = metric_of(lines)
    return [
        Picture(
            "learning-rounds",
            f"{metric} and loss against rounds",
            lambda theme: _learning(theme, lines, megabytes=False),
        ),
        Picture(
            "learning-megabytes",
            f"{metric} and loss against the megabytes that one client sent and received",
            lambda theme: _learning(theme, lines, megabytes=True),
        ),
        *_virtual(lines),
        Picture("coverage", "share of the network trained so far", lambda theme: _coverage(theme, lines, expected)),
        Picture("bytes", "megabytes a client moves in each round", lambda theme: _bytes(theme, lines, full_bytes)),
        Picture("seconds", "seconds of each round by phase", lambda theme: _seconds(theme, lines)),
    ]


def _virtual(lines: Sequence[Line]) -> list[Picture]:
    if virtual_of(lines) is None:
        return []
    alt = f"{metric_of(lines)} and loss against seconds on the simulated network"
    return [Picture("learning-virtual", alt, lambda theme: _learning(theme, lines, virtual=True))]


def _learning(theme: Theme, lines: Sequence[Line], megabytes: bool = False, virtual: bool = False) -> "Figure":
    figure, metric = canvas(theme, *_TALL), metric_of(lines)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = megabytes_of(lines) if megabytes else (virtual_of(lines) if virtual else None) or rounds_of(lines)
    curve(frame(top, theme), x, values_of(lines, metric), theme.palette[0], metric)
    score_axis(top, metric)
    curve(frame(bottom, theme), x, values_of(lines, "loss"), theme.palette[0], "whole network, held-out data")
    curve(bottom, x, values_of(lines, "train_loss"), theme.palette[5], "subnets, clients' data", style="--")
    for before, after in pairwise(range(len(lines))):
        if lines[before].get("phase") != lines[after].get("phase"):
            for axes in (top, bottom):
                axes.axvline((x[before] + x[after]) / 2, color=theme.ink, linestyle=":", linewidth=1)
    bottom.set_ylabel("loss")
    bottom.set_ylim(bottom=0 if _lowest(lines) >= 0 else None)
    # Above the panel: inside it a legend would lie on the curves.
    bottom.legend(
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(0, 0.97),
        borderaxespad=0,
        columnspacing=1.2,
    )
    if megabytes or virtual:
        bottom.set_xlabel("MB sent and received by a client" if megabytes else "seconds on the simulated network")
        bottom.set_xlim(0, 1.02 * x[-1] or 1)
    else:
        round_axis(bottom, rounds_of(lines)[0], rounds_of(lines)[-1])
    return figure


def _lowest(lines: Sequence[Line]) -> float:
    losses = values_of(lines, "loss") + values_of(lines, "train_loss")
    return min((loss for loss in losses if not math.isnan(loss)), default=0.0)


def curve(axes: "Axes", x: Sequence[float], y: Sequence[float], colour: str, name: str, *, style: str = "-") -> None:
    """One line through the points that are there; few points are marked."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(b)]
    xs, ys = [a for a, _ in points], [b for _, b in points]
    marker = "o" if len(points) <= 12 else ""
    axes.plot(xs, ys, color=colour, linestyle=style, linewidth=1.8, marker=marker, markersize=4, label=plain(name))


def score_axis(axes: "Axes", metric: str) -> None:
    """Label the axis of the metric; an accuracy is a percentage."""
    axes.set_ylabel(plain(metric))
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(_percent)
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))


def _percent(value: float, _: float) -> str:
    return f"{100 * value:.4g} %"


def round_axis(axes: "Axes", first: int, last: int) -> None:
    """From the first round to the last; there is no round 2.5."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def legend(axes: "Axes", theme: Theme, place: str = "best") -> None:
    """A legend without a box."""
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc=place)  # type: ignore[call-overload]


def _coverage(theme: Theme, lines: Sequence[Line], expected: Sequence[float] | None) -> "Figure":
    figure, rounds = canvas(theme, *PANEL), rounds_of(lines)
    axes = frame(figure.subplots(), theme)
    curve(axes, rounds, values_of(lines, "coverage"), theme.palette[0], "measured")
    if expected is not None:
        curve(axes, rounds, expected, theme.palette[5], "expected of random draws", style="--")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_ylabel("trained at least once")
    round_axis(axes, rounds[0], rounds[-1])
    legend(axes, theme, "lower right")
    return figure


def _bytes(theme: Theme, lines: Sequence[Line], full_bytes: int | None) -> "Figure":
    figure = canvas(theme, *PANEL)
    axes = frame(figure.subplots(), theme)
    down, up = ([moved / 1e6 for moved in per_client(lines, key)] for key in ("bytes_down", "bytes_up"))
    _stack(axes, rounds_of(lines), [down, up], [theme.palette[0], theme.palette[1]], ["to the client", "back"])
    top = max(a + b for a, b in zip(down, up, strict=True)) or 1
    if full_bytes is not None:
        whole = 2 * full_bytes / 1e6
        axes.axhline(whole, color=theme.ink, linestyle="--", linewidth=1.2, label="the whole network, both ways")
        top = max(top, whole)
    axes.set_ylim(0, 1.4 * top)  # room for the legend
    axes.set_ylabel("MB per client")
    legend(axes, theme)
    return figure


def phases(line: Line) -> list[float]:
    """Seconds of one round by `PHASES`.

    `wait` contains training and merging; clients that train at the same time add up to more than the wait, so training
    counts for no more than what merging leaves of it.
    """
    seconds = {key: float(value) for key, value in line["seconds"].items()}
    merge, train = seconds.get("merge", 0.0), seconds.get("train", 0.0)
    wait = max(0.0, seconds.get("wait", merge + train) - merge)
    seconds["train"] = min(train, wait)
    seconds["other"] = wait - seconds["train"]
    return [seconds.get(phase, 0.0) for phase in PHASES]


def _seconds(theme: Theme, lines: Sequence[Line]) -> "Figure":
    figure = canvas(theme, *PANEL)
    axes = frame(figure.subplots(), theme)
    layers = [list(layer) for layer in zip(*map(phases, lines), strict=True)]
    assign, extract, train, merge, evaluate, record = (theme.palette[at] for at in (4, 0, 2, 1, 3, 5))
    colours = [assign, extract, train, theme.others, merge, evaluate, record]
    _stack(axes, rounds_of(lines), layers, colours, PHASES)
    axes.set_ylabel("seconds")
    _cut_outliers(axes, theme, rounds_of(lines), [sum(phases(line)) for line in lines])
    # Beside the bars, which it would cover, and in their order.
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        names[::-1],
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
        loc="outside right upper",
        handlelength=1.2,
    )
    return figure


def _cut_outliers(axes: "Axes", theme: Theme, rounds: Sequence[int], totals: Sequence[float]) -> None:
    """A first round that loads everything would flatten the others: cut it off, and say so."""
    usual = sorted(totals)[int(0.9 * (len(totals) - 1))]
    if max(totals) <= 2.5 * usual:
        axes.set_ylim(0, 1.08 * max(totals) or 1)
        return
    axes.set_ylim(0, 1.5 * usual)
    for at, total in zip(rounds, totals, strict=True):
        if total > 1.5 * usual:
            behind = {"facecolor": theme.paper, "linewidth": 0, "pad": 1.5}
            note = f"round {at}: {total:.3g} s"
            axes.text(at + 0.65, 1.47 * usual, note, color=theme.ink, fontsize=8, va="top", bbox=behind)
            return  # one note explains the others


def _stack(
    axes: "Axes", rounds: Sequence[int], layers: Sequence[Sequence[float]], colours: Sequence[str], names: Sequence[str]
) -> None:
    """Layers upon each other, as steps a round wide."""
    edges = [rounds[0] - 0.5, *(at + 0.5 for at in rounds)]
    base = [0.0] * len(rounds)
    for layer, colour, name in zip(layers, colours, names, strict=True):
        top = [below + height for below, height in zip(base, layer, strict=True)]
        axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=name)
        base = top
    round_axis(axes, rounds[0], rounds[-1])

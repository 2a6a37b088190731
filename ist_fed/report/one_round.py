"""One round as a drawing: the wide network, its units coloured by subnet, and the narrow networks they make.

Lengths are inches, and y grows downwards, as one reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from ist_fed.report.canvas import Picture, Theme, canvas, plain
from ist_fed.report.holdings import held, sizes_of
from ist_fed.report.network import Network
from ist_fed.report.units import AXES, letter, spread
from ist_fed.rules import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _MARGIN = 7.2, 1.02  # the margin names the layers
_UNITS = 40  # shown of each axis
_PITCH = (_WIDTH - _MARGIN - 0.1) / _UNITS
_GAP, _NEAR, _STEM = 0.95, 0.6, 0.38  # between layers of the wide network, of a narrow one, and beside inputs
_BAR = 0.2  # height of inputs and outputs
_HEAD, _FOOT = 0.62, 0.85  # above and below a network, for its words
_COLUMNS = 8  # narrow networks shown
_LETTERS = 11  # of an axis that the margin has room for


@dataclass(frozen=True)
class _Dot:
    """One unit.

    Args:
        x: where it stands in its row.
        subnets: that hold it.
    """

    x: float
    subnets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """What every part of the drawing needs."""

    axes: "Axes"
    theme: Theme
    plan: Plan

    def colour(self, subnet: int) -> str:
        return self.theme.colour(subnet, len(self.plan.subnets))

    def text(self, x: float, y: float, text: str, size: float, **style: str) -> None:
        style = {"color": self.theme.ink, "va": "center", **style}
        self.axes.text(x, y, plain(text), fontsize=size, **style)  # type: ignore[arg-type]

    def title(self, top: float, text: str, below: str) -> None:
        self.text(0.1, top + 0.18, text, 12, weight="bold")
        self.text(0.1, top + 0.4, below, 9.5, color=self.theme.muted)


def one_round_picture(
    round: int, plan: Plan, sizes: Mapping[str, int], network: Network | None, unit: str = "hidden unit"
) -> Picture:
    """The drawing of one round.

    Args:
        round: its number.
        plan: who held what in it.
        sizes: units of each axis of the full network.
        network: tells a subnet's share of the weights; without it the share of the units is told.
        unit: what a unit is called.
    """
    return Picture(
        "round",
        f"the network's layers in round {round}, every {unit} in the colour of its subnet, and below them the "
        f"network that each subnet is",
        lambda theme: _draw(theme, round, plan, sizes, network, unit),
    )


def _draw(
    theme: Theme, round: int, plan: Plan, sizes: Mapping[str, int], network: Network | None, unit: str
) -> "Figure":
    shown = dict(list(sizes.items())[:AXES])
    lower = _HEAD + _height(len(shown), _GAP) + 0.3
    height = lower + _HEAD + _height(len(shown), _NEAR) + _FOOT
    figure = canvas(theme, _WIDTH, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    drawing = _Drawing(axes=axes, theme=theme, plan=plan)
    rows = {axis: _row(plan, axis, size) for axis, size in shown.items()}

    drawing.title(0, f"On the server in round {round}: the whole network", _meaning(rows, shown, unit))
    _whole(drawing, rows, shown, _HEAD, len(sizes))
    drawing.title(lower, "On the clients", "each client holds one of these networks, and trains it on its own data")
    _parts(drawing, rows, sizes, lower + _HEAD, network)
    return figure


def _meaning(rows: Mapping[str, list[_Dot]], sizes: Mapping[str, int], unit: str) -> str:
    every = all(len(rows[axis]) == size for axis, size in sizes.items())
    drawn = f"every {unit}" if every else f"a sample of the {unit}s"
    if any(len(dot.subnets) > 1 for row in rows.values() for dot in row):
        return f"{drawn}, in the colours of the subnets that hold it for this round"
    return f"{drawn}, in the colour of the subnet that it belongs to for this round"


def _height(layers: int, gap: float) -> float:
    return 2 * (_BAR + _STEM) + (layers - 1) * gap


def _row(plan: Plan, axis: str, size: int) -> list[_Dot]:
    """The units of an axis that are shown, evenly spread; where subnets are disjoint, each with its due."""
    marks = held(plan, axis, size)
    shown = spread(size, _UNITS)
    if size > _UNITS and (marks.sum(axis=0) == 1).all():
        due = [np.flatnonzero(row) for row in marks]
        picks = [units[spread(len(units), max(1, round(_UNITS * len(units) / size)))] for units in due]
        shown = np.sort(np.concatenate(picks))
    pitch = (_WIDTH - _MARGIN - 0.1) / max(_UNITS, len(shown))
    start = _MARGIN + pitch * (max(_UNITS, len(shown)) - len(shown) + 1) / 2
    return [_Dot(start + pitch * at, tuple(np.flatnonzero(marks[:, unit]).tolist())) for at, unit in enumerate(shown)]


def _whole(drawing: _Drawing, rows: Mapping[str, list[_Dot]], sizes: Mapping[str, int], top: float, axes: int) -> None:
    """The wide network, its layers named in the margin."""
    heights = _network(drawing, list(rows.values()), (_MARGIN, _WIDTH - 0.1), top, _GAP)
    for (axis, size), y in zip(sizes.items(), heights[1:-1], strict=True):
        drawing.text(0.1, y - 0.09, axis if len(axis) <= _LETTERS else f"{axis[: _LETTERS - 1]}…", 10.5)
        drawing.text(0.1, y + 0.1, f"{size:,} units", 9, color=drawing.theme.muted)
    drawing.text(0.1, heights[0], "inputs", 10.5)
    drawing.text(0.1, heights[-1], "outputs", 10.5)
    middle = (_MARGIN + _WIDTH - 0.1) / 2
    for y in (heights[0], heights[-1]):
        drawing.text(middle, y, "not cut: every client has all of them", 9.5, ha="center", color=drawing.theme.muted)
    if axes > len(sizes):
        drawing.text(0.1, heights[-2] + 0.29, f"and {axes - len(sizes)} more", 9, color=drawing.theme.muted)


def _parts(
    drawing: _Drawing, rows: Mapping[str, list[_Dot]], sizes: Mapping[str, int], top: float, network: Network | None
) -> None:
    """The narrow networks, side by side."""
    count = len(drawing.plan.subnets)
    columns = count if count <= _COLUMNS else _COLUMNS - 1
    width = (_WIDTH - 0.2) / min(count, _COLUMNS)
    pitch = min(_PITCH, *(_fit(row, subnet, width) for row in rows.values() for subnet in range(columns)))
    for subnet in range(columns):
        left = 0.1 + subnet * width
        middle = left + width / 2
        own = [_centred([dot for dot in row if subnet in dot.subnets], subnet, middle, pitch) for row in rows.values()]
        widest = max(len(row) for row in own) * pitch / 2 + 0.05
        bottom = _network(drawing, own, (middle - widest, middle + widest), top, _NEAR)[-1]
        drawing.text(middle, bottom + 0.26, letter(subnet), 11, ha="center", weight="bold")
        lines = (_holders(drawing.plan.cohorts[subnet]), _share(drawing.plan, subnet, sizes, network))
        for at, text in enumerate(lines):
            letters = 9.5 if count < 6 else 7.5
            drawing.text(middle, bottom + 0.46 + 0.18 * at, text, letters, ha="center", color=drawing.theme.muted)
    if count > columns:
        middle, y = 0.1 + (columns + 0.5) * width, top + _height(len(rows), _NEAR) / 2
        drawing.text(middle, y, f"and {count - columns}\nmore", 9, ha="center", color=drawing.theme.muted)


def _fit(row: Sequence[_Dot], subnet: int, width: float) -> float:
    return (width - 0.22) / max(1, sum(subnet in dot.subnets for dot in row))


def _centred(row: Sequence[_Dot], subnet: int, middle: float, pitch: float) -> list[_Dot]:
    start = middle - pitch * (len(row) - 1) / 2
    return [_Dot(start + pitch * at, (subnet,)) for at in range(len(row))]


def _holders(cohort: Sequence[int]) -> str:
    if len(cohort) == 1:
        return f"client {cohort[0]}"
    return f"clients {', '.join(map(str, sorted(cohort)))}" if len(cohort) <= 3 else f"{len(cohort):,} clients"


def _share(plan: Plan, subnet: int, sizes: Mapping[str, int], network: Network | None) -> str:
    own = sizes_of(plan, sizes)[subnet]
    if network is None:
        return f"{sum(own.values()) / sum(sizes.values()):.0%} of units"
    return f"{network.parameters(own) / network.parameters():.0%} of weights"


# --- A network --------------------------------------------------------------------------------------------------------


def _network(
    drawing: _Drawing, rows: Sequence[Sequence[_Dot]], sides: tuple[float, float], top: float, gap: float
) -> list[float]:
    """Draw inputs, rows of units and outputs; give back the heights at which they stand."""
    layers = [top + _BAR + _STEM + gap * at for at in range(len(rows))]
    inputs, outputs = top + _BAR / 2, layers[-1] + _STEM + _BAR / 2
    _links(drawing, rows, layers)
    _stems(drawing, rows[0], layers[0], inputs + _BAR / 2)
    _stems(drawing, rows[-1], layers[-1], outputs - _BAR / 2)
    _bar(drawing, sides, inputs)
    _bar(drawing, sides, outputs)
    for row, y in zip(rows, layers, strict=True):
        _dots(drawing, row, y)
    return [inputs, *layers, outputs]


def _bar(drawing: _Drawing, sides: tuple[float, float], y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    inset = 0.04
    drawing.axes.add_patch(
        FancyBboxPatch(
            (sides[0] + inset, y - _BAR / 2 + inset),
            sides[1] - sides[0] - 2 * inset,
            _BAR - 2 * inset,
            boxstyle=f"round,pad={inset}",
            facecolor=drawing.theme.faint,
            linewidth=0,
            zorder=2,
        )
    )


def _links(drawing: _Drawing, rows: Sequence[Sequence[_Dot]], heights: Sequence[float]) -> None:
    """A line joins two units of one subnet, so it has one colour; where there are weights, it is a weight held."""
    lines, colours = [], []
    for (above, y), (below, z) in pairwise(zip(rows, heights, strict=True)):
        for one, other in product(above, below):
            shared = sorted(set(one.subnets) & set(other.subnets))
            for colour in dict.fromkeys(map(drawing.colour, shared)):  # of many subnets most have one colour
                lines.append(_thread(one.x, y, other.x, z))
                colours.append(colour)
    _strokes(drawing, lines, colours, alpha=float(np.clip(240 / max(1, len(lines)), 0.07, 0.5)))


def _thread(x: float, y: float, to_x: float, to_y: float) -> np.ndarray:
    """A smooth line that leaves and arrives upright, so that threads can be followed."""
    t = np.linspace(0, 1, 24)
    ease = t * t * (3 - 2 * t)
    return np.column_stack((x + (to_x - x) * ease, y + (to_y - y) * t))


def _stems(drawing: _Drawing, row: Sequence[_Dot], y: float, edge: float) -> None:
    """From each unit to the inputs or outputs, which it has all of."""
    lines = [np.array([(dot.x, y), (dot.x, edge)]) for dot in row if dot.subnets]
    _strokes(drawing, lines, [drawing.colour(dot.subnets[0]) for dot in row if dot.subnets], alpha=0.6)


def _strokes(drawing: _Drawing, lines: Sequence[np.ndarray], colours: Sequence[str], alpha: float) -> None:
    from matplotlib.collections import LineCollection

    drawing.axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8, alpha=alpha, zorder=1))


def _dots(drawing: _Drawing, row: Sequence[_Dot], y: float) -> None:
    """Units as discs; one that several subnets hold is cut like a cake."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Wedge

    radius = 0.38 * min((b.x - a.x for a, b in pairwise(row)), default=_PITCH)
    discs, colours = [], []
    for dot in row:
        slices = [drawing.colour(subnet) for subnet in dot.subnets[:6]] or [drawing.theme.faint]
        for at, colour in enumerate(slices):
            turn = 360 / len(slices)
            discs.append(Wedge((dot.x, y), min(radius, 0.055), 90 + at * turn, 90 + (at + 1) * turn))
            colours.append(colour)
    drawing.axes.add_collection(PatchCollection(discs, facecolors=colours, linewidths=0, zorder=3))

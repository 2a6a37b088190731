"""One round as a drawing: the wide network, its units coloured by subnet, and the narrow networks they make.

Lengths are inches, and y grows downwards, as one reads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ist_fed.report.canvas import Picture, Theme, canvas
from ist_fed.report.holdings import held, sizes_of
from ist_fed.report.layers import Dot, Drawing, draw_network, height_of
from ist_fed.report.network import Network
from ist_fed.report.units import AXES, letter, spread
from ist_fed.rules import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _MARGIN = 7.2, 1.02  # the margin names the layers
_UNITS = 40  # shown of each axis
_PITCH = (_WIDTH - _MARGIN - 0.1) / _UNITS
_GAP, _NEAR = 0.95, 0.6  # between layers of the wide network, and of a narrow one
_HEAD, _FOOT = 0.62, 0.85  # above and below a network, for its words
_COLUMNS = 8  # narrow networks shown
_LETTERS = 11  # of an axis that the margin has room for


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
    lower = _HEAD + height_of(len(shown), _GAP) + 0.3
    height = lower + _HEAD + height_of(len(shown), _NEAR) + _FOOT
    figure = canvas(theme, _WIDTH, height, layout=None)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(height, 0))
    axes.set_axis_off()
    drawing = Drawing(axes=axes, theme=theme, plan=plan)
    rows = {axis: _row(plan, axis, size) for axis, size in shown.items()}

    drawing.title(0, f"On the server in round {round}: the whole network", _meaning(rows, shown, unit))
    _whole(drawing, rows, shown, _HEAD, len(sizes))
    drawing.title(lower, "On the clients", "each client holds one of these networks, and trains it on its own data")
    _parts(drawing, rows, sizes, lower + _HEAD, network)
    return figure


def _meaning(rows: Mapping[str, list[Dot]], sizes: Mapping[str, int], unit: str) -> str:
    every = all(len(rows[axis]) == size for axis, size in sizes.items())
    drawn = f"every {unit}" if every else f"a sample of the {unit}s"
    if any(len(dot.subnets) > 1 for row in rows.values() for dot in row):
        return f"{drawn}, in the colours of the subnets that hold it for this round"
    return f"{drawn}, in the colour of the subnet that it belongs to for this round"


def _row(plan: Plan, axis: str, size: int) -> list[Dot]:
    """The units of an axis that are shown, evenly spread; where subnets are disjoint, each with its due."""
    marks = held(plan, axis, size)
    shown = spread(size, _UNITS)
    if size > _UNITS and (marks.sum(axis=0) == 1).all():
        due = [np.flatnonzero(row) for row in marks]
        picks = [units[spread(len(units), max(1, round(_UNITS * len(units) / size)))] for units in due]
        shown = np.sort(np.concatenate(picks))
    pitch = (_WIDTH - _MARGIN - 0.1) / max(_UNITS, len(shown))
    start = _MARGIN + pitch * (max(_UNITS, len(shown)) - len(shown) + 1) / 2
    return [Dot(start + pitch * at, tuple(np.flatnonzero(marks[:, unit]).tolist())) for at, unit in enumerate(shown)]


def _whole(drawing: Drawing, rows: Mapping[str, list[Dot]], sizes: Mapping[str, int], top: float, axes: int) -> None:
    """The wide network, its layers named in the margin."""
    heights = draw_network(drawing, list(rows.values()), (_MARGIN, _WIDTH - 0.1), top, _GAP)
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
    drawing: Drawing, rows: Mapping[str, list[Dot]], sizes: Mapping[str, int], top: float, network: Network | None
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
        bottom = draw_network(drawing, own, (middle - widest, middle + widest), top, _NEAR)[-1]
        drawing.text(middle, bottom + 0.26, letter(subnet), 11, ha="center", weight="bold")
        lines = (_holders(drawing.plan.cohorts[subnet]), _share(drawing.plan, subnet, sizes, network))
        for at, text in enumerate(lines):
            letters = 9.5 if count < 6 else 7.5
            drawing.text(middle, bottom + 0.46 + 0.18 * at, text, letters, ha="center", color=drawing.theme.muted)
    if count > columns:
        middle, y = 0.1 + (columns + 0.5) * width, top + height_of(len(rows), _NEAR) / 2
        drawing.text(middle, y, f"and {count - columns}\nmore", 9, ha="center", color=drawing.theme.muted)


def _fit(row: Sequence[Dot], subnet: int, width: float) -> float:
    return (width - 0.22) / max(1, sum(subnet in dot.subnets for dot in row))


def _centred(row: Sequence[Dot], subnet: int, middle: float, pitch: float) -> list[Dot]:
    start = middle - pitch * (len(row) - 1) / 2
    return [Dot(start + pitch * at, (subnet,)) for at in range(len(row))]


def _holders(cohort: Sequence[int]) -> str:
    if len(cohort) == 1:
        return f"client {cohort[0]}"
    return f"clients {', '.join(map(str, sorted(cohort)))}" if len(cohort) <= 3 else f"{len(cohort):,} clients"


def _share(plan: Plan, subnet: int, sizes: Mapping[str, int], network: Network | None) -> str:
    own = sizes_of(plan, sizes)[subnet]
    if network is None:
        return f"{sum(own.values()) / sum(sizes.values()):.0%} of units"
    return f"{network.parameters(own) / network.parameters():.0%} of weights"

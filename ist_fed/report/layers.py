"""One network of the drawing of a round: units in rows between inputs and outputs, and lines for weights held.

Lengths are inches, and y grows downwards, as one reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from ist_fed.report.canvas import Theme, plain
from ist_fed.rules import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEM = 0.38  # from the first and last row of units to inputs and outputs
_BAR = 0.2  # height of inputs and outputs
_RADIUS = 0.055  # of a unit, where there is room


@dataclass(frozen=True)
class Dot:
    """One unit.

    Args:
        x: where it stands in its row.
        subnets: that hold it.
    """

    x: float
    subnets: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What every part of the drawing needs."""

    axes: "Axes"
    theme: Theme
    plan: Plan

    def colour(self, subnet: int) -> str:
        """The colour of a subnet."""
        return self.theme.colour(subnet, len(self.plan.subnets))

    def text(self, x: float, y: float, text: str, size: float, **style: str) -> None:
        """Write a line, its middle at this height; `size` in points."""
        style = {"color": self.theme.ink, "va": "center", **style}
        self.axes.text(x, y, plain(text), fontsize=size, **style)  # type: ignore[arg-type]

    def title(self, top: float, text: str, below: str) -> None:
        """Write the heading of a network, and a line below it."""
        self.text(0.1, top + 0.18, text, 12, weight="bold")
        self.text(0.1, top + 0.4, below, 9.5, color=self.theme.muted)


def height_of(layers: int, gap: float) -> float:
    """How high a network is with so many rows of units."""
    return 2 * (_BAR + _STEM) + (layers - 1) * gap


def draw_network(
    drawing: Drawing, rows: Sequence[Sequence[Dot]], sides: tuple[float, float], top: float, gap: float
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


def _bar(drawing: Drawing, sides: tuple[float, float], y: float) -> None:
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


def _links(drawing: Drawing, rows: Sequence[Sequence[Dot]], heights: Sequence[float]) -> None:
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


def _stems(drawing: Drawing, row: Sequence[Dot], y: float, edge: float) -> None:
    """From each unit to the inputs or outputs, which it has all of."""
    lines = [np.array([(dot.x, y), (dot.x, edge)]) for dot in row if dot.subnets]
    _strokes(drawing, lines, [drawing.colour(dot.subnets[0]) for dot in row if dot.subnets], alpha=0.6)


def _strokes(drawing: Drawing, lines: Sequence[np.ndarray], colours: Sequence[str], alpha: float) -> None:
    from matplotlib.collections import LineCollection

    drawing.axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8, alpha=alpha, zorder=1))


def _dots(drawing: Drawing, row: Sequence[Dot], y: float) -> None:
    """Units as discs; one that several subnets hold is cut like a cake."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Wedge

    radius = min([_RADIUS, *(0.38 * (b.x - a.x) for a, b in pairwise(row))])
    discs, colours = [], []
    for dot in row:
        slices = [drawing.colour(subnet) for subnet in dot.subnets[:6]] or [drawing.theme.faint]
        for at, colour in enumerate(slices):
            turn = 360 / len(slices)
            discs.append(Wedge((dot.x, y), radius, 90 + at * turn, 90 + (at + 1) * turn))
            colours.append(colour)
    drawing.axes.add_collection(PatchCollection(discs, facecolors=colours, linewidths=0, zorder=3))

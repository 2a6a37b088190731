"""Who held which units, round after round: a mosaic for each hidden axis."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ist_fed.report.canvas import Picture, Theme, canvas, frame, plain
from ist_fed.report.holdings import followed, held
from ist_fed.rules import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDS, AXES = 20, 4  # more than these say nothing new
_TILES = 32  # units shown of an axis; more could not be told apart
_DOT: dict[str, Any] = {"facecolors": "black", "edgecolors": "white", "linewidths": 0.5}  # seen on every tile
_STRIPES = 12  # a tile with 2, 3, 4 or 6 holders is cut into equal stripes


def letter(number: int) -> str:
    """What a subnet is called in pictures; letters, since clients have numbers."""
    return chr(ord("A") + number)


def spread(size: int, most: int) -> np.ndarray:
    """At most `most` units of an axis, evenly spread over it."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).round().astype(np.int64))


def units_picture(rounds: Sequence[int], plans: Sequence[Plan], sizes: Mapping[str, int]) -> Picture:
    """The first rounds of a run, the first axes of its network.

    Args:
        rounds: their numbers.
        plans: one for each round.
        sizes: units of each axis of the full network.
    """
    rounds, plans = rounds[:ROUNDS], plans[:ROUNDS]
    return Picture(
        "units",
        f"which subnet held which hidden unit in rounds {rounds[0]} to {rounds[-1]}",
        lambda theme: _units(theme, rounds, plans, dict(list(sizes.items())[:AXES])),
    )


def _units(theme: Theme, rounds: Sequence[int], plans: Sequence[Plan], sizes: Mapping[str, int]) -> "Figure":
    figure = canvas(theme, 7.2, 0.95 + 2.1 * len(sizes))
    rows = figure.subplots(len(sizes), 1, sharex=True, squeeze=False)[:, 0]
    count = max(len(plan.subnets) for plan in plans)
    colours = rgb([theme.colour(number, count) for number in range(count)])
    for axes, (axis, size) in zip(rows, sizes.items(), strict=True):
        shown = spread(size, _TILES)
        _tiles(frame(axes, theme), theme, mosaic(plans, axis, size, shown, colours, rgb([theme.faint])[0]), len(shown))
        _dots(axes, followed(plans), plans, axis, size, shown)
        axes.set_ylabel(plain(f"unit of {axis}"))
        ticks = np.unique(np.linspace(0, len(shown) - 1, 5).round().astype(int))
        axes.set_yticks(ticks, [str(shown[tick]) for tick in ticks])
    steps = [at for at in range(len(rounds)) if len(rounds) <= 10 or at == 0 or (at + 1) % 5 == 0]
    rows[-1].set_xticks(steps, [str(rounds[at]) for at in steps])
    rows[-1].set_xlabel("round")
    idle = any(not held(plan, axis, size).any(axis=0).all() for plan in plans for axis, size in sizes.items())
    _legend(figure, theme, count, idle, followed(plans))
    return figure


def rgb(colours: Sequence[str]) -> np.ndarray:
    """Colours as numbers from 0 to 1, `(colours, 3)`."""
    return np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])


def mosaic(
    plans: Sequence[Plan], axis: str, size: int, shown: np.ndarray, colours: np.ndarray, empty: np.ndarray
) -> np.ndarray:
    """Colours of one axis, `(units shown, rounds × stripes, 3)`.

    Args:
        plans: one for each round.
        axis: whose units.
        size: their number.
        shown: the units to show.
        colours: of each subnet, `(subnets, 3)`.
        empty: of a unit that nobody held.
    """
    image = np.tile(empty, (len(shown), len(plans) * _STRIPES, 1))
    for at, plan in enumerate(plans):
        for row, holders in enumerate(held(plan, axis, size)[:, shown].T):
            numbers = np.flatnonzero(holders)[:_STRIPES]
            if len(numbers):
                stripes = numbers[np.arange(_STRIPES) * len(numbers) // _STRIPES]
                image[row, at * _STRIPES : (at + 1) * _STRIPES] = colours[stripes]
    return image


def _tiles(axes: "Axes", theme: Theme, image: np.ndarray, units: int) -> None:
    rounds = image.shape[1] // _STRIPES
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(-0.5, rounds - 0.5, units - 0.5, -0.5))
    axes.grid(visible=False)
    gaps: dict[str, Any] = {"color": theme.paper, "zorder": 2}
    axes.hlines(np.arange(-0.5, units), -0.5, rounds - 0.5, linewidth=0.7, **gaps)
    axes.vlines(np.arange(-0.5, rounds), -0.5, units - 0.5, linewidth=2.0, **gaps)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _dots(axes: "Axes", client: int, plans: Sequence[Plan], axis: str, size: int, shown: np.ndarray) -> None:
    """Mark what one client held, to follow it through the rounds."""
    at, row = [], []
    for number, plan in enumerate(plans):
        if client in plan:
            rows = np.flatnonzero(held(plan, axis, size)[plan.subnet_of(client), shown])
            row.extend(rows.tolist())
            at.extend([number] * len(rows))
    axes.scatter(at, row, s=9, zorder=3, **_DOT)


def _legend(figure: "Figure", theme: Theme, count: int, idle: bool, client: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    named = count if count <= len(theme.palette) else len(theme.palette) - 1
    keys: list[Patch | Line2D] = [
        Patch(color=theme.colour(number, count), label=f"subnet {letter(number)}") for number in range(named)
    ]
    if named < count:
        keys.append(Patch(color=theme.others, label=f"{count - named} other subnets"))
    if idle:
        keys.append(Patch(color=theme.faint, label="nobody"))
    dot = {"linestyle": "", "marker": "o", "markersize": 5, "color": "black", "markeredgecolor": "white"}
    keys.append(Line2D([], [], label=f"held by client {client}", **dot))  # type: ignore[arg-type]
    figure.legend(
        handles=keys,
        loc="outside upper left",
        ncols=5,
        frameon=False,
        labelcolor=theme.ink,
        fontsize=9,
        handlelength=1.2,
        columnspacing=1.4,
    )

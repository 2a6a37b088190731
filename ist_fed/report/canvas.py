"""Colours and canvases. Every picture is drawn twice, for light pages and for dark ones, without global state."""

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ist_fed.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one page.

    Args:
        paper: behind everything.
        ink: of text.
        muted: of what matters less.
        faint: of grids and of what is empty.
        palette: of subnets and curves.
        others: of everything beyond the palette.
    """

    paper: str
    ink: str
    muted: str
    faint: str
    palette: tuple[str, ...]
    others: str

    def colour(self, number: int, count: int) -> str:
        """The colour of thing `number` of `count`; when the palette is too short, its last is shared by the rest."""
        if count <= len(self.palette):
            return self.palette[number]
        return self.palette[number] if number < len(self.palette) - 1 else self.others


# Source: Okabe and Ito, Color Universal Design, 2008: told apart with every kind of colour vision. Their blue stands
# first in each palette, a little lighter on dark paper.
_SAFE = ("#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")

LIGHT = Theme(
    paper="#ffffff",
    ink="#1d2129",
    muted="#646c78",
    faint="#e4e7ec",
    palette=("#0072B2", *_SAFE, "#454b54"),
    others="#b9bfc8",
)
DARK = Theme(
    paper="#1b1f26",
    ink="#e8eaee",
    muted="#9aa3b0",
    faint="#323945",
    palette=("#1f86cc", *_SAFE, "#dfe3e8"),
    others="#5d6673",
)


@dataclass(frozen=True)
class Picture:
    """A picture not drawn yet.

    Args:
        name: of its file, without suffix.
        alt: what it shows, for those who cannot see it.
        draw: makes it in a theme.
    """

    name: str
    alt: str
    draw: "Callable[[Theme], Figure]"


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, once for each theme."""

    picture: Picture
    light: bytes
    dark: bytes

    def urls(self) -> tuple[str, str]:
        """Light and dark as data URLs, so that a page needs no file beside it."""
        light, dark = (base64.b64encode(data).decode() for data in (self.light, self.dark))
        return f"data:image/png;base64,{light}", f"data:image/png;base64,{dark}"


def draw(picture: Picture) -> Drawn:
    """Draw a picture in both themes.

    Raises:
        RunError: matplotlib is not installed.
    """
    return Drawn(picture, png(picture.draw(LIGHT)), png(picture.draw(DARK)))


def canvas(theme: Theme, width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """An empty figure, its sides in inches.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError("a report is drawn with matplotlib, which is missing: pip install 'ist_fed[report]'") from error
    return Figure(figsize=(width, height), dpi=160, facecolor=theme.paper, layout=layout)  # type: ignore[arg-type]


def frame(axes: "Axes", theme: Theme) -> "Axes":
    """Give axes the theme: two spines, a grid for reading values off, quiet ticks."""
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=9, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    return axes


def plain(text: str) -> str:
    """Text that matplotlib prints as it stands: no mathematics, and not left out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def png(figure: "Figure") -> bytes:
    """The figure as a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image  # matplotlib needs it, so it is there

    drawing: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a run may be named in any script
        drawing.draw()
    pixels = Image.fromarray(np.asarray(drawing.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    # 256 colours take a third of the bytes, and nobody sees the difference.
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, format="png")
    return buffer.getvalue()

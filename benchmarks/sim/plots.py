"""The pictures of `docs/benchmarks.md`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WAYS, SCALING = "sim-ways.png", "sim-scaling.png"
KNOWN = {WAYS: "where factored stops paying", SCALING: "seconds a client over the number of clients"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def ways(found: Mapping[tuple[int, int, int], Mapping[str, Any]], clients: int, path: Path) -> None:
    """Left: seconds of a round over the work, a colour for a width. Right: how many times as fast factored is."""
    pyplot = _pyplot()
    figure, (lines, cells) = pyplot.subplots(1, 2, figsize=(12, 4.6), gridspec_kw={"width_ratios": (1, 1.15)})
    widths = sorted({width for width, _, _ in found})
    work = sorted({(steps, batch) for _, steps, batch in found}, key=lambda pair: (pair[0] * pair[1], pair))
    for colour, width in enumerate(widths[::2]):
        known = [(steps * batch, found[width, steps, batch]) for steps, batch in work if (width, steps, batch) in found]
        across = [rows for rows, _ in known]
        for way, style in (("stacked", "--o"), ("factored", "-s")):
            times = [each[way] for _, each in known]
            label = f"{way}, {width} units"
            lines.plot(across, times, style, color=f"C{colour}", label=label, markersize=4)
    ticks = sorted({steps * batch for steps, batch in work})
    lines.set(xscale="log", yscale="log", xlabel="steps × batch (rows that a factor has)", ylabel="seconds a round")
    lines.set_xticks(ticks, [str(tick) for tick in ticks])
    lines.minorticks_off()
    lines.legend(fontsize=8)
    lines.set_title(f"{clients} clients, MLP 784-w-w-10, one thread", fontsize=10)
    _cells(figure, cells, found, widths, work)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cells(figure: Any, cells: Any, found: Mapping[Any, Any], widths: list[int], work: list[tuple[int, int]]) -> None:
    from matplotlib.colors import LogNorm

    gains = [
        [found.get((width, steps, batch), {}).get("gain", float("nan")) for steps, batch in work] for width in widths
    ]
    picture = cells.imshow(gains, norm=LogNorm(1 / 8, 8), cmap="RdBu", origin="lower", aspect="auto")
    for row, width in enumerate(widths):
        for column, (steps, batch) in enumerate(work):
            if each := found.get((width, steps, batch)):
                mark = f"\nauto {each['stacked'] / each['auto']:.2g} ×" if each["auto"] else ""
                ink = "white" if not 1 / 3.5 < each["gain"] < 3.5 else "black"
                cells.text(column, row, f"{each['gain']:.2g} ×{mark}", ha="center", va="center", fontsize=7, color=ink)
    cells.set_xticks(range(len(work)), [f"{steps} × {batch}" for steps, batch in work])
    cells.set_yticks(range(len(widths)), [str(width) for width in widths])
    cells.set(xlabel="steps × batch", ylabel="hidden units w")
    cells.set_title("how many times as fast as stacked: factored, and auto", fontsize=10)
    bar = figure.colorbar(picture, ax=cells, ticks=[0.125, 0.25, 0.5, 1, 2, 4, 8])
    bar.ax.set_yticklabels(["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.ax.minorticks_off()


def scaling(found: Mapping[str, Mapping[int, float]], names: Mapping[str, str], path: Path) -> None:
    """What a client costs of each kind, over the least of the kind, and the band of 20 % that it is to stay in."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    axes.axhspan(1, 1.2, color="tab:green", alpha=0.15, label="within 20 %")
    for kind, each in found.items():
        cheapest = min(each.values())
        label = f"{names[kind]}: {1e6 * cheapest:.0f} µs"
        axes.plot(list(each), [seconds / cheapest for seconds in each.values()], "o-", label=label)
    axes.set(xscale="log", xlabel="clients a round", ylabel="a client's time, over the cheapest", ylim=(0, None))
    axes.set_title("what a client costs by their number, one thread", fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)

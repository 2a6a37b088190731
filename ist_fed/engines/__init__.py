"""Where the clients run. An engine takes a run and trains it; they differ only in the Grid."""

from collections.abc import Callable
from functools import partial

from ist_fed.engines import local, simulation

Engine = Callable[..., None]
"""Trains a run: `engine(run, resume=False, on_line=…)` calls `on_line` with each round's line of metrics. An engine in
this process also takes `memory`, the bytes that clients trained at once may take."""

ENGINES: dict[str, Engine] = {
    "auto": local.simulate,
    "inprocess": local.one_by_one,
    "stacked": partial(local.simulate, only="stacked"),
    "factored": partial(local.simulate, only="factored"),
    "ray": simulation.simulate,
}
"""Name on the command line → engine."""

__all__ = ["ENGINES", "Engine"]

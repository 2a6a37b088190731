"""Where the clients run. An engine takes a run and trains it; they differ only in the Grid."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from ist_fed.engines import local, simulation
from ist_fed.federation import Line
from ist_fed.run import Run


class Engine(Protocol):
    """Trains a run, and calls `on_line` with each round's line of metrics."""

    def __call__(self, run: Run, *, resume: bool = False, on_line: Callable[[Line], None] = ...) -> None:
        """Train until the last round, or go on from the newest checkpoint."""
        ...


ENGINES: dict[str, Engine] = {
    "auto": local.simulate,
    "inprocess": local.one_by_one,
    "stacked": partial(local.simulate, only="stacked"),
    "factored": partial(local.simulate, only="factored"),
    "ray": simulation.simulate,
}
"""Name on the command line → engine."""

__all__ = ["ENGINES", "Engine"]

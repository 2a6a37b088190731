"""The results file: what was measured so far, and how contestants compare in it."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench_core import RESULTS
from stage import save

from sim import plots
from sim.turn import Turn, take_turn


class Book:
    """The results file: turns by what was measured, in order of cycles.

    Args:
        path: of the file; turns that it holds are not taken again.
        fresh: forget them.
        device: where product and loops compute.
        summary: what the file says.
    """

    def __init__(self, path: Path, fresh: bool, device: str, summary: Callable[["Book"], Mapping[str, Any]]) -> None:
        self._path, self.device, self._summary = path, device, summary
        self.images = plots.IMAGES if path.parent == RESULTS else path.parent  # a trial run leaves the docs alone
        kept = json.loads(path.read_text()) if path.exists() and not fresh else {}
        self.raw: dict[str, dict[str, Turn]] = {}
        for key, turns in kept.get("raw", {}).items():  # what failed is tried again
            self.raw[key] = {cycle: turn for cycle, turn in turns.items() if "failed" not in turn}

    def turn(self, key: str, cycle: int, module: str, order: Mapping[str, Any], **more: Any) -> None:
        """Take a turn, unless it has been taken, and save it; a failure is noted, and counts as taken."""
        turns = self.raw.setdefault(key, {})
        if str(cycle) in turns or any("failed" in turn for turn in turns.values()):
            return
        try:
            turns[str(cycle)] = take_turn(module, {**order, "device": self.device}, **more)
        except RuntimeError as error:
            turns[str(cycle)] = {"failed": str(error)}
        said = {name: value for name, value in turns[str(cycle)].items() if name != "said"}
        print(f"cycle {cycle}  {key:60} {said}", flush=True)
        self.write()

    def write(self) -> None:
        save(self._path, self._summary(self))

    def seconds(self, key: str) -> dict[str, float]:
        """Cycle → seconds of a round."""
        return {cycle: turn["seconds"] for cycle, turn in self.raw.get(key, {}).items() if "seconds" in turn}

    def median(self, key: str, what: str = "seconds") -> float | None:
        found = [turn[what] for turn in self.raw.get(key, {}).values() if turn.get(what) is not None]
        return statistics.median(found) if found else None

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times as fast one is as another: the median over the cycles in which both took their turns."""
        one, other = self.seconds(slower), self.seconds(faster)
        ratios = [one[cycle] / other[cycle] for cycle in one if cycle in other]
        return statistics.median(ratios) if ratios else None

    def reason(self, key: str) -> str | None:
        return next((turn["failed"] for turn in self.raw.get(key, {}).values() if "failed" in turn), None)

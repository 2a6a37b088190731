"""Where the time of a run goes: a trace of one round, and a table by phase."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ist_fed.run import Run

PHASES = {
    "assign": "deal units out",
    "extract": "cut subnets",
    "train": "local steps",
    "merge": "check and merge",
    "other": "else, of carrying out the round",
    "evaluate": "recalibrate and evaluate",
    "record": "metrics and checkpoints",
}

_TRACED = 2  # the first round also makes the clients


class Profiler:
    """Traces one round of a run in this process; see it in `chrome://tracing` or Perfetto.

    Args:
        run: its folder gets `trace.json`.
        seen: rounds done before.
    """

    def __init__(self, run: Run, seen: int = 0) -> None:
        self._run, self._round = run, seen + min(_TRACED, run.scenario.rounds - seen)
        gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._on = False
        if self._round == seen + 1:
            self._start()

    def line(self, line: dict[str, Any]) -> None:
        """A round is over."""
        if line["round"] == self._round and self._on:
            self._profile.stop()
            self._profile.export_chrome_trace(str(self.trace))
        elif line["round"] == self._round - 1:
            self._start()

    @property
    def trace(self) -> Path:
        """The trace's file."""
        return self._run.folder / "trace.json"

    def _start(self) -> None:
        self._profile.start()
        self._on = True


def both(one: Callable[[Any], None], other: Callable[[Any], None]) -> Callable[[Any], None]:
    """Two calls for one."""

    def call(given: Any) -> None:
        one(given)
        other(given)

    return call


def phases(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of a round by phase, each the median over rounds; the first is left out where there are others."""
    rounds = []
    for line in lines[1:] or lines:
        seconds = dict(line["seconds"])
        wait = seconds.get("wait", 0.0)  # a private run does not tell
        seconds["other"] = max(0.0, wait - seconds.get("train", 0.0) - seconds.get("merge", 0.0))
        rounds.append(seconds)
    return {phase: statistics.median(seconds.get(phase, 0.0) for seconds in rounds) for phase in PHASES}


def print_phases(run: Run, trace: Path) -> None:
    """The table, and where the trace is."""
    found = phases(run.metrics())
    whole = sum(found.values()) or 1.0
    table = Table("phase", "", "ms a round", "share", title="where the time goes (medians)")
    for phase, seconds in found.items():
        table.add_row(phase, PHASES[phase], f"{1000 * seconds:.2f}", f"{seconds / whole:.1%}")
    Console(highlight=False).print(table)
    print(f"trace   {trace}")

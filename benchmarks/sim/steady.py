"""Resident memory of a long run of a tiny scenario, as `ist-fed simulate` runs it, checkpoints and metrics and all."""

import os
import tempfile
from pathlib import Path

import torch

from ist_fed.engines.local import simulate
from ist_fed.federation import Line
from ist_fed.run import Run
from ist_fed.scenario import load_scenario
from sim.workload import order, report

MARKS = (200, 500, 1000, 1500, 2000)
SCENARIO = Path(__file__).parents[2] / "scenarios" / "digits.toml"


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    marks = order().get("marks", MARKS)
    torch.set_num_threads(1)
    tiny = [f"rounds={max(marks)}", "sizes={hidden1=64,hidden2=64}", "local_steps=1", "device=cpu"]
    found: dict[int, float] = {}

    def watch(line: Line) -> None:
        if line["round"] in marks:
            found[line["round"]] = resident_mb()

    with tempfile.TemporaryDirectory() as folder:
        simulate(Run.create(Path(folder, "run"), load_scenario(SCENARIO, tiny)), on_line=watch)
    report([0.0], resident=found)


if __name__ == "__main__":
    main()

"""What the in-process engine adds to local training.

    python benchmarks/bench_overhead.py

*Per client*: a whole round (deal, cut, hand out, take back, check, merge) with clients that return their subnets as
they came, divided by their number; the median of 3 to 300 rounds after a first, in the fastest and the slowest of five
cycles in which the sizes take turns: the machine's speed changes by half from one minute to the next. *Share*: of the
rounds of `scenarios/digits.toml`, the part that is not local training by the clients' own clocks; evaluation,
checkpoints and metrics are counted as overhead.
"""

import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from bench_core import RESULTS, machine

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.cohort import Assignment, Outcome
from ist_fed.engines.local import LocalGrid
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.flat import joined
from ist_fed.run import Run
from ist_fed.scenario import load_scenario
from ist_fed.tasks.digits import Digits
from ist_fed.worker import Worker

CLIENTS = (10, 100, 1000)
ASKED, CYCLES = 3000, 5  # clients that are asked in all rounds of a cycle: as many of every size
SIZES = {"hidden1": 160, "hidden2": 160}
SCENARIO = Path(__file__).parents[1] / "scenarios" / "digits.toml"


class Echo(LocalGrid):
    """Clients that return their subnets as they came."""

    def _alone(self, asked: Assignment, node: int, weight: float) -> Outcome:
        return Outcome(
            assignment=asked, nodes=(node,), losses=np.zeros(1), seconds=0.0, arrays=joined(asked.arrays), weight=weight
        )


def per_client(clients: int) -> float:
    """Milliseconds of one round for each client, the median of a cycle's rounds."""
    task, marks = Digits(), list[float]()
    strategy = IndependentSubnetTraining(
        build=task.build,
        sizes=SIZES,
        rule=rules.Disjoint(groups=10),
        on_round=lambda report: marks.append(time.perf_counter()),
    )
    data = task.client_data(0, 10)
    grid = Echo(clients, lambda client: Worker(task, data, client=client), task, torch.device("cpu"), only="one by one")
    # In the first round the clients are made and introduce themselves.
    strategy.start(grid, wire.to_record(arrays_of(task.build(**SIZES))), num_rounds=1 + ASKED // clients)
    return statistics.median(after - before for before, after in pairwise(marks)) / clients * 1000


def share(steps: int) -> float:
    """Of the time of a digits run's rounds of so many local steps, the part that is not local training; the median."""
    scenario = load_scenario(SCENARIO, [f"local_steps={steps}", "record.tensorboard=false", "device=cpu"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder, "run"), scenario)
        marks = [time.perf_counter()]
        simulate(run, on_line=lambda line: marks.append(time.perf_counter()))
        trained = [line["seconds"]["train"] for line in run.metrics()]
    took = [after - before for before, after in pairwise(marks)]
    return statistics.median(1 - inner / whole for inner, whole in list(zip(trained, took, strict=True))[2:])


def main() -> None:
    torch.set_num_threads(1)
    cycles = [[per_client(clients) for clients in CLIENTS] for _ in range(CYCLES)]  # sizes take turns
    rows = []
    for clients, column in zip(CLIENTS, zip(*cycles, strict=True), strict=True):
        what = f"engine and strategy at {clients} clients, ms per client and round"
        rows.append([what, f"{min(column):.3f} to {max(column):.3f}", "≤ 0.3"])
    for steps in (40, 10):
        what = f"share of a digits round of {steps} local steps that is not local training"
        rows.append([what, f"{share(steps):.1%}", "≤ 10 %" if steps == 40 else ""])
    results = {
        "title": "Overhead of the in-process engine",
        "machine": machine(),
        "command": "make bench-core",
        "columns": ["what", "measured", "target"],
        "rows": rows,
        "notes": [__doc__.split("\n\n", 2)[2].strip()],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overhead.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    for what, measured, target in rows:
        print(f"{what:70} {measured:>14}   target {target}")


if __name__ == "__main__":
    main()

"""What the in-process engine adds to local training.

    python benchmarks/bench_overhead.py

*Per client*: a whole round (deal, cut, pack, send, receive, check, merge) with a client that returns its subnet as it
came, divided by the number of clients. *Share*: of the rounds of `scenarios/digits.toml`, the part that is not local
training by the clients' own clocks; evaluation, checkpoints and metrics are counted as overhead.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench_core import RESULTS, machine
from flwr.app import Message

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.engines.inprocess import InProcessGrid, simulate
from ist_fed.models import mlp
from ist_fed.run import Run
from ist_fed.scenario import load_scenario

CLIENTS = (10, 100, 1000)
ROUNDS, CYCLES = 5, 5
SIZES = {"hidden1": 160, "hidden2": 160}
SCENARIO = Path(__file__).parents[1] / "scenarios" / "digits.toml"


class Echo:
    """A client that returns what it got."""

    def __init__(self, client: int) -> None:
        self._profile = wire.Profile(client=client, examples=1)

    def query(self, message: Message) -> Message:
        return wire.profile_answer(self._profile, reply_to=message)

    def train(self, message: Message) -> Message:
        order = wire.open_order(message)
        return wire.reply_message(order, order.arrays, loss=0.0, seconds=0.0, reply_to=message)


def per_client(clients: int) -> float:
    """Milliseconds of one round for each client."""
    build = mlp(64, 10)
    strategy = IndependentSubnetTraining(build=build, sizes=SIZES, rule=rules.Disjoint(groups=10))
    grid, start = InProcessGrid(clients, Echo), wire.to_record(arrays_of(build(**SIZES)))
    strategy.start(grid, start, num_rounds=1)  # the clients are made and introduce themselves
    began = time.perf_counter()
    strategy.start(grid, start, num_rounds=ROUNDS)
    return (time.perf_counter() - began) / ROUNDS / clients * 1000


def share() -> float:
    """Of the time of a digits round, the part that is not local training; the median over the rounds."""
    scenario = load_scenario(SCENARIO, ["rounds=12", "record.tensorboard=false", "device=cpu"])
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder, "run"), scenario)
        marks = [time.perf_counter()]
        simulate(run, on_line=lambda line: marks.append(time.perf_counter()))
        trained = [line["seconds"]["train"] for line in run.metrics()]
    took = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    return statistics.median(1 - inner / whole for inner, whole in list(zip(trained, took, strict=True))[2:])


def main() -> None:
    torch.set_num_threads(1)
    cycles = [[per_client(clients) for clients in CLIENTS] for _ in range(CYCLES)]  # sizes take turns
    rows = [
        [f"overhead at {clients} clients, ms per client and round", round(statistics.median(column), 3), "≤ 0.3"]
        for clients, column in zip(CLIENTS, zip(*cycles, strict=True), strict=True)
    ]
    rows.append(["share of a digits round that is not local training", f"{share():.1%}", "≤ 10 %"])
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
        print(f"{what:60} {measured:>8}   target {target}")


if __name__ == "__main__":
    main()

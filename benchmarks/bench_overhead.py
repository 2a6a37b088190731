"""What the in-process engine adds to local training.

    python benchmarks/bench_overhead.py

*Per client*: a whole round (deal, cut, pack, send, receive, check, merge) with a client that returns its subnet as it
came, divided by the number of clients; what the client itself spends on opening and packing is shown apart. *Share*: of
the rounds of `scenarios/digits.toml`, the part that is not local training by the clients' own clocks; evaluation,
checkpoints and metrics are counted as overhead.
"""

import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from bench_core import RESULTS, machine
from flwr.app import Message

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.models import mlp
from ist_fed.run import Run
from ist_fed.scenario import load_scenario

CLIENTS = (10, 100, 1000)
ROUNDS, CYCLES = 5, 5
SIZES = {"hidden1": 160, "hidden2": 160}
SCENARIO = Path(__file__).parents[1] / "scenarios" / "digits.toml"


class Echo:
    """A client that opens its order and packs it again as it came; it counts the time that takes."""

    spent = 0.0

    def __init__(self, client: int) -> None:
        self._profile = wire.Profile(client=client, examples=1)

    def query(self, message: Message) -> Message:
        return wire.profile_answer(self._profile, reply_to=message)

    def train(self, message: Message) -> Message:
        began = time.perf_counter()
        order = wire.open_order(message)
        reply = wire.reply_message(order, order.arrays, loss=0.0, seconds=0.0, reply_to=message)
        Echo.spent += time.perf_counter() - began
        return reply


def per_client(clients: int) -> tuple[float, float]:
    """Milliseconds of one round for each client: of the engine and the strategy, and of the client itself."""
    build = mlp(64, 10)
    strategy = IndependentSubnetTraining(build=build, sizes=SIZES, rule=rules.Disjoint(groups=10))
    grid, start = InProcessGrid(clients, Echo), wire.to_record(arrays_of(build(**SIZES)))
    strategy.start(grid, start, num_rounds=1)  # the clients are made and introduce themselves
    Echo.spent, began = 0.0, time.perf_counter()
    strategy.start(grid, start, num_rounds=ROUNDS)
    whole = time.perf_counter() - began
    return tuple(seconds / ROUNDS / clients * 1000 for seconds in (whole - Echo.spent, Echo.spent))


def share(steps: int) -> float:
    """Of the time of digits rounds of so many local steps, the part that is not local training; the median."""
    scenario = load_scenario(SCENARIO, ["rounds=12", f"local_steps={steps}", "record.tensorboard=false", "device=cpu"])
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
        engine, client = (round(statistics.median(values), 3) for values in zip(*column, strict=True))
        rows.append([f"engine and strategy at {clients} clients, ms per client and round", engine, "≤ 0.3"])
        rows.append([f"a client's opening and packing at {clients} clients, ms", client, ""])
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
        print(f"{what:70} {measured:>8}   target {target}")


if __name__ == "__main__":
    main()

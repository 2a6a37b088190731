"""Bytes until 97 % and final accuracy on real digits: Independent Subnet Training against federated averaging.

    python benchmarks/bench_bytes.py            # about an hour on two cores; goes on where it was stopped
    python benchmarks/bench_bytes.py --fresh    # forget finished runs
    python benchmarks/bench_bytes.py --quick    # a minute, to see that it works; writes nothing

`scenarios/digits.toml` (MLP 64-512-512-10 with BatchNorm, 8 clients, 40 rounds of 40 steps, batch 32, SGD with momentum
0.9) with a cosine learning rate, run in process by the product itself. Bytes are those that the strategy counted on the
wire, down and up, divided by the clients, summed up to the first round whose network is right on 97 % of the test
images. A run's final accuracy is the mean over its last 5 rounds.

Every method gets its own learning rate, chosen on seeds that are not reported, by one rule: of the rates whose mean
final accuracy is within 0.3 points of the method's best, the one with the fewest mean bytes until 97 %, then the more
accurate. A rate at the edge of those tried brings in the next one of the ladder. IST has a second number to choose, how
long it keeps a draw of subnets while the clients move on: one round, or until every client has trained every subnet
once or twice. The same rule chooses it with the rate, on the same seeds.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from bench_core import RESULTS, machine
from stage import Kept

from ist_fed.engines.local import one_by_one as simulate
from ist_fed.errors import RoundError
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario

SCENARIO = Path(__file__).parents[1] / "scenarios" / "digits.toml"
FIXED = ("training.schedule=cosine", "record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu")
TARGET = 0.97
SEEDS, TUNING_SEEDS = (1, 2, 3, 4, 5), (101, 102, 103, 104)
MORE_SEEDS = tuple(range(201, 211))
LADDER, START = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (0.03, 0.1, 0.3)
STEPS, ROUNDS = 40, 40
OTHER_STEPS, OTHER_ROUNDS = (10, 20), 20


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the tables.

    Args:
        name: in the tables and in the results file.
        overrides: of the scenario.
    """

    name: str
    overrides: tuple[str, ...]


FEDAVG = Method(name="FedAvg", overrides=('rule={name="full"}',))


def kept(n: int, rounds: int) -> Method:
    """IST with n subnets, a draw of which is kept for so many rounds."""
    often = "dealt anew every round" if rounds == 1 else f"draw kept {rounds} rounds"
    return Method(name=f"IST n={n}, {often}", overrides=(f'rule={{name="disjoint",groups={n},keep={rounds}}}',))


FORMS = {n: (kept(n, 1), kept(n, n), kept(n, 2 * n)) for n in (4, 8)}
"""Subnets → the forms that IST is chosen from; of equals the first."""
COMPARED = (FEDAVG, *FORMS[4], *FORMS[8])
PROMISED = {4: 8, 8: 20}
"""Subnets → how many times fewer bytes."""
ABLATIONS = (
    Method(name="no repartition", overrides=('rule={name="disjoint",groups=8,keep=1000,rotate=false}',)),
    Method(name="one draw, clients move on", overrides=('rule={name="disjoint",groups=8,keep=1000}',)),
    Method(name="no normalisation", overrides=(*FORMS[8][0].overrides, 'options={norm="none"}')),
)


# --- Running ----------------------------------------------------------------------------------------------------------


class Bench(Kept):
    """Runs that are not in the results file yet, as many at once as there are cores; written after each."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        super().__init__(path, fresh=fresh)
        self._workers = ProcessPoolExecutor(
            len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
        )

    def runs(
        self, method: Method, lr: float, seeds: Sequence[int], steps: int = STEPS, rounds: int = ROUNDS
    ) -> list[dict[str, Any]]:
        """One run a seed."""
        keys = [f"{method.name} | {rounds} rounds of {steps} | lr {lr:g} | seed {seed}" for seed in seeds]
        begun = {
            key: self._workers.submit(measure, overrides_of(method, lr, seed, steps, rounds))
            for key, seed in zip(keys, seeds, strict=True)
            if key not in self.results["runs"]
        }
        for key, run in begun.items():
            done = self.results["runs"][key] = run.result()
            mb = "not reached" if done["mb"] is None else f"{done['mb']:.3f} MB"
            print(f"{key:84} {mb:>12} {100 * done['final']:6.2f} %", flush=True)
            self.save()
        return [self.results["runs"][key] for key in keys]


def overrides_of(method: Method, lr: float, seed: int, steps: int, rounds: int) -> list[str]:
    return [*method.overrides, f"local_steps={steps}", f"rounds={rounds}", f"training.lr={lr}", f"seed={seed}", *FIXED]


def measure(overrides: Sequence[str]) -> dict[str, Any]:
    """Run the scenario, and read what it wrote."""
    scenario = parse_scenario(SCENARIO.read_text(encoding="utf-8"), overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder, "run"), scenario)
        with contextlib.suppress(RoundError):  # every client's loss or weights ceased to be finite
            simulate(run)
        lines = run.metrics()
    accuracy = [line["accuracy"] for line in lines] + [0.0] * (scenario.rounds - len(lines))
    bytes = [(line["bytes_down"] + line["bytes_up"]) / scenario.clients for line in lines]
    reached = next((number for number, value in enumerate(accuracy, 1) if value >= TARGET), None)
    return {
        "reached": reached,
        "mb": None if reached is None else sum(bytes[:reached]) / 1e6,
        "mb_per_round": bytes[0] / 1e6 if bytes else None,
        "final": statistics.mean(accuracy[-5:]),
        "accuracy": [round(value, 4) for value in accuracy],
    }


# --- Choosing the learning rate ---------------------------------------------------------------------------------------


def tune(bench: Bench, method: Method) -> dict[float, list[dict[str, Any]]]:
    """The tuning runs of a method, at enough learning rates that none of the choices below is at the edge."""
    tried = list(START)
    while True:
        runs = {lr: bench.runs(method, lr, TUNING_SEEDS) for lr in tried}
        places = [LADDER.index(choice(runs)) for choice in (choose, fewest_bytes, most_accurate)]
        wider = sorted({*tried, *(lr for at in places for lr in LADDER[max(0, at - 1) : at + 2])})
        if wider == tried:
            return runs
        tried = wider


Key = TypeVar("Key", bound=Hashable)
Tuning = Mapping[Key, Sequence[Mapping[str, Any]]]


def choose(runs: Tuning[Key]) -> Key:
    """What to run, by the rule at the top of this file."""
    best = max(final(some) for some in runs.values())
    return fewest_bytes({key: some for key, some in runs.items() if final(some) >= best - 0.003})


def fewest_bytes(runs: Tuning[Key]) -> Key:
    return min(runs, key=lambda key: (statistics.mean(megabytes(runs[key])), -final(runs[key])))


def most_accurate(runs: Tuning[Key]) -> Key:
    return max(runs, key=lambda key: final(runs[key]))


def of_all(forms: Sequence[Method], tuning: Mapping[str, Tuning[float]]) -> dict[tuple[Method, float], Any]:
    """The tuning runs of several forms, by form and learning rate."""
    return {(form, lr): runs for form in forms for lr, runs in tuning[form.name].items()}


def final(runs: Sequence[Mapping[str, Any]]) -> float:
    return statistics.mean(run["final"] for run in runs)


def megabytes(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [math.inf if run["mb"] is None else run["mb"] for run in runs]


# --- Saying what came out ---------------------------------------------------------------------------------------------


def row(method: Method, lr: float, runs: Sequence[dict[str, Any]], fedavg: Sequence[dict[str, Any]]) -> list[Any]:
    mine, theirs = megabytes(runs), megabytes(fedavg)
    rounds = [math.inf if run["reached"] is None else run["reached"] for run in runs]
    accuracy = [100 * run["final"] for run in runs]
    gap = statistics.median(accuracy) - 100 * statistics.median(run["final"] for run in fedavg)
    return [
        method.name,
        f"{lr:g}",
        f"{runs[0]['mb_per_round']:.3f}",
        spread(rounds, 0),
        spread(mine, 3),
        times(statistics.median(theirs), statistics.median(mine)),
        times(statistics.mean(theirs), statistics.mean(mine)),
        spread(accuracy, 2),
        f"{gap:+.2f}",
    ]


COLUMNS = [
    "method",
    "lr",
    "MB a round",
    "rounds to 97 %",
    "MB to 97 %",
    "fewer, medians",
    "fewer, means",
    "final accuracy, %",
    "against FedAvg",
]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A method's runs over the reported seeds: those that bytes are read from, and those that accuracy is."""

    bytes_lr: float
    bytes: Sequence[dict[str, Any]]
    accuracy_lr: float
    accuracy: Sequence[dict[str, Any]]


def pair(bench: Bench, method: Method, bytes_lr: float, accuracy_lr: float, seeds: Sequence[int] = SEEDS) -> Pair:
    return Pair(
        bytes_lr=bytes_lr,
        bytes=bench.runs(method, bytes_lr, seeds),
        accuracy_lr=accuracy_lr,
        accuracy=bench.runs(method, accuracy_lr, seeds),
    )


def strict_row(method: Method, mine: Pair, fedavg: Pair) -> list[Any]:
    name, lr, _, *bytes = row(method, mine.bytes_lr, mine.bytes, fedavg.bytes)[:7]
    return [
        name,
        lr,
        *bytes,
        f"{mine.accuracy_lr:g}",
        *row(method, mine.accuracy_lr, mine.accuracy, fedavg.accuracy)[7:],
    ]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and the range over the seeds."""
    low, middle, high = (
        "never" if math.isinf(value) else f"{value:.{digits}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def times(theirs: float, mine: float) -> str:
    return "–" if math.isinf(mine) else f"{theirs / mine:.1f} ×"


def verdict(method: Method, target: float, mine: Pair, fedavg: Pair) -> str:
    """Whether the promise of `target` was kept, in words."""
    ours, theirs = megabytes(mine.bytes), megabytes(fedavg.bytes)
    median = statistics.median(theirs) / statistics.median(ours)
    mean = statistics.mean(theirs) / statistics.mean(ours)
    met = (
        "met"
        if min(median, mean) >= target
        else "met by one of the two only"
        if max(median, mean) >= target
        else "MISSED"
    )
    gaps = [
        round(100 * (of([run["final"] for run in mine.accuracy]) - of([run["final"] for run in fedavg.accuracy])), 3)
        for of in (statistics.median, statistics.mean)
    ]
    near = "met" if min(gaps) >= -0.5 else "met by one of the two only" if max(gaps) >= -0.5 else "MISSED"
    return (
        f"{method.name}: ≥ {target} × fewer bytes: {median:.1f} × by medians, {mean:.1f} × by means, {met}; final "
        f"accuracy within 0.5 points: {gaps[0]:+.2f} by medians, {gaps[1]:+.2f} by means, {near}."
    )


def sensitivity(bench: Bench, methods: Sequence[Method]) -> list[list[Any]]:
    """Bytes to 97 % at other numbers of local steps, on the tuning seeds, a learning rate chosen for each."""
    rows = []
    for method in methods:
        line: list[Any] = [method.name]
        for steps in OTHER_STEPS:
            runs = {lr: bench.runs(method, lr, TUNING_SEEDS, steps, OTHER_ROUNDS) for lr in START}
            line.append(cell(runs))
        runs = {lr: bench.runs(method, lr, TUNING_SEEDS) for lr in START}
        rows.append([*line, cell(runs)])
    return rows


def cell(runs: Tuning[float]) -> str:
    lr = choose(runs)
    return f"{spread(megabytes(runs[lr]), 2)}, lr {lr:g}"


def quick() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder, "bytes.json"), fresh=True)
        for method in (*COMPARED, *ABLATIONS):
            bench.runs(method, 0.1, SEEDS[:1], steps=10, rounds=3)


def compare(bench: Bench) -> None:
    """Choose, run what is reported, and write every table."""
    tuning = {each.name: tune(bench, each) for each in COMPARED}
    best = {n: choose(of_all(forms, tuning)) for n, forms in FORMS.items()}
    promised = {n: form for n, (form, _) in best.items()}
    shown = (FEDAVG, *promised.values())
    rates = {each.name: choose(tuning[each.name]) for each in COMPARED} | {form.name: lr for form, lr in best.values()}
    chosen = {each.name: pair(bench, each, *[rates[each.name]] * 2) for each in COMPARED}

    def rows(methods: Sequence[Method], pairs: Mapping[str, Pair]) -> list[list[Any]]:
        fedavg = pairs[FEDAVG.name].bytes
        return [row(each, pairs[each.name].bytes_lr, pairs[each.name].bytes, fedavg) for each in methods]

    def verdicts(pairs: Mapping[str, Pair]) -> list[str]:
        return [verdict(form, PROMISED[n], pairs[form.name], pairs[FEDAVG.name]) for n, form in promised.items()]

    def add(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        bench.results["tables"].append({"title": title, "columns": columns, "rows": rows})
        bench.save()

    # title, machine, command, columns, rows, notes: the shape that `table.py` renders. `tables` are more of the same
    # kind under the same title, each with a title, columns and rows; `runs` is what the tables are computed from.
    # Written after each part, so that what is finished can be read.
    bench.results |= {
        "title": "Bytes to 97 % and final accuracy on digits",
        "machine": machine(),
        "command": "make bench-bytes",
        "columns": COLUMNS,
        "rows": rows(shown, chosen),
        "notes": [
            "Median over 5 seeds, and the range. Bytes are per client, down and up.",
            f"Learning rates, and how long IST keeps a draw, were chosen on {len(TUNING_SEEDS)} other seeds: of the "
            f"choices whose mean final accuracy there is within 0.3 points of the best, the one that needs fewest "
            f"bytes to 97 %, then the more accurate. All forms are below.",
            *verdicts(chosen),
        ],
        "tables": [],
    }
    bench.save()
    strict = {
        each.name: pair(bench, each, fewest_bytes(tuning[each.name]), most_accurate(tuning[each.name]))
        for each in COMPARED
    }
    bench.results["notes"] += [f"By the stricter reading below, {text}" for text in verdicts(strict)]
    add("All forms, each at the learning rate chosen for it", COLUMNS, rows(COMPARED, chosen))
    add(
        "Stricter: bytes at the rate that needs fewest, accuracy at the rate that is most accurate",
        ["method", "lr", *COLUMNS[3:7], "lr", *COLUMNS[7:]],
        [strict_row(each, strict[each.name], strict[FEDAVG.name]) for each in COMPARED],
    )
    more = {each.name: pair(bench, each, *[rates[each.name]] * 2, MORE_SEEDS) for each in COMPARED}
    bench.results["notes"] += [f"On {len(MORE_SEEDS)} seeds more, {text}" for text in verdicts(more)]
    add(f"The same on {len(MORE_SEEDS)} seeds more", COLUMNS, rows(COMPARED, more))
    tuning |= {each.name: tune(bench, each) for each in ABLATIONS}
    chosen |= {each.name: pair(bench, each, *[choose(tuning[each.name])] * 2) for each in ABLATIONS}
    add("Ablations at n = 8", COLUMNS, rows((*FORMS[8], *ABLATIONS), chosen))
    add(
        f"MB to 97 % at other numbers of local steps ({len(TUNING_SEEDS)} tuning seeds; {OTHER_ROUNDS} rounds, and "
        f"{ROUNDS} rounds of {STEPS})",
        ["method", *(f"J = {steps}" for steps in (*OTHER_STEPS, STEPS))],
        sensitivity(bench, shown),
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    arguments.add_argument("--quick", action="store_true", help="a smoke test; writes nothing")
    options = arguments.parse_args()
    if options.quick:
        quick()
        return
    torch.set_num_threads(1)  # of which `machine` tells; every worker has one, too
    bench = Bench(RESULTS / "bytes.json", fresh=options.fresh)
    compare(bench)
    for line in (COLUMNS, *bench.results["rows"], *bench.results["notes"]):
        print(line if isinstance(line, str) else " | ".join(str(value) for value in line))


if __name__ == "__main__":
    main()

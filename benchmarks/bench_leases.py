"""Virtual time to 97 % on real digits: leases, which nobody waits for, against synchronous rounds of disjoint subnets.

    python benchmarks/bench_leases.py            # minutes on an idle core; goes on where it was stopped
    python benchmarks/bench_leases.py --fresh    # forget finished runs

MLP 64-1024-1024-10 with BatchNorm, 8 clients, 10 local steps of batch 32 by SGD with momentum 0.9 and a constant
learning rate, trained in process by the product itself on its virtual network: 1 GFLOP/s and 1 ms a step, 100 Mbit/s
each way, 1 ms latency. Rounds deal 8 disjoint subnets, or 4 that two clients train each, anew every round as the paper
does; or they keep a draw of 8 for 8 rounds while the clients move on. Leases are of 8 groups with a quarter of the
units free; units stay together for 8 leases, which is the default, or are drawn anew for each. The whole network is
evaluated on the test images after every round, or after every 8 leases; counted is the virtual time at which it is
first right on 97 % of them. Synchronous training does not see the network, so its runs are the same in all three, and
only their clock differs.

Every method gets its own learning rate, in each network: of the ladder, the one with the least mean time on seeds that
are not reported. A rate at the edge of those tried brings in the next one of the ladder.
"""

import argparse
import contextlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_core import RESULTS, machine
from stage import Kept

from ist_fed import IndependentSubnetTraining, rules, wire
from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.cost import cost
from ist_fed.engines.local import LocalGrid
from ist_fed.evaluate import evaluate, ready
from ist_fed.network import Asked, Network, Tier, Virtual
from ist_fed.round import RoundReport
from ist_fed.seeds import seeded, torch_generator
from ist_fed.tasks import load_task
from ist_fed.train import Training
from ist_fed.worker import Worker

CLIENTS, SIZES, STEPS, ROUNDS, TARGET = 8, {"hidden1": 1024, "hidden2": 1024}, 10, 60, 0.97
SEEDS, MORE_SEEDS, TUNING_SEEDS = (1, 2, 3, 4, 5), tuple(range(6, 51)), tuple(range(101, 125))
LADDER, START = (0.03, 0.1, 0.3, 1.0), (0.1, 0.3)
PLAIN = {"flops": 1e9, "step_seconds": 1e-3, "down": 1e8, "up": 1e8, "latency": 1e-3}
SLOW = Tier(share=1, flops=1e8, step_seconds=1e-2)
NETWORKS = {
    "one straggler, 10 ×": Network(**PLAIN, tiers={"straggler": SLOW, "others": Tier(share=7)}),
    "spread 1 to 8 ×": Network(**PLAIN, spread=8),
    "equal": Network(**PLAIN),
}
RULES: dict[str, rules.Lease | rules.Disjoint] = {
    "leases": rules.Lease(groups=8),
    "leases, drawn anew": rules.Lease(groups=8, keep=1),
    "rounds, 8 subnets": rules.Disjoint(groups=8),
    "rounds, 8 subnets, kept": rules.Disjoint(groups=8, keep=8),
    "rounds, 4 subnets": rules.Disjoint(groups=4),
}
LEASES, ANEW, ROUNDS_OF_8, KEPT, ROUNDS_OF_4 = RULES
TARGETS = {"one straggler, 10 ×": 2.0, "spread 1 to 8 ×": 2.0, "equal": 1 / 1.2}


class There(Exception):
    """The target was reached."""


@dataclass(frozen=True)
class Done:
    """Training that was watched round by round: virtual seconds on each network that was clocked, and accuracy."""

    seconds: dict[str, list[float]]
    accuracy: list[float]


TASK = load_task("digits", {})


@cache
def flops_of(sizes: tuple[tuple[str, int], ...], training: Training) -> int:
    return cost(TASK, dict(sizes), training).flops


def virtual(name: str, seed: int) -> Virtual:
    def flops(sizes: Mapping[str, int], training: Training) -> float:
        return flops_of(tuple(sizes.items()), training)

    return Virtual(NETWORKS[name], seed, CLIENTS, flops)


def train(method: str, network: str, lr: float, seed: int) -> Done:
    """One run, ended when it is there."""
    seconds, accuracy = list[float](), list[float]()
    model = TASK.build(**SIZES)

    def note(report: RoundReport) -> None:
        load_arrays(model, report.arrays)
        accuracy.append(evaluate(ready(model, TASK), TASK, TASK.test_data())["accuracy"])
        seconds.append((seconds[-1] if seconds else 0.0) + float(report.virtual or 0.0))
        if accuracy[-1] >= TARGET:
            raise There

    def worker(client: int) -> Worker:
        return Worker(TASK, TASK.client_data(client, CLIENTS), client=client)

    strategy = IndependentSubnetTraining(
        build=TASK.build,
        sizes=SIZES,
        rule=RULES[method],
        local_steps=STEPS,
        training=Training(lr=lr),
        seed=seed,
        network=virtual(network, seed),
        on_round=note,
    )
    with seeded(torch_generator(seed, "initial").initial_seed()):
        initial = wire.to_record(arrays_of(TASK.build(**SIZES)))
    grid = LocalGrid(CLIENTS, worker, TASK, torch.device("cpu"))
    with contextlib.suppress(There):
        strategy.start(grid, initial, ROUNDS)
    return Done({network: seconds}, accuracy)


# --- Runs, kept -------------------------------------------------------------------------------------------------------


class Bench(Kept):
    """Runs that are not in the results file yet, written after each."""

    def run(self, method: str, network: str, lr: float, seed: int) -> dict[str, Any]:
        """The marks of a run, virtual seconds and accuracy; synchronous ones are clocked anew for a network."""
        same = method not in (LEASES, ANEW)
        key = f"{method} | {'any' if same else network} | lr {lr:g} | seed {seed}"
        if key not in self.results["runs"]:
            done = train(method, network, lr, seed)
            marks = [round(value, 4) for value in done.accuracy]
            self.results["runs"][key] = {"seconds": done.seconds, "accuracy": marks}
            print(f"{key:60} {len(marks):4} rounds, {done.seconds[network][-1]:8.3f} s, {marks[-1]:.4f}", flush=True)
            self.save()
        run: dict[str, Any] = self.results["runs"][key]
        if network not in run["seconds"]:
            a_round = round_seconds(method, network, seed)
            run["seconds"][network] = [a_round * (at + 1) for at in range(len(run["accuracy"]))]
        return run

    def time(self, method: str, network: str, lr: float, seed: int) -> float:
        """Virtual seconds to the target; infinite if it was not reached."""
        run = self.run(method, network, lr, seed)
        return run["seconds"][network][-1] if run["accuracy"][-1] >= TARGET else math.inf

    def tuned(self, method: str, network: str) -> float:
        """The learning rate with the least mean time on seeds that are not reported."""
        tried = list(START)
        while True:
            best = min(tried, key=lambda lr: self._mean(method, network, lr))
            at = LADDER.index(best)
            more = [LADDER[next] for next in (at - 1, at + 1) if 0 <= next < len(LADDER) and LADDER[next] not in tried]
            if not more:
                return best
            tried += more

    def _mean(self, method: str, network: str, lr: float) -> float:
        total = 0.0
        for seed in TUNING_SEEDS:
            total += self.time(method, network, lr, seed)
            if total == math.inf:
                break  # whatever the others take
        return total / len(TUNING_SEEDS)


def round_seconds(method: str, network: str, seed: int) -> float:
    """What every synchronous round lasts on a network: subnets are equal, and nobody fails."""
    groups, known = RULES[method].groups, virtual(network, seed)
    sizes = {axis: units // groups for axis, units in SIZES.items()}
    subnet = {"sizes": sizes, "bytes": bytes_of(groups), "steps": STEPS, "training": Training()}
    return known.round_seconds(known.trip(Asked(client=client, **subnet)) for client in range(CLIENTS))


@cache
def bytes_of(groups: int) -> int:
    return cost(TASK, {axis: units // groups for axis, units in SIZES.items()}, Training()).bytes


# --- Saying what came out ---------------------------------------------------------------------------------------------


def fill(bench: Bench) -> None:
    rates = {(network, method): bench.tuned(method, network) for network in NETWORKS for method in RULES}
    bench.results |= {
        "title": "Leases against rounds, in virtual time",
        "machine": machine(),
        "command": "make bench-leases",
        "columns": ["network", "method", "lr", "virtual s to 97 %", "over leases", "target"],
        "rows": rows(bench, rates, RULES, SEEDS),
        "notes": [
            (__doc__ or "").split("\n\n", 2)[2].strip(),
            NOTE,
            FOUND,
            TRIED,
            PICTURE,
        ],
    }
    bench.save()
    plot(bench, rates)
    bench.results["tables"] = [
        {
            "title": f"The same over {len(MORE_SEEDS)} other seeds, at the same learning rates",
            "columns": bench.results["columns"],
            "rows": rows(bench, rates, (LEASES, ROUNDS_OF_8, KEPT), MORE_SEEDS),
        }
    ]
    bench.save()
    for each in [*bench.results["rows"], *bench.results["tables"][0]["rows"]]:
        print(" | ".join(each))


FOUND = (
    "What made the difference was found on seeds that are not reported, 101 to 140. Leases that drew units anew each "
    "time learnt more slowly per lease than rounds: what a client had learnt was torn apart before anyone else had "
    "trained it. The default was then changed to keep units together while clients move on. Rounds gain by the same "
    "(`keep` of the rule `disjoint`), so they stand here with it as well. Even so, equally fast clients borrowed in "
    "the order of their numbers, and subnets went from each to the same next one in every run, where rounds draw who "
    "follows whom. For this deal of the images that is a bad order: after four equal rounds leases were right on 96.33 "
    "% of the test images with it and on 96.74 % with one that is drawn; and rounds of 9, made to follow it, on 96.53 "
    "instead of 96.87 % (means of 40 seeds, learning rate 0.1). The order is now drawn."
)
TRIED = (
    "Of no use, on seeds 101 to 108: half of every change merged (slower, at three times the rate "
    "too); sizes in proportion to a client's speed, or to the root of it; units drawn for pairs that had met least, or "
    "that were trained least; not the units that a client has just had; an eighth or half of the units free; "
    "rescaling, which at these rates did no good or diverged; weight decay; momentum that travels (but rounds of 8 "
    "drawn anew gained by it: 2.67 s instead of 3.85 where speeds are spread). Since, with units kept and the order "
    "drawn: a sixteenth, a ninth, a fifth, 0.35 or half of the units free; units kept for 32 leases; units that a "
    "client had not had yet, or that were trained least, lent first, also the least trained to the fast and the most "
    "trained to the slow. Nor did kept rounds gain by 6, 9 or 10 subnets. An earlier state of this benchmark had 512 "
    "units a layer, and rounds of 8 took 4.07, 1.05 and 0.22 times as long as leases drawn anew (one straggler, "
    "spread, equal)."
)
PICTURE = "![test accuracy over virtual time](images/leases.png)"
NOTE = (
    "Median and range; a ratio is of medians, and how many times sooner leases are there; in brackets, between which "
    "two it lies for 19 of 20 draws of as many seeds out of these (bootstrap): five seeds leave much open. The target "
    "was set for rounds drawn anew; kept rounds are held against it as well. Learning rates are chosen on seeds 101 to "
    "124: the first 8 of them put 0.3 before 0.1 for leases among equals by 0.32 to 0.33 s, and all of them 0.1. Times "
    "mean something relative to each other only: what a step takes is assumed, not measured."
)


def rows(
    bench: Bench, rates: Mapping[tuple[str, str], float], methods: Iterable[str], seeds: Sequence[int]
) -> list[list[str]]:
    made = []
    for network in NETWORKS:
        found = {name: [bench.time(name, network, rates[network, name], seed) for seed in seeds] for name in methods}
        made += [row(network, method, rates[network, method], found) for method in found]
    return made


def row(network: str, method: str, lr: float, found: Mapping[str, list[float]]) -> list[str]:
    times = found[method]
    middle, ours = statistics.median(times), statistics.median(found[LEASES])
    ratio, target = middle / ours, TARGETS[network]
    verdict = "" if method not in (ROUNDS_OF_8, KEPT) else f"≥ {target:.2g} ×: {'met' if ratio >= target else 'MISSED'}"
    said = f"{middle:.3g} ({min(times):.3g} to {max(times):.3g})"
    over = f"{ratio:.2f} × ({' to '.join(f'{end:.2f}' for end in likely(times, found[LEASES]))})"
    return [network, method, f"{lr:g}", said, "" if method == LEASES else over, verdict]


def likely(times: Sequence[float], ours: Sequence[float]) -> np.ndarray:
    """Between which two the ratio of medians lies for 19 of 20 draws of as many seeds out of these."""
    drawn = np.random.default_rng(0).integers(len(times), size=(10_000, len(times)))
    return np.quantile(np.median(np.take(times, drawn), 1) / np.median(np.take(ours, drawn), 1), [0.025, 0.975])


COLOURS = {LEASES: "tab:blue", ANEW: "tab:cyan", ROUNDS_OF_8: "tab:orange", KEPT: "tab:red"}


def plot(bench: Bench, rates: Mapping[tuple[str, str], float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    figure, panels = pyplot.subplots(1, len(NETWORKS), figsize=(12, 3.8), sharey=True)
    for panel, network in zip(panels, NETWORKS, strict=True):
        for method, colour in COLOURS.items():
            for at, seed in enumerate(SEEDS):
                run = bench.run(method, network, rates[network, method], seed)
                label = None if at else method
                panel.plot(run["seconds"][network], run["accuracy"], color=colour, alpha=0.6, linewidth=1, label=label)
        panel.axhline(TARGET, color="grey", linewidth=0.8, linestyle="--")
        panel.set(title=network, xlabel="virtual seconds", ylim=(0.91, 0.985), xscale="log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())  # of less than a decade they would lie on each other
    panels[0].set_ylabel("test accuracy")
    panels[-1].legend(loc="lower right")  # where no line is
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "images" / "leases.png", dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    torch.set_num_threads(1)
    fill(Bench(RESULTS / "leases.json", fresh=arguments.parse_args().fresh))


if __name__ == "__main__":
    main()

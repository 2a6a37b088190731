"""Accuracy on real digits against ε: federated averaging and Independent Subnet Training under central privacy.

    python benchmarks/bench_privacy.py            # about 35 minutes on one busy core; goes on where it was stopped
    python benchmarks/bench_privacy.py --fresh    # forget finished runs

150 clients with 7 or 8 images each; MLP 64-128-10 with BatchNorm, 16 rounds of 3 steps, batch 8, SGD without momentum,
everyone takes part, δ = 1e-5, run in process by the product itself. What is private is a client, so noise is measured
against 150 of them: that is few. Every private run counts in a ledger of its own, in a folder that is thrown away.

Each number of blocks is there twice: drawn by rule `private`, for which amplification is claimed, and dealt out by rule
`disjoint` (the paper's), which is accounted as one block. Every method gets its own learning rate and clip, the best of
a small grid on a seed that is not reported; once at ε = 2, for 1 and 2, and once at 8, for 4 and 8. Noise comes from
the operating system, so that a run repeated with its seed gives another number.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_core import RESULTS
from stage import Kept, busy_machine

from ist_fed.engines.local import simulate
from ist_fed.privacy import mechanism
from ist_fed.run import Run
from ist_fed.scenario import Scenario, parse_scenario

SCENARIO = """
name = "privacy"
task = "digits"
clients = 150
rounds = 16
local_steps = 3
device = "cpu"
sizes.hidden1 = 128
round.weighting = "uniform"
record = {evaluate_every = 16, checkpoint_every = 1000, tensorboard = false}
training = {momentum = 0.0, batch_size = 8}
"""
EPSILONS = (1, 2, 4, 8)
TUNED_AT = {1: 2, 2: 2, 4: 8, 8: 8}
SEEDS, TUNING_SEED = (1, 2), 101
RATES, CLIPS = (0.1, 0.5), (0.25, 0.5, 1.0, 2.0)
METHODS = {
    "FedAvg": '{name="full"}',
    **{f"IST d = {d}, amplified": f'{{name="private", groups={d}}}' for d in (2, 4, 8)},
    **{f"IST d = {d}, not amplified": f'{{name="disjoint", groups={d}}}' for d in (2, 4, 8)},
}
OFF = "off"
"""In place of ε: without privacy."""
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "privacy.png"


class Bench(Kept):
    """Runs that are not in the results file yet, and writes it after each."""

    def accuracy(self, method: str, epsilon: int | str, rate: float, clip: float, seed: int) -> float:
        """Of the last round's network, on the test images."""
        key = f"{method} | ε {epsilon} | lr {rate:g} | clip {clip:g} | seed {seed}"
        if key not in self.results["runs"]:
            began = time.perf_counter()
            made = scenario(method, epsilon, rate, clip, seed)
            with tempfile.TemporaryDirectory() as folder:
                run = Run.create(Path(folder, "run"), made)
                simulate(run)
                line = run.metrics()[-1]
            seconds = round(time.perf_counter() - began, 1)
            self.results["runs"][key] = {"accuracy": line["accuracy"], "spent": line.get("epsilon"), "seconds": seconds}
            print(f"{key:70} {100 * line['accuracy']:6.2f} % {seconds:5.1f} s", flush=True)
            self.save()
        return float(self.results["runs"][key]["accuracy"])


def scenario(method: str, epsilon: int | str, rate: float, clip: float, seed: int) -> Scenario:
    private = [] if epsilon == OFF else ["privacy.mode=central", f"privacy.epsilon={epsilon}", f"privacy.clip={clip}"]
    return parse_scenario(SCENARIO, [f"rule={METHODS[method]}", f"training.lr={rate}", f"seed={seed}", *private])


def tune(bench: Bench, method: str, epsilon: int | str) -> tuple[float, float]:
    """The learning rate and the clip that are the most accurate on the tuning seed; the first of equals."""
    grid = list(itertools.product(RATES, CLIPS if epsilon != OFF else CLIPS[:1]))
    return max(grid, key=lambda one: bench.accuracy(method, epsilon, *one, TUNING_SEED))


def measure(bench: Bench, method: str) -> dict[int | str, tuple[list[float], tuple[float, float]]]:
    """ε → accuracy in percent on each reported seed, and with which learning rate and clip."""
    found: dict[int | str, tuple[list[float], tuple[float, float]]] = {}
    for epsilon in (*EPSILONS, OFF):
        best = tune(bench, method, TUNED_AT.get(epsilon, OFF) if isinstance(epsilon, int) else OFF)
        found[epsilon] = ([100 * bench.accuracy(method, epsilon, *best, seed) for seed in SEEDS], best)
    return found


# --- Saying what came out ---------------------------------------------------------------------------------------------


def noise(method: str, epsilon: int) -> float:
    """The noise multiplier that the budget takes."""
    made = scenario(method, epsilon, RATES[0], CLIPS[0], 0)
    return mechanism(made.privacy, made.make_rule(), clients=made.clients, rounds=made.rounds).noise_multiplier


def shown(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def settings(best: tuple[float, float]) -> str:
    return f"lr {best[0]:g}, clip {best[1]:g}"


def draw(found: Mapping[str, Mapping[int | str, tuple[list[float], Any]]]) -> None:
    """One panel with amplification and one without, federated averaging in both."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for panel, kind in zip(panels, ("amplified", "not amplified"), strict=True):
        for method in found:
            if method == "FedAvg" or method.endswith(f", {kind}"):
                runs = [found[method][epsilon][0] for epsilon in EPSILONS]
                low, mean, high = ([f(run) for run in runs] for f in (min, statistics.mean, max))
                (line,) = panel.plot(EPSILONS, mean, marker="o", label=method.partition(",")[0])
                panel.fill_between(EPSILONS, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(EPSILONS, map(str, EPSILONS))
        panel.set_xlabel("ε of a client, at δ = 1e-5")
        panel.set_title("rule private" if kind == "amplified" else "rule disjoint: no amplification")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    panels[1].legend()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    bench = Bench(RESULTS / "privacy.json", fresh=options.fresh)
    found = {method: measure(bench, method) for method in METHODS}
    columns = ["method", *(f"ε = {epsilon}" for epsilon in EPSILONS), "not private"]
    chosen = [[method, *(settings(by[epsilon][1]) for epsilon in EPSILONS)] for method, by in found.items()]
    noises = [[method, *(f"{noise(method, epsilon):.2f}" for epsilon in EPSILONS)] for method in METHODS]
    bench.results |= {
        "title": "Accuracy against privacy",
        "machine": busy_machine(),
        "command": "make bench-privacy",
        "columns": columns,
        "rows": [[method, *(shown(by[epsilon][0]) for epsilon in (*EPSILONS, OFF))] for method, by in found.items()],
        "notes": [
            f"Test accuracy in percent after 16 rounds: mean over {len(SEEDS)} seeds, and the range. One image of the "
            f"360 is 0.3 points.",
            "A learning rate and a clip for each method, the best of 8 pairs on one other seed; that choices were made "
            "by looking at private runs is not counted in ε.",
            "Some choices are at the edge of the grid: the smallest clip at ε ≤ 2, and the larger rate.",
            "![test accuracy against ε](images/privacy.png)",
        ],
        "tables": [
            {"title": "Noise multipliers z that the budgets take", "columns": columns[:-1], "rows": noises},
            {"title": "Chosen", "columns": columns[:-1], "rows": chosen},
        ],
    }
    bench.save()
    draw(found)


if __name__ == "__main__":
    main()

"""Final accuracy of subnets beside federated averaging: on digits, on label-sorted shards, on text, on unequal clients.

    python benchmarks/bench_accuracy.py            # about an hour on one core; goes on where it was stopped
    python benchmarks/bench_accuracy.py --fresh    # forget finished runs

Every case is a scenario of the product, trained by it in process, with the same rounds and local steps for all methods.
A run's final accuracy or loss is the mean over its last evaluations (five on digits, one on text), on the test data.
Every method gets its own learning rate, the best on seeds that are not reported; a rate at the edge of those tried
brings in the next one of the ladder.
"""

import argparse
import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accuracy_cases import CASES, Case, Recipe
from bench_core import RESULTS, machine
from stage import Kept

from ist_fed.engines.local import simulate
from ist_fed.errors import RoundError
from ist_fed.methods import method
from ist_fed.run import Run
from ist_fed.scenario import Scenario, parse_scenario

SCENARIOS = Path(__file__).parents[1] / "scenarios"
PLAIN = ("record.checkpoint_every=1000", "record.tensorboard=false", "device=cpu")


class Bench(Kept):
    """Runs that are not in the results file yet, written after each."""

    def runs(self, case: Case, recipe: Recipe, lr: float, seeds: Sequence[int]) -> list[dict[str, float]]:
        return [self._run(case, recipe, lr, seed) for seed in seeds]

    def _run(self, case: Case, recipe: Recipe, lr: float, seed: int) -> dict[str, float]:
        key = f"{case.name} | {recipe.name} | lr {lr:g} | seed {seed}"
        if key not in self.results["runs"]:
            began = time.perf_counter()
            run = self.results["runs"][key] = measure(scenario_of(case, recipe, lr, seed), case)
            print(f"{key:88} {run['final']:.4f} {time.perf_counter() - began:5.0f} s", flush=True)
            self.save()
        found: dict[str, float] = self.results["runs"][key]
        return found

    def tuned(self, case: Case, recipe: Recipe) -> float:
        """The learning rate that is best on the tuning seeds."""
        if len(case.ladder) == 1:
            return case.ladder[0]
        tried = list(case.start)
        while True:
            best = max(tried, key=lambda lr: self._mean(case, recipe, lr))
            at = case.ladder.index(best)
            more = [lr for lr in case.ladder[max(0, at - 1) : at + 2] if lr not in tried]
            if not more:
                return best
            tried += more

    def _mean(self, case: Case, recipe: Recipe, lr: float) -> float:
        return case.sign * statistics.mean(run["final"] for run in self.runs(case, recipe, lr, case.tuning_seeds))


def scenario_of(case: Case, recipe: Recipe, lr: float, seed: int) -> Scenario:
    text = (SCENARIOS / case.scenario).read_text(encoding="utf-8")
    more = [*case.settings, *recipe.settings, *PLAIN, f"training.lr={lr}", f"seed={seed}"]
    made = parse_scenario(text, more)
    return replace(method(recipe.method, made, "steps"), name=made.name) if recipe.method else made


def measure(scenario: Scenario, case: Case) -> dict[str, float]:
    """Run a scenario, and read what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder, "run"), scenario)
        with contextlib.suppress(RoundError):  # every client's loss or weights ceased to be finite
            simulate(run)
        lines = run.metrics()
    found = [line[case.metric] for line in lines if line.get(case.metric) is not None]
    whole = len(lines) == scenario.rounds and all(map(math.isfinite, found))
    return {
        "final": round(statistics.mean(found[-case.last :]), 5) if whole else case.worst,
        "mb": round(sum(line["bytes_down"] + line["bytes_up"] for line in lines) / scenario.clients / 1e6, 4),
        "asked": max((len(line["clients"]) for line in lines), default=0),
    }


# --- Saying what came out ---------------------------------------------------------------------------------------------


def table(bench: Bench, case: Case) -> dict[str, Any]:
    """A case's methods beside the first of them, and how far each is from it."""
    rows, notes, reference = list[list[str]](), [case.about, *case.notes], (0.0, 0.0)
    for at, recipe in enumerate(case.recipes):
        lr = bench.tuned(case, recipe)
        runs = bench.runs(case, recipe, lr, case.seeds)
        finals = [case.shown(run["final"]) for run in runs]
        middles = statistics.median(finals), statistics.mean(finals)
        reference = middles if not at else reference
        gaps = [case.gap(mine, theirs) for mine, theirs in zip(middles, reference, strict=True)]
        shown = [f"{value:.{case.digits}f}" for value in (*middles, min(finals), max(finals))]
        rows.append(
            [
                recipe.name,
                f"{lr:g}",
                f"{runs[0]['mb']:.3g}",
                f"{runs[0]['asked']:.0f}",
                f"{shown[0]} ({shown[2]} to {shown[3]})",
                shown[1],
                *(f"{gap:+.2f}{case.unit}" for gap in gaps),
            ]
        )
        if recipe.promised:
            near = [case.sign * gap >= -case.within for gap in gaps]
            met = "met" if all(near) else "met by one of the two only" if any(near) else "MISSED"
            said = " and ".join(f"{gap:+.2f}" for gap in gaps)
            notes.append(f"{recipe.name}: {said} (medians, means), to be within {case.within:g}{case.unit}: {met}")
    metric = "accuracy, %" if case.metric == "accuracy" else "loss"
    columns = ["method", "lr", "MB a client", "clients", f"{metric}: median (range)", "mean"]
    columns += ["against the first, medians", "means"]
    return {"title": case.title, "columns": columns, "rows": rows, "notes": notes}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--fresh", action="store_true", help="forget finished runs")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    bench = Bench(RESULTS / "accuracy.json", fresh=options.fresh)
    made = list[dict[str, Any]]()
    for case in CASES:  # written after each, so that what is finished can be read
        made.append(table(bench, case))
        fill(bench, made)


def fill(bench: Bench, made: Sequence[dict[str, Any]]) -> None:
    first, *others = made
    intro = (__doc__ or "").split("\n\n", 2)[2].strip()
    bench.results |= {
        "title": "Final accuracy",
        "machine": machine(),
        "command": "make bench-accuracy",
        "columns": first["columns"],
        "rows": first["rows"],
        "notes": [intro, *(f"{each['title']}: {note}" for each in made for note in each["notes"])],
        "tables": [{key: each[key] for key in ("title", "columns", "rows")} for each in others],
    }
    bench.save()


if __name__ == "__main__":
    main()

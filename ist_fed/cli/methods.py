"""`ist-fed compare SCENARIO --methods …`: one scenario as several methods would run it, at equal budgets."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ist_fed.cli.arguments import Format, print_json
from ist_fed.cli.simulate import train_or_go_on
from ist_fed.errors import ScenarioError
from ist_fed.methods import Budget, in_all, method
from ist_fed.report import method_cell, method_rows, write_methods
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.search import BAD_PLACES, held_out_score
from ist_fed.seeds import generator

logger = logging.getLogger("ist_fed.cli")

_BY = (1 / 3, 1.0, 3.0)
"""Learning rates that are tried if none are given, as multiples of the scenario's."""


def compare_methods(
    scenario: Scenario,
    names: Sequence[str],
    *,
    budget: Budget,
    seeds: int,
    rates: Sequence[float],
    target: float | None,
    folder: Path,
    output: Format,
) -> None:
    """Tune each method's learning rate on a seed of its own, run it on others, and put them beside each other."""
    wanted = {name: method(name, scenario, budget) for name in names}
    runs: dict[str, list[Run]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name, made in wanted.items():
        rate = _best_rate(made, list(rates) or [scenario.training.lr * by for by in _BY], folder / "tuning")
        best = replace(made, training=replace(made.training, lr=rate))
        about[name] = {"lr": rate, "gflops_per_client": in_all(best)["arithmetic"] / 1e9}
        runs[name] = [
            train_or_go_on(replace(best, seed=scenario.seed + number), folder / f"{name}-{scenario.seed + number}")
            for number in range(seeds)
        ]
    rows = method_rows(runs, target, about)
    page = write_methods(runs, rows, folder, target, budget)
    if output is Format.json:
        print_json({"rows": rows, "page": str(page)})
    else:
        _show(rows, target)
        print(f"comparison  {page}")


def _best_rate(made: Scenario, rates: Sequence[float], folder: Path) -> float:
    """The learning rate that is best on held-out examples that no test sees; one at which a run fails is not it."""
    if len(rates) == 1:
        return rates[0]
    seed = int(generator(made.seed, "search", "methods").integers(1 << 31))
    scores: dict[float, float] = {}
    for rate in rates:
        trial = replace(made, seed=seed, training=replace(made.training, lr=rate))
        try:
            scores[rate] = held_out_score(train_or_go_on(trial, folder / f"{made.name}-{rate:.6g}"))
        except BAD_PLACES as error:
            reason = error
            logger.warning("learning rate %.6g is left out for '%s': %s", rate, made.name, error)
    if not scores:
        raise ScenarioError(
            f"a method needs one learning rate at which it can train, but '{made.name}' has none: {reason}"
        )
    return max(scores, key=scores.__getitem__)


def _show(rows: Sequence[dict[str, Any]], target: float | None) -> None:
    columns = {"name": "method", "lr": "lr", "final": f"final {rows[0]['metric']}"}
    if target is not None:
        columns |= {"target_round": f"rounds to {target}", "target_mb_per_client": "MB until then"}
        if any((row["target_virtual_seconds_range"] or (0, 0))[1] > 0 for row in rows):
            columns["target_virtual_seconds"] = "virtual s until then"
    columns |= {"rounds": "rounds", "mb_per_client": "MB per client", "gflops_per_client": "GFLOPs per client"}
    table = Table(*columns.values())
    for row in rows:
        table.add_row(*(method_cell(key, row, ranges=key == "final") for key in columns))
    Console(highlight=False).print(table)

"""`ist-fed compare`: several scenarios of the same task and seed, side by side."""

from collections.abc import Callable
from enum import StrEnum
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ist_fed.cli.arguments import Format, OutputFormat, Settings, print_json
from ist_fed.cli.methods import compare_methods
from ist_fed.cli.scenarios import find_scenario
from ist_fed.cli.simulate import train_or_go_on
from ist_fed.errors import ScenarioError
from ist_fed.methods import METHODS, a_round
from ist_fed.report import comparison_rows, write_comparison
from ist_fed.report.numbers import amount
from ist_fed.run import Run
from ist_fed.scenario import Scenario

_SEEDS = 3


class BudgetName(StrEnum):
    """`methods.Budget`, as the command line wants it."""

    steps = "steps"
    bytes = "bytes"
    arithmetic = "arithmetic"


def compare(
    scenarios: Annotated[
        list[str],
        typer.Argument(metavar="SCENARIO…", help="Scenario files or names; two or more, or one with --methods."),
    ],
    settings: Settings = None,
    methods: Annotated[
        str | None, typer.Option(help=f"Run one scenario as these methods would: {','.join(METHODS)}.")
    ] = None,
    budget: Annotated[
        BudgetName | None,
        typer.Option(help="What methods get equally: local steps (by default), bytes moved, or arithmetic."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of each method, by default 3; the first has the scenario's seed."),
    ] = None,
    tune: Annotated[
        str,
        typer.Option(
            metavar="LR,LR…",
            help="Learning rates to choose each method's from; by default a third, "
            "once and three times the scenario's. One is used as it is.",
        ),
    ] = "",
    target: Annotated[
        float | None, typer.Option(help="Compare bytes and arithmetic until the metric reaches this.")
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where the runs and the comparison go.")] = Path(
        "runs/comparison"
    ),
    output: OutputFormat = Format.text,
) -> None:
    """Run scenarios of the same task and seed, and compare accuracy, bytes, steps and arithmetic.

    With --methods, one scenario as several methods would run it, each at its best learning rate. Runs that are in the
    folder already are gone on with, so an interrupted comparison can be repeated.
    """
    if target is not None and not isfinite(target):
        raise ScenarioError(f"--target is a value that the metric may reach, but is {target}")
    if methods is None and (budget or seeds or tune):
        raise ScenarioError("--budget, --seeds and --tune are for methods; name some with --methods, or leave them out")
    wanted = [find_scenario(name, settings) for name in scenarios]
    if methods is not None:
        if len(wanted) > 1:
            raise ScenarioError("--methods compares methods on one scenario, but several are named")
        compare_methods(
            wanted[0],
            [name.strip() for name in methods.split(",")],
            budget=(budget or BudgetName.steps).value,
            seeds=seeds or _SEEDS,
            rates=_rates(tune),
            target=target,
            folder=folder,
            output=output,
        )
        return
    _check_comparable(wanted)
    runs = [train_or_go_on(scenario, folder / scenario.name) for scenario in wanted]
    rows = comparison_rows(runs, target)
    for row, run in zip(rows, runs, strict=True):
        row |= _arithmetic(run, row)
    page = write_comparison(runs, rows, folder, target)
    if output is Format.json:
        print_json({"rows": rows, "page": str(page)})
    else:
        _show(rows, target, _title(wanted))
        print(f"comparison  {page}")


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",") if rate.strip()]
    except ValueError:
        rates = [0.0]
    if not all(0 < rate < inf for rate in rates):
        raise ScenarioError(f"--tune names positive learning rates, as in 0.03,0.1,0.3, but is '{text}'")
    return rates


def _check_comparable(scenarios: list[Scenario]) -> None:
    if len(scenarios) < 2:
        raise ScenarioError("compare needs at least two scenarios")
    if len({scenario.name for scenario in scenarios}) < len(scenarios):
        raise ScenarioError("compared scenarios need names of their own, but a name occurs twice")
    for key in ("task", "seed", "clients"):
        values = {getattr(scenario, key) for scenario in scenarios}
        if len(values) > 1:
            raise ScenarioError(
                f"compared scenarios share their task, seed and clients, but '{key}' differs: "
                f"{sorted(map(str, values))}; make them equal with --set {key}=…"
            )


def _arithmetic(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """Floating-point operations of one client, on average: in all, and until the target."""
    phases, reached = [(line["round"], line.get("phase", 0)) for line in run.metrics()], row["target_round"]
    of_phase = {phase: a_round(run.scenario.during(phase))["arithmetic"] for _, phase in phases}
    until = None if reached is None else sum(of_phase[phase] for round, phase in phases if round <= reached)
    return {
        "gflops_per_client": sum(of_phase[phase] for _, phase in phases) / 1e9,
        "target_gflops_per_client": None if until is None else until / 1e9,
    }


def _title(scenarios: list[Scenario]) -> str:
    """What is the same: task, seed and clients in any case, the data only with the same options."""
    given = [scenario.options for scenario in scenarios]
    differ = sorted({key for one in given for key in one if any(one[key] != other.get(key) for other in given)})
    return f"same task, same seed; options differ: {', '.join(differ)}" if differ else "same data, same seed"


def _show(rows: list[dict[str, Any]], target: float | None, title: str) -> None:
    table = Table("", *(row["name"] for row in rows), title=title)
    metric = rows[0]["metric"]
    lines: dict[str, tuple[str, Callable[[Any], str]]] = {
        "rule": ("rule", str),
        "final": (f"final {metric}", "{:.4f}".format),
        "best": (f"best {metric}", "{:.4f}".format),
        "mb_per_client": ("MB moved per client", "{:.2f}".format),
        "steps_per_client": ("local steps per client", "{:.0f}".format),
        "gflops_per_client": ("GFLOPs per client", amount),
        "virtual_seconds": ("virtual seconds", "{:.4g}".format),
    }
    if target is not None:
        lines["target_round"] = (f"rounds to {metric} {target}", "{:.0f}".format)
        lines["target_mb_per_client"] = ("  MB per client", "{:.2f}".format)
        lines["target_gflops_per_client"] = ("  GFLOPs per client", amount)
        lines["target_virtual_seconds"] = ("  virtual seconds", "{:.4g}".format)
    for key, (words, show) in lines.items():
        if any(key in row for row in rows):
            table.add_row(words, *(_cell(key, row, show) for row in rows))
    Console(highlight=False).print(table)


def _cell(key: str, row: dict[str, Any], show: Callable[[Any], str]) -> str:
    if row.get(key) is None:  # only runs on a simulated network have virtual seconds
        return "never" if key.startswith("target_") else "–"
    return show(row[key])

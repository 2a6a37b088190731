"""`ist-fed search`: which learning rate, local steps or groups suit a scenario."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings, print_json
from ist_fed.cli.live import measured
from ist_fed.cli.scenarios import find_scenario
from ist_fed.cli.simulate import train_or_go_on
from ist_fed.errors import ScenarioError
from ist_fed.files import write_atomically
from ist_fed.search import Found, Search, default_space, parse_vary

_SHOWN = 10  # of the best trials


def search(
    scenario: ScenarioPath,
    settings: Settings = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=VALUES",
            help="What varies: training.lr=0.01..1 or local_steps=5,10,20. By default learning rate, local steps "
            "and groups, about the scenario's own.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="How many in all; a search that has fewer goes on.")] = 30,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each trial, whose scores are averaged.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Of the search; by default runs/search-<name>.")] = None,
    output: OutputFormat = Format.text,
) -> None:
    """Search a scenario's learning rate, local steps, groups or any other key, and train the best.

    Every trial takes as many local steps in all, is scored on the task's calibration examples, and uses other seeds
    than the scenario's. The best is then trained as it would be by `simulate`. Repeat the command to go on.
    """
    wanted = find_scenario(scenario, settings)
    space = [parse_vary(text) for text in vary] if vary else default_space(wanted)
    this = Search(wanted, space, folder or Path("runs", f"search-{wanted.name}"), seeds)
    for found in this.go_on(trials, train_or_go_on):
        if output is Format.text:
            print(_line(found))
    ranked = this.found()
    if ranked[0].score is None:
        raise ScenarioError(f"a search needs one trial that can be trained, but none could: {ranked[0].reason}")
    best = this.candidate(ranked[0].values)
    path = this.folder / "best.toml"
    write_atomically(path, best.to_toml().encode())
    line = train_or_go_on(best, this.folder / "best").metrics()[-1]
    if output is Format.json:
        rows = [{"values": found.values, "score": found.score} for found in ranked]
        print_json({"trials": rows, "best": str(path), line["metric"]: line[line["metric"]]})
        return
    _show(ranked, line["metric"])
    print(f"best        {path}: {line['metric']} {measured(line[line['metric']])} on the test examples")


def _line(found: Found) -> str:
    values = ", ".join(f"{key} {_number(value)}" for key, value in found.values.items())
    return f"{values}: {found.reason if found.score is None else f'{found.score:.4f}'}"


def _show(ranked: list[Found], metric: str) -> None:
    table = Table(*ranked[0].values, f"{metric} on calibration examples", title=f"the best of {len(ranked)} trials")
    for found in ranked[:_SHOWN]:
        if found.score is not None:
            table.add_row(*map(_number, found.values.values()), f"{found.score:.4f}")
    Console(highlight=False).print(table)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Arguments that several commands share."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ist_fed.engines.flower import app_folder
from ist_fed.errors import ScenarioError
from ist_fed.run import finite
from ist_fed.scenario import Scenario, load_scenario


class Format(StrEnum):
    """How a command prints."""

    text = "text"
    json = "json"


ScenarioPath = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A scenario file, or the name of one that ships with ist_fed.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the scenario, as in training.lr=0.05."),
]
OutputFormat = Annotated[Format, typer.Option("--format", help="text for people, json for programs.")]


def print_json(value: Any) -> None:
    """A line for programs, written at once; a number that is not finite is null, as in `metrics.jsonl`."""
    print(json.dumps(finite(value), allow_nan=False), flush=True)


def find_scenario(name: str, settings: list[str] | None) -> Scenario:
    """The scenario at a path, or the shipped one of that name.

    Raises:
        ScenarioError: there is neither.
    """
    shipped = app_folder() / "scenarios"
    path = Path(name)
    if path.is_dir() or not path.exists():
        path = shipped / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
        folder = ", only a folder of that name" if Path(name).is_dir() else ""
        raise ScenarioError(f"there is no scenario file '{name}'{folder}; shipped scenarios are {known}")
    return load_scenario(path, settings or [])

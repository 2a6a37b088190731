"""Arguments that several commands share, and how they print."""

import json
from enum import StrEnum
from typing import Annotated, Any

import typer

from ist_fed.files import finite


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

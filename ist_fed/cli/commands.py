"""The commands, each imported when it is asked for: Flower's server takes a second to import, and torch two."""

from importlib import import_module
from typing import Any

import click
import typer
import typer.core

COMMANDS = {
    "simulate": "Run a scenario with all its clients on this machine.",
    "inspect": "Show what a scenario would train and cost, without training.",
    "privacy": "Show what a scenario promises its clients, and what it takes, without training.",
    "audit": "Attack what a scenario releases, and show what is found; ends with 1 if a promise of privacy is broken.",
    "compare": "Run scenarios of the same task and seed, and compare accuracy, bytes, steps and arithmetic.",
    "search": "Search a scenario's learning rate, local steps, groups or any other key, and train the best.",
    "report": "Write report.html and its pictures into a run's folder.",
    "server": "The server: it holds the whole network, and sends each client a part.",
    "client": "The client: it holds the data, and trains its part of the network.",
    "provision": "Provide the server and its clients with keys and certificates.",
    "deploy": "A whole federation.",
}
"""What each says of itself. It lies in the file of its name: a function of that name too, or `app`, a group of more."""


class Commands(typer.core.TyperGroup):
    """A group that can name its commands, and say what they do, before they are imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: click.Command(name) for name in COMMANDS}  # what Click looks for names in

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself; nothing if there is none of that name."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what all the commands do, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def load(name: str) -> click.Command:
    """Import a command."""
    room, alone = import_module(f"ist_fed.cli.{name}"), typer.Typer(rich_markup_mode=None, suggest_commands=False)
    if hasattr(room, "app"):
        alone.add_typer(room.app, name=name)
    else:
        alone.command(name)(getattr(room, name))
    return typer.main.get_group(alone).commands[name]

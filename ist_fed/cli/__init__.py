"""The command line, `ist-fed`: one command a file, registered here; the one place where errors become messages."""

import gc
import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer
import typer.core
from rich.logging import RichHandler

from ist_fed.__main__ import STOPPED, stopped
from ist_fed.cli.audit import audit
from ist_fed.cli.client import app as client
from ist_fed.cli.compare import compare
from ist_fed.cli.deploy import app as deploy
from ist_fed.cli.inspect import inspect
from ist_fed.cli.live import console
from ist_fed.cli.privacy import privacy
from ist_fed.cli.provision import app as provision
from ist_fed.cli.report import report
from ist_fed.cli.room import out_of_memory
from ist_fed.cli.search import search
from ist_fed.cli.server import app as server
from ist_fed.cli.simulate import simulate
from ist_fed.errors import FleetUnknown, Interrupted, IstFedError, out_of_room

_REFUSED = 77  # EX_NOPERM of sysexits.h; the client's unit does not start it again after this

typer.core.HAS_RICH = False  # help is plain text; else typer escapes its brackets for rich: `\[default: auto]`

app = typer.Typer(
    suggest_commands=False,  # Click does, and it would be said twice
    help="Independent Subnet Training on Flower: train a wide network on clients that only ever hold a narrow one.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (simulate, inspect, privacy, audit, compare, search, report):
    app.command()(command)
for name, group in {"server": server, "client": client, "provision": provision, "deploy": deploy}.items():
    app.add_typer(group, name=name)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log everything.")] = False,
) -> None:
    """Options before the command."""
    logger = logging.getLogger("ist_fed")
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    if console.is_terminal:
        for room in ("engine", "task"):  # what it picked; what a task takes its time for
            logging.getLogger(f"ist_fed.{room}").setLevel(logging.DEBUG if debug else logging.INFO)
    # On a terminal through the console of the progress line, so that neither writes over the other.
    terminal = RichHandler(console=console, show_path=debug, show_time=debug)
    logger.handlers = [terminal if console.is_terminal else logging.StreamHandler()]


def main() -> None:
    """Run the command line: errors of ours are printed without a traceback and exit with 1, Ctrl-C with 130.

    A client that its server does not admit, although it tried for a minute, exits with 77: only a person can help.
    """
    sys.path.insert(0, os.getcwd())  # where a user's own task may lie
    signal.signal(signal.SIGTERM, _stop)
    gc.freeze()  # what was imported stays; to look through it all takes the collector 0.15 s each time
    debug = "--debug" in sys.argv
    try:
        app()
    except Interrupted as stop:
        _say(str(stop))
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        sys.exit(stopped())
    except SystemExit as end:  # into which typer turns Ctrl-C, without a word
        sys.exit(stopped() if end.code == STOPPED else end.code)
    except IstFedError as error:
        if debug:
            raise
        _say(f"error: {error}")
        sys.exit(_REFUSED if isinstance(error, FleetUnknown) else 1)
    except (MemoryError, RuntimeError) as error:
        if debug or not out_of_memory(error):
            raise
        said = str(error).partition("\n")[0] or type(error).__name__
        _say(f"error: there must be memory to work in, but it ran out ({said}); lower [sizes], or --memory")
        sys.exit(1)
    except OSError as error:
        if debug or not out_of_room(error):
            raise
        _say(f"error: there must be room to write, but a disk is full ({error}); make room: what was saved is safe")
        sys.exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    """A polite end, as by a service manager, is treated as Ctrl-C."""
    raise KeyboardInterrupt

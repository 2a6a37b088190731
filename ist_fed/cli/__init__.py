"""The command line, `ist-fed`: one command a file; here is the one place where errors become messages."""

import gc
import logging
import os
import platform
import signal
import sys
from importlib.metadata import version
from types import FrameType
from typing import Annotated, NoReturn

import typer
import typer.core
from rich.logging import RichHandler

from ist_fed import __version__
from ist_fed.__main__ import STOPPED, stopped
from ist_fed.cli.commands import COMMANDS, Commands, load
from ist_fed.cli.console import console
from ist_fed.errors import FleetUnknown, Interrupted, IstFedError, out_of_memory, out_of_room

_REFUSED = 77  # EX_NOPERM of sysexits.h; the client's unit does not start it again after this

typer.core.HAS_RICH = False  # help is plain text; else typer escapes its brackets for rich: `\[default: auto]`

app = typer.Typer(
    cls=Commands,
    suggest_commands=False,  # Click does, and it would be said twice
    help="Independent Subnet Training on Flower: train a wide network on clients that only ever hold a narrow one.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _say_version(asked: bool) -> None:
    if asked:
        below = ", ".join(f"{name} {version(name)}" for name in ("flwr", "torch"))
        print(f"ist-fed {__version__} ({below}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log everything.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
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
    signal.signal(signal.SIGTERM, _stop)
    debug = "--debug" in sys.argv
    try:
        _prepare(sys.argv[1:])
        app()
    except Interrupted as stop:
        sys.exit(stopped(str(stop)))
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


def _prepare(words: list[str]) -> None:
    """Import the command that is meant; what else may be imported later is also looked for in this folder.

    In this order: a user's `random.py` is not to be taken for Python's.
    """
    for name in [word for word in words if word in COMMANDS][:1]:
        load(name)
    sys.path.insert(0, os.getcwd())  # where a user's own task may lie
    gc.freeze()  # what was imported stays; to look through it all takes the collector 0.15 s each time


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    """A polite end, as by a service manager, is treated as Ctrl-C."""
    raise KeyboardInterrupt

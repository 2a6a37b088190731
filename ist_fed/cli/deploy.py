"""`ist-fed deploy local`: a server and its clients as real processes on this machine."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ist_fed.cli.arguments import Format, OutputFormat, ScenarioPath, Settings
from ist_fed.cli.live import Live, print_summary
from ist_fed.cli.scenarios import find_scenario
from ist_fed.engines.deployment import deploy
from ist_fed.run import Run

app = typer.Typer(help="A whole federation.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """A whole federation."""


@app.command()
def local(
    scenario: ScenarioPath,
    settings: Settings = None,
    clients: Annotated[int | None, typer.Option(min=1, help="How many; by default as the scenario says.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>.")] = None,
    supernode: Annotated[
        bool, typer.Option("--supernode", help="Let Flower's own SuperNodes run the clients.")
    ] = False,
    output: OutputFormat = Format.text,
) -> None:
    """Run a scenario over gRPC and TLS on this machine: a server and its clients as processes, for a first look."""
    wanted = find_scenario(scenario, [*(settings or []), *([f"clients={clients}"] if clients is not None else [])])
    this = Run.create(run or Path("runs", wanted.name), wanted, resume="ist-fed simulate --resume")
    try:
        with Live(this, output) as live:
            deploy(this, on_line=live.line, supernode=supernode)
    except BaseException:
        if not this.metrics():
            shutil.rmtree(this.folder, ignore_errors=True)  # somebody may have removed or moved it already
        raise
    print_summary(this, output)

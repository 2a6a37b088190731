"""`ist-fed simulate`: run a scenario with all its clients on this machine."""

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ist_fed.cli.arguments import Format, OutputFormat, Settings
from ist_fed.cli.live import Live, print_summary
from ist_fed.cli.profile import Profiler, both, print_phases
from ist_fed.cli.room import check_network_fits
from ist_fed.cli.scenarios import find_scenario
from ist_fed.device import parse_bytes
from ist_fed.engines import ENGINES
from ist_fed.errors import Interrupted, ScenarioError
from ist_fed.federation import Line
from ist_fed.run import Run
from ist_fed.scenario import Scenario


class EngineName(StrEnum):
    """The keys of `ENGINES`, as the command line wants them."""

    auto = "auto"
    inprocess = "inprocess"
    stacked = "stacked"
    factored = "factored"
    ray = "ray"


def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(metavar="[SCENARIO]", help="A scenario file, or the name of one that ships with ist_fed."),
    ] = None,
    settings: Settings = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="Where the clients run: in this process (one by one: inprocess; many at once: stacked or factored; "
            "whichever is cheapest: auto), or in Flower's simulation (ray)."
        ),
    ] = EngineName.auto,
    memory: Annotated[
        str | None,
        typer.Option(help="What clients trained at once may take, as in 1GiB; 128MiB by default, on a GPU 4GiB."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Trace one round, and show where the time goes.")] = False,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; by default runs/<name>.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")] = None,
    output: OutputFormat = Format.text,
) -> None:
    """Run a scenario with all its clients on this machine."""
    if scenario is None and resume is None:
        raise ScenarioError("name a scenario, as in `ist-fed simulate digits`, or a run to --resume")
    if resume is not None and run is not None:
        raise ScenarioError("--resume names the run's folder already; leave --run out")
    options: dict[str, Any] = {"memory": parse_bytes(memory)} if memory else {}
    if engine is EngineName.ray and (memory or profile):
        raise ScenarioError("--memory and --profile are for clients in this process; leave them out with --engine ray")
    wanted = find_scenario(scenario, settings) if scenario is not None else None
    if resume is not None:
        if wanted is None and settings:
            raise ScenarioError("a run is resumed with its own scenario; name a scenario to change it with --set")
        this = Run.open(resume, wanted)
    else:
        assert wanted is not None
        this = Run.create(run or Path("runs", wanted.name), wanted)
    if not profile:
        train(this, engine, resume is not None, output, **options)
        print_summary(this, output)
        return
    profiler = Profiler(this, len(this.metrics()) if this.has_state() else 0)
    train(this, engine, resume is not None, output, profiler.line, **options)
    print_summary(this, output)
    if output is Format.text:
        print_phases(this, profiler.trace)


def train(
    run: Run,
    engine: str,
    resume: bool,
    output: Format,
    on_line: Callable[[Line], None] = lambda line: None,
    **options: Any,
) -> None:
    """Train a run with its progress shown. A new one that fails before its first round is over leaves no folder behind.

    One that is resumed before it had anything to go on from starts over.
    """
    goes_on = resume and run.has_state()
    with run.held():
        if not goes_on:
            run.start_over()
    try:
        check_network_fits(run.scenario)
        with Live(run, output, len(run.metrics())) as live:
            ENGINES[engine](run, resume=goes_on, on_line=both(live.line, on_line), **options)
    except BaseException:
        if not resume and not run.metrics():  # another's folder is not ours to remove
            shutil.rmtree(run.folder, ignore_errors=True)  # somebody may have removed or moved it already
        raise


def train_or_go_on(scenario: Scenario, folder: Path, option: str = "--folder") -> Run:
    """The run of a scenario: trained now, taken up where it stopped, or finished before.

    Args:
        scenario: what is run.
        folder: of the run.
        option: by which another folder is chosen, for messages.
    """
    if not folder.exists():
        run, resume = Run.create(folder, scenario, option=option), False
    else:
        run, resume = Run.open(folder, scenario), True
    if not resume or len(run.metrics()) < scenario.rounds or not (folder / "model.safetensors").exists():
        try:
            train(run, "auto", resume, Format.text)
        except Interrupted:  # which names a command for this run alone
            raise Interrupted("stopped; repeat the command, and it goes on with what was saved") from None
    return run

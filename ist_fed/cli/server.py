"""`ist-fed server …`: the side that holds the whole network."""

import logging
import time
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from ist_fed.cli.arguments import Format, OutputFormat, Settings, print_json
from ist_fed.cli.console import console
from ist_fed.cli.live import Views
from ist_fed.cli.scenarios import find_scenario
from ist_fed.engines import jobs
from ist_fed.engines import site as engine
from ist_fed.engines.flower import tail
from ist_fed.engines.logs import NAMES
from ist_fed.engines.server import Server
from ist_fed.engines.site import Site
from ist_fed.errors import EngineError, RunError, ScenarioError
from ist_fed.pki import Federation
from ist_fed.progress import progress
from ist_fed.run import Run

logger = logging.getLogger("ist_fed")

app = typer.Typer(help="The server: it holds the whole network, and sends each client a part.", no_args_is_help=True)

FederationFolder = Annotated[
    Path, typer.Option("--federation", help="The folder that `ist-fed provision init` made; the server works in it.")
]
RunFolder = Annotated[Path | None, typer.Option("--folder", help="Folder of the run; by default runs/<name>.")]
Resume = Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")]
_NOT_RUNNING = 3  # as systemctl's
DEFAULT_FOLDER, DEFAULT_PORT = Path("federation"), 9092


@app.command()
def start(
    scenario: Annotated[str | None, typer.Argument(metavar="[SCENARIO]", help="What to run with --run.")] = None,
    settings: Settings = None,
    run: Annotated[bool, typer.Option("--run", help="Run the scenario as soon as its clients are there.")] = False,
    folder: RunFolder = None,
    resume: Resume = None,
    federation: FederationFolder = DEFAULT_FOLDER,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where clients are awaited; by default on every interface.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS and no identities: for a first try on this machine.")
    ] = False,
    streams: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="Where large subnets travel; by default the port after that, and 0 for in messages."
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when there is nothing left to run.")] = False,
    output: OutputFormat = Format.text,
) -> None:
    """Start the server, and keep it running. What it was running when it ended goes on."""
    site = _site(federation, listen, insecure, streams)
    if scenario is not None:
        if not run and resume is None:
            raise ScenarioError(
                f"to run '{scenario}' at once, add --run; to run it later, `ist-fed server run {scenario}`"
            )
        wanted = find_scenario(scenario, settings)  # what is wrong with it is said before anything is started
        if resume is None:
            Run.check_new(folder or Path("runs", wanted.name), option="--folder")
    with Server(site) as server, Views(output) as views:
        if run or resume is not None:  # now it is certain that the job is this server's
            asked = _run(scenario, settings, folder, resume)
            if jobs.asked(site.home, asked.folder) is None:  # of a server that was killed, it goes on anyway
                jobs.add(site.home, asked.folder)
        if output is Format.text:
            console.print(f"clients are awaited on {site.fleet}{' without TLS' if insecure else ''}; Ctrl-C stops")
        server.serve(views, until_idle=once)


@app.command(name="run")
def run_(
    scenario: Annotated[str | None, typer.Argument(metavar="[SCENARIO]")] = None,
    settings: Settings = None,
    folder: RunFolder = None,
    resume: Resume = None,
    federation: FederationFolder = DEFAULT_FOLDER,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the end.")] = False,
    output: OutputFormat = Format.text,
) -> None:
    """Let the server run a scenario, and watch it."""
    home = _home(federation)
    _alive(home)
    run = _run(scenario, settings, folder, resume)
    job = jobs.add(home, run.folder)
    if detach:
        print(f"job {job.number}: {run.folder}")
        return
    with Views(output) as views:
        _watch(home, job, run, views)


@app.command()
def status(federation: FederationFolder = DEFAULT_FOLDER, output: OutputFormat = Format.text) -> None:
    """What the server is doing. Exits with 3 if it is not running."""
    home = _home(federation)
    said, known = engine.about(home), jobs.jobs(home)
    if output is Format.json:
        listed = [
            {"job": job.number, "run": str(job.run), "state": job.state, "reason": job.reason, "waiting": _waiting(job)}
            for job in known
        ]
        print_json({"server": said, "jobs": listed})
        raise typer.Exit(0 if said else _NOT_RUNNING)
    print(f"running as process {said['process']}, clients come to {said['fleet']}" if said else "not running")
    for job in known:
        run = _opened(job)
        rounds = len(run.metrics()) if run else 0
        why = f"  {job.reason}; {_mended(job.run)}" if job.reason else f"  {_waiting(job)}".rstrip()
        print(f"job {job.number}  {job.state:8} {rounds:4} rounds  {job.run}{why}")
    raise typer.Exit(0 if said else _NOT_RUNNING)


@app.command()
def nodes(federation: FederationFolder = DEFAULT_FOLDER, output: OutputFormat = Format.text) -> None:
    """Which clients are connected."""
    found = [
        {"name": node.name, "status": node.status, "node": node.node_id, "since": node.last_activated_at}
        for node in engine.nodes(_home(federation))
        if node.status != "unregistered"
    ]
    if output is Format.json:
        print_json(found)
        return
    for node in found:
        print(f"{node['name'] or '-':24} {node['status']:12} {node['since'] or 'never connected'}")


@app.command()
def logs(
    federation: FederationFolder = DEFAULT_FOLDER,
    lines: Annotated[int, typer.Option("-n", help="How many of the last lines of each log.")] = 40,
) -> None:
    """The end of the logs of Flower's programs."""
    home = _home(federation)
    if not any((home / name).exists() for name in NAMES):
        raise EngineError(f"no server has worked in '{home}'; start one with `ist-fed server start`")
    for name in NAMES:
        print(f"--- {home / name}\n{tail(home / name, lines)}")


@app.command()
def stop(federation: FederationFolder = DEFAULT_FOLDER) -> None:
    """Stop the server. Its run is saved, and goes on when it is started again."""
    home = _home(federation)
    engine.ask_to_stop(home)
    with console.status("waiting for the round to end"):
        while engine.about(home) is not None:
            time.sleep(0.2)


def _watch(home: Path, job: jobs.Job, run: Run, views: Views) -> None:
    seen, told = len(run.metrics()), ""
    while True:
        now = next(known for known in jobs.jobs(home) if known.number == job.number)
        lines = run.metrics()
        for line in lines[seen:]:
            views(run, line)
        seen = len(lines)
        if now.state == "failed":
            raise EngineError(f"the run in '{run.folder}' failed: {now.reason}; {_mended(run.folder)}")
        if now.state == "done":
            return
        _alive(home)
        if (waiting := _waiting(now)) and waiting != told:
            logger.warning("the run is %s", waiting)
        told = waiting
        time.sleep(0.2)


def _waiting(job: jobs.Job) -> str:
    """What a job that is done now waits for; empty if for nothing."""
    run = _opened(job) if job.state == "running" else None
    said = progress(run) if run else None
    return said.waiting if said and said.alive else ""


def _opened(job: jobs.Job) -> Run | None:
    """A job's run; None if it cannot be read, which the server says when it is its turn."""
    try:
        return Run.open(job.run)
    except RunError:
        return None


def _mended(run: Path) -> str:
    return f"once that is mended, `ist-fed server run --resume {quote(str(run))}` goes on with it"


def _run(scenario: str | None, settings: list[str] | None, folder: Path | None, resume: Path | None) -> Run:
    if resume is not None:
        return Run.open(resume, find_scenario(scenario, settings) if scenario else None)
    if scenario is None:
        raise ScenarioError("name a scenario, as in `ist-fed server run digits`, or a run to --resume")
    wanted = find_scenario(scenario, settings)
    return Run.create(folder or Path("runs", wanted.name), wanted, option="--folder")


def _home(federation: Path) -> Path:
    return (federation / "superlink").absolute()


def _site(federation: Path, listen: str | None, insecure: bool, streams: int | None) -> Site:
    identity = None if insecure else Federation.open(federation)
    if listen is None:
        listen = f"0.0.0.0:{identity.address.rpartition(':')[2]}" if identity else f"127.0.0.1:{DEFAULT_PORT}"
    port = listen.rpartition(":")[2]
    if streams is None:
        streams = int(port) + 1 if port.isdecimal() else 0
    return Site(_home(federation), listen, identity, streams)


def _alive(home: Path) -> dict[str, Any]:
    if (said := engine.about(home)) is None:
        raise EngineError(f"no server works in '{home}'; start one with `ist-fed server start`")
    return said

"""The Flower ServerApp: run the scenario that the run configuration describes."""

from logging import INFO
from pathlib import Path

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from ist_fed.engines.flower import poll_faster
from ist_fed.engines.streams import streaming
from ist_fed.federation import federate
from ist_fed.privacy import LEDGER
from ist_fed.progress import reported
from ist_fed.run import Run
from ist_fed.scenario import from_run_config

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and leave everything in the folder `run`, which a launcher has made, or in a new one, `runs/<name>`."""
    poll_faster()
    config = context.run_config
    scenario = from_run_config(config, Path(__file__).parent.parent)
    run = (
        Run.open(Path(str(config["run"])))
        if config["run"]
        else Run.create(Path("runs", scenario.name).absolute(), scenario)
    )
    log(INFO, "The run's folder is %s", run.folder)
    with reported(run), streaming(grid) as grid:
        federate(
            grid,
            run,
            resume=bool(config["resume"]),
            on_line=lambda line: log(INFO, "%s", _text(line)),
            ledgers=[run.folder.absolute().parent / LEDGER],  # beside all runs of this server
        )


def _text(line: dict[str, object]) -> str:
    metric = str(line["metric"])
    return f"round {line['round']}: {metric} {line.get(metric, '—')}, training loss {line['train_loss']:.4f}"

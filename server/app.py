"""The Flower ServerApp: run the scenario named in the run configuration."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ist_fed.federation import federate
from ist_fed.run import Run
from ist_fed.scenario import from_run_config

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and leave the run's folder where `run` says, by default `runs/<name>`."""
    scenario = from_run_config(context.run_config, Path(__file__).parent.parent)
    folder = Path(str(context.run_config.get("run") or Path("runs", scenario.name))).absolute()
    resume = bool(context.run_config.get("resume", False))
    federate(grid, Run.open(folder) if folder.exists() else Run.create(folder, scenario), resume=resume)

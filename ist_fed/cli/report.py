"""`ist-fed report`: pictures and a page about a run."""

from pathlib import Path
from typing import Annotated

import typer

from ist_fed.report import write_report
from ist_fed.run import Run


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]) -> None:
    """Write report.html and its pictures into a run's folder."""
    print(f"report  {write_report(Run.open(run))}")

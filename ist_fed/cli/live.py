"""What a person sees while a run trains, and when it is done."""

import sys
from math import isfinite
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ist_fed.cli.arguments import Format, print_json
from ist_fed.cli.console import console
from ist_fed.federation import Line
from ist_fed.run import Run

MB = 1e6
_NO_NUMBER = "not a number"


def measured(value: float | None) -> str:
    """A value of the metric, for people; what is not finite stands as null in a run's folder."""
    return _NO_NUMBER if value is None or not isfinite(value) else f"{value:.4f}"


class Live:
    """Progress of one run: a live line on a terminal, a JSON line a round for programs, nothing in a log file.

    Args:
        run: what is run.
        output: `json` prints every round.
        done: rounds already done, when a run is resumed.
    """

    def __init__(self, run: Run, output: Format, done: int = 0) -> None:
        self._run, self._output = run, output
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("round {task.completed}/{task.total}  {task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=output is Format.json or not console.is_terminal,
        )
        self._bar = self._progress.add_task(
            run.scenario.name, total=run.scenario.rounds, completed=done, status="starting"
        )

    def __enter__(self) -> "Live":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, line: dict[str, Any]) -> None:
        """Show one round."""
        if self._output is Format.json:
            print_json(line)
        metric = line["metric"]
        score = f"{metric} {measured(line[metric])}  " if metric in line else ""
        moved = (line["bytes_down"] + line["bytes_up"]) / len(line["clients"]) / MB
        refused = f"  {len(line['refused'])} refused" if line["refused"] else ""
        status = f"{score}{moved:.2f} MB/client{refused}"
        self._progress.update(self._bar, completed=line["round"], status=status)


def summary(run: Run) -> dict[str, Any]:
    """A finished run in a few numbers."""
    lines = run.metrics()
    metric = lines[-1]["metric"]
    moved = sum((line["bytes_down"] + line["bytes_up"]) / len(line["clients"]) for line in lines)
    return {
        "run": str(run.folder),
        "rounds": lines[-1]["round"],
        metric: lines[-1].get(metric),
        "loss": lines[-1].get("loss"),
        "mb_per_client": moved / MB,
        "coverage": lines[-1]["coverage"],
        "refused": sum(len(line["refused"]) for line in lines),
        "model": str(run.folder / "model.safetensors"),
    }


def print_summary(run: Run, output: Format) -> None:
    """The numbers, and what to do next."""
    numbers = summary(run)
    if output is Format.json:
        print_json(numbers)
        return
    metric = run.metrics()[-1]["metric"]
    print(
        f"{run.scenario.name}: {metric} {measured(numbers[metric])} after {numbers['rounds']} rounds, "
        f"{numbers['mb_per_client']:.2f} MB moved per client"
        + (f", {numbers['refused']} replies refused" if numbers["refused"] else "")
    )
    broken = [name for name in (metric, "loss") if measured(numbers[name]) == _NO_NUMBER]
    if broken:
        print(
            f"warning: the last {' and '.join(broken)} must be a number, or the model is of no use, but is "
            f"{_NO_NUMBER}; lower training.lr, or look for NaN in what the task's loss() and score() give",
            file=sys.stderr,
        )
    print(f"model   {numbers['model']}")
    if run.scenario.privacy.mode == "central":
        print(f"spent   {run.folder / 'privacy.jsonl'}")  # who held which units nobody knows: there is no report
    else:
        print(f"report  ist-fed report {run.folder}")
    sys.stdout.flush()


class Views:
    """The live view of whichever run is in progress, as a context."""

    def __init__(self, output: Format) -> None:
        self._output = output
        self._run: Run | None = None
        self._live: Live | None = None

    def __call__(self, run: Run, line: Line) -> None:
        """Show one round; with the last one, the result."""
        if self._run is None or self._run.folder != run.folder:
            self.close()
            self._run, self._live = run, Live(run, self._output, line["round"] - 1).__enter__()
        if self._live is not None:
            self._live.line(line)
        if line["round"] == run.scenario.rounds:
            self.close()
            print_summary(run, self._output)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
        self._run = self._live = None

    def __enter__(self) -> "Views":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""A run's folder: the scenario, a line of metrics a round, checkpoints, the final model.

runs/digits/
  scenario.toml                     as resolved, every default filled in
  metrics.jsonl                     one line a round
  checkpoints/round-000040.safetensors, .json
  model.safetensors, model.json     the final network, recalibrated, and how to rebuild it
  lock                              held by the process that works on the run
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from ist_fed import tensors
from ist_fed.checkpoints import Checkpoint, Checkpoints
from ist_fed.errors import RunError, ScenarioError
from ist_fed.files import finite, held_by_one, unwritable, write_atomically
from ist_fed.metrics import Metrics
from ist_fed.scenario import Scenario, differences, parse_scenario


class Run:
    """One run on disk.

    Args:
        folder: of the run.
        scenario: what is run in it.
    """

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.folder, self.scenario = folder, scenario
        self._metrics = Metrics(folder / "metrics.jsonl")
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self._stop = folder / "stop"

    @classmethod
    def create(cls, folder: Path, scenario: Scenario, *, option: str = "--run", resume: str = "--resume") -> "Run":
        """Make the folder of a new run.

        Args:
            folder: of the run.
            scenario: what is to be run in it.
            option: by which whoever asks chooses another folder, for messages.
            resume: by which they go on with a run that is there, for messages.

        Raises:
            RunError: there is one already, or it cannot be made.
        """
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            (folder / "checkpoints").mkdir()
        except OSError as error:
            cls.check_new(folder, option=option, resume=resume)
            raise RunError(
                f"the run's folder '{folder}' cannot be made: {error.strerror}; choose another with {option}"
            ) from error
        try:
            write_atomically(folder / "scenario.toml", scenario.to_toml().encode())
        except BaseException:  # Ctrl-C, too: the folder would be in the way of the next try
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, scenario)

    @staticmethod
    def check_new(folder: Path, *, option: str = "--run", resume: str = "--resume") -> None:
        """See that there is nothing where a new run is to be; the arguments are those of `create`.

        Raises:
            RunError: there is.
        """
        if os.path.lexists(folder):
            remedy = f"resume it with {resume} {quote(str(folder))}, " if (folder / "scenario.toml").exists() else ""
            raise RunError(
                f"a run never overwrites anything, but '{folder}' exists; {remedy}choose another folder with "
                f"{option}, or remove it"
            )

    @classmethod
    def open(cls, folder: Path, scenario: Scenario | None = None) -> "Run":
        """Open the folder of an earlier run.

        Args:
            folder: of the run.
            scenario: what is to be run in it; the same as before, but for `rounds`, `record` and `device`.

        Raises:
            RunError: it is no run's folder, the scenario is another one, or another process works on the run.
        """
        try:
            before = parse_scenario((folder / "scenario.toml").read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"a run's folder holds its scenario.toml, but '{folder}' does not: {error.strerror}; name the folder "
                f"of a run, such as runs/digits"
            ) from error
        except (UnicodeDecodeError, ScenarioError) as error:
            raise RunError(
                f"the scenario of run '{folder}' cannot be read: {error}; mend its scenario.toml, or start a new run"
            ) from error
        if scenario is None:
            return cls(folder, before)
        free = {"rounds": scenario.rounds, "record": scenario.record, "device": scenario.device}
        if changed := differences(replace(before, **free), scenario):  # type: ignore[arg-type]
            raise RunError(
                f"a run is resumed with the scenario it was started with, but '{folder}' differs in "
                f"{'; '.join(changed)}, and only {', '.join(free)} may change. Resume without naming a scenario, or "
                f"start a new run"
            )
        run = cls(folder, scenario)
        with run.held():
            write_atomically(folder / "scenario.toml", scenario.to_toml().encode())
        return run

    def held(self) -> AbstractContextManager[None]:
        """Hold the run: two processes that work on it would write each round twice, and drop each other's checkpoints.

        Raises:
            RunError: another process holds it, or its folder cannot be written to.
        """
        return held_by_one(
            self.folder / "lock",
            f"one process at a time works on a run, and one does on '{self.folder}'; wait for its end, or stop it",
        )

    # --- Metrics ------------------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """The lines written so far, one a round; a last one that is not whole yet is left out.

        Raises:
            RunError: a line cannot be read; the message says which.
        """
        return self._metrics.read()

    def record(self, line: Mapping[str, Any]) -> None:
        """Append one round's line; a number that is not finite is written as null, for JSON knows none."""
        self._metrics.append(line)

    def start_over(self) -> None:
        """Drop the lines of a run that ended before its first checkpoint: all its rounds will be run again."""
        self._metrics.forget_after(0)

    # --- Checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint(self, state: Checkpoint) -> None:
        """Write the state after a round, and drop the oldest beyond what the scenario keeps.

        Raises:
            RunError: it cannot be written; earlier ones are as they were.
        """
        self.stage(state)()

    def stage(self, state: Checkpoint) -> Callable[[], None]:
        """The same in two steps; see `Checkpoints.stage`."""
        count = self._checkpoints.stage(state, self.scenario.record.keep)

        def count_with_lines() -> None:
            self._metrics.settle()  # after a power cut, too, a checkpoint has the lines of its rounds
            count()

        return count_with_lines

    def restore(self) -> Checkpoint:
        """The newest checkpoint that is whole; metrics of later rounds are dropped.

        Raises:
            RunError: there is none.
        """
        state = self._checkpoints.restore()
        self._metrics.forget_after(state.round)
        return state

    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._checkpoints.rounds())

    def has_state(self) -> bool:
        """Whether starting over would lose more than lines: there is a checkpoint, or the final network."""
        return self.has_checkpoint() or (self.folder / "model.safetensors").exists()

    # --- Stopping from another process --------------------------------------------------------------------------------

    def ask_to_stop(self, stop: bool = True) -> None:
        """Ask whoever trains this run to stop after the round in progress; or take the request back.

        Raises:
            RunError: its folder is gone, or cannot be written to.
        """
        try:
            if stop:
                self._stop.touch()
            else:
                self._stop.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._stop, error) from error

    def is_asked_to_stop(self) -> bool:
        """Whether someone asked."""
        return self._stop.exists()

    # --- The final model ----------------------------------------------------------------------------------------------

    def save_model(self, arrays: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write the final network's arrays, and beside them what is needed to rebuild it.

        Raises:
            RunError: they cannot be written.
        """
        write_atomically(self.folder / "model.safetensors", tensors.written(arrays))
        write_atomically(self.folder / "model.json", json.dumps(finite(about), indent=2).encode())

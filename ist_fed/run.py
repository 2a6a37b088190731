"""A run's folder: the scenario, a line of metrics a round, checkpoints, the final model.

    runs/digits/
      scenario.toml                     as resolved, every default filled in
      metrics.jsonl                     one line a round
      checkpoints/round-000040.safetensors, .json
      model.safetensors, model.json     the final network, recalibrated, and how to rebuild it
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ist_fed.errors import RunError, ScenarioError
from ist_fed.scenario import Scenario, differences, parse_scenario

logger = logging.getLogger("ist_fed")


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round: all that a run needs to go on as if it had never stopped."""

    round: int
    arrays: dict[str, Tensor]
    coverage: dict[str, Tensor]


class Run:
    """One run on disk.

    Args:
        folder: of the run.
        scenario: what is run in it.
    """

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.folder, self.scenario = folder, scenario
        self._metrics = folder / "metrics.jsonl"
        self._checkpoints = folder / "checkpoints"

    @classmethod
    def create(cls, folder: Path, scenario: Scenario) -> "Run":
        """Make the folder of a new run.

        Raises:
            RunError: there is one already, or it cannot be made.
        """
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            (folder / "checkpoints").mkdir()
            _write_atomically(folder / "scenario.toml", scenario.to_toml().encode())
        except FileExistsError as error:
            raise RunError(
                f"a run never overwrites another, but '{folder}' exists; resume it with --resume {folder}, "
                f"choose another folder with --run, or remove it"
            ) from error
        except OSError as error:
            raise RunError(f"the run's folder '{folder}' cannot be made: {error}") from error
        return cls(folder, scenario)

    @classmethod
    def open(cls, folder: Path, scenario: Scenario | None = None) -> "Run":
        """Open the folder of an earlier run.

        Args:
            folder: of the run.
            scenario: what is to be run in it; the same as before, but for `rounds`, `record` and `device`.

        Raises:
            RunError: it is no run's folder, or the scenario is another one.
        """
        try:
            before = parse_scenario((folder / "scenario.toml").read_text(encoding="utf-8"))
        except (OSError, ScenarioError) as error:
            raise RunError(f"'{folder}' is not the folder of a run: {error}") from error
        if scenario is None:
            return cls(folder, before)
        free = {"rounds": scenario.rounds, "record": scenario.record, "device": scenario.device}
        if changed := differences(replace(before, **free), scenario):  # type: ignore[arg-type]
            raise RunError(
                f"a run is resumed with the scenario it was started with, but '{folder}' differs in "
                f"{'; '.join(changed)}. Resume without naming a scenario, or start a new run"
            )
        _write_atomically(folder / "scenario.toml", scenario.to_toml().encode())
        return cls(folder, scenario)

    # --- Metrics ------------------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """The lines written so far, one a round.

        Raises:
            RunError: a line cannot be read; the message says which.
        """
        lines = []
        for number, text in enumerate(self._metrics.read_text().splitlines() if self._metrics.exists() else [], 1):
            try:
                lines.append(json.loads(text))
            except ValueError as error:
                raise RunError(f"line {number} of '{self._metrics}' is not JSON: {error}") from error
        return lines

    def record(self, line: Mapping[str, Any]) -> None:
        """Append one round's line."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _forget_after(self, round: int) -> None:
        """Drop the lines of rounds that will be run again; a last line cut short by a crash goes with them."""
        kept = []
        for text in self._metrics.read_text().splitlines() if self._metrics.exists() else []:
            with contextlib.suppress(ValueError):
                if json.loads(text)["round"] <= round:
                    kept.append(text + "\n")
        _write_atomically(self._metrics, "".join(kept).encode())

    # --- Checkpoints --------------------------------------------------------------------------------------------------

    def checkpoint(self, state: Checkpoint) -> None:
        """Write the state after a round, and drop the oldest beyond what the scenario keeps."""
        tensors = {f"arrays/{name}": array for name, array in state.arrays.items()}
        tensors |= {f"coverage/{name}": marks for name, marks in state.coverage.items()}
        data = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        stem = self._checkpoints / f"round-{state.round:06d}"
        about = {"round": state.round, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        _write_atomically(stem.with_suffix(".safetensors"), data)
        _write_atomically(stem.with_suffix(".json"), json.dumps(about).encode())  # from here on it counts
        for old in self._stems()[self.scenario.record.keep :]:
            old.with_suffix(".json").unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def restore(self) -> Checkpoint:
        """The newest checkpoint that is whole; metrics of later rounds are dropped.

        Raises:
            RunError: there is none.
        """
        problems = []
        for stem in self._stems():
            try:
                state = _read_checkpoint(stem)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                logger.warning("checkpoint '%s' cannot be used (%s); trying the one before it", stem.name, error)
                problems.append(f"{stem.name}: {error}")
                continue
            self._forget_after(state.round)
            return state
        raise RunError(
            f"no checkpoint in '{self._checkpoints}' can be used ({'; '.join(problems) or 'there is none'}); "
            f"start a new run"
        )

    def _stems(self) -> list[Path]:
        """Checkpoints without their suffix, newest first."""
        return [path.with_suffix("") for path in sorted(self._checkpoints.glob("round-*.json"), reverse=True)]

    # --- The final model ----------------------------------------------------------------------------------------------

    def save_model(self, arrays: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write the final network's arrays, and beside them what is needed to rebuild it."""
        data = save_tensors({name: array.detach().cpu().contiguous() for name, array in arrays.items()})
        _write_atomically(self.folder / "model.safetensors", data)
        _write_atomically(self.folder / "model.json", json.dumps(dict(about), indent=2).encode())


def _read_checkpoint(stem: Path) -> Checkpoint:
    about = json.loads(stem.with_suffix(".json").read_text())
    data = stem.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ValueError(f"its {len(data)} bytes are not the {about['bytes']} that were written")
    tensors = load_tensors(data)
    parts: dict[str, dict[str, Tensor]] = {"arrays": {}, "coverage": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    return Checkpoint(about["round"], parts["arrays"], parts["coverage"])


def _write_atomically(path: Path, data: bytes) -> None:
    """Either the old file or the whole new one is there, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)



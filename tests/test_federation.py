"""A run from its scenario to its folder: what an end between two writes leaves."""

import errno
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import Tiny, same
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed.engines.local import one_by_one as simulate
from ist_fed.errors import Interrupted, RunError, TaskError, TrainingError
from ist_fed.network import Network
from ist_fed.phases import Stretch
from ist_fed.privacy import Privacy
from ist_fed.robust import Robust
from ist_fed.run import Run
from ist_fed.scenario import Record, Rounds, Scenario
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.tasks import RESERVED, Batch

SCENARIO = Scenario(
    name="x",
    task="digits",
    sizes={"hidden1": 32},
    rule={"name": "disjoint", "groups": 2},
    clients=2,
    rounds=4,
    local_steps=1,
    device="cpu",
    record=Record(checkpoint_every=1, tensorboard=False),
)


def rounds(run: Run) -> list[int]:
    return [line["round"] for line in run.metrics()]


@pytest.fixture
def whole(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "whole", SCENARIO)
    simulate(run)
    return run


@pytest.mark.parametrize("half", [b"", b'{"round": 3, "tra'], ids=["no line", "half a line"])
def test_a_round_whose_line_cannot_be_written_is_run_again(
    tmp_path: Path, whole: Run, half: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Run.record

    def full(self: Run, line: dict[str, Any]) -> None:
        if line["round"] < 3:
            return record(self, line)
        with (self.folder / "metrics.jsonl").open("ab") as file:
            file.write(half)
        raise RunError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")

    run = Run.create(tmp_path / "run", SCENARIO)
    monkeypatch.setattr(Run, "record", full)
    with pytest.raises(RunError, match="the disk is full"):
        simulate(run)
    monkeypatch.undo()
    assert rounds(run) == [1, 2]
    simulate(run, resume=True)
    assert rounds(run) == [1, 2, 3, 4]
    assert same(*(load_file(one.folder / "model.safetensors") for one in (run, whole)))


@pytest.mark.parametrize(
    "rule", [{"name": "least_trained", "share": 0.3, "min_units": 4}, {"name": "balanced", "groups": 2}]
)
def test_what_rules_remember_survives_a_stop(tmp_path: Path, rule: dict[str, Any]) -> None:
    """Law 11, resume, for rules whose rounds depend on those before."""
    scenario = replace(SCENARIO, rule=rule, sizes={"hidden1": 32, "hidden2": 48})
    runs = [Run.create(tmp_path / name, scenario) for name in ("whole", "cut")]
    simulate(runs[0])
    with pytest.raises(Interrupted):
        simulate(runs[1], on_line=lambda line: runs[1].ask_to_stop(line["round"] == 2))
    assert rounds(runs[1]) == [1, 2]
    simulate(runs[1], resume=True)
    models = [load_file(run.folder / "model.safetensors") for run in runs]
    assert same(*models)
    assert same(*(run.restore().coverage for run in runs))
    assert [line["coverage"] for line in runs[0].metrics()] == [line["coverage"] for line in runs[1].metrics()]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(tmp_path: Path, whole: Run) -> None:
    run = Run.create(tmp_path / "run", SCENARIO)
    run.record({"round": 1})
    simulate(run)
    assert rounds(run) == [1, 2, 3, 4]
    assert same(*(load_file(one.folder / "model.safetensors") for one in (run, whole)))


@pytest.mark.parametrize(
    "more",
    [
        {"robust": Robust(norm_bound=3), "network": Network(flops=1e9), "phases": [Stretch()]},
        {
            "privacy": Privacy(mode="central", epsilon=8),
            "rule": {"name": "private", "groups": 2},
            "round": Rounds(weighting="uniform"),
        },
    ],
    ids=lambda more: next(iter(more)),
)
def test_no_metric_may_be_called_as_what_a_run_records(tmp_path: Path, more: dict[str, Any]) -> None:
    run = Run.create(tmp_path / "run", replace(SCENARIO, rounds=1, **more))
    simulate(run)
    about = json.loads((run.folder / "model.json").read_text())
    assert {*run.metrics()[0], *about} - {*RESERVED} == {"accuracy"}


@dataclass(frozen=True)
class Unfit(Tiny):
    """The tiny task with something that only an evaluation would find.

    Args:
        rows: test examples.
        nan: whether the test data hold one.
        raises: whether `score` does.
    """

    norm: str = "none"
    rows: int = 50
    nan: bool = False
    raises: bool = False

    def test_data(self) -> TensorDataset:
        inputs, targets = super().test_data().tensors
        return TensorDataset((inputs * torch.nan if self.nan else inputs)[: self.rows], targets[: self.rows])

    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.raises:
            raise ZeroDivisionError("of score")
        return super().score(model, batch)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "an evaluation needs at least one example, but the data are empty; give it test data"),
        ({"nan": True}, "on the first test examples it is nan; look for NaN and infinities in what test_data"),
        ({"raises": True}, "of score"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_only_an_evaluation_would_find_is_found_before_anyone_trains(
    tmp_path: Path, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndependentSubnetTraining, "rounds", lambda *args, **more: pytest.fail("it trains"))
    run = Run.create(tmp_path / "run", replace(SCENARIO, task="test_federation:Unfit", options=options))
    with pytest.raises((TaskError, TrainingError, ZeroDivisionError), match=said):
        simulate(run)

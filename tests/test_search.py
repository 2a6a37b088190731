"""A search: what varies, that it goes on where it stopped, and that it is honest."""

import json
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.engines import ENGINES
from ist_fed.errors import (
    EngineError,
    Interrupted,
    IstFedError,
    RoundError,
    RunError,
    ScenarioError,
    TaskError,
    TrainingError,
)
from ist_fed.run import Run
from ist_fed.scenario import Scenario, parse_scenario
from ist_fed.search import Search, Vary, default_space, held_out_score, parse_vary
from ist_fed.tasks import Batch
from ist_fed.tasks.digits import Digits

SCENARIO = parse_scenario("""
name = "tiny"
task = "digits"
clients = 2
rounds = 4
local_steps = 2
record = { tensorboard = false, evaluate_every = 4 }
sizes = { hidden1 = 32 }
rule = { name = "disjoint", groups = 2 }
""")
SPACE = [Vary("training.lr", low=0.01, high=1.0), Vary("local_steps", (1, 2, 8))]


def train(scenario: Scenario, folder: Path) -> Run:
    if folder.exists():
        return Run.open(folder, scenario)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = Run.create(folder, scenario)
    ENGINES["inprocess"](run)
    return run


def test_what_varies_is_read() -> None:
    assert parse_vary("training.lr=0.01..1") == Vary("training.lr", low=0.01, high=1)
    assert parse_vary("local_steps = 5, 10") == Vary("local_steps", (5, 10))
    assert parse_vary("training.optimizer=sgd,adam") == Vary("training.optimizer", ("sgd", "adam"))
    assert str(parse_vary("local_steps=5..80")) == "local_steps=5..80"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.lr", "key=low..high or key=a,b,c"),
        ("training.rl=0.1..1", "did you mean 'training.lr'"),
        ("training.lr=1..0.1", "the lower first"),
        ("training.lr=0..1", "two positive numbers"),
        ("training.lr=a..b", "two positive numbers"),
    ],
)
def test_what_varies_is_refused(text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said.replace(".", r"\.")):
        parse_vary(text)


def test_without_a_word_learning_rate_steps_and_groups_vary() -> None:
    assert [vary.key for vary in default_space(SCENARIO)] == ["training.lr", "local_steps", "rule.groups"]


def test_every_trial_takes_as_many_steps_on_seeds_of_its_own(tmp_path: Path) -> None:
    seen: list[Scenario] = []

    def spy(scenario: Scenario, folder: Path) -> Run:
        seen.append(scenario)
        return train(scenario, folder)

    found = list(Search(SCENARIO, SPACE, tmp_path / "search", seeds=2).go_on(3, spy))
    assert len(found) == 3
    assert len(seen) == 6
    assert {scenario.rounds * scenario.local_steps for scenario in seen} == {8}
    assert len({scenario.seed for scenario in seen}) == 2
    assert SCENARIO.seed not in {scenario.seed for scenario in seen}
    assert all(0 <= one.score <= 1 for one in found if one.score is not None)


def test_an_interrupted_search_goes_on_with_what_it_was_trying(tmp_path: Path) -> None:
    tried: list[tuple[float, int]] = []
    stop = [True]

    def interrupted(scenario: Scenario, folder: Path) -> Run:
        tried.append((scenario.training.lr, scenario.local_steps))
        if len(tried) == 2 and stop.pop():
            raise KeyboardInterrupt
        return train(scenario, folder)

    with pytest.raises(KeyboardInterrupt):
        list(Search(SCENARIO, SPACE, tmp_path / "search").go_on(3, interrupted))
    again = Search(SCENARIO, SPACE, tmp_path / "search")
    assert len(again.found()) == 1
    list(again.go_on(3, interrupted))
    assert tried[2] == tried[1]
    assert len(again.found()) == 3
    assert len(list((tmp_path / "search" / "trials").iterdir())) == len(set(tried))


def test_what_cannot_be_trained_is_a_bad_trial(tmp_path: Path) -> None:
    def diverges(scenario: Scenario, folder: Path) -> Run:
        if scenario.local_steps == 8:
            raise RoundError("the loss must stay finite")
        return train(scenario, folder)

    this = Search(SCENARIO, [SPACE[0], Vary("local_steps", (8,))], tmp_path / "search")
    (found,) = this.go_on(1, diverges)
    assert (found.score, found.reason) == (None, "the loss must stay finite")
    assert this.found() == [found]


@pytest.mark.parametrize("error", [Interrupted("stopped"), RunError("a full disk"), EngineError("no Ray")])
def test_what_says_nothing_about_a_trial_leaves_it_unfinished(error: IstFedError, tmp_path: Path) -> None:
    def fails(scenario: Scenario, folder: Path) -> Run:
        raise error

    with pytest.raises(type(error)):
        list(Search(SCENARIO, SPACE, tmp_path / "search").go_on(1, fails))
    again = Search(SCENARIO, SPACE, tmp_path / "search")
    assert again.found() == []
    (found,) = again.go_on(1, train)
    assert found.score is not None


class Unmeasured(Digits):
    def score(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.tensor(nan)


def test_a_score_that_is_no_number_is_a_bad_place(tmp_path: Path) -> None:
    scenario = replace(SCENARIO, task=f"{__name__}:Unmeasured")
    with pytest.raises(TrainingError, match=r"a search chooses by numbers, but accuracy .* is nan"):
        held_out_score(train(scenario, tmp_path / "run"))
    (found,) = Search(scenario, SPACE, tmp_path / "search").go_on(1, train)
    assert found.score is None


def test_examples_that_cannot_be_had_are_the_tasks_own_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Digits) -> Dataset[Batch]:
        raise KeyError("held")

    run = train(SCENARIO, tmp_path / "run")
    monkeypatch.setattr(Digits, "calibration_data", lost)
    with pytest.raises(TaskError, match=r"calibration_data\(\) must not fail, but raised KeyError: 'held' \(test"):
        held_out_score(run)


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Search(SCENARIO, SPACE, tmp_path / "search")
    with pytest.raises(ScenarioError, match="differs in space"):
        Search(SCENARIO, SPACE[:1], tmp_path / "search")


def test_the_log_is_json(tmp_path: Path) -> None:
    Search(SCENARIO, SPACE, tmp_path / "search")
    lines: Iterator[str] = iter((tmp_path / "search" / "study.log").read_text().splitlines())
    assert all(isinstance(json.loads(line), dict) for line in lines)

"""What a node trains on, and which tasks it takes part in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data import Unwilling, data_of, task_of
from ist_fed.errors import TaskError
from ist_fed.scenario import Scenario, parse_scenario
from ist_fed.tasks.digits import Digits
from ist_fed.tasks.source import PATHS, ROOT
from ist_fed.tasks.speech import Speech

TEXT = 'name="t"\nrule={name="full"}\ntask="%s"\n[sizes]\nhidden1=32\n'


def scenario(task: str) -> Scenario:
    return parse_scenario(TEXT % task)


@pytest.mark.parametrize("node", [{}, {"tasks": ""}, {"tasks": "a.b:c"}])
def test_built_in_tasks_are_allowed(node: dict[str, Any]) -> None:
    assert isinstance(task_of(scenario("digits"), node), Digits)


@pytest.mark.parametrize("task", ["subprocess:Popen", "os:system", "my.task:make"])
def test_a_deployed_node_imports_no_code_that_was_not_allowed(task: str) -> None:
    for tasks in ("", "other.task:make"):
        with pytest.raises(TaskError, match=f"the server asks for '{task}'; start the client with --allow-task {task}"):
            task_of(scenario(task), {"tasks": tasks})


def test_a_task_that_was_allowed_is_imported() -> None:
    for node in ({"tasks": "x.y:z,ist_fed.tasks.digits:Digits"}, {}):  # Flower's simulation sets none
        assert isinstance(task_of(scenario("ist_fed.tasks.digits:Digits"), node), Digits)


SPEECH = TEXT % "speech" + '[options]\npath="%s"\ncache="%s"\nmodel="cnn"\n'


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (ROOT, PATHS):
        monkeypatch.delenv(variable, raising=False)


def test_a_server_does_not_say_where_things_lie_on_a_client(tmp_path: Path) -> None:
    """With data of its own the client needs no other; else others might be taken in place of those that were meant."""
    asked = parse_scenario(SPEECH % (tmp_path / "data", tmp_path / "cache"))
    task = task_of(asked, {"tasks": "", "partition-id": 0, "data": "/srv/mine"})
    assert task == Speech(model="cnn")
    for node in ({"tasks": "", "partition-id": 0, "num-partitions": 2}, {"device": "cpu"}):
        with pytest.raises(
            Unwilling, match=r"scenario's options.path is '.*data'; leave it out, or put the folder there"
        ):
            task_of(asked, node)


@pytest.mark.parametrize("variable", [ROOT, PATHS])
def test_but_in_folders_that_its_operator_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "link").symlink_to(tmp_path)
    monkeypatch.setenv(variable, str(tmp_path / "there"))
    named = Speech(path=str(tmp_path / "there" / "data"), cache=str(tmp_path / "there"), model="cnn")
    assert task_of(parse_scenario(SPEECH % (named.path, named.cache)), {"tasks": ""}) == named
    for elsewhere in ("/", tmp_path / "there" / ".." / "x", tmp_path / "there" / "link" / "x", f"{tmp_path}/therefore"):
        with pytest.raises(Unwilling):
            task_of(parse_scenario(SPEECH % (elsewhere, named.cache)), {"tasks": ""})


def test_in_a_simulation_whoever_wrote_the_scenario_is_the_operator(tmp_path: Path) -> None:
    asked = parse_scenario(SPEECH % (tmp_path / "data", tmp_path / "cache"))
    assert task_of(asked, {"partition-id": 0, "num-partitions": 2}) == Speech(**asked.options)


def test_data_are_a_share_or_what_lies_at_a_path(tmp_path: Path) -> None:
    share = data_of(Digits(), {"partition-id": 1, "num-partitions": 4})
    assert len(share) == len(Digits().client_data(1, 4))  # type: ignore[arg-type]
    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 64)), labels=np.arange(3))
    assert len(data_of(Digits(), {"partition-id": 1, "data": str(tmp_path / "mine.npz")})) == 3  # type: ignore[arg-type]

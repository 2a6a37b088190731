"""What a node trains on, and which tasks it takes part in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data import data_of, task_of
from ist_fed.errors import TaskError
from ist_fed.scenario import Scenario, parse_scenario
from ist_fed.tasks.digits import Digits

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


def test_data_are_a_share_or_what_lies_at_a_path(tmp_path: Path) -> None:
    share = data_of(Digits(), {"partition-id": 1, "num-partitions": 4})
    assert len(share) == len(Digits().client_data(1, 4))  # type: ignore[arg-type]
    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 64)), labels=np.arange(3))
    assert len(data_of(Digits(), {"partition-id": 1, "data": str(tmp_path / "mine.npz")})) == 3  # type: ignore[arg-type]

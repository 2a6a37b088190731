"""What this node trains on, and which task it takes part in: its operator's business, said in `--node-config`."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import Dataset

from ist_fed.errors import TaskError
from ist_fed.scenario import Scenario
from ist_fed.tasks import TASKS, Batch, Task, load_task


def task_of(scenario: Scenario, node: Mapping[str, object]) -> Task:
    """The scenario's task: a built-in one, or one that the operator allowed, for its code runs here.

    Raises:
        TaskError: it is neither.
    """
    if "tasks" in node and scenario.task not in (*TASKS, *str(node["tasks"]).split(",")):
        raise TaskError(
            f"this client runs the built-in tasks and those that its operator allowed, but the server asks for "
            f"'{scenario.task}'; start the client with --allow-task {scenario.task}"
        )
    return load_task(scenario.task, scenario.options)


def data_of(task: Task, node: Mapping[str, object]) -> Dataset[Batch]:
    """The node's own data from its `data` path, or its share of the task's data."""
    if "data" in node:
        path = Path(str(node["data"]))
        return task.local_data(path) if hasattr(task, "local_data") else Task.local_data(task, path)
    return task.client_data(int(str(node["partition-id"])), int(str(node["num-partitions"])))

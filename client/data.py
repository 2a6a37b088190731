"""What this node trains on, and which task it takes part in: its operator's business, said in `--node-config`."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.data import Dataset

from ist_fed.errors import PrivacyError, TaskError
from ist_fed.privacy.example import Guard
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


def guard_of(scenario: Scenario, node: Mapping[str, object], client: int) -> Guard | None:
    """What counts and protects the node's single examples, if the scenario asks for it.

    Raises:
        PrivacyError: the node has no folder of its own, in which the count outlives the process; or its operator asks
            for this protection, and the scenario does not.
    """
    allowed = float(str(node.get("example-epsilon", "inf")))
    if not scenario.example_privacy.on:
        if "example-epsilon" in node:
            raise PrivacyError(
                "this client trains only where its single examples are private, for so its operator said, but the "
                "scenario has no [example_privacy]; give it one"
            )
        return None
    if "folder" not in node:
        raise PrivacyError(
            "privacy of single examples is counted on the client's disk, but this node has no folder; use ist-fed "
            "client, or give it one with --node-config 'folder=\"/var/lib/ist-fed\"'"
        )
    path = Path(str(node["folder"])) / f"example-privacy-{client}.jsonl"
    return scenario.guard(client, path, allowed=allowed, tell=bool(node.get("tell-epsilon")))

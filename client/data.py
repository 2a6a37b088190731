"""What this node trains on, and which task it takes part in: its operator's business, said in `--node-config`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ist_fed.errors import PrivacyError, TaskError
from ist_fed.privacy.example import Guard
from ist_fed.scenario import Scenario
from ist_fed.tasks import TASKS, Batch, Task, load_task, paths_of
from ist_fed.tasks.source import PATHS, ROOT, may_name
from ist_fed.wire.excerpt import excerpt


class Unwilling(TaskError, PrivacyError):
    """The server asks for what the operator does not allow; it may be told so, for the message says nothing else."""


def is_simulated(node: Mapping[str, object]) -> bool:
    """Whether it is a node of Flower's simulation, where whoever wrote the scenario is the operator."""
    return node.keys() <= {"partition-id", "num-partitions"}


def task_of(scenario: Scenario, node: Mapping[str, object]) -> Task:
    """The scenario's task: a built-in one, or one that the operator allowed, for its code runs here.

    Raises:
        Unwilling: it is neither, or its data are where the operator did not say.
        TaskError: it cannot be made.
    """
    if "tasks" in node and scenario.task not in (*TASKS, *str(node["tasks"]).split(",")):
        raise Unwilling(
            f"this client runs the built-in tasks and those that its operator allowed, but the server asks for "
            f"'{scenario.task}'; start the client with --allow-task {scenario.task}"
        )
    return load_task(scenario.task, scenario.options if is_simulated(node) else _allowed(scenario, node))


def _allowed(scenario: Scenario, node: Mapping[str, object]) -> dict[str, Any]:
    """The options, without paths on this machine that are not the server's to name.

    Raises:
        Unwilling: the node's data are to come from there; other data might be taken in their place.
    """
    options = scenario.options
    foreign = [name for name in paths_of(scenario.task) if options.get(name) and not may_name(str(options[name]))]
    if foreign and "data" not in node:
        raise Unwilling(
            f"a server may name paths in the folders that a client's operator put into {ROOT} and {PATHS}, but this "
            f"scenario's options.{foreign[0]} is '{excerpt(options[foreign[0]], 80)}'; leave it out, or put the folder "
            f"there"
        )
    return {name: value for name, value in options.items() if name not in foreign}


def data_of(task: Task, node: Mapping[str, object]) -> Dataset[Batch]:
    """The node's own data from its `data` path, or its share of the task's data."""
    if "data" in node:
        path = Path(str(node["data"]))
        return task.local_data(path) if hasattr(task, "local_data") else Task.local_data(task, path)
    return task.client_data(int(str(node["partition-id"])), int(str(node["num-partitions"])))


def guard_of(scenario: Scenario, node: Mapping[str, object], client: int) -> Guard | None:
    """What counts and protects the node's single examples, if the scenario asks for it.

    Raises:
        PrivacyError: the node has no folder of its own, in which the count outlives the process.
        Unwilling: its operator asks for this protection, and the scenario does not.
    """
    allowed, asked = float(str(node.get("example-epsilon", "inf"))), scenario.example_privacy
    if not asked.on:
        if "example-epsilon" in node:
            raise Unwilling(
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
    if "example-epsilon" in node:  # what its operator allowed means little at a delta of the server's choice
        delta = min(asked.delta, float(str(node.get("example-delta", 1e-5))))
        scenario = replace(scenario, example_privacy=replace(asked, delta=delta))
    return scenario.guard(client, path, allowed=allowed, tell=bool(node.get("tell-epsilon")))

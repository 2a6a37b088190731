"""The full network as the report needs it: how large it and its subnets are, and which axes split its arrays."""

from collections import Counter
from collections.abc import Mapping

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import infer
from ist_fed.errors import IstFedError
from ist_fed.scenario import Scenario
from ist_fed.tasks import TASKS, Task, load_task

Key = tuple[str, ...]
"""The axes that split an array, in the order of its dimensions."""


class Network:
    """Sizes and shapes, without memory.

    Args:
        task: gives the factory.
        sizes: units of each axis of the full network.
    """

    def __init__(self, task: Task, sizes: Mapping[str, int]) -> None:
        self._task, self._sizes = task, dict(sizes)
        self._known: dict[tuple[tuple[str, int], ...], int] = {}
        arrays = arrays_of(build_on_meta(task.build, sizes))
        table = infer(task.build, sizes, dict(task.declared))
        self.bytes = sum(array.numel() * array.element_size() for array in arrays.values())
        self.coordinates: Counter[Key] = Counter()
        for name, array in arrays.items():
            if array.is_floating_point():
                self.coordinates[tuple(dim.axis for dim in table[name] if dim.axis is not None)] += array.numel()

    def parameters(self, sizes: Mapping[str, int] | None = None) -> int:
        """How many parameters a subnet of these sizes has; None asks for the full network."""
        wanted = self._sizes if sizes is None else {axis: sizes.get(axis, n) for axis, n in self._sizes.items()}
        key = tuple(wanted.items())
        if key not in self._known:
            module = build_on_meta(self._task.build, wanted)
            self._known[key] = sum(parameter.numel() for parameter in module.parameters())
        return self._known[key]


def network_of(scenario: Scenario, task: Task | None = None) -> Network | None:
    """The network of a scenario; None where that would mean to run code that a run's folder names.

    Args:
        scenario: of the run.
        task: the scenario's task, if the caller has it; built-in tasks are found by name.
    """
    try:
        if task is None and scenario.task in TASKS:
            task = load_task(scenario.task, scenario.options)
        return None if task is None else Network(task, scenario.sizes)
    except IstFedError:
        return None  # a report is made without it, in fewer words

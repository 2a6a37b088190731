"""Whether there is memory for a scenario, asked before it is filled."""

from math import prod

import torch

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import Axes
from ist_fed.device import format_bytes, free_memory
from ist_fed.errors import ScenarioError
from ist_fed.scenario import Scenario
from ist_fed.tasks import load_task


def check_network_fits(scenario: Scenario) -> None:
    """Check that the whole network fits into this machine.

    Raises:
        ScenarioError: it does not.
    """
    task = load_task(scenario.task, scenario.options)
    needed = sum(array.nbytes for array in arrays_of(build_on_meta(task.build, scenario.sizes)).values())
    _check(scenario, "hold the whole network", needed)


def check_coverage_fits(scenario: Scenario, axes: Axes) -> None:
    """Check that it can be counted here which units were trained together: a byte for each pair, as `Coverage` has it.

    Raises:
        ScenarioError: it cannot.
    """
    marked = {frozenset(dim.axis for dim in dims if dim.axis) for dims in axes.values()}
    _check(
        scenario,
        "count which units are trained together",
        sum(prod(scenario.sizes[axis] for axis in together) for together in marked),
    )


def _check(scenario: Scenario, purpose: str, needed: int) -> None:
    if needed > (free := free_memory(torch.device("cpu"))):
        raise ScenarioError(
            f"this machine must {purpose}, but for '{scenario.name}' that takes {format_bytes(needed)}, and "
            f"{format_bytes(free)} are free; lower [sizes], or use a larger machine"
        )

"""Independent Subnet Training on Flower: train a wide network on clients that only ever hold a narrow one."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ist_fed import rules
    from ist_fed.axes import infer
    from ist_fed.strategy import IndependentSubnetTraining
    from ist_fed.subnet import Merge, extract
    from ist_fed.tasks import Task
    from ist_fed.train import Training
    from ist_fed.worker import Worker

__version__ = version("ist-fed")

__all__ = ["IndependentSubnetTraining", "Merge", "Task", "Training", "Worker", "extract", "infer", "rules"]

_ROOMS = {
    "IndependentSubnetTraining": "strategy",
    "Merge": "subnet",
    "Task": "tasks",
    "Training": "train",
    "Worker": "worker",
    "extract": "subnet",
    "infer": "axes",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and not before: the command line must be there to heed Ctrl-C until then."""
    if name == "rules":
        return import_module("ist_fed.rules")
    if name not in _ROOMS:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"ist_fed.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """What can be asked for, as a shell wants to know it."""
    return [*globals(), *__all__]

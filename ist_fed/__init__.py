"""Independent Subnet Training on Flower: train a wide network on clients that only ever hold a narrow one."""

from importlib.metadata import version

from ist_fed import rules
from ist_fed.axes import infer
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.subnet import Merge, extract
from ist_fed.tasks import Task
from ist_fed.train import Training
from ist_fed.worker import Worker

__version__ = version("ist-fed")

__all__ = ["IndependentSubnetTraining", "Merge", "Task", "Training", "Worker", "extract", "infer", "rules"]

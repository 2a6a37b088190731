"""Independent Subnet Training as a product on Flower."""

from ist_fed.axes import infer
from ist_fed.subnet import Merge, extract
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.tasks.task import Task
from ist_fed import rules

__all__ = ["IndependentSubnetTraining", "Merge", "Task", "extract", "infer", "rules"]

"""Tasks: one a file. A name here is an import path, so that a task's own packages load only when it is used."""

from ist_fed.tasks.task import RESERVED, Batch, Task, load_task, paths_of

TASKS: dict[str, str] = {
    "cifar": "ist_fed.tasks.cifar:Cifar",
    "digits": "ist_fed.tasks.digits:Digits",
    "extreme": "ist_fed.tasks.extreme:Extreme",
    "speech": "ist_fed.tasks.speech:Speech",
    "synthetic": "ist_fed.tasks.synthetic:Synthetic",
    "text": "ist_fed.tasks.text:Text",
}
"""Name in a scenario → where its maker is."""

__all__ = ["RESERVED", "TASKS", "Batch", "Task", "load_task", "paths_of"]

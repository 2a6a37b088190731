"""The way that each job of a run is trained: the cheapest that does what a client does alone."""

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ist_fed.arrays import build_undrawn
from ist_fed.batched.choose import Choice, Job, Way, choose
from ist_fed.batched.draws import Draws
from ist_fed.batched.kept import to_try
from ist_fed.batched.trial import differs
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training

logger = logging.getLogger("ist_fed.engine")


class Ways:
    """Chosen when a job is first met, and said.

    Args:
        task: what is trained.
        device: where.
        memory: bytes that clients trained at once may take.
        only: the one way allowed; by default the cheapest.
    """

    def __init__(self, task: Task, device: torch.device, memory: int, only: Way | None) -> None:
        self._task, self._device, self._memory, self._only = task, device, memory, only
        self._chosen: dict[Job, Choice] = {}
        self._tried: dict[tuple[Choice, int, Training], str] = {}

    def of(self, job: Job, batch: Callable[[], Batch]) -> Choice:
        """Its way; `batch` gives some examples of one of its clients, and is asked if they have any."""
        if job not in self._chosen:
            draws = Draws(self._task)
            self._chosen[job] = self._agreed(to_try(self._task), job, batch() if job.batch else None)
            draws.undo()  # as if nobody had tried
            logger.info("subnets of %s train %s", dict(job.sizes), self._chosen[job])
        return self._chosen[job]

    def network(self, job: Job) -> nn.Module:
        """Of one of its clients, without first weights."""
        with seeded(0):
            return build_undrawn(self._task.build, dict(job.sizes)).to(self._device)

    def _agreed(self, task: Task, job: Job, batch: Batch | None) -> Choice:
        """Each way is tried once, whatever the sizes."""
        why = ""
        for factors in (True, False):
            choice = choose(self.network(job), task, batch, job, self._memory, self._only, factors=factors)
            if not choice.at_once or batch is None:
                break
            tried = replace(choice, at_once=1), job.batch, job.training
            if tried not in self._tried:
                self._tried[tried] = differs(task, dict(job.sizes), batch, job.training, choice)
            if not self._tried[tried]:
                return replace(choice, why=why)
            why = self._tried[tried]
        return Choice(way="one by one", why=why)

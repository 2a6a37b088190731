"""The job that a server has in hand."""

import logging

from ist_fed.engines import jobs
from ist_fed.federation import Line
from ist_fed.run import Run

logger = logging.getLogger("ist_fed")


class Work:
    """What a server knows of it.

    Args:
        job: of which the run's folder is there.

    Raises:
        RunError: it is not.
    """

    def __init__(self, job: jobs.Job) -> None:
        self.job, self.run = job, Run.open(job.run)
        self.submitted: float | None = None
        self.number, self.asked = 0, 0.0  # Flower's number of the run, and when Flower was last asked about it
        self.attempts = 0
        self.rounds = len(self.run.metrics())
        self._seen, self._told = self.rounds, ""

    def new_lines(self) -> list[Line]:
        """The lines written since the last call. A run that goes on from a checkpoint writes some rounds again."""
        lines = self.run.metrics()
        new = lines[self._seen :]
        self._seen = len(lines)
        return new

    def tell(self, waiting: str) -> None:
        """Say what the run waits for, when that is something new."""
        if waiting and waiting != self._told:
            logger.warning("run '%s' is %s", self.run.scenario.name, waiting)
        self._told = waiting

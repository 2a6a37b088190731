"""Which clients of a round can be trained as one computation."""

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from ist_fed.batched import Job, Pool
from ist_fed.batched.kept import to_try
from ist_fed.batched.widened import is_near, stays_zero
from ist_fed.cohort import Assignment
from ist_fed.engines.chunks import Part
from ist_fed.tasks.task import Batch, Task

logger = logging.getLogger("ist_fed.engine")


class Groups:
    """Groups the clients of one grid, round after round.

    Args:
        task: what they train.
        pool: where their examples are put.
        data: of a client; it may raise.
    """

    def __init__(self, task: Task, pool: Pool, data: Callable[[int], Dataset[Batch]]) -> None:
        self._task, self._pool, self._data = task, pool, data
        self._told: set[str] = set()
        self._joins: dict[tuple[Job, Job], bool] = {}

    def jobs(self, assignments: Sequence[Assignment]) -> dict[Job, list[Part]]:
        """Clients that can be trained at once: with subnets of one size, and batches of one."""
        jobs: defaultdict[Job, list[Part]] = defaultdict(list)
        for asked in assignments:
            alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
            for node in asked.nodes:
                examples = self._examples(node)
                batch, most = min(asked.training.batch_size, examples), 1 << max(0, examples - 1).bit_length()
                alike[batch, most].append(node)
            for (batch, most), nodes in alike.items():
                job = Job(tuple(asked.sizes.items()), batch, most, asked.local_steps, asked.training)
                jobs[job].append((asked, tuple(nodes)))
        return self._beside_each_other(jobs)

    def _beside_each_other(self, jobs: Mapping[Job, list[Part]]) -> dict[Job, list[Part]]:
        """Those that differ by a unit or two as one, of the widest: a step of each takes as long as one of both."""
        joined: dict[Job, list[Part]] = {}
        for job, parts in sorted(jobs.items(), key=lambda item: sum(units for _, units in item[0].sizes), reverse=True):
            wider = next((wide for wide in joined if self._can_join(job, wide, parts[0])), job)
            joined.setdefault(wider, []).extend(parts)
        return joined

    def _can_join(self, job: Job, wide: Job, part: Part) -> bool:
        narrow, sizes = dict(job.sizes), dict(wide.sizes)
        asked, (node, *_) = part
        if not job.batch or replace(job, sizes=wide.sizes) != wide or asked.scales or job.training.carried:
            return False
        if not is_near(narrow, sizes):
            return False
        if (job, wide) not in self._joins:
            self._joins[job, wide] = stays_zero(to_try(self._task), narrow, sizes, self._pool.one(node, job.batch))
        return self._joins[job, wide]

    def _examples(self, node: int) -> int:
        """How many a client has; 0 if they cannot be put beside the others': then it trains alone, or says why not."""
        if node not in self._pool:
            try:
                self._pool.add(node, self._data(node))
            except Exception as error:
                if (why := str(error)) not in self._told:
                    self._told.add(why)
                    logger.info("client %d trains one by one, as may others: %s", node, why)
                return 0
        return self._pool.examples(node)

"""How much memory a client's training may take, and how much of a network fits in it."""

import logging
from collections.abc import Mapping

import torch
from torch.utils.data import Dataset

from ist_fed.axes import blocks_of, infer
from ist_fed.batches import length
from ist_fed.capacity import largest_depth, largest_share
from ist_fed.cost import cost
from ist_fed.device import format_bytes, free_memory, return_freed_memory
from ist_fed.errors import TaskError, TrainingError
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Amp, Training

logger = logging.getLogger("ist_fed")

_KEPT = 256  # estimates


class Budget:
    """Memory for one client's training.

    Args:
        task: what is trained.
        data: on which examples.
        memory: bytes at the peak; None means what is free when that is asked, and 0 that there is no bound, and no
            estimate.
        device: where.
        amp: in which mixed precision.
        apart: whether each example of a batch has a gradient of its own.
    """

    def __init__(
        self,
        task: Task,
        data: Dataset[Batch],
        memory: int | None,
        *,
        device: torch.device,
        amp: Amp | None = None,
        apart: bool = False,
    ) -> None:
        self._task, self._data, self._memory = task, data, memory
        self._device, self._amp, self._apart = device, amp, apart
        self._needed: dict[object, int] = {}
        if self.is_bound and device.type == "cpu":
            return_freed_memory()

    @property
    def is_bound(self) -> bool:
        """Whether there is a bound at all."""
        return self._memory != 0

    def allowance(self) -> int:
        """Bytes that training may take now; 0 if there is no bound."""
        return free_memory(self._device) if self._memory is None else self._memory

    def limit(self, sizes: Mapping[str, int], training: Training, allowed: int) -> float:
        """The largest fraction of every axis that fits in so many bytes; of a network with blocks, of these."""
        if self._estimate(sizes, training) <= allowed:
            return 1.0
        blocks = blocks_of(infer(self._task.build, sizes, self._task.declared)) if 1 in sizes.values() else []
        if blocks:
            return largest_depth(sizes, blocks, lambda sizes: self._estimate(sizes, training), allowed)
        return largest_share(sizes, lambda sizes: self._estimate(sizes, training) <= allowed)

    def check(self, sizes: Mapping[str, int], training: Training, client: int) -> None:
        """Before any memory is taken: is there enough?

        Raises:
            TrainingError: there is not.
            TaskError: how much it takes cannot be told, though there is a bound.
        """
        if not self.is_bound or not length(self._data):
            return
        try:
            needed, allowed = self._estimate(sizes, training), self.allowance()
        except TaskError as error:
            if self._memory is not None:
                raise
            logger.warning("client %d trains without knowing how much memory that takes: %s", client, error)
            return
        if needed > allowed:
            raise TrainingError(
                f"training this subnet takes {format_bytes(needed)} of memory at its peak, but this client "
                f"{'has only' if self._memory is None else 'may take only'} {format_bytes(allowed)}; raise its budget "
                f"(--memory), lower batch_size, widen the federation to more clients and groups, or narrow the network"
            )

    def _estimate(self, sizes: Mapping[str, int], training: Training) -> int:
        """Bytes that training takes at its peak; answers are kept, for the next questions are mostly the same."""
        asked = (tuple(sizes.items()), training)
        if asked not in self._needed:
            known = cost(self._task, sizes, training, data=self._data, device=self._device, amp=self._amp)
            # A gradient of its own for each example of a batch, and what is made of it on the way.
            apart = 2 * 4 * training.batch_size * known.parameters if self._apart else 0
            if len(self._needed) >= _KEPT:
                self._needed.clear()
            self._needed[asked] = known.memory + apart
        return self._needed[asked]

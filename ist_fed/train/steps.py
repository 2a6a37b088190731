"""Local steps on one network, and a look at whether they went well."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import Arrays, arrays_of, device_of, is_finite
from ist_fed.batches import batches, fetch, length
from ist_fed.batchnorm import has_batch_norm
from ist_fed.errors import TaskError, TrainingError
from ist_fed.optimizer_state import load_state, read_state, trainable
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task, loss_of
from ist_fed.train.settings import AMP, OPTIMIZERS, Amp, Training, optimizer_options


def train(
    model: nn.Module,
    task: Task,
    data: Dataset[Batch],
    training: Training,
    *,
    lr: float,
    steps: int,
    rng: np.random.Generator,
    amp: Amp | None = None,
    state: dict[str, Tensor] | None = None,
) -> float:
    """Take `steps` local steps, changing `model` and `state` in place.

    Args:
        model: on the device where it is to be trained.
        task: gives the loss.
        data: the client's examples.
        training: optimiser, batch size, clipping.
        lr: the learning rate of this round.
        steps: local steps; every one of them counts.
        rng: draws the order of the examples.
        amp: mixed precision.
        state: what the optimiser kept of earlier steps, as `no_state` names it; empty starts afresh.

    Returns:
        The mean loss over the steps.

    Raises:
        TrainingError: there is no example, or a loss or a weight is not finite; the message says at which step.
    """
    device, state = device_of(model), {} if state is None else state
    step = Step(model, task, training, lr, amp, state)
    order = batches(length(data), training.batch_size, rng)
    model.train()
    (own,) = rng.spawn(1)  # for dropout and the like; the order of the examples is as it would be without
    with seeded(int(own.integers(1 << 62)), device):
        losses = [step(fetch(data, next(order), device)) for _ in range(steps)]  # on the device: it waits for none
    model.zero_grad()  # whoever packs the weights needs the memory
    step.read(state)
    return _finite_mean({**arrays_of(model), **state}, torch.stack(losses).double())


class Step:
    """A local step: forward, backward, clip, update.

    Args:
        model: changed in place.
        task: gives the loss.
        training: optimiser and clipping.
        lr: learning rate.
        amp: mixed precision; in `fp16` the loss is scaled up, so that small gradients do not vanish.
        state: what the optimiser goes on from; its own from now on.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        lr: float,
        amp: Amp | None = None,
        state: Arrays | None = None,
    ) -> None:
        self._model, self._task, self._clip_norm = model, task, training.clip_norm
        self._optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **optimizer_options(training, lr))
        load_state(self._optimizer, trainable(model), state or {})
        kind = device_of(model).type
        self._autocast = torch.autocast(kind, AMP[amp]) if amp else nullcontext()
        self._scaler = torch.amp.GradScaler(kind, enabled=amp == "fp16")

    def __call__(self, batch: Batch) -> Tensor:
        """Take it on one batch, and return the loss."""
        while True:
            scale = self._scaler.get_scale()
            loss = self._try(batch)
            if not 1 <= self._scaler.get_scale() < scale:  # else the gradient was too large for fp16, and not used
                return loss

    def read(self, state: dict[str, Tensor]) -> None:
        """Put what the optimiser keeps now in the place of the state that it went on from."""
        read_state(self._optimizer, trainable(self._model), state)

    def _try(self, batch: Batch) -> Tensor:
        self._optimizer.zero_grad()
        with self._autocast:
            loss = _loss(self._model, self._task, batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self._clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()


def _loss(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    try:
        return loss_of(task, model, batch)
    except TaskError:
        raise
    except ValueError as error:
        if len(batch[0]) == 1 and has_batch_norm(model):
            raise TrainingError(
                "BatchNorm needs at least two examples in a batch, but there is one; give the client more examples, "
                "raise batch_size, or use LayerNorm"
            ) from error
        raise


def unsound(losses: Tensor, broken: Sequence[str]) -> str:
    """What is wrong with the losses of all steps, or with arrays that are not finite; empty if nothing is."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        return (
            f"the loss must stay finite, but is {float(losses[step])} at local step {step + 1} of {len(losses)}; "
            f"look for NaN in the data, or lower the learning rate"
        )
    if broken:
        return (
            f"weights must stay finite, but '{broken[0]}' is not after {len(losses)} local steps; look for NaN in the "
            f"data, or lower the learning rate"
        )
    return ""


def _finite_mean(arrays: Arrays, losses: Tensor) -> float:
    """The mean of the losses, once they and the weights they led to are known to be finite."""
    if reason := unsound(losses, [name for name, array in arrays.items() if not is_finite(array)]):
        raise TrainingError(reason)
    return float(losses.mean())

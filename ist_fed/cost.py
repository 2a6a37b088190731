"""What a network costs a client: parameters, bytes, memory and arithmetic, worked out without allocating it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.batches import fetch, length
from ist_fed.errors import TaskError
from ist_fed.tasks import Batch, Task
from ist_fed.train import Training

_STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2}  # per parameter; SGD has one only with momentum


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network at one batch size.

    Args:
        parameters: trainable numbers.
        bytes: of the whole state, buffers included: what travels one way in a round.
        memory: bytes that training needs at its peak: state, gradients, optimiser state, activations of one batch.
        flops: floating-point operations of one local step, forward and backward.
    """

    parameters: int
    bytes: int
    memory: int
    flops: int


def cost(task: Task, sizes: Mapping[str, int], training: Training) -> Cost:
    """Work out what training the task's network at `sizes` costs.

    Args:
        task: gives the factory, the loss, and one example to take shapes from.
        sizes: units of each axis, of the full network or of a subnet.
        training: batch size and optimiser.

    Raises:
        TaskError: the network's loss cannot be worked out on torch's meta device.
    """
    model = build_on_meta(task.build, sizes).train()
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(p.nbytes for p in model.parameters())
    state = sum(array.nbytes for array in arrays_of(model).values())
    copies = 0 if training.optimizer == "sgd" and not training.momentum else _STATE_TENSORS[training.optimizer]
    activations, flops = _step(task, model, _meta_batch(task, training.batch_size))
    memory = state + weights * (1 + copies) + activations
    return Cost(parameters=parameters, bytes=state, memory=memory, flops=flops)


def _meta_batch(task: Task, size: int) -> Batch:
    data = task.test_data()
    if length(data) == 0:
        raise TaskError("the test data must hold at least one example, to take its shape from, but it is empty")
    one = fetch(data, torch.zeros(1, dtype=torch.int64).numpy(), torch.device("cpu"))
    inputs, targets = (torch.empty((size, *part.shape[1:]), dtype=part.dtype, device="meta") for part in one)
    return inputs, targets


def _step(task: Task, model: nn.Module, batch: Batch) -> tuple[int, int]:
    """Bytes kept for the backward pass, and operations, of one step on the meta device."""
    own = {id(array) for array in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            kept[id(tensor)] = tensor.nbytes
            alive.append(tensor)  # or its id could be given to another
        return tensor

    alive: list[Tensor] = []
    try:
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = task.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, NotImplementedError) as error:
        raise TaskError(f"the loss must work on torch's meta device to be costed, but raised: {error}") from error
    return sum(kept.values()), counter.get_total_flops()

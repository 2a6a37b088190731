"""The assembled network: rebuilt from its arrays, recalibrated, evaluated."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ist_fed.arrays import Arrays, build_module, build_undrawn, device_of, load_arrays
from ist_fed.batches import fetch, in_order, length
from ist_fed.batchnorm import has_batch_norm, recalibrate
from ist_fed.errors import TrainingError, asking
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task, loss_of, score_of


def network(
    task: Task, sizes: Mapping[str, int], arrays: Arrays, device: torch.device, *, adopt: bool = False
) -> nn.Module:
    """The task's network at these sizes, holding `arrays`; its first weights do not disturb the process's generator.

    Args:
        task: gives the factory.
        sizes: of the network.
        arrays: its state.
        device: where it is to be.
        adopt: nobody else has the arrays, so the network's parameters may be them.

    Raises:
        AxesError: the arrays are not those of this network.
    """
    with seeded(0):  # so that a buffer which is drawn but does not travel is the same everywhere
        model = build_undrawn(task.build, sizes) if adopt else build_module(task.build, sizes)
    load_arrays(model, arrays, share=adopt)
    return model if device_of(model) == device else model.to(device)  # asking is cheaper


def hollow(task: Task, sizes: Mapping[str, int], device: torch.device) -> nn.Module:
    """The task's network at these sizes, to be filled by `load_arrays(…, share=True)`: parameters take no memory."""
    with seeded(0):  # as of `network`
        model = build_undrawn(task.build, sizes).to(device)
    for parameter in model.parameters():
        parameter.data = parameter.new_empty(()).expand(parameter.shape)
    return model


def ready(model: nn.Module, task: Task) -> nn.Module:
    """Recalibrate the network in place, and put it into evaluation mode: what is evaluated, saved and served.

    Raises:
        TrainingError: the model has BatchNorm, and the task holds no calibration data.
    """
    if has_batch_norm(model):
        with asking("calibration_data()"):
            data = task.calibration_data()
        if data is None or length(data) < 2:
            raise TrainingError(
                f"a BatchNorm model needs at least two calibration examples to be evaluated after a merge, but the "
                f"task's calibration_data() gives {'none' if data is None else length(data)}; return some, or use "
                f"LayerNorm"
            )
        with asking("network or calibration data"):
            recalibrate(model, data)
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Dataset[Batch], batch_size: int = 1024) -> dict[str, float]:
    """Mean loss and metric over `data`, in evaluation mode; what the network draws, as an autoencoder may, is the same.

    Returns:
        `{"loss": …, task.metric: …}`.

    Raises:
        TaskError: the loss or the metric is not one number.
        TrainingError: there is no example.
    """
    examples = length(data)
    if examples == 0:
        raise TrainingError("an evaluation needs at least one example, but the data are empty; give it test data")
    device = device_of(model)
    model.eval()
    loss = score = 0.0
    with _answering_once(model), seeded(0, device):
        for index in in_order(examples, batch_size):
            with asking("data"):
                batch = fetch(data, index, device)
            with asking("loss(), in evaluation,"):
                loss += float(loss_of(task, model, batch)) * len(index)
            with asking("score()"):
                score += score_of(task, model, batch) * len(index)
    return {"loss": loss / examples, task.metric: score / examples}


@contextmanager
def _answering_once(model: nn.Module) -> Iterator[None]:
    """Loss and metric both ask for the outputs of a batch; in evaluation mode they are the same, and computed once."""
    forward, seen = model.forward, dict[int, tuple[Tensor, Tensor]]()

    def answer(*inputs: Any, **options: Any) -> Any:
        if len(inputs) != 1 or options or not isinstance(inputs[0], Tensor):
            return forward(*inputs, **options)
        if id(inputs[0]) not in seen:
            outputs = forward(*inputs)
            if not isinstance(outputs, Tensor):
                return outputs
            seen.clear()  # one batch's at a time
            seen[id(inputs[0])] = (inputs[0], outputs)  # the input is held, so that no other gets its id
        return seen[id(inputs[0])][1].clone()  # a loss may write to it

    own = vars(model).get("forward")
    model.forward = answer
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own

"""The statistics of BatchNorm, which no merge of narrow networks gets right."""

import torch
from torch import nn
from torch.utils.data import Dataset

from ist_fed.arrays import device_of
from ist_fed.batches import fetch, in_order, length
from ist_fed.errors import TrainingError
from ist_fed.tasks.task import Batch


@torch.no_grad()
def recalibrate(model: nn.Module, data: Dataset[Batch], batch_size: int = 1024) -> None:
    """Estimate the BatchNorm statistics of an assembled network afresh, in place, in one pass over `data`.

    A subnet's statistics are those of a narrower network, so no merge of them is right. All else is in evaluation
    mode meanwhile: dropout draws nothing. A model without BatchNorm is left as it is.

    Args:
        model: the assembled network, called on the first element of each batch; left in evaluation mode.
        data: examples like the clients', held by the server.
        batch_size: the statistics are exact for the first layer if all of `data` is one batch, and the mean over
            batches otherwise.

    Raises:
        TrainingError: there are fewer than two examples.
    """
    model.eval()
    norms = _norms(model)
    if not norms:
        return
    if length(data) < 2:
        raise TrainingError(
            f"BatchNorm statistics need at least two examples, but there are {length(data)}; calibrate with more"
        )
    device, momenta = device_of(model), [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches, where a number would forget the first
        norm.train()
    for index in in_order(length(data), max(2, batch_size)):
        model(fetch(data, index, device)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The modules that keep running statistics of their batches."""
    found = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in found if norm.track_running_stats]


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the network has statistics to recalibrate."""
    return bool(_norms(model))


def mixes_examples(model: nn.Module) -> bool:
    """Whether the network has BatchNorm at all, for examples of a batch also meet where it keeps no statistics."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())

"""Subnets that are a unit or two narrower than others, trained beside them as if they were as wide.

What is missing is filled with units whose weights are all zero. In most networks these give nothing, get no gradient,
and so stay zero under every optimiser; whether this one is such is tried on one batch.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ist_fed.arrays import Arrays, arrays_of, build_undrawn, load_arrays
from ist_fed.flat import Flat
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task

_WIDER = 1.05
"""How much wider a subnet may be made along any axis: by no more than a step of few clients costs too much."""

Shapes = Mapping[str, tuple[int, ...]]


def is_near(narrow: Mapping[str, int], wide: Mapping[str, int]) -> bool:
    """Whether a subnet is narrower by little, and nowhere wider."""
    return narrow.keys() == wide.keys() and all(
        0 < narrow[axis] <= wide[axis] <= _WIDER * narrow[axis] for axis in wide
    )


def shapes_of(arrays: Arrays) -> Shapes:
    """Of each array."""
    if isinstance(arrays, Flat):
        return {name: shape for run in arrays.layout for name, shape in zip(run.names, run.shapes, strict=True)}
    return {name: tuple(array.shape) for name, array in arrays.items()}


def widened(subnets: Sequence[Arrays], shapes: Shapes) -> dict[str, Tensor]:
    """The arrays of several subnets, stacked, with zeros behind what is there, along every dimension.

    Args:
        subnets: their arrays, of the same names.
        shapes: as wide as they become; arrays that are not among them are all of one shape, and keep it.
    """
    each = [arrays.views() if isinstance(arrays, Flat) else arrays for arrays in subnets]
    return {name: _stacked([arrays[name] for arrays in each], shapes.get(name)) for name in each[0]}


def narrowed(arrays: Arrays, shapes: Shapes) -> dict[str, Tensor]:
    """The same arrays without what stands behind these shapes, in their order."""
    return {name: arrays[name][tuple(map(slice, shape))] for name, shape in shapes.items()}


def stays_zero(task: Task, narrow: Mapping[str, int], wide: Mapping[str, int], batch: Batch) -> bool:
    """Whether units of zeros change nothing: not the loss, nor another's gradient or statistics, nor themselves."""
    try:
        with seeded(0, batch[0].device):
            small = task.build(**narrow).to(batch[0].device).train()
            with torch.no_grad():
                for parameter in small.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            large = build_undrawn(task.build, dict(wide)).to(batch[0].device).train()
            own, shapes = arrays_of(small), shapes_of(arrays_of(large))
            load_arrays(large, {name: array[0] for name, array in widened([own], shapes).items()})
            losses = [_loss_of(task, model, batch) for model in (small, large)]
    except Exception:  # whatever it is, it is said when the client trains
        return False
    alike = [(losses[0], losses[1])]
    for (name, one), (_, other) in zip(small.named_parameters(), large.named_parameters(), strict=True):
        if one.grad is None or other.grad is None:
            return False
        within = narrowed({name: other.grad}, {name: tuple(one.shape)})[name]
        if not torch.equal(_stacked([within], tuple(other.shape))[0], other.grad):
            return False
        alike.append((one.grad, within))
    after = narrowed(arrays_of(large), shapes_of(own))
    buffers = {name for name, _ in small.named_buffers()} & own.keys()
    alike += [(arrays_of(small)[name], after[name]) for name in buffers]
    return all(_is_close(one, other) for one, other in alike)


def _loss_of(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    loss = task.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _stacked(arrays: Sequence[Tensor], shape: tuple[int, ...] | None) -> Tensor:
    if shape is None or all(array.shape == shape for array in arrays):
        return torch.stack([*arrays])
    made = arrays[0].new_zeros(len(arrays), *shape)
    for array, room in zip(arrays, made.unbind(), strict=True):
        room[tuple(map(slice, array.shape))] = array
    return made


def _is_close(one: Tensor, other: Tensor) -> bool:
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= 1e-4 * one.abs().max()) if one.numel() else True

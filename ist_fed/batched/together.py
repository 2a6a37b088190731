"""Local steps of many clients at once: the same as one by one, but for the order in which sums are taken."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ist_fed.arrays import Arrays, arrays_of
from ist_fed.batched.descent import Descent, Optimizer
from ist_fed.batched.factored import Factored, History
from ist_fed.batched.forall import ForAll
from ist_fed.batched.indata import Examples, InData
from ist_fed.batched.stead import InItsStead
from ist_fed.batched.workspace import Workspace
from ist_fed.optimizer_state import split_state
from ist_fed.rescale import scale_inputs
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import AMP, Amp, Training, unsound

Layer = Factored | InData


class NotTogether(Exception):
    """This network, loss or optimiser cannot be trained for many clients at once; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What came of it.

    Args:
        means: of each cohort, its clients' weighted mean; integers their maximum.
        losses: steps × clients.
        broken: client → why its training failed; it is in no mean.
    """

    means: list[dict[str, Tensor]]
    losses: Tensor
    broken: dict[int, str]


def train_together(
    model: nn.Module,
    task: Task,
    starts: Arrays,
    batches: Callable[[int], Batch],
    weights: Tensor,
    training: Training,
    *,
    lr: float,
    steps: int,
    factored: Collection[str] = (),
    in_data: tuple[str, Examples] | None = None,
    scales: Mapping[str, float] | None = None,
    amp: Amp | None = None,
    workspace: Workspace | None = None,
) -> Trained:
    """Take the local steps of several cohorts of equally many clients, all of one size of subnet.

    Args:
        model: a network of that size; it is changed in structure and must not be used afterwards.
        task: gives the loss.
        starts: the arrays from which each cohort starts, cohorts in front, and the optimiser's state if it travels;
            some make room for the means.
        batches: step → its batches, clients × examples × …; clients stand cohort by cohort.
        weights: cohorts × clients of each; in the mean.
        training: optimiser and clipping.
        lr: learning rate.
        steps: local steps.
        factored: names of `Linear`s whose weights are kept as factors; with SGD only.
        in_data: name of the one that is written in terms of the examples, and these; `batches` then need not give the
            inputs' numbers.
        scales: layer → what its inputs are multiplied by.
        amp: mixed precision; not `fp16`, in which each client's loss is scaled by its own factor.
        workspace: of the caller, who asks again and again.

    Raises:
        NotTogether: it cannot be done so, or fails for some client; nothing has been changed but `model`.
    """
    if amp == "fp16":
        raise NotTogether("in fp16 each client's loss is scaled by a factor of its own")
    each = weights.shape[1]
    starting, kept = split_state(starts, training.carried)
    history = History(training, lr, workspace or Workspace())
    make: dict[str, Callable[[str, nn.Linear, Tensor], Layer]]
    make = {name: partial(Factored, history=history) for name in factored}
    if in_data:
        make[in_data[0]] = partial(InData, history=history, examples=in_data[1])
    layers = {name: _replace(model, name, make[name], starting) for name in make}
    scale_inputs(model, scales or {})
    whole = _Loss(model, task).train()
    own = {name: array.detach() for name, array in arrays_of(whole).items()}
    state = {name: starting[name.removeprefix("model.")].repeat_interleave(each, 0) for name in own}
    parameters = {name for name, parameter in whole.named_parameters() if parameter.requires_grad}
    weighed = {name: array.requires_grad_() for name, array in state.items() if name in parameters}
    counts = {key: array for key, array in kept.items() if key.startswith("step/")}
    if any(bool((array != array[0]).any()) for array in counts.values()):
        raise NotTogether("their optimisers have not taken equally many steps")
    kept = {key: array[0] if key in counts else array.repeat_interleave(each, 0) for key, array in kept.items()}
    named = {name.removeprefix("model."): array for name, array in weighed.items()}
    afresh = not weighed or (training.optimizer == "sgd" and not kept)
    optimizer = Descent(named, training, lr) if afresh else Optimizer(named, training, lr, kept)
    call = ForAll(whole, own)
    autocast = torch.autocast(weights.device.type, AMP[amp]) if amp else nullcontext()
    losses = []
    with sdpa_kernel(SDPBackend.MATH):  # attention's other ways would be called for one client after another
        for step in range(steps):
            losses.append(_differentiate(call, state, batches(step), layers.values(), autocast))
            if training.clip_norm:
                _clip(list(weighed.values()), list(layers.values()), training.clip_norm)
            optimizer.step()
            for layer in layers.values():
                layer.keep(steps)
            history.step()
    travels = optimizer.state().items()
    state |= {key: array.repeat(weights.numel()) if key in counts else array for key, array in travels}
    return _gather(state, layers, torch.stack(losses), weights)


class _Loss(nn.Module):
    """A task's loss as a module, so that the network in it can be called with other arrays."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        # In a function, for task and loss may be modules, whose arrays are not the network's.
        self._loss: Callable[[Batch], Tensor] = lambda batch: task.loss(model, batch)

    def forward(self, *batch: Tensor) -> Tensor:
        return self._loss((batch[0], batch[1]))


def _replace(
    model: nn.Module, name: str, make: Callable[[str, nn.Linear, Tensor], Layer], starting: Mapping[str, Tensor]
) -> Layer:
    """Put another layer in the place of a `Linear`."""
    above, _, last = name.rpartition(".")
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    made = make(name, linear, starting[f"{name}.weight"])
    setattr(model.get_submodule(above), last, made)
    return made


def _differentiate(
    call: ForAll,
    state: dict[str, Tensor],
    batch: Batch,
    layers: Collection[Layer],
    autocast: AbstractContextManager[None],
) -> Tensor:
    """The losses of all clients, and their gradients."""
    try:
        with autocast, InItsStead():
            losses = call(state, *batch)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # of `vmap`, or of the task's own code for some client
        reason = "it draws at random, as dropout does" if "random" in str(error) else str(error).strip()
        raise NotTogether(reason.partition("\n")[0].partition(". ")[0]) from error
    if losses.ndim != 1:
        raise NotTogether(f"the loss of a batch is one number, but has the shape {tuple(losses.shape[1:])}")
    if any(len(layer.last) != 1 for layer in layers):
        raise NotTogether("a layer is not called once in a step")
    if any(len(grads) != 1 for layer in layers for _, grads in layer.last):
        raise NotTogether("a layer has no part in the loss")
    return losses.detach()


@torch.no_grad()
def _clip(weighed: list[Tensor], layers: list[Layer], most: float) -> None:
    """As `torch.nn.utils.clip_grad_norm_`, each client by its own norm."""
    grads = [array.grad for array in weighed if array.grad is not None]
    squares = [grad.reshape(len(grad), -1).square().sum(1) for grad in grads]
    squares += [layer.square_norms().clamp(min=0) for layer in layers]  # rounding may make it less
    factor = (most / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for array in weighed:  # not in place: what is added up is given one gradient
        if (grad := array.grad) is not None:
            array.grad = grad * factor.view(-1, *[1] * (grad.ndim - 1))
    for layer in layers:
        ((_, of_rows),) = layer.last
        of_rows[0] = of_rows[0] * factor[:, None, None]


@torch.no_grad()
def _gather(state: dict[str, Tensor], layers: dict[str, Layer], losses: Tensor, weights: Tensor) -> Trained:
    cohorts, each = weights.shape
    arrays = {name.removeprefix("model."): array.detach() for name, array in state.items()}
    moved = {name.removeprefix("model.") for name, array in state.items() if array.requires_grad}
    # A bias has the sum of its layer's gradients in it, so where it is finite these are.
    unseen = {name: layer for name, layer in layers.items() if f"{name}.bias" not in moved}
    broken = _broken(arrays, unseen, losses)
    if broken:  # their numbers must not come near the others'
        weights = weights.clone().flatten()
        for client in broken:
            weights[client] = 0.0
            for array in arrays.values():
                array[client] = 0 if array.is_floating_point() else array.min()  # their maximum is taken
            for layer in layers.values():
                layer.forget(client)
        weights = weights.view(cohorts, each)
    share = (weights / weights.sum(1, keepdim=True).clamp(min=1e-300)).flatten()
    means = {name: _mean(array, share, cohorts) for name, array in arrays.items()}
    means |= {f"{name}.weight": layer.mean(share) for name, layer in layers.items()}
    if not all(bool(means[f"{name}.weight"].sum().isfinite()) for name in layers):
        raise NotTogether("weights do not stay finite, and only one by one can say whose")
    return Trained(
        means=[{name: mean[cohort] for name, mean in means.items()} for cohort in range(cohorts)],
        losses=losses,
        broken=broken,
    )


def _is_finite(rows: Tensor) -> Tensor:
    """Of each row, whether its numbers are. Where their sum is, they are; a sum of large ones may not be."""
    found = rows.sum(1).isfinite()
    return found if bool(found.all()) else rows.isfinite().all(1)


def _mean(array: Tensor, share: Tensor, cohorts: int) -> Tensor:
    """Over the clients of each cohort."""
    grouped = array.view(cohorts, len(array) // cohorts, *array.shape[1:])
    if grouped.shape[1] == 1 or not array.numel():
        return grouped[:, 0]
    if not array.is_floating_point():
        return grouped.amax(1)
    mean = torch.bmm(share.to(torch.float64).view(cohorts, 1, -1), grouped.reshape(*grouped.shape[:2], -1).double())
    return mean.view(cohorts, *array.shape[1:]).to(array.dtype)


def _broken(arrays: Arrays, layers: Mapping[str, Layer], losses: Tensor) -> dict[int, str]:
    """Clients whose losses or weights did not stay finite, and what to say of them."""
    sound = {name: _is_finite(array.reshape(len(array), array[0].numel())) for name, array in arrays.items()}
    sound |= {f"{name}.weight": layer.is_finite() for name, layer in layers.items()}
    whole = torch.stack([losses.isfinite().all(0), *sound.values()]).all(0)
    if bool(whole.all()):
        return {}
    said = {
        client: unsound(losses[:, client], [name for name, each in sound.items() if not each[client]])
        for client in (~whole).nonzero().flatten().tolist()
    }
    return {client: reason for client, reason in said.items() if reason}

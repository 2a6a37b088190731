"""Whether many clients at once do what each does alone, tried on one step: the law that engines agree, as a check.

What a network does besides calling its layers cannot be read from it: a penalty on all its weights, a hook, a buffer
that is assigned anew. It would train rightly one way and wrongly another, and nothing would fail.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ist_fed.arrays import Arrays, arrays_of
from ist_fed.batched.choose import Choice
from ist_fed.batched.descent import Descent
from ist_fed.batched.draws import Draws
from ist_fed.batched.indata import Examples
from ist_fed.batched.kept import is_same, kept_by_task
from ist_fed.batched.together import NotTogether, train_together
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task
from ist_fed.train import Training

_TRIES = ((torch.float32, 1e-5), (torch.float64, 1e-5), (torch.float32, 1e-2))
"""What is computed in, and how far apart it may be, in parts of the largest step of any weight. In float32 a unit at
the kink of its activation may go either way, so float64 has the last word, where there is one; but the code of its
products is 10 MB that a simulation needs for nothing else."""


def differs(task: Task, sizes: Mapping[str, int], batch: Batch, training: Training, choice: Choice) -> str:
    """What two clients at once make otherwise than one alone, in words; empty if nothing.

    Args:
        task: gives factory and loss.
        sizes: of the network of one client.
        batch: some examples.
        training: whose clipping is tried. Its optimiser is torch's in any case: what is compared are gradients.
        choice: the way.
    """
    plain, found = replace(training, optimizer="sgd", momentum=0.0, weight_decay=0.0), None
    for kind, close in _TRIES:
        with seeded(0, batch[0].device):
            tried = _tried(task, sizes, (_as(kind, batch[0]), _as(kind, batch[1])), kind, close, plain, choice)
        found = found if tried is None else tried
        if found == "" or (tried and kind == torch.float64):
            break
    return "one alone cannot take a step" if found is None else found


def _tried(
    task: Task,
    sizes: Mapping[str, int],
    batch: Batch,
    kind: torch.dtype,
    close: float,
    training: Training,
    choice: Choice,
) -> str | None:
    """As `differs`; None if one client alone cannot take the step."""
    try:
        model = task.build(**sizes).to(batch[0].device, kind).train()
        with torch.no_grad():
            for parameter in model.parameters():  # or nothing comes back through a head of zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
        kept, draws = kept_by_task(task), Draws(task, model)
        before, alone = _alone(model, task, (batch[0].clone(), batch[1].clone()), training)
    except Exception:  # it is said when the client trains
        return None
    if not is_same(kept, kept_by_task(task)):
        return "its loss counts on what it was called with before"
    if draws.moved():
        return "it draws at random, as dropout does"
    if _has_backward_hooks(model):  # outside of `vmap`, they see all clients' gradients as one, or none
        return "its hooks see gradients, which are not one client's at once"
    try:
        return _apart(alone, _together(model, task, before, batch, training, choice), before, close)
    except NotTogether as error:
        return str(error)
    except Exception as error:  # of what such a network makes go wrong on the way; some say nothing but their kind
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def _alone(model: nn.Module, task: Task, batch: Batch, training: Training) -> tuple[Arrays, Arrays]:
    """The arrays before a step of one client and after it, and its loss."""
    before = {name: array.clone() for name, array in arrays_of(model).items()}
    loss = task.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    if training.clip_norm:
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    Descent(dict(model.named_parameters()), training, 1.0).step()
    return before, {_LOSS: loss.detach(), **arrays_of(model)}


def _has_backward_hooks(model: nn.Module) -> bool:
    of_modules = (each for module in model.modules() for each in (module._backward_hooks, module._backward_pre_hooks))
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return any(of_modules) or any(getattr(parameter, kind) for parameter in model.parameters() for kind in kinds)


_LOSS = ""  # no array has this name


def _together(model: nn.Module, task: Task, before: Arrays, batch: Batch, training: Training, choice: Choice) -> Arrays:
    """The mean and the loss of two clients that take the same step at once."""
    in_data = None
    if choice.in_data:
        rows = batch[0].flatten(1)
        order = torch.arange(len(rows), device=rows.device).expand(1, 2, -1)
        both = Examples([rows] * 2, [len(rows)] * 2, (rows @ rows.mT).flatten(), order.new_zeros(2), order)
        in_data = choice.in_data, both
    trained = train_together(
        model,
        task,
        {name: array[None].clone() for name, array in before.items()},
        lambda _: (torch.stack([batch[0]] * 2), torch.stack([batch[1]] * 2)),
        torch.ones(1, 2, dtype=torch.float64, device=batch[0].device),
        training,
        lr=1.0,
        steps=1,
        factored=choice.factored,
        in_data=in_data,
    )
    return {_LOSS: trained.losses[0, 0], **trained.means[0]}


def _as(kind: torch.dtype, part: Tensor) -> Tensor:
    return part.to(kind) if part.is_floating_point() else part


def _apart(alone: Arrays, together: Arrays, before: Arrays, close: float) -> str:
    """The first thing that is not the same, by more than what is close."""
    moved = [(alone[name] - array).abs().nan_to_num(0.0, 0.0) for name, array in before.items() if _is_real(array)]
    most = close * max((float(move.amax()) for move in moved), default=0.0) + 1e-12
    for name, array in alone.items():
        allowed = close * float(array.abs()) if name == _LOSS else most
        other = together[name]
        same = (array - other).abs() <= allowed if _is_real(array) else array == other
        if not bool(same.all()):  # nor is what is not a number
            return f"at once {repr(name) if name else 'the loss'} would come out otherwise than alone"
    return ""


def _is_real(array: Tensor) -> bool:
    return array.is_floating_point() and bool(array.numel())

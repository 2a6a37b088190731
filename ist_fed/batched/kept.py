"""What the task's own code keeps from one call to the next, where no array of the network shows it."""

from collections.abc import Iterator
from copy import copy, deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ist_fed.tasks.task import Task

_TORCHS_OWN = vars(nn.Module()).keys() - {"training"}
_PLAIN = (bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)
_MANY = 64
_LARGE = 1 << 20

Held = tuple[object, int]
"""Something, and how often it has been written to, if it is a tensor."""


def kept_by(network: nn.Module) -> list[Held]:
    """What a network holds besides its state: in attributes of its modules, or in lists and dicts that they hold."""
    return [held for module in network.modules() for held in _attributes(module)]


def kept_by_task(task: object) -> list[Held]:
    """What a task holds, and the modules among it, such as a loss with a running mean."""
    values = [task] if isinstance(task, nn.Module) else getattr(task, "__dict__", {}).values()
    own = tree_leaves([value for value in values if not _is_data(value)])
    found = list(map(_held, own))
    for network in own:
        if isinstance(network, nn.Module):
            found += [*kept_by(network), *map(_held, (*network.parameters(), *network.buffers()))]
    return found


def to_try(task: Task) -> Task:
    """A copy of a task to look at: what its loss keeps is not to know of it."""
    if hasattr(type(task), "__del__"):  # a copy would give back what the task still needs
        return task
    try:
        if isinstance(task, nn.Module):
            return deepcopy(task)
        made = copy(task)
        for name, value in getattr(task, "__dict__", {}).items():
            if not _is_data(value):
                made.__dict__[name] = tree_map(_copied, value)
        return made
    except Exception:  # not everything can be copied
        return task


def _is_data(value: object) -> bool:
    """Whether a task holds something to learn from, most likely, and not what it keeps account by."""
    if isinstance(value, Tensor | np.ndarray):
        return (value.numel() if isinstance(value, Tensor) else value.size) > _LARGE
    return isinstance(value, list | tuple | dict | set) and len(value) > _MANY


def _copied(value: object) -> object:
    if isinstance(value, nn.Module):
        return deepcopy(value)
    if isinstance(value, Tensor):
        return deepcopy(value) if value.is_leaf else value.detach().clone()
    return copy(value) if isinstance(value, set | np.ndarray) else value


def is_same(before: list[Held], after: list[Held]) -> bool:
    """Whether nothing has been put in another's place, or written to."""
    return len(before) == len(after) and all(map(_is_same, before, after))


def _attributes(module: nn.Module) -> Iterator[Held]:
    own = {name: value for name, value in vars(module).items() if name not in _TORCHS_OWN}
    apart = [module._buffers[name] for name in sorted(module._non_persistent_buffers_set)]
    yield from map(_held, tree_leaves([own, apart]))


def _held(value: object) -> Held:
    return value, value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _is_same(before: Held, after: Held) -> bool:
    (one, version), (other, now) = before, after
    return version == now and (one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and one == other))

"""What the task's own code keeps from one call to the next, where no array of the network shows it."""

from collections.abc import Iterator
from copy import copy, deepcopy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ist_fed.tasks.task import Task

_TORCHS_OWN = vars(nn.Module()).keys() - {"training"}
_PLAIN = (bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)
_MANY = 64

Held = tuple[object, int]
"""Something, and how often it has been written to, if it is a tensor."""


def kept_by(network: nn.Module) -> list[Held]:
    """What a network holds besides its state: in attributes of its modules, or in lists and dicts that they hold."""
    return [held for module in network.modules() for held in _attributes(module)]


def kept_by_task(task: object) -> list[Held]:
    """What a task holds, and the modules among it, such as a loss with a running mean."""
    values = [task] if isinstance(task, nn.Module) else getattr(task, "__dict__", {}).values()
    few = (
        value for value in values if not (isinstance(value, list | tuple | dict | set) and len(value) > _MANY)
    )  # others are data
    own = tree_leaves([*few])
    found = list(map(_held, own))
    for network in own:
        if isinstance(network, nn.Module):
            found += [*kept_by(network), *map(_held, (*network.parameters(), *network.buffers()))]
    return found


def to_try(task: Task) -> Task:
    """A copy of a task to look at: what its loss keeps is not to know of it."""
    try:
        if isinstance(task, nn.Module):
            return deepcopy(task)
        made = copy(task)
        for name, value in getattr(task, "__dict__", {}).items():
            if isinstance(value, nn.Module):
                made.__dict__[name] = deepcopy(value)
        return made
    except Exception:  # not everything can be copied
        return task


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

"""What the task's own code keeps from one call to the next, where no array of the network shows it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_TORCHS_OWN = vars(nn.Module()).keys() - {"training"}
_PLAIN = (bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)

Held = tuple[object, int]
"""Something, and how often it has been written to, if it is a tensor."""


def kept_by(network: nn.Module) -> list[Held]:
    """What a network holds besides its state: in attributes of its modules, or in lists and dicts that they hold."""
    return [held for module in network.modules() for held in _attributes(module)]


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

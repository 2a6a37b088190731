"""What `torch.vmap` makes slowly or wrongly, in operations that it makes well."""

from collections.abc import Callable, Mapping
from inspect import getattr_static, signature
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DEFAULTS = {name: each.default for name, each in signature(functional.cross_entropy).parameters.items()}
_OPEN = ("input", "target", "ignore_index")
_EMBEDDING = tuple(signature(functional.embedding).parameters)
_REQUIRES_GRAD = getattr_static(Tensor, "requires_grad").__get__
_FEW = 16
"""Classes below which a processor, whose registers hold as many numbers, is four times as fast over examples."""


class InItsStead(TorchFunctionMode):
    """Computes plain `cross_entropy` so, and `embedding` of rows that there are, or with one that is not trained. Says
    which tensors have a gradient, where `vmap` says none has: who asks may change it by a hook, which is then refused.

    What `vmap` does with torch's own cross-entropy is written in Python, and loads symbolic algebra: a second, and 45
    MB that stay. In an embedding it takes a row that there is not from the next client's, and trains that, and of a
    class that there is not it makes zeros; in an embedding's backward pass it forgets `padding_idx`.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function == _REQUIRES_GRAD:
            return _of_all(args[0]).requires_grad
        if function is functional.cross_entropy:
            given = _DEFAULTS | dict(zip(_DEFAULTS, args, strict=False)) | dict(kwargs or {})
            if _is_plain(given):
                return _cross_entropy(*(given[name] for name in _OPEN))
        if function is functional.one_hot:
            _check_rows(*_one_hot(*args, **(kwargs or {})))
        if function is torch.embedding:
            given = dict(zip(("weight", "indices"), args, strict=False)) | dict(kwargs or {})
            _check_rows(given["indices"], len(given["weight"]))
        if function is functional.embedding:
            given = dict(zip(_EMBEDDING, args, strict=False)) | dict(kwargs or {})
            _check_rows(given["input"], len(given["weight"]))
            if given.get("padding_idx") is not None:
                return _embedding(**given)
        return function(*args, **(kwargs or {}))


def _check_rows(input: Tensor, rows: int) -> None:
    """As torch does where a client is alone; nobody waits for a device's answer."""
    input = _of_all(input)
    torch._assert_async(((input >= 0) & (input < rows)).all(), "index out of range")


def _one_hot(input: Tensor, num_classes: int = -1) -> tuple[Tensor, int]:
    return input, num_classes if num_classes >= 0 else 1 << 62  # none means as many as it takes


def _of_all(part: Tensor) -> Tensor:
    """All clients' together, of what is one's under `vmap`."""
    while is_batchedtensor(part):
        part = get_unwrapped(part)
    return part


def _embedding(input: Tensor, weight: Tensor, padding_idx: int, **options: Any) -> Tensor:
    rows = functional.embedding(input, weight, **options)
    return torch.where((input == padding_idx % len(weight))[..., None], rows.detach(), rows)


def _is_plain(given: Mapping[str, Any]) -> bool:
    usual = all(given[name] is value or given[name] == value for name, value in _DEFAULTS.items() if name not in _OPEN)
    return usual and given["input"].ndim == 2 and given["target"].ndim == 1


def _cross_entropy(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    counts = targets != ignored
    places = torch.where(counts, targets, 0)
    few = logits.shape[1] < _FEW
    scores = logits.t().contiguous().log_softmax(0).t() if few else logits.log_softmax(1)
    found = scores.gather(1, places[:, None])[:, 0]
    return -torch.where(counts, found, 0).sum() / counts.sum()

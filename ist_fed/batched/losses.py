"""The loss of most classifiers, in operations that `torch.vmap` knows."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DEFAULTS = {name: each.default for name, each in signature(functional.cross_entropy).parameters.items()}
_OPEN = ("input", "target", "ignore_index")
_FEW = 16
"""Classes below which a processor, whose registers hold as many numbers, is four times as fast over examples."""


class CrossEntropy(TorchFunctionMode):
    """Computes plain `cross_entropy` so.

    What `vmap` does with torch's own is written in Python, and loads symbolic algebra: a second, and 45 MB that stay.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is functional.cross_entropy:
            given = _DEFAULTS | dict(zip(_DEFAULTS, args, strict=False)) | dict(kwargs or {})
            if _is_plain(given):
                return _cross_entropy(*(given[name] for name in _OPEN))
        return function(*args, **(kwargs or {}))


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

"""How a network uses its linear layers, seen in one batch of one client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ist_fed.batched.kept import is_same, kept_by
from ist_fed.seeds import seeded
from ist_fed.tasks.task import Batch, Task


@dataclass
class Use:
    """What was seen.

    Args:
        rows: linear layer → rows that it is called with in a step, such as the examples of a batch; a layer that is
            not called just once is left out, and one whose weights others read, too: a penalty on all weights may be
            zero now. Empty if the network keeps anything: it may call other layers in a later step.
        reader: the layer that reads the examples as they are, if nothing else does; else empty.
        made: bytes of what the forward pass makes of images and sequences, arrays of more than two dimensions. What it
            makes of plain rows is little beside the weights, and left out.
    """

    rows: dict[str, int] = field(default_factory=dict)
    reader: str = ""
    made: int = 0


def probe(model: nn.Module, task: Task, batch: Batch) -> Use:
    """Call the network on one batch, and watch.

    Args:
        model: the network of one client; its buffers are changed.
        task: gives the loss.
        batch: some examples of one client.
    """
    layers = factorable(model)
    calls: dict[str, list[int]] = {name: [] for name in layers}
    watch = _Watch(batch[0], {name: layer.weight for name, layer in layers.items()})

    def enter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name].append(inputs[0].numel() // inputs[0].shape[-1])
            watch.enter(name, inputs[0])

        return before

    handles = [layer.register_forward_pre_hook(enter(name)) for name, layer in layers.items()]
    handles += [layer.register_forward_hook(lambda *_: watch.leave()) for layer in layers.values()]
    kept = kept_by(model)
    try:
        with torch.no_grad(), seeded(0), watch:
            task.loss(model, batch)
    except Exception:  # it is said when the client trains
        return Use()
    finally:
        for handle in handles:
            handle.remove()
    if not is_same(kept, kept_by(model)):
        return Use(made=watch.made)
    once = {name: rows[0] for name, rows in calls.items() if len(rows) == 1 and name not in watch.shared}
    readers = [name for name in watch.readers if name in once]
    alone = len(readers) == len(watch.readers) == 1
    return Use(rows=once, reader=readers[0] if alone and not watch.others else "", made=watch.made)


def factorable(model: nn.Module) -> Mapping[str, nn.Linear]:
    """Linear layers with weights of their own, which are trained, and no hooks, which others in their place lack."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + parameter.requires_grad
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and name}
    layers = {name: each for name, each in layers.items() if not (each._forward_hooks or each._forward_pre_hooks)}
    return {name: layer for name, layer in layers.items() if owners.get(id(layer.weight)) == 1}


class _Watch(TorchDispatchMode):
    """Who reads the memory of the examples, layers that are given it whole and in order, or others; which weights
    others than their layers read; what is made."""

    def __init__(self, examples: Tensor, weights: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._examples = examples
        self._owners = {_place(weight): name for name, weight in weights.items()}
        self.readers: list[str] = []
        self.shared: set[str] = set()
        self.others = examples.data_ptr() == 0
        self._within = ""
        self.made = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler, of 70 MB, to keep it away from here

    def enter(self, name: str, inputs: Tensor) -> None:
        self._within = name
        if self._is_of_examples(inputs):
            whole = (len(self._examples), self._examples[0].numel())
            if inputs.shape == whole and inputs.is_contiguous() and inputs.dtype == self._examples.dtype:
                self.readers.append(name)
            else:
                self.others = True

    def leave(self) -> None:
        self._within = ""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not function.is_view:
            given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
            self.shared |= {self._owners.get(_place(part), self._within) for part in given} - {self._within}
            if self._within not in self.readers:
                self.others |= any(self._is_of_examples(part) for part in given)
        made = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.made += sum(part.nbytes for part in tree_leaves(made) if isinstance(part, Tensor) and part.ndim > 2)
        return made

    def _is_of_examples(self, part: Tensor) -> bool:
        return _place(part) == _place(self._examples)


def _place(part: Tensor) -> int:
    return part.untyped_storage().data_ptr()

"""A module's state as `{name: tensor}`, each tied weight once, and back again, strictly."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import chain
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ist_fed.errors import AxesError, out_of_memory, raised

Build = Callable[..., nn.Module]
"""A model factory, a function of its sizes: `build(**sizes) -> nn.Module`."""

Arrays = Mapping[str, Tensor]
"""Name in the state dict → tensor."""


def arrays_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state, detached and not copied: parameters and persistent buffers, each tied weight once.

    Raises:
        AxesError: the state dict holds something else, such as a module's extra state.
    """
    owned = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in owned:
            raise AxesError(
                f"a state dict must hold parameters and buffers only, but '{name}' is neither; register it as a buffer"
            )
        once.setdefault(id(tensor), (name, tensor))
    return {name: tensor.detach() for name, tensor in once.values()}


def device_of(model: nn.Module) -> torch.device:
    """Where a model's arrays live."""
    return next(chain(model.parameters(), model.buffers())).device


@torch.no_grad()
def load_arrays(module: nn.Module, arrays: Arrays, *, share: bool = False) -> None:
    """Copy `arrays` into `module`, strictly: the same names, shapes and dtypes.

    Args:
        module: changed in place.
        arrays: its state.
        share: let parameters be the arrays themselves, or else copies on the module's device, for a module that is not
            trained, or arrays that nobody else has. What they were before is not written to.

    Raises:
        AxesError: a name, a shape or a dtype differs; the module is as it was.
    """
    own = arrays_of(module)
    if own.keys() != arrays.keys():
        raise AxesError(f"the arrays must be this module's; on one side only: {sorted(own.keys() ^ arrays.keys())}")
    for name, target in own.items():
        source = arrays[name]
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            raise AxesError(
                f"array '{name}' must be {tuple(target.shape)} {target.dtype}, "
                f"but is {tuple(source.shape)} {source.dtype}"
            )
    parameters = dict(module.named_parameters()) if share else {}
    for name, target in own.items():
        if name in parameters:
            parameters[name].data = arrays[name].to(target.device)
        else:
            target.copy_(arrays[name])


def build_on_meta(build: Build, sizes: Mapping[str, int]) -> nn.Module:
    """Build the module without memory, on torch's meta device.

    Raises:
        AxesError: the factory does not take these sizes, fails, or returns something else.
    """
    with torch.device("meta"):
        return build_module(build, sizes)


def build_module(build: Build, sizes: Mapping[str, int]) -> nn.Module:
    """Build the module, on the device that is the default.

    Raises:
        AxesError: the factory does not take these sizes, fails, or returns something else, such as a lazy module.
    """
    call = f"build({', '.join(f'{axis}={units}' for axis, units in sizes.items())})"
    try:
        module = build(**sizes)
    except Exception as error:
        if out_of_memory(error):
            raise
        _check_names(build, sizes)
        raise AxesError(
            f"the factory must build at any sizes, on torch's meta device too; {call} raised {raised(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise AxesError(f"the factory must return an nn.Module; {call} gave {type(module).__name__}")
    lazy = [name for name, array in chain(module.named_parameters(), module.named_buffers()) if is_lazy(array)]
    if lazy:
        raise AxesError(
            f"a network's arrays must have their shapes when it is built, but in {call} '{lazy[0]}' of a lazy module "
            f"gets its own from the first examples; write out how many inputs it has, as in nn.Linear(64, ...)"
        )
    return module


def _check_names(build: Build, sizes: Mapping[str, int]) -> None:
    """Of a factory that failed: refuse a size that it does not take."""
    try:
        parameters = signature(build).parameters
    except (TypeError, ValueError):  # something built in, which has no signature to check
        return
    known = ", ".join(parameters) or "none"
    unknown = [axis for axis in sizes if axis not in parameters]
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise AxesError(
            f"[sizes] names '{unknown[0]}', but build() takes {known}; leave it out, or let build() take it"
        ) from None


def is_finite(array: Tensor) -> bool:
    """Whether all numbers in it are."""
    if not (array.is_floating_point() and array.numel()):
        return True
    least, most = array.aminmax()  # NaN comes through; no second array is made
    return isfinite(least) and isfinite(most)


def build_undrawn(build: Build, sizes: Mapping[str, int]) -> nn.Module:
    """Build the module, but leave out the drawing of its first weights: of many, that takes longer than training them.

    Where something may be drawn that is not part of the module's state, everything is.
    """
    before = torch.get_rng_state()
    with _Undrawn():
        module = build_module(build, sizes)
    if not any(map(_keeps_more, module.modules())):
        return module
    torch.set_rng_state(before)
    return build_module(build, sizes)


_TORCHS_OWN = vars(nn.Module()).keys()
"""Attributes that every module has: its state, hooks and submodules."""
_WRITES_NOTHING = ("requires_grad_", "share_memory_")


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as they are, whatever is to be written to them: by a method, or by `torch.nn.init`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        target = args[0] if args else given.get("tensor")
        name = func.__name__
        writes = name.endswith("_") and not name.endswith("__") and name not in _WRITES_NOTHING
        if writes and isinstance(target, nn.Parameter):
            return target
        return func(*args, **given)


def _keeps_more(module: nn.Module) -> bool:
    """Whether a module keeps tensors that its state does not hold."""
    own = [value for name, value in vars(module).items() if name not in _TORCHS_OWN]
    plain = any(isinstance(value, Tensor) for value in tree_leaves(own))
    return plain or bool(module._non_persistent_buffers_set)

"""A module's state as `{name: tensor}`, each tied weight once, and back again, strictly."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ist_fed.errors import AxesError

Build = Callable[..., nn.Module]
"""A model factory, a function of its sizes: `build(**sizes) -> nn.Module`."""

Arrays = Mapping[str, Tensor]
"""Name in the state dict → tensor."""


def arrays_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state, detached and not copied: parameters and persistent buffers, each tied weight once."""
    persistent = module.state_dict(keep_vars=True).keys()
    owned = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # both leave out duplicates
    return {name: owned[name].detach() for name in persistent if name in owned}


@torch.no_grad()
def load_arrays(module: nn.Module, arrays: Mapping[str, Tensor]) -> None:
    """Copy `arrays` into `module`, strictly: the same names, shapes and dtypes.

    Raises:
        AxesError: a name, a shape or a dtype differs.
    """
    own = arrays_of(module)
    if own.keys() != arrays.keys():
        raise AxesError(f"the arrays are not this module's: {sorted(own.keys() ^ arrays.keys())} stand on one side only")
    for name, target in own.items():
        source = arrays[name]
        if (source.shape, source.dtype) != (target.shape, target.dtype):
            raise AxesError(
                f"array '{name}' must be {tuple(target.shape)} {target.dtype}, "
                f"but is {tuple(source.shape)} {source.dtype}"
            )
        target.copy_(source)


def build_on_meta(build: Build, sizes: Mapping[str, int]) -> nn.Module:
    """Build the module without memory, on torch's meta device."""
    try:
        with torch.device("meta"):
            module = build(**sizes)
    except Exception as error:
        raise AxesError(
            f"the factory must build at any sizes; build({_call(sizes)}) raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise AxesError(f"the factory must return an nn.Module; build({_call(sizes)}) gave {type(module).__name__}")
    return module


def _call(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={units}" for axis, units in sizes.items())

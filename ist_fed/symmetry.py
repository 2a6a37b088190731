"""Check a table by the laws that say what a unit is, and what a block is."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ist_fed.arrays import Build, arrays_of, build_module, load_arrays
from ist_fed.axes import Axes, Dim, describe
from ist_fed.errors import AxesError
from ist_fed.seeds import seeded
from ist_fed.subnet import extract


def check_symmetry(
    build: Build,
    sizes: Mapping[str, int],
    axes: Axes,
    function: Callable[[nn.Module], Tensor],
    *,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> None:
    """Check the law that makes units interchangeable: permuting an axis leaves the network's function unchanged.

    A block has one unit, and its own law: the network without it computes what the network computes where the arrays
    that it owns are zero, so that its branch adds nothing to the stream.

    The module is built in float64 with every array moved off its initial value, so that no zero or one hides an error.

    Args:
        build: the model factory.
        sizes: the sizes to check at; a subnet's will do and costs less than the full network's.
        axes: the table to check.
        function: what the network computes on some fixed input, `function(module) -> Tensor`; the module is in
            float64 and evaluation mode. What it draws at random, as an autoencoder may, it draws alike each time.
        seed: of the weights and the permutations.
        tolerance: largest difference allowed, relative to the largest output.

    Raises:
        AxesError: an axis breaks its law; the message names it and the arrays it stands in. Or the factory gives
            other arrays here than on the meta device, from which the table is.
    """
    draw = torch.Generator().manual_seed(seed)

    def built(sizes: Mapping[str, int]) -> nn.Module:
        with seeded(seed):
            return build_module(build, sizes).double().eval()

    module = built(sizes)
    if unlike := sorted(arrays_of(module).keys() ^ axes.keys()):
        raise AxesError(
            f"the factory must give the same arrays on torch's meta device as elsewhere, but '{unlike[0]}' is there "
            f"on one of them only; let what it registers not depend on the device"
        )
    draws = False
    arrays = {
        name: array + 0.1 * torch.rand(array.shape, generator=draw, dtype=array.dtype)
        if array.is_floating_point()
        else array.clone()
        for name, array in arrays_of(module).items()
    }

    def value(changed: Mapping[str, Tensor], module: nn.Module = module) -> Tensor:
        nonlocal draws
        load_arrays(module, changed)
        with torch.no_grad(), seeded(seed):
            before = torch.get_rng_state()
            found = function(module).double()
            draws = draws or not torch.equal(before, torch.get_rng_state())
        return found

    reference = value(arrays)
    scale = float(reference.abs().max()) or 1.0
    for axis, units in sizes.items():
        owned = {name: torch.zeros_like(array) for name, array in arrays.items() if Dim(axis, owner=True) in axes[name]}
        if owned:
            without = value(extract(arrays, axes, {axis: torch.arange(0)}), built({**sizes, axis: 0}))
            error = float((value({**arrays, **owned}) - without).abs().max()) / scale
        else:
            order = torch.randperm(units, generator=draw)
            if torch.equal(order, torch.arange(units)):  # likely only for two or three units
                order = order.flip(0)
            error = float((value(extract(arrays, axes, {axis: order})) - reference).abs().max()) / scale
        if not error <= tolerance:  # nan breaks the law too
            raise AxesError(_no_block(axis, owned, error) if owned else _no_units(axis, axes, error, module, draws))


def _no_units(axis: str, axes: Axes, error: float, module: nn.Module, draws: bool) -> str:
    where = {name: describe(dims) for name, dims in axes.items() if any(d.axis == axis for d in dims)}
    listed = ", ".join(f"{name} [{dims}]" for name, dims in where.items())
    remedy = f"{{'{next(iter(where))}': '(3 {axis} 64) .'}}"
    grouped = [name for name, part in module.named_modules() if isinstance(part, nn.GroupNorm) and _ties(part)]
    groups = (
        f"'{grouped[0]}' is a GroupNorm of several groups, each of which ties channels to their neighbours: use one "
        f"group (nn.GroupNorm(1, channels)) or BatchNorm. "
        if grouped
        else ""
    )
    random = "It draws at random, in evaluation mode, too: give F.dropout its training=self.training. " if draws else ""
    return (
        f"units of an axis must be interchangeable, but permuting '{axis}' changes the network's output by "
        f"{error:.1e} (relative). Its arrays: {listed}. {groups}{random}If one is laid out otherwise (fused qkv, "
        f"gates), declare it: {remedy} means 3 blocks in which each unit owns 64 entries; if units have an order "
        f"(position embeddings, concatenation), do not split this axis"
    )


def _ties(norm: nn.GroupNorm) -> bool:
    """Whether which channels are next to each other matters: not in one group of all, nor in groups of one."""
    return 1 < norm.num_groups < norm.num_channels


def _no_block(axis: str, owned: Mapping[str, Tensor], error: float) -> str:
    return (
        f"a network without a block computes what it does where the block's arrays are zero, but without '{axis}' its "
        f"output differs by {error:.1e} (relative). Its arrays: {', '.join(owned)}. Let the block add to a stream that "
        f"passes it unchanged, or do not make it an axis"
    )

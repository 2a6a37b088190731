"""Law 1, symmetry: permuting the units of any axis leaves the network's function unchanged; wrong tables are caught."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Network
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.axes import Dim, infer
from ist_fed.errors import AxesError
from ist_fed.models import mlp
from ist_fed.subnet import extract
from ist_fed.symmetry import check_symmetry


def check(network: Network, declared: dict[str, str] | None = None) -> None:
    axes = infer(network.build, network.sizes, network.declared if declared is None else declared)
    check_symmetry(network.build, network.sizes, axes, network.function())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_law_holds(network: Network) -> None:
    check(network)


@settings(max_examples=25)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.sampled_from(["batch", "layer", "none"]),
    st.data(),
)
def test_the_law_holds_for_every_mlp_and_every_permutation(widths: list[int], norm: str, data: st.DataObject) -> None:
    """Said again without `check_symmetry`: all axes permuted at once, in training mode."""
    sizes = {f"hidden{i}": width for i, width in enumerate(widths, start=1)}
    build = mlp(4, 3, norm=norm)
    orders = {axis: torch.tensor(data.draw(st.permutations(range(size)))) for axis, size in sizes.items()}
    module, permuted = build(**sizes).double(), build(**sizes).double()
    load_arrays(permuted, extract(arrays_of(module), infer(build, sizes), orders))
    example = torch.rand(5, 4, dtype=torch.float64)
    assert torch.allclose(module(example), permuted(example), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "axis"), [("gpt_fused", "heads0"), ("lstm", "hidden")])
def test_a_layout_that_is_not_declared_is_caught(name: str, axis: str) -> None:
    with pytest.raises(AxesError, match=f"permuting '{axis}' changes the network's output.*declare it") as caught:
        check(NETWORKS[name], declared={})
    assert next(iter(NETWORKS[name].declared)) in str(caught.value)  # names the arrays to look at


@pytest.mark.parametrize("wrong", ["(2 heads0 6) width", "(6 heads0 2) width", "(12 heads0) width"])
def test_a_wrong_declaration_is_caught(wrong: str) -> None:
    network = NETWORKS["gpt_fused"]
    with pytest.raises(AxesError, match="permuting 'heads0'"):
        check(network, declared={**network.declared, "attention.qkv.weight": wrong})


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_an_axis_missing_anywhere_is_caught(network: Network) -> None:
    """Forgetting one dimension of one array breaks the law, whichever it is."""
    axes = infer(network.build, network.sizes, network.declared)
    split = [(name, at, dim.axis) for name, dims in axes.items() for at, dim in enumerate(dims) if dim.axis]
    for name, at, axis in split:
        if name == "attention.k.bias":
            continue  # the softmax cancels it, so its order is truly of no account
        owner = axes[name][at].owner
        broken = {**axes, name: (*axes[name][:at], *(() if owner else (Dim(),)), *axes[name][at + 1 :])}
        with pytest.raises(AxesError, match="on one side only" if owner else f"permuting '{axis}'"):
            check_symmetry(network.build, network.sizes, broken, network.function())


class Ordered(nn.Module):
    """Its units have an order: each is weighted by its number."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) @ torch.arange(self.first.out_features, dtype=x.dtype)


@pytest.mark.parametrize("hidden", [2, 3, 8])
def test_units_with_an_order_are_caught_however_few(hidden: int) -> None:
    sizes = {"hidden": hidden}
    example = torch.rand(4, 3, dtype=torch.float64)
    for seed in range(20):
        with pytest.raises(AxesError, match="if units have an order"):
            check_symmetry(Ordered, sizes, infer(Ordered, sizes), lambda module: module(example), seed=seed)


def test_a_network_that_computes_nan_is_caught() -> None:
    sizes, build, example = {"hidden1": 4}, mlp(3, 2), torch.full((2, 3), torch.nan, dtype=torch.float64)
    with pytest.raises(AxesError, match="permuting 'hidden1'"):
        check_symmetry(build, sizes, infer(build, sizes), lambda module: module(example))


def test_the_check_is_repeatable_and_leaves_the_global_stream_alone() -> None:
    network = NETWORKS["mlp"]
    axes, before = infer(network.build, network.sizes), torch.get_rng_state()

    def outputs() -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []

        def function(module: nn.Module) -> torch.Tensor:
            seen.append(network.function()(module))
            return seen[-1]

        check_symmetry(network.build, network.sizes, axes, function)
        return seen

    assert torch.equal(torch.stack(outputs()), torch.stack(outputs()))
    assert torch.equal(torch.get_rng_state(), before)


def channels(groups: int) -> Callable[..., nn.Module]:
    return lambda channels: nn.Sequential(
        nn.Conv1d(2, channels, 3), nn.GroupNorm(groups, channels), nn.ReLU(), nn.Conv1d(channels, 3, 1)
    )


def example(module: nn.Module) -> torch.Tensor:
    return module(torch.rand(4, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_groups_of_a_group_norm_that_tie_channels_are_named() -> None:
    with pytest.raises(AxesError, match=r"'1' is a GroupNorm of several groups.*use one group \(nn.GroupNorm\(1, ch"):
        check_symmetry(channels(4), {"channels": 8}, infer(channels(4), {"channels": 8}), example)


def test_one_group_ties_nothing_and_is_not_blamed() -> None:
    axes = infer(channels(1), {"channels": 8})
    check_symmetry(channels(1), {"channels": 8}, axes, example)
    with pytest.raises(AxesError) as caught:
        check_symmetry(channels(1), {"channels": 8}, {**axes, "1.weight": (Dim(),)}, example)
    assert "GroupNorm" not in str(caught.value)


class Drawing(nn.Module):
    """Draws on its way, at one place that is not split and, with `drop`, for every unit."""

    def __init__(self, hidden: int, drop: bool) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(3, hidden), nn.Linear(hidden, 2), drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        units = functional.dropout(self.first(x)) if self.drop else self.first(x)
        outputs = self.second(units)
        return outputs + torch.randn_like(outputs)


def test_a_network_that_draws_is_held_to_the_same_draws() -> None:
    """An autoencoder whose loss draws its code has units like any other."""
    build, inputs = partial(Drawing, drop=False), torch.rand(4, 3, dtype=torch.float64)
    check_symmetry(build, {"hidden": 8}, infer(build, {"hidden": 8}), lambda module: module(inputs))


def test_dropout_that_evaluation_does_not_end_is_named() -> None:
    build, inputs = partial(Drawing, drop=True), torch.rand(4, 3, dtype=torch.float64)
    with pytest.raises(AxesError, match=r"draws at random, in evaluation mode, too: give F.dropout its training"):
        check_symmetry(build, {"hidden": 8}, infer(build, {"hidden": 8}), lambda module: module(inputs))


def test_arrays_that_are_not_there_on_the_meta_device_are_named() -> None:
    def build(hidden: int) -> nn.Module:  # registers its `base` only where it has values
        return nn.Sequential(nn.Linear(3, hidden), parametrizations.orthogonal(nn.Linear(hidden, 2)))

    inputs = torch.rand(4, 3, dtype=torch.float64)
    with pytest.raises(
        AxesError, match=r"same arrays on torch's meta device as elsewhere, but '1.*base' is there on one"
    ):
        check_symmetry(build, {"hidden": 8}, infer(build, {"hidden": 8}), lambda module: module(inputs))

"""The table is derived from the factory alone, and what cannot be described is refused in words."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import FUSED, GPT, NETWORKS, Dense, Network
from torch import nn

from ist_fed.arrays import arrays_of
from ist_fed.axes import Dim, describe, infer, parse, sizes_of
from ist_fed.errors import AxesError
from ist_fed.models import mlp

numbers = st.integers(1, 70)
dims = st.one_of(st.just(Dim()), st.builds(Dim, st.sampled_from(["hidden1", "heads0", "_c"]), numbers, numbers))


owners = st.builds(Dim, st.sampled_from(["block1", "_b"]), owner=st.just(True))


@given(st.tuples(st.lists(owners, max_size=2), st.lists(dims, max_size=5)).map(lambda two: (*two[0], *two[1])))
def test_what_is_written_is_read_back(table: tuple[Dim, ...]) -> None:
    assert parse(describe(table)) == table


@pytest.mark.parametrize(
    "pattern",
    ["3", "(3)", "( )", "(. 2)", "(h k)", "(2 3 h)", "(h 2 3)", "(2 h 3", "h-1", "((h))", "(2 h k 3)", ". h:", "1: h"],
)
def test_a_pattern_that_names_no_one_axis_is_refused(pattern: str) -> None:
    with pytest.raises(AxesError, match="each dimension is"):
        parse(pattern)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_derived_table_is_the_one_written_by_hand(network: Network) -> None:
    axes = infer(network.build, network.sizes, network.declared)
    assert {name: describe(dims) for name, dims in axes.items()} == network.table


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["batch", "layer", "none"]))
def test_an_mlp_of_any_depth_is_a_chain(widths: list[int], norm: str) -> None:
    sizes = {f"hidden{i}": width for i, width in enumerate(widths, start=1)}
    axes = infer(mlp(4, 3, norm=norm), sizes)
    weights = [describe(dims) for name, dims in axes.items() if len(dims) == 2]
    assert weights == [f"{after} {before}" for before, after in pairwise([".", *sizes, "."])]


def test_no_memory_and_no_random_number_is_used() -> None:
    before = torch.get_rng_state()
    infer(mlp(1 << 20, 1 << 20), {"hidden1": 1 << 20})  # 8 TiB
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tied_weight_stands_in_the_table_once() -> None:
    network = NETWORKS["gpt"]
    assert {"tokens.weight", "head.weight"} <= network.build(**network.sizes).state_dict().keys()
    axes = infer(network.build, network.sizes)
    assert "tokens.weight" in axes
    assert "head.weight" not in axes


# --- What is refused --------------------------------------------------------------------------------------------------


def refused(build: object, sizes: dict[str, int], message: str, declared: dict[str, str] | None = None) -> None:
    with pytest.raises(AxesError, match=message):
        infer(build, sizes, declared)  # type: ignore[arg-type]


def test_a_concatenation_is_refused() -> None:
    refused(Dense, {"growth": 4}, r"dimension 1 of 'second.weight' went from 10 to 14")
    refused(Dense, {"growth": 3}, r"dimension 1 of 'second.weight' went from 9 to 12")  # as if a unit owned three


def test_grouped_units_are_refused() -> None:
    refused(lambda c: nn.Conv1d(c, c, 3, groups=2), {"c": 4}, "grouped, cannot be cut")


def test_a_size_that_is_ignored_is_refused() -> None:
    refused(lambda hidden, spare: nn.Linear(4, hidden), {"hidden": 3, "spare": 2}, "the factory ignores 'spare'")


def test_arrays_that_come_and_go_with_a_size_are_refused() -> None:
    deep = {"depth": 2}
    refused(lambda depth: nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth))), deep, "adds or removes")
    refused(lambda bias: nn.Linear(bias, 3, bias=bias > 3), {"bias": 3}, r"adds or removes \['bias'\]")


def test_dimensions_that_come_with_a_size_are_refused() -> None:
    class Growing(nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros([2] * rank))

    refused(Growing, {"rank": 2}, "never dimensions")


def test_two_axes_in_one_dimension_are_refused() -> None:
    refused(lambda a, b: nn.Linear(3, a * b), {"a": 2, "b": 5}, "grows with both 'a' and 'b'")


def test_a_size_in_proportion_is_refused() -> None:
    refused(lambda hidden: nn.Linear(3, hidden // 2), {"hidden": 8}, "cannot be cut")
    refused(lambda hidden: nn.Linear(3, max(hidden, 5)), {"hidden": 4}, "cannot be cut")


def test_no_sizes_are_refused() -> None:
    refused(lambda: nn.Linear(3, 3), {}, "sizes is empty")


def test_a_factory_that_fails_is_named_with_its_sizes() -> None:
    refused(lambda hidden: nn.Linear(3, hidden)(torch.ones(2)), {"hidden": 4}, r"build\(hidden=4\) raised RuntimeError")
    refused(lambda hidden: None, {"hidden": 4}, r"build\(hidden=4\) gave NoneType")


@pytest.mark.parametrize(
    "declared",
    [
        {"attention.qkv.weight": "(3 heads0 5) width"},  # 45 rows, not 36
        {"attention.qkv.weight": "(3 heads0 4) ."},  # a width that is not split does not fit a narrow module
        {"attention.qkv.weight": "width (3 heads0 4)"},
        {"attention.qkv.weight": "(3 heads0 4)"},
        {"attention.qkv.weight": "(3 ffn0 4) width"},
    ],
)
def test_a_declaration_that_does_not_multiply_out_is_refused(declared: dict[str, str]) -> None:
    network = NETWORKS["gpt_fused"]
    refused(network.build, dict(network.sizes), "must multiply out to its shape", declared)


def test_a_declaration_of_no_array_is_refused_with_the_nearest_name() -> None:
    network = NETWORKS["gpt_fused"]
    declared = {"attention.qkv.wieght": FUSED["attention.qkv.weight"]}
    refused(network.build, dict(network.sizes), "did you mean 'attention.qkv.weight'", declared)


# --- Sizes, read back from arrays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_sizes_are_read_back_from_the_arrays(network: Network) -> None:
    arrays = arrays_of(network.build(**network.sizes))
    assert sizes_of(arrays, infer(network.build, network.sizes, network.declared)) == network.sizes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"c": torch.ones(4)}, "'c' does not"),
        ({"a": torch.ones(4)}, "'a' has 1 dimensions"),
        ({"a": torch.ones(4, 6), "b": torch.ones(5)}, "axis 'h' has 5 units, not 4"),
        ({"a": torch.ones(4, 7)}, "axis 'k' has 3.5 units, not 3"),
    ],
)
def test_arrays_of_another_network_are_refused(arrays: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(AxesError, match=message):
        sizes_of(arrays, {"a": parse("h (k 2)"), "b": parse("h")})


def test_gpt_is_causal_so_that_the_networks_here_mean_something() -> None:
    module = GPT(width=6, heads0=3, ffn0=10).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 3, 9]])
    assert torch.equal(module(ids)[:, :3], module(changed)[:, :3])

"""Residual models whose blocks can be left out: what they compute then, and what cannot be left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ist_fed.arrays import Build, arrays_of, load_arrays
from ist_fed.axes import infer
from ist_fed.errors import TaskError
from ist_fed.models import Branch, resnet, transformer
from ist_fed.subnet import extract
from ist_fed.symmetry import check_symmetry

STREAM = (4, 6)
RESNET = {f"mid{n}": 3 + n for n in range(1, 7)} | dict.fromkeys(["block1", "block2", "block3", "block5", "block6"], 1)
TEXT = {"heads0": 2, "ffn0": 5, "heads1": 3, "ffn1": 7, "heads2": 1, "ffn2": 4} | dict.fromkeys(
    ["block0", "block1", "block2"], 1
)


def passing_by(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return args[0]


def without(axes: set[str], sizes: dict[str, int]) -> dict[str, int]:
    return {axis: 0 if axis in axes else size for axis, size in sizes.items()}


@settings(max_examples=8)
@given(
    st.sampled_from(["batch", "layer", "none"]),
    st.sampled_from(["standard", "preactivation"]),
    st.sets(st.sampled_from(["block1", "block2", "block3", "block5", "block6"])),
)
def test_a_resnet_without_blocks_is_one_whose_stream_passes_them_by(norm: str, order: str, left: set[str]) -> None:
    """The oracle takes the wide network's modules, and lets those blocks give back what they get."""
    build = resnet(2, 5, STREAM, norm, order)
    wide, narrow = build(**RESNET).double().eval(), build(**without(left, RESNET)).double().eval()
    load_arrays(narrow, extract(arrays_of(wide), infer(build, RESNET), {axis: torch.arange(0) for axis in left}))
    blocks = [module for module in wide if any(isinstance(inner, Branch) for inner in module.children())]
    for axis in left:
        blocks[int(axis[5:]) - 1].register_forward_hook(passing_by)
    image = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(narrow(image), wide(image))
    check_symmetry(build, RESNET, infer(build, RESNET), lambda model: model(image))


@given(st.sets(st.sampled_from(["block0", "block1", "block2"])), st.booleans())
@settings(max_examples=8)
def test_a_transformer_without_blocks_is_one_whose_stream_passes_them_by(left: set[str], tied: bool) -> None:
    build = transformer(11, 6, 4, tied=tied)
    wide, narrow = build(**TEXT).double(), build(**without(left, TEXT)).double()
    load_arrays(narrow, extract(arrays_of(wide), infer(build, TEXT), {axis: torch.arange(0) for axis in left}))
    for axis in left:
        wide.blocks[int(axis[5:])].register_forward_hook(passing_by)
    ids = torch.randint(11, (2, 6))
    assert torch.equal(narrow(ids), wide(ids))


@pytest.mark.parametrize(
    ("build", "sizes"), [(resnet(1, 10, STREAM), RESNET), (transformer(11, 6, 4), TEXT)], ids=["resnet", "transformer"]
)
def test_with_all_its_blocks_it_is_the_network_that_it_was(build: Build, sizes: dict[str, int]) -> None:
    """Axes of blocks change neither names nor the numbers that are drawn."""
    torch.manual_seed(0)
    plain = arrays_of(build(**{axis: size for axis, size in sizes.items() if not axis.startswith("block")}))
    torch.manual_seed(0)
    made = arrays_of(build(**sizes))
    assert made.keys() == plain.keys()
    assert all(torch.equal(array, plain[name]) for name, array in made.items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {**RESNET, "block4": 1},
            "block4 does not, or is not there; those that can be left out: block1, block2, block3",
        ),
        ({**RESNET, "block7": 1}, "block7 does not, or is not there"),
        ({**RESNET, "block0": 1}, "block0 does not, or is not there"),
        ({**RESNET, "block2": 3}, "a block is one unit, so block2 must be 1, but is 3"),
        ({**RESNET, "mid7": 3}, "sizes must be a multiple of 2"),
    ],
)
def test_a_block_that_must_be_there_is_no_axis(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        resnet(1, 10, STREAM)(**sizes)


def test_the_first_block_of_a_resnet_of_one_stage_can_be_left_out_and_those_of_a_transformer_all() -> None:
    assert len(resnet(1, 10, (4,))(mid1=3, block1=0)) == len(resnet(1, 10, (4,))(mid1=3))
    with pytest.raises(TaskError, match=r"block3 does not, or is not there; those that can .*: block0, block1, block2"):
        transformer(11, 6, 4)(**TEXT, block3=1)

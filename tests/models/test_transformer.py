"""The transformer: causal, its heads and units a sum, its tied weight one; what is not said in the shared laws."""

import pytest
import torch
from torch import Tensor, nn

from ist_fed.arrays import arrays_of
from ist_fed.axes import infer
from ist_fed.errors import AxesError, TaskError
from ist_fed.models import transformer
from ist_fed.subnet import Merge, extract

SIZES = {"heads0": 4, "ffn0": 6, "heads1": 4, "ffn1": 6}


def built(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return transformer(11, width=6, head=2, **options)(**SIZES).double().eval()


def test_what_comes_later_is_not_seen() -> None:
    module, ids = built(), torch.arange(8)[None]
    for at in range(1, 8):
        other = ids.clone()
        other[:, at:] = 10
        one, two = module(ids), module(other)
        assert torch.equal(one[:, :at], two[:, :at])
        assert not torch.allclose(one[:, at], two[:, at])


def test_the_order_of_what_came_before_is_seen() -> None:
    module = built()
    one, other = (module(torch.tensor([ids]))[0, -1] for ids in ([1, 2, 3], [2, 1, 3]))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_attention_is_what_the_formula_says(norm: str) -> None:
    """By hand, head by head, positions as complex numbers of length one."""
    block = built(norm=norm).blocks[0]
    x = torch.rand(2, 5, 6, dtype=torch.float64)
    seen = block.norm1(x)
    added = torch.zeros_like(x)
    for head in range(4):
        rows = slice(2 * head, 2 * head + 2)
        q, k, v = (seen @ each.weight[rows].T for each in (block.q, block.k, block.v))
        turn = torch.polar(torch.ones(5), torch.arange(5.0)).to(torch.complex128)  # of the one pair, at rate 1
        q, k = (torch.view_as_real(turn * torch.view_as_complex(each)) for each in (q, k))
        scores = q @ k.mT / 2**0.5 + torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
        added += scores.softmax(-1) @ v @ block.out.weight[:, rows].T
    x = x + added
    hidden = nn.functional.gelu(nn.functional.linear(block.norm2(x), block.up.weight, block.up.bias))
    by_hand = x + nn.functional.linear(hidden, block.down.weight, block.down.bias)
    assert torch.allclose(block(x - added), by_hand)


def test_a_tied_weight_is_one_array_and_travels_once() -> None:
    for tied in (True, False):
        module = built(tied=tied)
        assert (module.head.weight is module.tokens.weight) == tied
        assert ("head.weight" in arrays_of(module)) == (not tied)


def test_heads_that_are_cut_and_merged_are_the_same_heads() -> None:
    build = transformer(11, width=6, head=2)
    arrays, axes = arrays_of(build(**SIZES)), infer(build, SIZES)
    merge = Merge(arrays, axes)
    for units in (torch.tensor([0, 3]), torch.tensor([1, 2])):
        held = {"heads0": units, "heads1": units.flip(0), "ffn0": units, "ffn1": units}
        part = extract(arrays, axes, held)
        narrow = build(heads0=2, heads1=2, ffn0=2, ffn1=2)
        narrow.load_state_dict({**part, "head.weight": part["tokens.weight"]})
        merge.add(held, part)
    assert all(torch.equal(array, arrays[name]) for name, array in merge.result().items())


def test_it_learns_what_only_attention_can_tell() -> None:
    """The token that came first, asked for at the end."""
    torch.manual_seed(1)
    module = transformer(5, width=16, head=8)(heads0=2, ffn0=16)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)

    def last(ids: Tensor) -> Tensor:
        return module(ids)[:, -1]

    for _ in range(150):
        ids = torch.randint(5, (64, 6))
        loss = nn.functional.cross_entropy(last(ids), ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = torch.randint(5, (500, 6))
    assert float((last(ids).argmax(1) == ids[:, 0]).float().mean()) > 0.95


@pytest.mark.parametrize(
    "sizes", [{"heads0": 2}, {"heads0": 2, "ffn1": 3}, {"heads1": 2, "ffn1": 3}, {"heads0": 2, "ffn0": 3, "width": 6}]
)
def test_sizes_that_are_not_those_of_blocks_are_refused(sizes: dict[str, int]) -> None:
    build = transformer(11, width=6, head=2)
    with pytest.raises(TaskError, match=f"two for each block, but are {', '.join(sizes)}"):
        build(**sizes)
    with pytest.raises(AxesError, match="two for each block"):
        infer(build, sizes)


@pytest.mark.parametrize("wrong", [{"norm": "batch"}, {"width": 0}, {"head": -2}, {"head": 3}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TaskError, match="must be"):
        transformer(**{"vocabulary": 11, "width": 6, "head": 2, **wrong})

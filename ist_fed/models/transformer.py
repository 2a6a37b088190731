"""A decoder-only transformer whose units are attention heads and feed-forward units."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.blocks import Branch, apart, check_blocks

Norm = Literal["layer", "rms"]


_BASE = 10_000.0  # of the wavelengths of rotary positions, Su et al.


def transformer(vocabulary: int, width: int, head: int, norm: Norm = "layer", tied: bool = True) -> Build:
    """A factory of pre-norm blocks `x + attention(norm(x))`, `x + ffn(norm(x))`; sizes are `heads0, ffn0, heads1, …`.

    The residual stream is whole; only what a block does within itself is cut: its heads, each with its rows of the
    query, key and value projections and its columns of the output projection, and the units of its feed-forward
    layer. A size `block1 = 1` beside them makes the block of `heads1` and `ffn1` an axis of its own, which a client
    holds or not. Positions are rotary: no array belongs to them, and a text may be of any length.

    Args:
        vocabulary: how many tokens there are.
        width: of the residual stream.
        head: features of one head; even, for positions turn pairs of them.
        norm: `layer` or `rms`.
        tied: let the output layer be the token embedding; one array then serves both, and travels once.

    Raises:
        TaskError: an argument is out of its range, or the sizes do not give every block its heads and its units.

    Source: Vaswani et al., NeurIPS 2017; pre-norm: Xiong et al., ICML 2020; rotary: Su et al., arXiv 2104.09864, 2021.
    """
    norms: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    if norm not in norms:
        raise TaskError(f"norm must be one of {sorted(norms)}, but is '{norm}'")
    if min(vocabulary, width, head) < 1 or head % 2:
        raise TaskError(
            f"vocabulary, width and head must be positive, and head even, but are {vocabulary}, {width} and {head}"
        )

    def build(**sizes: int) -> nn.Module:
        sizes, held = apart(sizes)
        depth = _depth(sizes)
        check_blocks(held, range(depth))
        blocks = [
            _Block(width, head, sizes[f"heads{at}"], sizes[f"ffn{at}"], norms[norm])
            if held.get(at, 1)
            else nn.Identity()
            for at in range(depth)
        ]
        return Transformer(nn.Embedding(vocabulary, width), blocks, norms[norm](width), tied)

    return build


def _depth(sizes: dict[str, int]) -> int:
    depth = len(sizes) // 2
    wanted = {f"{kind}{at}" for kind in ("heads", "ffn") for at in range(depth)}
    if sizes.keys() != wanted or not depth:
        raise TaskError(
            f"the sizes of a transformer are heads0 and ffn0, heads1 and ffn1 and so on, two for each block, but are "
            f"{', '.join(sizes) or 'none'}"
        )
    return depth


class Transformer(nn.Module):
    """Token numbers `(examples, places)` to the scores of the next token, `(examples, places, vocabulary)`."""

    def __init__(self, tokens: nn.Embedding, blocks: Sequence[nn.Module], norm: nn.Module, tied: bool) -> None:
        super().__init__()
        nn.init.normal_(tokens.weight, std=tokens.embedding_dim**-0.5)  # as an output layer it must begin quiet
        self.tokens, self.blocks, self.norm = tokens, nn.ModuleList(blocks), norm
        self.head = nn.Linear(tokens.embedding_dim, tokens.num_embeddings, bias=False)
        if tied:
            self.head.weight = tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        """At every place, what comes after it; from what stands up to there."""
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, width: int, head: int, heads: int, units: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self._head = head
        self.norm1, self.norm2 = norm(width), norm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * head, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * head, width, bias=False)
        self.up, self.down = nn.Linear(width, units), nn.Linear(units, width)
        self.branch = Branch()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(self._attention(self.norm1(x)))
        return x + self.branch(self.down(functional.gelu(self.up(self.norm2(x)))))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, self._head)).transpose(-3, -2) for each in (self.q, self.k, self.v))
        turn = _angles(x.shape[-2], self._head, x.device)
        seen = functional.scaled_dot_product_attention(_turned(q, turn), _turned(k, turn), v, is_causal=True)
        return self.out(seen.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]


def _angles(places: int, head: int, device: torch.device) -> Tensor:
    """By how much each place turns each pair of features: places × half a head."""
    rates = _BASE ** (-torch.arange(0, head, 2, device=device) / head)
    return torch.arange(places, device=device)[:, None] * rates


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair of features turned by its angle, so that a product of two places depends on how far they are apart."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

"""A decoder-only transformer whose units are attention heads and feed-forward units."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from ist_fed.arrays import Build
from ist_fed.errors import TaskError

Norm = Literal["layer", "rms"]


def transformer(vocabulary: int, context: int, width: int, head: int, norm: Norm = "layer", tied: bool = True) -> Build:
    """A factory of pre-norm blocks `x + attention(norm(x))`, `x + ffn(norm(x))`; sizes are `heads0, ffn0, heads1, …`.

    The residual stream is whole; only what a block does within itself is cut: its heads, each with its rows of the
    query, key and value projections and its columns of the output projection, and the units of its feed-forward
    layer. Positions are learned.

    Args:
        vocabulary: how many tokens there are.
        context: the longest text, in tokens.
        width: of the residual stream.
        head: features of one head.
        norm: `layer` or `rms`.
        tied: let the output layer be the token embedding; one array then serves both, and travels once.

    Raises:
        TaskError: an argument is out of its range, or the sizes do not give every block its heads and its units.

    Source: Vaswani et al., NeurIPS 2017; pre-norm: Xiong et al., ICML 2020.
    """
    norms: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
    if norm not in norms:
        raise TaskError(f"norm must be one of {sorted(norms)}, but is '{norm}'")
    if min(vocabulary, context, width, head) < 1:
        raise TaskError(
            f"vocabulary, context, width and head must be positive, but are {vocabulary}, {context}, {width} and {head}"
        )

    def build(**sizes: int) -> nn.Module:
        blocks = [
            _Block(width, head, sizes[f"heads{at}"], sizes[f"ffn{at}"], norms[norm]) for at in range(_depth(sizes))
        ]
        return Transformer(
            nn.Embedding(vocabulary, width), nn.Embedding(context, width), blocks, norms[norm](width), tied
        )

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

    def __init__(
        self, tokens: nn.Embedding, places: nn.Embedding, blocks: list["_Block"], norm: nn.Module, tied: bool
    ) -> None:
        super().__init__()
        self.tokens, self.places, self.blocks, self.norm = tokens, places, nn.ModuleList(blocks), norm
        self.head = nn.Linear(tokens.embedding_dim, tokens.num_embeddings, bias=False)
        if tied:
            self.head.weight = tokens.weight
        for embedding in (tokens, places):
            nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)  # as an output layer it must be quiet

    def forward(self, ids: Tensor) -> Tensor:
        """At every place, what comes after it; from what stands up to there."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[-1]]
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

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, self._head)).transpose(-3, -2) for each in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(seen.transpose(-3, -2).flatten(-2))  # type: ignore[no-any-return]

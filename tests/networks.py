"""Small networks of every kind that can be cut, and the table each must get; the tests of the core share them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ist_fed.arrays import Build
from ist_fed.models import cnn as cnn_model
from ist_fed.models import mlp, resnet, transformer, wide_output
from ist_fed.models.wide_output import packed


@dataclass(frozen=True, kw_only=True)
class Network:
    """A factory, the sizes to test at, an input, and the whole table written by hand.

    Args:
        build: the factory.
        sizes: units of each axis; no two alike, so that no axis passes for another.
        example: shape of an input; token ids below 11 where `tokens`, features and values of 11 where `sparse`.
        table: array → its dimensions, as they are written.
        declared: what cannot be derived.
    """

    build: Build
    sizes: Mapping[str, int]
    example: tuple[int, ...]
    table: Mapping[str, str]
    declared: Mapping[str, str] = field(default_factory=dict)
    tokens: bool = False
    sparse: bool = False

    def function(self) -> Callable[[nn.Module], Tensor]:
        """What the network computes on one fixed input."""
        draw = torch.Generator().manual_seed(5)
        if self.tokens:
            example = torch.randint(11, self.example, generator=draw)
        elif self.sparse:
            values = torch.rand(self.example, generator=draw, dtype=torch.float64)
            example = packed(torch.randint(11, self.example, generator=draw), values)
        else:
            example = torch.rand(self.example, generator=draw, dtype=torch.float64) - 0.5
        return lambda module: module(example if self.tokens else example.to(next(module.parameters()).dtype))


# --- Convolutions -----------------------------------------------------------------------------------------------------


def cnn(c1: int, c2: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, c1, 3, padding=1),
        nn.BatchNorm2d(c1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(c1, c2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(c2 * 4 * 4, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 5),
    )


class ResidualBlock(nn.Module):
    """A residual block whose shortcut is a projection, between a stem and a head."""

    def __init__(self, stem: int, mid: int, out: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(stem, mid, 3, padding=1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.norm2 = nn.Conv2d(mid, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(stem, out, 1, bias=False)
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return self.head(F.relu(y + self.shortcut(x)).mean(dim=(2, 3)))


def depthwise(c: int, wide: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1),
        nn.Conv2d(c, c, 3, padding=1, groups=c),
        nn.GroupNorm(1, c),
        nn.ReLU(),
        nn.Conv2d(c, wide, 1),
        nn.GroupNorm(1, wide),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(wide, 5),
    )


class Dense(nn.Module):
    """A DenseNet step: its second layer sees the units and the input side by side."""

    def __init__(self, growth: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, growth), nn.Linear(6 + growth, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.cat([x, F.relu(self.first(x))], dim=1))


# --- Attention --------------------------------------------------------------------------------------------------------

HEAD = 4  # features of one head


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * heads * HEAD)
        else:
            self.q, self.k, self.v = (nn.Linear(width, heads * HEAD) for _ in range(3))
        self.out = nn.Linear(heads * HEAD, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class GPT(nn.Module):
    """One block; the head is the embedding, so the tied weight stands in the state dict twice."""

    def __init__(self, width: int, heads0: int, ffn0: int, fused: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, width), nn.Embedding(6, width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads0, fused)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn0), nn.GELU(), nn.Linear(ffn0, width))
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        x = x + self.attention(self.norm1(x))
        return self.head(x + self.ffn(self.norm2(x)))


GPT_TABLE = {
    "tokens.weight": ". width",
    "places.weight": ". width",
    "norm1.weight": "width",
    "norm1.bias": "width",
    "attention.out.weight": "width (heads0 4)",
    "attention.out.bias": "width",
    "norm2.weight": "width",
    "norm2.bias": "width",
    "ffn.0.weight": "ffn0 width",
    "ffn.0.bias": "ffn0",
    "ffn.2.weight": "width ffn0",
    "ffn.2.bias": "width",
}
SEPARATE = {
    f"attention.{p}.{kind}": dims
    for p in "qkv"
    for kind, dims in (("weight", "(heads0 4) width"), ("bias", "(heads0 4)"))
}
FUSED = {"attention.qkv.weight": "(3 heads0 4) width", "attention.qkv.bias": "(3 heads0 4)"}


BLOCK = {
    **{f"norm{number}.{part}": "." for number in (1, 2) for part in ("weight", "bias")},
    **{f"{part}.weight": "(heads 4) ." for part in "qkv"},
    "out.weight": ". (heads 4)",
    "up.weight": "ffn .",
    "up.bias": "ffn",
    "down.weight": ". ffn",
    "down.bias": ".",
}


def transformer_table(norm: tuple[str, ...], tied: bool) -> dict[str, str]:
    """Of two blocks; in each the axes bear its number."""
    table = {"tokens.weight": ". .", **{f"norm.{part}": "." for part in norm}}
    for at in range(2):
        for name, dims in BLOCK.items():
            if not name.startswith("norm") or name.partition(".")[2] in norm:
                table[f"blocks.{at}.{name}"] = dims.replace("heads", f"heads{at}").replace("ffn", f"ffn{at}")
    return table if tied else {**table, "head.weight": ". ."}


# --- Recurrence -------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, hidden, batch_first=True), nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


GATES = {
    "lstm.weight_ih_l0": "(4 hidden) .",
    "lstm.weight_hh_l0": "(4 hidden) hidden",
    "lstm.bias_ih_l0": "(4 hidden)",
    "lstm.bias_hh_l0": "(4 hidden)",
}

# --- All of them ------------------------------------------------------------------------------------------------------

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def batch_norm(name: str, axis: str) -> dict[str, str]:
    return {**{f"{name}.{part}": axis for part in BATCH_NORM}, f"{name}.num_batches_tracked": "()"}


def block(name: str, mid: str, shortcut: bool) -> dict[str, str]:
    """A standard residual block, in a stream that is not split."""
    table = {f"{name}.conv1.weight": f"{mid} . . .", f"{name}.conv2.weight": f". {mid} . ."}
    table |= batch_norm(f"{name}.norm1", mid) | batch_norm(f"{name}.norm2", ".")
    return table | (
        {f"{name}.shortcut.0.weight": ". . . .", **batch_norm(f"{name}.shortcut.1", ".")} if shortcut else {}
    )


def owned(owner: str, table: Mapping[str, str]) -> dict[str, str]:
    """The same arrays as those of a block that can be left out."""
    return {name: f"{owner}: {dims}" for name, dims in table.items()}


NETWORKS: dict[str, Network] = {
    "mlp": Network(
        build=mlp(inputs=7, outputs=3),
        sizes={"hidden1": 10, "hidden2": 12},
        example=(9, 7),
        table={
            "1.weight": "hidden1 .",
            **{f"2.{part}": "hidden1" for part in BATCH_NORM},
            "2.num_batches_tracked": "()",
            "4.weight": "hidden2 hidden1",
            **{f"5.{part}": "hidden2" for part in BATCH_NORM},
            "5.num_batches_tracked": "()",
            "7.weight": ". hidden2",
            "7.bias": ".",
        },
    ),
    "cnn": Network(
        build=cnn,
        sizes={"c1": 6, "c2": 8, "hidden": 10},
        example=(2, 3, 8, 8),
        table={
            "0.weight": "c1 . . .",
            "0.bias": "c1",
            **{f"1.{part}": "c1" for part in BATCH_NORM},
            "1.num_batches_tracked": "()",
            "4.weight": "c2 c1 . .",
            "4.bias": "c2",
            "7.weight": "hidden (c2 16)",
            "7.bias": "hidden",
            "9.weight": ". hidden",
            "9.bias": ".",
        },
    ),
    "resnet": Network(
        build=ResidualBlock,
        sizes={"stem": 6, "mid": 8, "out": 10},
        example=(2, 3, 6, 6),
        table={
            "stem.weight": "stem . . .",
            "stem.bias": "stem",
            "conv1.weight": "mid stem . .",
            **{f"norm1.{part}": "mid" for part in BATCH_NORM},
            "norm1.num_batches_tracked": "()",
            "conv2.weight": "out mid . .",
            **{f"norm2.{part}": "out" for part in BATCH_NORM},
            "norm2.num_batches_tracked": "()",
            "shortcut.weight": "out stem . .",
            "head.weight": ". out",
            "head.bias": ".",
        },
    ),
    "cnn_model": Network(
        build=cnn_model((3, 8, 10), 5),
        sizes={"conv1": 6, "conv2": 8, "hidden1": 10},
        example=(2, 3, 8, 10),
        table={
            "0.weight": "conv1 . . .",
            **batch_norm("1", "conv1"),
            "4.weight": "conv2 conv1 . .",
            **batch_norm("5", "conv2"),
            "9.weight": "hidden1 (conv2 4)",
            **batch_norm("10", "hidden1"),
            "12.weight": ". hidden1",
            "12.bias": ".",
        },
    ),
    "cnn_model_global": Network(
        build=cnn_model((1, 5, 5), 4, "layer", "global"),
        sizes={"conv1": 6, "conv2": 8},
        example=(2, 1, 5, 5),
        table={
            "0.weight": "conv1 . . .",
            "1.weight": "conv1",
            "1.bias": "conv1",
            "4.weight": "conv2 conv1 . .",
            "5.weight": "conv2",
            "5.bias": "conv2",
            "9.weight": ". conv2",
            "9.bias": ".",
        },
    ),
    "resnet_model": Network(
        build=resnet(3, 5, (4, 7)),
        sizes={"mid1": 6, "mid2": 8, "mid3": 10, "mid4": 12},
        example=(2, 3, 6, 6),
        table={
            "0.weight": ". . . .",
            **batch_norm("1", "."),
            **block("3", "mid1", shortcut=False),
            **block("4", "mid2", shortcut=False),
            **block("5", "mid3", shortcut=True),
            **block("6", "mid4", shortcut=False),
            "9.weight": ". .",
            "9.bias": ".",
        },
    ),
    "resnet_model_blocks": Network(
        build=resnet(3, 5, (4, 7)),
        sizes={"mid1": 6, "mid2": 8, "block2": 1, "mid3": 10, "mid4": 12, "block4": 1},
        example=(2, 3, 6, 6),
        table={
            "0.weight": ". . . .",
            **batch_norm("1", "."),
            **block("3", "mid1", shortcut=False),
            **owned("block2", block("4", "mid2", shortcut=False)),
            **block("5", "mid3", shortcut=True),
            **owned("block4", block("6", "mid4", shortcut=False)),
            "9.weight": ". .",
            "9.bias": ".",
        },
    ),
    "resnet_model_preactivation": Network(
        build=resnet(1, 5, (4, 7), "layer", "preactivation"),
        sizes={"mid1": 6, "mid2": 8},
        example=(2, 1, 6, 6),
        table={
            "0.weight": ". . . .",
            **{f"{block}.norm1.{part}": "." for block in (1, 2) for part in ("weight", "bias")},
            **{f"{block}.norm2.{part}": f"mid{block}" for block in (1, 2) for part in ("weight", "bias")},
            **{f"{block}.conv1.weight": f"mid{block} . . ." for block in (1, 2)},
            **{f"{block}.conv2.weight": f". mid{block} . ." for block in (1, 2)},
            "2.shortcut.weight": ". . . .",
            "3.weight": ".",
            "3.bias": ".",
            "7.weight": ". .",
            "7.bias": ".",
        },
    ),
    "depthwise": Network(
        build=depthwise,
        sizes={"c": 6, "wide": 8},
        example=(2, 3, 5, 5),
        table={
            "0.weight": "c . . .",
            "0.bias": "c",
            "1.weight": "c . . .",
            "1.bias": "c",
            "2.weight": "c",
            "2.bias": "c",
            "4.weight": "wide c . .",
            "4.bias": "wide",
            "5.weight": "wide",
            "5.bias": "wide",
            "9.weight": ". wide",
            "9.bias": ".",
        },
    ),
    "gpt": Network(
        build=GPT,
        sizes={"width": 6, "heads0": 3, "ffn0": 10},
        example=(2, 6),
        table={**GPT_TABLE, **SEPARATE},
        tokens=True,
    ),
    "gpt_fused": Network(
        build=lambda **sizes: GPT(**sizes, fused=True),
        sizes={"width": 6, "heads0": 3, "ffn0": 10},
        example=(2, 6),
        table={**GPT_TABLE, **FUSED},
        declared=FUSED,
        tokens=True,
    ),
    "lstm": Network(
        build=Recurrent,
        sizes={"hidden": 6},
        example=(2, 4, 3),
        table={**GATES, "head.weight": ". hidden", "head.bias": "."},
        declared=GATES,
    ),
    "transformer": Network(
        build=transformer(11, width=6, head=4),
        sizes={"heads0": 3, "ffn0": 10, "heads1": 5, "ffn1": 7},
        example=(2, 6),
        table=transformer_table(("weight", "bias"), tied=True),
        tokens=True,
    ),
    "transformer_blocks": Network(
        build=transformer(11, width=6, head=4),
        sizes={"heads0": 3, "ffn0": 10, "heads1": 5, "ffn1": 7, "block0": 1, "block1": 1},
        example=(2, 6),
        table={
            name: f"block{name[7]}: {dims}" if name.startswith("blocks.") else dims
            for name, dims in transformer_table(("weight", "bias"), tied=True).items()
        },
        tokens=True,
    ),
    "transformer_rms_untied": Network(
        build=transformer(11, width=6, head=4, norm="rms", tied=False),
        sizes={"heads0": 3, "ffn0": 10, "heads1": 5, "ffn1": 7},
        example=(2, 6),
        table=transformer_table(("weight",), tied=False),
        tokens=True,
    ),
    "wide_output": Network(
        build=wide_output(11, 30),
        sizes={"hidden1": 8},
        example=(5, 4),
        table={
            "hidden.0.weight": ". hidden1",
            **dict.fromkeys(("hidden.0.bias", "hidden.1.weight", "hidden.1.bias"), "hidden1"),
            "head.weight": ". hidden1",
            "head.bias": ".",
        },
        sparse=True,
    ),
    "wide_output_dense": Network(
        build=wide_output(7, 30, norm="batch", sparse=False),
        sizes={"hidden1": 8, "hidden2": 10},
        example=(5, 7),
        table={
            "hidden.0.weight": "hidden1 .",
            "hidden.0.bias": "hidden1",
            **{f"hidden.1.{part}": "hidden1" for part in BATCH_NORM},
            "hidden.1.num_batches_tracked": "()",
            "hidden.3.weight": "hidden2 hidden1",
            "hidden.3.bias": "hidden2",
            **{f"hidden.4.{part}": "hidden2" for part in BATCH_NORM},
            "hidden.4.num_batches_tracked": "()",
            "head.weight": ". hidden2",
            "head.bias": ".",
        },
    ),
}

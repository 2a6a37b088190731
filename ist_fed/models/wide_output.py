"""Sparse or dense examples to hundreds of thousands of labels."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ist_fed.arrays import Build
from ist_fed.errors import TaskError
from ist_fed.models.norm import Norm


def wide_output(inputs: int, outputs: int, norm: Norm = "layer", sparse: bool = True) -> Build:
    """A factory of an input layer, hidden layers and a very large linear head; a hidden layer for each size, in order.

    The module's `hidden` gives what the head reads. A loss that takes `hidden` and `head` need not hold the scores of
    all labels at once; `models.softmax` has one. Calling the module gives them all.

    Args:
        inputs: features of one example.
        outputs: how many labels.
        norm: `batch`, `layer` or `none`, before each activation.
        sparse: examples are given by their features that are not zero, as `packed` lays them out; else `inputs` numbers
            each. Gradients are dense either way, for every optimiser and clipping to work: the head's is the larger.

    Raises:
        TaskError: there is no such norm, or feature numbers that float32 does not hold exactly.

    Source: Yuan et al., PVLDB 15(8), 2022, section 6 (Amazon-670k: one hidden layer).
    """
    norms: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
    if norm not in norms:
        raise TaskError(f"norm must be one of {sorted(norms)}, but is '{norm}'")
    if sparse and inputs > 1 << 24:
        raise TaskError(f"features of sparse examples are numbered in float32, up to {1 << 24}, but there are {inputs}")

    def build(**sizes: int) -> nn.Module:
        first, *widths = sizes.values()
        layers: list[nn.Module] = [_Bag(inputs, first) if sparse else nn.Linear(inputs, first), norms[norm](first)]
        for before, after in pairwise([first, *widths]):
            layers += [nn.ReLU(), nn.Linear(before, after), norms[norm](after)]
        return WideOutput(nn.Sequential(*layers, nn.ReLU()), nn.Linear([first, *widths][-1], outputs))

    return build


def packed(index: Tensor, values: Tensor) -> Tensor:
    """Sparse examples as one array, examples × 2 × features: numbers of features above their values.

    An example that has fewer features is filled up with zeros: feature 0 with value 0, which adds nothing.
    """
    return torch.stack([index.to(values.dtype), values], dim=1)


class WideOutput(nn.Module):
    """Examples `(examples, inputs)`, or `(examples, 2, features)` if sparse, to scores `(examples, labels)`."""

    def __init__(self, hidden: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.hidden, self.head = hidden, head

    def forward(self, examples: Tensor) -> Tensor:
        """The scores of all labels."""
        return self.head(self.hidden(examples))  # type: ignore[no-any-return]


class _Bag(nn.Module):
    """A linear layer of sparse examples: the sum of the rows of their features, times the features' values."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, units))
        self.bias = nn.Parameter(torch.zeros(units))
        nn.init.normal_(self.weight)  # examples are mostly of length one, whatever `inputs`

    def forward(self, examples: Tensor) -> Tensor:
        index, values = examples.unbind(1)
        summed = functional.embedding_bag(
            index.long(), self.weight, per_sample_weights=values.to(self.weight.dtype), mode="sum"
        )
        return summed + self.bias

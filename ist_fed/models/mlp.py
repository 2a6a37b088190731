"""Fully connected networks, the family of the paper."""

from itertools import pairwise

from torch import nn

from ist_fed.arrays import Build
from ist_fed.models.norm import Norm, check_norm, norm_features


def mlp(inputs: int, outputs: int, norm: Norm = "batch") -> Build:
    """A factory of `Linear → norm → ReLU` layers and a linear head; one hidden layer for each size, in their order.

    A subnet's unit sums fewer inputs than it will after the merge; a normalisation before the activation absorbs
    that, so `none` is there to compare with, not to use.

    Args:
        inputs: features of one example; an input is flattened to `(examples, inputs)`.
        outputs: length of the output, such as the number of classes.
        norm: `batch`, `layer` or `none`. With a norm the linear layers have no bias: the norm's own takes its place.

    Source: Yuan et al., PVLDB 15(8), 2022, section 4.
    """
    check_norm(norm)

    def build(**sizes: int) -> nn.Module:
        widths = [inputs, *sizes.values()]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=norm == "none"), norm_features(norm, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    return build

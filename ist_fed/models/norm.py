"""Normalisations whose units can be permuted and cut; those of features and of channels go by the same names."""

from typing import Literal

from torch import nn

from ist_fed.errors import TaskError

Norm = Literal["batch", "layer", "none"]

_FEATURES: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}


def check_norm(norm: str) -> None:
    """Refuse a norm that there is not.

    Raises:
        TaskError: it is none of the three.
    """
    if norm not in _FEATURES:
        raise TaskError(f"norm must be one of {sorted(_FEATURES)}, but is '{norm}'")


def norm_features(norm: Norm, units: int) -> nn.Module:
    """Of `(examples, units)`."""
    return _FEATURES[norm](units)


def norm_channels(norm: Norm, units: int) -> nn.Module:
    """Of `(examples, units, height, width)`; `layer` is GroupNorm with one group.

    More groups than one would tie a unit to its neighbours: a unit could no longer be given away alone.
    """
    if norm == "layer":
        return nn.GroupNorm(1, units)
    return nn.BatchNorm2d(units) if norm == "batch" else nn.Identity()

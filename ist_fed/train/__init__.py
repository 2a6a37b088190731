"""Local steps on one network. Nothing here knows of subnets."""

from ist_fed.train.settings import (
    AMP,
    OPTIMIZERS,
    Amp,
    Precision,
    Rescale,
    Training,
    amp_of,
    learning_rate,
    optimizer_options,
)
from ist_fed.train.steps import Step, train, unsound

__all__ = [
    "AMP",
    "OPTIMIZERS",
    "Amp",
    "Precision",
    "Rescale",
    "Step",
    "Training",
    "amp_of",
    "learning_rate",
    "optimizer_options",
    "train",
    "unsound",
]

"""Networks and losses in which examples are not alone are refused; no example, and no weight, has a say in it."""

from collections.abc import Callable

import pytest
import torch
from tiny import SIZES, Tiny, same
from torch import Tensor, nn
from torch.nn import functional

from ist_fed.arrays import arrays_of
from ist_fed.errors import PrivacyError
from ist_fed.models import cnn, transformer
from ist_fed.privacy.example.apart import check_apart
from ist_fed.tasks import Batch

LIKE = (torch.zeros(1, 6, 4), torch.zeros(1, 6))
"""Six readings of four numbers each, and a number to be foretold from each reading."""


class Readings(nn.Module):
    """Two layers over the readings, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(4, 8), between, nn.Linear(8, 1)

    def forward(self, readings: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.between(self.first(readings))))
        return out


class Flattened(nn.Module):
    """Takes each reading for an example."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(4, 1)

    def forward(self, readings: Tensor) -> Tensor:
        out: Tensor = self.only(readings.reshape(-1, 4))
        return out


class Error(Tiny):
    """The squared error of a network."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(model(batch[0]).view_as(batch[1]), batch[1])


class Summed(Tiny):
    """An example counts more, the more there are."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * len(batch[0])


class Weighted(Tiny):
    """Classes count differently, so that an example's share depends on the others' classes."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], torch.tensor([1.0, 9.0, 1.0]))


class Blended(Tiny):
    """Mixes neighbours while it trains."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = (batch[0] + batch[0].roll(1, 0)) / 2 if model.training else batch[0]
        return super().loss(model, (inputs, batch[1]))


def flat_norm(hidden: Tensor) -> Tensor:
    """As a normalisation over the batch that is no module."""
    return (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt()


MIXED = {
    "mean": lambda hidden: hidden - hidden.mean(0),
    "batch norm by hand": flat_norm,
    "one after the other": lambda hidden: hidden.cumsum(0),
    "a little": lambda hidden: hidden + 1e-3 * hidden.mean(0),
}


@pytest.mark.parametrize("between", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("weights", ["drawn", "zero"])
def test_examples_that_change_each_others_gradients_are_found(
    between: Callable[[Tensor], Tensor], weights: str
) -> None:
    model = Readings(between)
    if weights == "zero":  # as a server may send them
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    with pytest.raises(PrivacyError, match="must not depend on the others"):
        check_apart(model, Error(), LIKE)


def test_neighbours_that_are_mixed_only_in_training_are_found() -> None:
    task = Blended(norm="layer")
    with pytest.raises(PrivacyError, match="must not depend on the others"):
        check_apart(task.build(**SIZES), task, (torch.zeros(1, 12), torch.zeros(1, dtype=torch.long)))


def test_rows_that_are_no_examples_are_found() -> None:
    with pytest.raises(PrivacyError, match=r"'only\.weight' is not used, or outside .* first dimension"):
        check_apart(Flattened(), Error(), LIKE)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_is_refused_even_if_it_keeps_nothing(norm: type[nn.Module]) -> None:
    model = Readings(norm(6, affine=False, track_running_stats=False))  # type: ignore[call-arg]
    with pytest.raises(PrivacyError, match='norm = "layer"'):
        check_apart(model, Error(), LIKE)


def test_statistics_that_would_leave_without_noise_are_found() -> None:
    model = Readings(nn.InstanceNorm1d(6, track_running_stats=True))
    with pytest.raises(PrivacyError, match="keeps statistics"):
        check_apart(model, Error(), LIKE)


@pytest.mark.parametrize("task", [Summed(norm="layer"), Weighted(norm="layer")], ids=["summed", "weighted"])
def test_a_loss_in_which_an_examples_share_depends_on_the_others_is_found(task: Tiny) -> None:
    with pytest.raises(PrivacyError, match=r"must be the mean|must not depend on the others"):
        check_apart(task.build(**SIZES), task, (torch.zeros(1, 12), torch.zeros(1, dtype=torch.long)))


class Tokens(Tiny):
    """The next token at every place."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


GOOD = {
    "dropout": (Tiny(norm="layer", dropout=0.5), torch.zeros(1, 12), torch.zeros(1, dtype=torch.long)),
    "cnn": (Tiny(), torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)),
    "transformer": (Tokens(), torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)),
    "a bias without effect": (Error(), *LIKE),
}


def built(name: str, task: Tiny) -> nn.Module:
    if name == "cnn":
        return cnn((1, 8, 8), 3, "layer")(conv1=4, hidden1=8)
    if name == "transformer":
        return transformer(7, 8, 4)(heads0=2, ffn0=8)
    if name == "dropout":
        return task.build(**SIZES)
    return Readings(lambda hidden: hidden - hidden.mean(1, keepdim=True))


@pytest.mark.parametrize("name", GOOD)
def test_what_is_alone_passes_and_is_left_as_it_was(name: str) -> None:
    task, *like = GOOD[name]
    model = built(name, task)
    before = {key: array.clone() for key, array in arrays_of(model).items()}
    check_apart(model, task, (like[0], like[1]))
    assert same(arrays_of(model), before)
    assert all(not module._forward_hooks and not hasattr(module, "activations") for module in model.modules())

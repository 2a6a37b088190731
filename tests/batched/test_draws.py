"""Datasets that draw their examples from a generator, and where generators are found."""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from test_trial import Built, is_the_same, plain, train
from torch.utils.data import Dataset

from ist_fed import rules
from ist_fed.batched.draws import Draws
from ist_fed.tasks import Batch


class Augmenting(Dataset[Batch]):
    """Examples that a generator of its own turns over now and then."""

    def __init__(self, whole: Dataset[Batch], flips: Callable[[], bool]) -> None:
        self._whole, self._flips = whole, flips

    def __len__(self) -> int:
        return len(self._whole)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Batch:
        inputs, target = self._whole[index]
        return inputs * (-1 if self._flips() else 1), target


def _by_torch(client: int) -> Callable[[], bool]:
    draws = torch.Generator().manual_seed(client)
    return lambda: bool(torch.rand(1, generator=draws) < 0.1)


def _by_numpy(client: int) -> Callable[[], bool]:
    return partial(_is_low, np.random.default_rng(client))


def _is_low(draws: np.random.Generator) -> bool:
    return draws.random() < 0.1


def _by_anyone(client: int) -> Callable[[], bool]:
    np.random.seed(1)
    return lambda: np.random.rand() < 0.1


def _unseen(client: int) -> Callable[[], bool]:
    return lambda: bool(_LOW.random() < 0.5)


_LOW = np.random.default_rng(0)


@dataclass(frozen=True, kw_only=True)
class Flipped(Built):
    flips: Callable[[int], Callable[[], bool]]

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        return Augmenting(super().client_data(client, clients), self.flips(client))


@pytest.mark.parametrize("flips", [_by_torch, _by_numpy, _by_anyone])
def test_what_a_dataset_draws_by_itself_it_draws_as_if_nobody_had_looked(
    flips: Callable[[int], Callable[[], bool]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Flipped(make=plain, flips=flips), None)
    assert "drawn at random" in caplog.text


def test_where_nobody_sees_the_generator_some_examples_are_read_twice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        train(Flipped(make=plain, flips=_unseen), None, rule=rules.Full())
    assert "drawn at random" in caplog.text
    assert "at once" not in caplog.text


class Closed:
    @property
    def __dict__(self) -> Any:
        raise RuntimeError("nobody may look")


@pytest.mark.parametrize("held", [random.SystemRandom(), Closed()], ids=["no state", "closed"])
def test_what_has_no_state_or_cannot_be_looked_into_is_let_be(held: object) -> None:
    other = random.Random(1)
    draws = Draws([held, other])
    assert not draws.moved()
    other.random()
    assert draws.moved()


def test_a_function_that_names_what_is_not_bound_yet_is_looked_through() -> None:
    """A function that calls itself, say, while it is being made."""
    held = np.random.default_rng(1)

    def early() -> float:
        return later + held.random()

    draws = Draws(early)
    later = 1.0
    first = early()
    assert draws.moved()
    draws.undo()
    assert early() == first

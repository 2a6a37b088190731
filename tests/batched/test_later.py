"""Networks and losses that are another's in a later step: one step does not show what they do."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_trial import WAYS, Around, Built, Words, hooked, is_the_same, plain, train
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ist_fed import rules
from ist_fed.batched import Way
from ist_fed.errors import RoundError
from ist_fed.tasks import Batch, Task
from ist_fed.train import Training

STEPS = {"local_steps": 7, "training": Training(lr=0.5, batch_size=8)}


class Later(Around):
    """Does something else from the fourth step on, by its own count."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.steps = 0
        self.register_buffer("mean", torch.zeros(tiny.CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        self.steps += 1
        return self.late(inputs) if self.steps > 3 else self.net(inputs)

    def late(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError


class Assigning(Later):
    def late(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs) - self.mean
        self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
        return outputs


class Replacing(Later):
    def late(self, inputs: Tensor) -> Tensor:
        self.net[4].bias = nn.Parameter(torch.ones(tiny.CLASSES, dtype=torch.float64))
        return self.net(inputs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Assigning, Replacing])
def test_an_array_that_is_assigned_anew_late_is_not_lost(
    make: Callable[..., nn.Module], way: Way | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Built(make=make), way, **STEPS)
    assert "is assigned anew" in caplog.text


@dataclass(frozen=True, kw_only=True)
class Unknown(Words):
    """One client has a word that nobody knows, behind all others."""

    word: int

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        data = super().client_data(client, clients)
        assert isinstance(data, TensorDataset)
        if client == 1:
            data.tensors[0][-1, 0] = self.word
        return data


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", [7, -1])
@pytest.mark.parametrize("padding", [0, None])
def test_a_word_that_nobody_knows_is_not_the_next_client_s(padding: int | None, word: int, way: Way | None) -> None:
    task = Unknown(make=plain, padding=padding, word=word)
    options = {"rule": rules.Full(), "training": Training(batch_size=10)}
    assert is_the_same(task, way, **options)
    assert [refused.client for refused in train(task, way, **options).refused] == [1]


class Bare(nn.Embedding):
    """Calls what torch's own calls."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.embedding(self.weight, inputs)


class Barely(Unknown):
    def build(self, **sizes: int) -> nn.Module:
        made = super().build(**sizes)
        assert isinstance(made, nn.Sequential)
        made[0] = Bare(7, sizes["hidden1"]).double()
        return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", [7, -1])
def test_nor_is_it_where_torchs_own_function_is_called(word: int, way: Way | None) -> None:
    options = {"rule": rules.Full(), "training": Training(batch_size=10)}
    done = train(Barely(make=plain, padding=None, word=word), way, **options)
    assert [refused.client for refused in done.refused] == [1]


class Codes(nn.Module):
    def forward(self, words: Tensor) -> Tensor:
        return nn.functional.one_hot(words, num_classes=7).double().mean(1)


@dataclass(frozen=True, kw_only=True)
class Coded(Unknown):
    def build(self, **sizes: int) -> nn.Module:
        one, two = sizes.values()
        return nn.Sequential(
            Codes(), nn.Linear(7, one), nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 3)
        ).double()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("word", [7, -1])
def test_a_class_that_there_is_not_is_an_error(word: int, way: Way | None) -> None:
    task = Coded(make=plain, padding=None, word=word)
    options = {"rule": rules.Full(), "training": Training(batch_size=10)}
    assert is_the_same(task, way, **options)
    assert [refused.client for refused in train(task, way, **options).refused] == [1]


class Pushing(Later):
    """What has come back in one step counts in later ones."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.size = torch.zeros((), dtype=torch.float64)
        self.net[2].register_full_backward_hook(lambda layer, own, grads: self.keep(grads[0]))

    def keep(self, grad: Tensor) -> None:
        self.size = grad.norm()

    def late(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * (1 + self.size)


class Pulling(Pushing):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.net[2]._backward_hooks.clear()

    def late(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs)
        if outputs.requires_grad:
            outputs.register_hook(self.keep)
        return outputs * (1 + self.size)


def _clamp_each(net: nn.Sequential) -> None:
    for each in net.parameters():
        each.register_hook(lambda grad: grad.clamp(-20, 20))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Pushing, Pulling, hooked(_clamp_each)])
def test_hooks_of_gradients_see_those_of_one_client(
    make: Callable[..., nn.Module], way: Way | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Built(make=make), way, **STEPS)
    assert "hook" in caplog.text


class Adding(Later):
    def late(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * (1 + 0.1 * sum(each.square().sum() for each in self.parameters()))


class Skipping(Later):
    """Reads the examples once more."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.more = nn.Linear(tiny.INPUTS, tiny.CLASSES)

    def late(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) + self.more(inputs)


class Remembering(Later):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.seen = [torch.zeros(())]

    def forward(self, inputs: Tensor) -> Tensor:
        outputs, seen = super().forward(inputs), self.seen[0]
        self.seen[0] = outputs.detach()
        return outputs + seen.mean(0) if self.steps > 4 else outputs

    def late(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


@dataclass(frozen=True, kw_only=True)
class Few(Built):
    examples: int = 8  # fewer than inputs, so that the first layer may be written in terms of them


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Adding, Skipping, Remembering])
def test_a_network_that_counts_its_steps_may_do_else_in_later_ones(
    make: Callable[..., nn.Module], way: Way | None
) -> None:
    assert is_the_same(Few(make=make), way, **STEPS)


def _hinge(model: nn.Module) -> Tensor:
    return torch.relu(sum(each.square().sum() for each in model.parameters()) - 20)


@pytest.mark.parametrize("way", WAYS)
def test_a_penalty_that_is_zero_at_first_counts_later(way: Way | None) -> None:
    assert is_the_same(Few(make=plain, penalty=_hinge), way, **STEPS)


@pytest.mark.parametrize("way", WAYS)
def test_a_hook_that_changes_nothing_at_first_counts_later(way: Way | None) -> None:
    bound = hooked(lambda net: net[2].register_forward_hook(lambda layer, inputs, outputs: outputs.clamp(-3, 3)))
    assert is_the_same(Few(make=bound), way, **STEPS)


class Annealed(tiny.Tiny):
    """Its loss grows after so many calls."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "calls", 0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        object.__setattr__(self, "calls", self.calls + 1)
        return super().loss(model, batch) * (1 + (self.calls > 20))


class Running(tiny.Tiny):
    """Its loss is a module that keeps a mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "criterion", nn.CrossEntropyLoss())
        self.criterion.register_buffer("mean", torch.ones(()))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = self.criterion(model(batch[0]), batch[1])
        with torch.no_grad():
            self.criterion.mean = 0.9 * self.criterion.mean + 0.1 * loss.detach()
        return loss / self.criterion.mean.clamp(min=1)


class Counting(tiny.Tiny):
    """Its loss counts in a dictionary, a list, an array and a tensor of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, kept in {"a": {"n": 0}, "b": [0], "c": np.zeros(1), "d": torch.zeros(1)}.items():
            object.__setattr__(self, name, kept)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.a["n"] += 1
        for kept in (self.b, self.c, self.d):
            kept[0] += 1
        return super().loss(model, batch) / (self.a["n"] + float(self.b[0] + self.c[0] + self.d[0]))


class Holding(Annealed):
    """It holds a file, as long as it lives."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "file", io.BytesIO())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.file.getvalue()
        return tiny.Tiny.loss(self, model, batch)

    def __del__(self) -> None:
        self.file.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_gives_back_what_it_holds_is_not_copied(way: Way | None) -> None:
    assert not train(Holding(norm="layer"), way, **STEPS).refused


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Annealed, Running, Counting])
def test_a_loss_that_counts_its_calls_counts_every_client_s(
    make: Callable[..., Task], way: Way | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        alone, other = (train(make(norm="layer"), one, **STEPS).arrays for one in ("one by one", way))
    assert tiny.same(alone, other)
    assert "one by one: its loss counts on what it was called with before" in caplog.text


class Deep(Around):
    """Doubles what it makes now and then."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * (2 if np.random.rand() < 0.1 else 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_draws_without_torch_draws_for_each_client(
    way: Way | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        made = list[dict[str, Tensor]]()
        for one in ("one by one", way):
            np.random.seed(1)
            made.append(train(Built(make=Deep), one).arrays)
    assert tiny.same(*made)
    assert "one by one: it draws at random" in caplog.text


class Shifted(Around):
    """Adds weights of its own to what a layer makes: of one example, all have one gradient."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.shift, self.more = nn.Parameter(torch.zeros(two)), nn.Parameter(torch.zeros(two))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net[3:](self.net[:3](inputs) + self.shift + self.more)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", [3.0, 5.0])
def test_what_has_one_gradient_is_clipped_once(norm: float, way: Way | None) -> None:
    training = Training(batch_size=1, clip_norm=norm)
    assert is_the_same(Built(make=Shifted), way, training=training, local_steps=20)


class Overwritten(Around):
    """Changes what a layer was given, which torch refuses of a client alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        given = self.net[0](inputs)
        outputs = self.net[2](given)
        return self.net[4](outputs) + given.mul_(2).mean()


@pytest.mark.parametrize("way", WAYS)
def test_what_one_alone_cannot_do_is_not_done_at_once(way: Way | None) -> None:
    with pytest.raises(RoundError, match="modified by an inplace operation"):
        train(Built(make=Overwritten), way)

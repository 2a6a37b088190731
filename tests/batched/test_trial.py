"""Networks, losses and data that are not what they seem: trained at once only where that is the same as one by one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import runs
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from ist_fed import rules
from ist_fed.arrays import build_undrawn
from ist_fed.batched import Way, trial
from ist_fed.seeds import seeded
from ist_fed.tasks import Batch, Task
from ist_fed.train import Training

WAYS: tuple[Way | None, ...] = ("stacked", "factored", None)
HALVES = rules.Disjoint(groups=2, min_units=1)


@dataclass(frozen=True, kw_only=True)
class Built(tiny.Tiny):
    """Any network and any loss, in float64."""

    make: Callable[..., nn.Module]
    penalty: Callable[[nn.Module], Tensor] | None = None

    def build(self, **sizes: int) -> nn.Module:
        return self.make(*sizes.values()).double()

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        inputs, targets = super().client_data(client, clients).tensors
        return TensorDataset(inputs.double(), targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        return loss + self.penalty(model) if self.penalty else loss


def train(task: Task, way: Way | None, clients: int = 4, **options: Any) -> Any:
    return runs.train_on(runs.local_grid(task, clients, way), task, options.pop("rule", HALVES), **options)[-1]


def is_the_same(task: Task, way: Way | None, **options: Any) -> bool:
    alone, other = (train(task, one, **options) for one in ("one by one", way))
    assert alone.merged == other.merged
    return (
        all(torch.allclose(array, other.arrays[name], rtol=0, atol=1e-10) for name, array in alone.arrays.items())
        and abs(alone.loss - other.loss) < 1e-10
    )


def plain(one: int, two: int) -> nn.Sequential:
    layers = nn.Linear(tiny.INPUTS, one), nn.ReLU(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, tiny.CLASSES)
    return nn.Sequential(*layers)


class Around(nn.Module):
    """Something around the plain network."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        self.net = plain(one, two)


class Scaled(Around):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) * self.scale


class Assigned(Around):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.register_buffer("mean", torch.zeros(tiny.CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.net(inputs)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
        return outputs - self.mean


class Asking(Around):
    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.net:
            inputs = layer(inputs)
            if isinstance(layer, nn.Linear):
                inputs = torch.tanh(inputs)
        return inputs


class Parallel(nn.Module):
    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        self.first, self.deep, self.wide = (
            nn.Linear(*each) for each in ((tiny.INPUTS, one), (one, two), (tiny.INPUTS, two))
        )
        self.last = nn.Linear(two, tiny.CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.deep(torch.relu(self.first(inputs))) + self.wide(inputs)))


class Masked(Around):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.register_buffer("mask", torch.full((2, 3), torch.finfo(torch.float32).min))
        self.register_buffer("huge", torch.full((2, 3), torch.finfo(torch.float64).min, dtype=torch.float64))
        self.register_buffer("offsets", torch.tensor([-5, -2, 3]))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


class InPlace(Around):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.mul_(2).relu_())


class Empty(Around):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one, two)
        self.register_buffer("cache", torch.empty(0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def hooked(hook: Callable[[nn.Sequential], Any]) -> Callable[[int, int], nn.Module]:
    def make(one: int, two: int) -> nn.Module:
        net = plain(one, two)
        hook(net)
        return net

    return make


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("make", "training"),
    [
        (Scaled, Training()),
        (Scaled, Training(clip_norm=0.1)),
        (Assigned, Training()),
        (Asking, Training()),
        (Parallel, Training(momentum=0.0, clip_norm=0.1)),
        (Masked, Training()),
        (InPlace, Training()),
        (Empty, Training()),
        (hooked(lambda net: nn.utils.weight_norm(net[2])), Training()),
        (hooked(lambda net: net[2].register_forward_hook(lambda layer, inputs, outputs: outputs * 2)), Training()),
        (hooked(lambda net: net[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 2,))), Training()),
        (hooked(lambda net: net[4].weight.register_hook(lambda grad: grad * 0)), Training()),
        (hooked(lambda net: net[3].register_full_backward_hook(lambda layer, own, grads: (own[0] * 2,))), Training()),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_whatever_a_network_does_it_comes_out_as_alone(
    make: Callable[..., nn.Module], training: Training, way: Way | None
) -> None:
    assert is_the_same(Built(make=make), way, training=training)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "penalty",
    [
        lambda model: 0.05 * sum(each.square().sum() for each in model.parameters()),
        lambda model: 0.05 * sum(each.weight.abs().sum() for each in model.modules() if isinstance(each, nn.Linear)),
    ],
)
def test_a_penalty_on_all_weights_counts_for_all(penalty: Callable[[nn.Module], Tensor], way: Way | None) -> None:
    assert is_the_same(Built(make=plain, penalty=penalty), way)


class Teaching(nn.Module):
    """A task that is a module, too."""

    def __init__(self) -> None:
        super().__init__()
        self.task, self.teacher = Built(make=plain), nn.Linear(tiny.INPUTS, tiny.CLASSES).double()

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name in ("task", "teacher") else getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch[0]) - self.teacher(batch[0])).square().mean()


@pytest.mark.parametrize("way", WAYS)
def test_a_task_may_be_a_module(way: Way | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Teaching(), way)
    assert "at once" in caplog.text


@dataclass(frozen=True, kw_only=True)
class Held(Built):
    """Gives out tensors that it keeps."""

    shares: list[TensorDataset]

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        return self.shares[client]


def shares(endless: bool) -> list[TensorDataset]:
    each = [Built(make=plain).client_data(client, 4) for client in range(4)]
    made = [TensorDataset(*(part.clone() for part in share.tensors)) for share in each]
    if endless:
        made[1].tensors[0][:, 0] = float("nan")
    return made


@pytest.mark.parametrize("way", WAYS)
def test_examples_that_a_network_changes_in_place_are_not_the_client_s(way: Way | None) -> None:
    task = Held(make=InPlace, shares=shares(endless=False))
    train(task, way)
    for share, before in zip(task.shares, shares(endless=False), strict=True):
        assert torch.equal(share.tensors[0], before.tensors[0])


@pytest.mark.parametrize("way", WAYS)
def test_numbers_that_are_not_finite_are_no_trial(way: Way | None) -> None:
    hook = hooked(lambda net: net[2].register_forward_hook(lambda layer, inputs, outputs: outputs * 2))
    broken = shares(endless=True)
    task = Held(make=hook, shares=[broken[1], broken[0], *broken[2:]])  # that of whoever is first
    assert is_the_same(task, way, rule=rules.Full())
    assert [refused.client for refused in train(task, way).refused] == [0]


def test_a_trial_that_fails_without_a_word_is_not_passed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trial, "_together", fails)
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Built(make=plain), None)
    assert "one by one: AssertionError" in caplog.text


def test_why_clients_train_one_by_one_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        train(Built(make=Assigned), None)
    assert "train one by one: 'mean' is assigned anew" in caplog.text


def test_layers_whose_outputs_are_added_up_stay_factored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        train(Built(make=Parallel), "factored", training=Training(clip_norm=0.1))
    assert "train factored, up to " in caplog.text
    assert "would come out otherwise" not in caplog.text


class Mean(nn.Module):
    def forward(self, words: Tensor) -> Tensor:
        return words.mean(1)


@dataclass(frozen=True, kw_only=True)
class Words(Built):
    """Rows of an embedding, one of which stands for nothing."""

    padding: int | None

    def build(self, **sizes: int) -> nn.Module:
        one, two = sizes.values()
        embedding = nn.Embedding(7, one, padding_idx=self.padding)
        return nn.Sequential(embedding, Mean(), nn.Linear(one, two), nn.ReLU(), nn.Linear(two, 3)).double()

    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        draws = torch.Generator().manual_seed(client)
        words = torch.randint(7, (10, 3), generator=draws)
        words[:8] = words[:8].clamp(min=1, max=5)  # what stands for nothing is not among those that are tried
        words[8:, 0] = (self.padding or 0) % 7
        return TensorDataset(words, torch.randint(3, (10,), generator=draws))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padding", [0, -1])
def test_the_row_of_an_embedding_that_is_padding_is_not_trained(padding: int, way: Way | None) -> None:
    task = Words(make=plain, padding=padding)
    training = Training(batch_size=8)
    assert is_the_same(task, way, training=training, rule=rules.Full(), rounds=3)


class Drawn(Dataset[Batch]):
    """Examples that are different whenever they are asked for."""

    def __init__(self, whole: TensorDataset) -> None:
        self._whole = whole

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, index: int) -> Batch:
        inputs, target = self._whole[index]
        return inputs + 0.3 * torch.randn_like(inputs), target


@dataclass(frozen=True, kw_only=True)
class Augmented(Built):
    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        data = super().client_data(client, clients)
        assert isinstance(data, TensorDataset)
        return Drawn(data)


def test_examples_that_are_drawn_anew_are_drawn_anew(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        assert is_the_same(Augmented(make=plain), None)
    assert caplog.text.count("its examples are drawn at random whenever they are asked for") == 1


@dataclass(frozen=True, kw_only=True)
class Ill(Built):
    def client_data(self, client: int, clients: int) -> Dataset[Batch]:
        data = super().client_data(client, clients)
        assert isinstance(data, TensorDataset)
        return TensorDataset(data.tensors[0] + (float("nan") if client == 1 else 0.0), data.tensors[1])


def test_a_client_that_fails_leaves_no_trace_in_whole_numbers() -> None:
    made = train(Ill(make=Masked), None, rule=rules.Full())
    assert made.merged == 3
    assert made.arrays["offsets"].tolist() == [-5, -2, 3]


def test_what_a_factory_draws_into_a_list_is_drawn_wherever_it_builds() -> None:
    class Listed(Around):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one, two)
            self.draws = [torch.randn(3)]

    with seeded(0):
        whole = Listed(4, 4)
    with seeded(0):
        undrawn = build_undrawn(lambda one, two: Listed(one, two), {"one": 4, "two": 4})
    assert torch.equal(whole.draws[0], undrawn.draws[0])

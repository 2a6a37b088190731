"""Steps of DP-SGD: each against a plain loop over single examples with nothing of Opacus in it."""

from itertools import cycle

import numpy as np
import pytest
import torch
from tiny import SIZES, TRAINING, Tiny, initial, same
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.errors import PrivacyError, TrainingError
from ist_fed.models import cnn, transformer
from ist_fed.privacy import noise
from ist_fed.privacy.example import check_network
from ist_fed.privacy.example.steps import train_privately
from ist_fed.rescale import scaled_inputs
from ist_fed.tasks import Batch
from ist_fed.tasks.classification import Classification
from ist_fed.train import Training

TASK = Tiny(norm="layer")
DATA = TASK.client_data(0, 1)
BATCHES = [np.array([3, 1, 20]), np.arange(29), np.array([], dtype=np.int64), np.array([7]), np.arange(5, 17)]


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ist_fed.privacy.noise.normal", np.zeros)


def network(task: object = TASK) -> nn.Module:
    model = task.build(**SIZES)  # type: ignore[attr-defined]
    load_arrays(model, initial(task))  # type: ignore[arg-type]
    return model  # type: ignore[no-any-return]


def privately(
    model: nn.Module, task: Classification = TASK, data: TensorDataset = DATA, **options: object
) -> nn.Module:  # type: ignore[assignment]
    asked = {"max_grad_norm": 1e9, "noise_multiplier": 1.0, "lr": 0.1, "steps": len(BATCHES), **options}
    order = cycle(BATCHES)
    train_privately(model, task, data, asked.pop("training", TRAINING), draw=lambda n, q: next(order), **asked)  # type: ignore[arg-type]
    return model


def by_loops(model: nn.Module, data: TensorDataset, training: Training, clip: float, lr: float = 0.1) -> nn.Module:
    """Example by example, each in a batch of its own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=training.momentum)
    for batch in BATCHES:
        summed = [torch.zeros_like(array) for array in model.parameters()]
        for at in batch:
            loss = functional.cross_entropy(model(data.tensors[0][at : at + 1]), data.tensors[1][at : at + 1])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norm = float(torch.sqrt(sum((gradient.double() ** 2).sum() for gradient in gradients)))
            for total, gradient in zip(summed, gradients, strict=True):
                total += gradient * min(1.0, clip / norm)
        for array, total in zip(model.parameters(), summed, strict=True):
            array.grad = total / training.batch_size
        optimizer.step()
    return model


def close(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(arrays_of(one).values(), arrays_of(other).values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


@pytest.mark.usefixtures("silent")
def test_without_noise_and_with_a_huge_clip_it_is_sgd_on_the_same_batches() -> None:
    """A batch that is as large as expected, so that plain SGD divides by the same number."""
    training, model = Training(lr=0.1, batch_size=8), network()
    orders = [np.random.default_rng(step).permutation(30)[:8] for step in range(6)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for order in orders:
        optimizer.zero_grad()
        functional.cross_entropy(model(DATA.tensors[0][order]), DATA.tensors[1][order]).backward()
        optimizer.step()
    mine, given = network(), iter(orders)
    options = {"max_grad_norm": 1e9, "noise_multiplier": 1.0, "lr": 0.1, "steps": 6}
    train_privately(mine, TASK, DATA, training, draw=lambda n, q: next(given), **options)  # type: ignore[arg-type]
    assert close(mine, model)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("clip", [0.05, 0.7, 1e9])
def test_every_example_is_clipped_by_itself(clip: float) -> None:
    """Batches larger than a piece, of one example, and of none are among them."""
    assert close(privately(network(), max_grad_norm=clip), by_loops(network(), DATA, TRAINING, clip))


class Pictures(Classification):
    """Images for a convolution."""

    def build(self, **sizes: int) -> nn.Module:
        return cnn((1, 8, 8), 3, "layer")(conv1=4, hidden1=8)


class Texts(Classification):
    """The next token of five, by attention; one array is embedding and output."""

    def build(self, **sizes: int) -> nn.Module:
        return _Last(transformer(7, 8, 4)(heads0=2, ffn0=8))


class _Last(nn.Module):
    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = own

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.own(tokens)
        return out[:, -1]


class Aside(Classification):
    """A weight that serves outside its layer, where no hook sees it."""

    def build(self, **sizes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 3))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, (batch[0] @ model[0].weight, batch[1]))  # type: ignore[index, operator]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("task", [Pictures(), Texts()], ids=["cnn", "transformer"])
def test_other_layers_and_scaled_inputs_are_clipped_alike(task: Classification) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(30, 1, 8, 8) if isinstance(task, Pictures) else torch.randint(7, (30, 5))
    data = TensorDataset(inputs, torch.randint(3, (30,)))
    first, second = task.build(), task.build()
    load_arrays(second, {name: array.clone() for name, array in arrays_of(first).items()})
    scales = {next(name for name, layer in first.named_modules() if isinstance(layer, nn.Linear)): 1.7}
    with scaled_inputs(first, scales), scaled_inputs(second, scales):
        assert close(privately(first, task, data, max_grad_norm=0.3), by_loops(second, data, TRAINING, 0.3))


# --- Noise and sampling -----------------------------------------------------------------------------------------------


def test_the_noise_has_the_stated_variance() -> None:
    """An empty batch is noise alone: after one plain step of rate 1 the weights moved by noise × clip / expected."""
    before, squares, count = arrays_of(network()), 0.0, 0
    for _ in range(30):
        model = network()
        options = {"max_grad_norm": 0.5, "noise_multiplier": 1.3, "lr": 1.0, "steps": 1}
        plain = Training(momentum=0.0, batch_size=8)
        train_privately(model, TASK, DATA, plain, draw=lambda n, q: np.arange(0), **options)  # type: ignore[arg-type]
        moved = [arrays_of(model)[name] - array for name, array in before.items()]
        squares += sum(float(each.double().square().sum()) for each in moved)
        count += sum(each.numel() for each in moved)
    ratio = squares / count / (1.3 * 0.5 / 8) ** 2
    assert abs(ratio - 1) < 5 * (2 / count) ** 0.5


def test_neither_noise_nor_batches_can_be_seeded() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        model = network()
        train_privately(model, TASK, DATA, TRAINING, max_grad_norm=1.0, noise_multiplier=1e-3, lr=0.1, steps=2)
        results.append(arrays_of(model))
    assert not same(*results)


@pytest.mark.usefixtures("silent")
def test_dropout_cannot_be_seeded_and_leaves_the_generator_alone() -> None:
    task = Tiny(norm="layer", dropout=0.5)
    models = [network(task), network(task)]
    for model in models:
        torch.manual_seed(0)
        privately(model, task)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert not same(*map(arrays_of, models))


def test_examples_are_taken_independently_at_the_rate() -> None:
    counts = np.array([len(noise.taken(40, 0.2)) for _ in range(3000)])
    assert abs(counts.mean() - 8) < 5 * (40 * 0.2 * 0.8 / 3000) ** 0.5
    assert abs(counts.var() / (40 * 0.2 * 0.8) - 1) < 5 * (2 / 3000) ** 0.5
    assert len(noise.taken(40, 1.0)) == 40
    assert len(noise.taken(0, 0.5)) == 0


# --- What cannot be done ----------------------------------------------------------------------------------------------


def test_batchnorm_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(PrivacyError, match='norm = "layer"'):
        check_network(network(Tiny()))


def test_weights_that_no_hook_sees_are_refused() -> None:
    with pytest.raises(PrivacyError, match="'0\\.weight' is not used, or outside its own layer"):
        privately(Aside().build(), Aside())


def test_no_examples_are_refused() -> None:
    empty = TensorDataset(DATA.tensors[0][:0], DATA.tensors[1][:0])
    with pytest.raises(TrainingError, match="at least one example"):
        privately(network(), data=empty)


@pytest.mark.usefixtures("silent")
def test_an_example_that_is_no_number_counts_as_zero() -> None:
    inputs, targets = DATA.tensors
    spoilt = inputs.clone()
    spoilt[3] = torch.nan
    kept = [np.setdiff1d(batch, [3]) for batch in BATCHES]
    one = privately(network(), data=TensorDataset(spoilt, targets), max_grad_norm=1.0)
    order = iter(kept)
    two = network()
    options = {"max_grad_norm": 1.0, "noise_multiplier": 1.0, "lr": 0.1, "steps": len(BATCHES)}
    train_privately(two, TASK, DATA, TRAINING, draw=lambda n, q: next(order), **options)  # type: ignore[arg-type]
    assert close(one, two)


class Choosy(Tiny):
    """Its loss cannot be had of a batch with a number that is too large in it."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if float(batch[0].max()) > 99:
            raise ValueError("too large")
        return super().loss(model, batch)


class Torn(TensorDataset):
    """An example that cannot be read."""

    def __getitem__(self, at: int) -> tuple[Tensor, ...]:
        if at == 3:
            raise OSError("a sector is gone")
        return super().__getitem__(at)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("broken", ["task", "data"])
def test_an_example_that_fails_counts_as_nothing_and_all_others_as_they_would(broken: str) -> None:
    inputs, targets = DATA.tensors
    spoilt = inputs.clone()
    spoilt[3] = 100.0
    data = TensorDataset(spoilt, targets) if broken == "task" else Torn(inputs, targets)
    one, two = network(), network()
    for model, own, left_out in ((one, data, []), (two, DATA, [3])):
        order = iter([np.setdiff1d(batch, left_out) for batch in BATCHES])
        options = {"max_grad_norm": 0.5, "noise_multiplier": 1.0, "lr": 0.1, "steps": len(BATCHES)}
        train_privately(model, Choosy(norm="layer"), own, TRAINING, draw=lambda n, q: next(order), **options)  # type: ignore[arg-type]  # noqa: B023
    assert close(one, two)


def test_nothing_of_opacus_stays_on_the_network() -> None:
    model = privately(network())
    assert all(not hasattr(parameter, "grad_sample") for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._backward_hooks for module in model.modules())

"""Law 10 for clients trained as one computation: the same as one by one, but for the order in which sums are taken."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest import mock

import pytest
import runs
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from ist_fed import rules
from ist_fed.batched import Way, indata, together
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid
from ist_fed.models import cnn, resnet, transformer
from ist_fed.round import RoundReport
from ist_fed.tasks import Batch, Task
from ist_fed.tasks.synthetic import Synthetic
from ist_fed.train import Training

WAYS: tuple[Way, ...] = ("stacked", "factored")


@dataclass(frozen=True, kw_only=True)
class Double(tiny.Tiny):
    """In float64, where sums in another order differ by next to nothing."""

    def build(self, **sizes: int) -> nn.Module:
        return super().build(**sizes).double()

    def client_data(self, client: int, clients: int) -> TensorDataset:
        inputs, targets = super().client_data(client, clients).tensors
        keep = self.examples - client % 3  # not all have equally many
        return TensorDataset(inputs[:keep].double(), targets[:keep])

    def test_data(self) -> TensorDataset:
        inputs, targets = super().test_data().tensors
        return TensorDataset(inputs.double(), targets)


def federate(
    task: Task, rule: rules.Rule, clients: int, only: Way | None = None, *, memory: int = 1 << 28, **options: object
) -> list[RoundReport]:
    """A run whose clients are given their subnets."""
    return runs.train_on(runs.local_grid(task, clients, only, memory=memory), task, rule, **options)


def by_messages(task: Task, rule: rules.Rule, clients: int, **options: object) -> list[RoundReport]:
    """The same run, with everything packed and unpacked."""
    return runs.train_on(InProcessGrid(clients, tiny.handlers(task, clients)), task, rule, **options)


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference."""
    assert one.keys() == other.keys()
    assert all((one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape) for name in one)
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


TRAININGS = st.builds(
    Training,
    optimizer=st.sampled_from(["sgd", "sgd", "sgd", "adam", "adamw"]),
    lr=st.sampled_from([0.01, 0.1]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    batch_size=st.sampled_from([4, 7, 100]),
    clip_norm=st.sampled_from([0.0, 0.3]),
)
RULES = st.sampled_from(
    [rules.Full(), rules.Disjoint(groups=2, min_units=1), rules.Disjoint(groups=5, min_units=1)],
)


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["batch", "layer", "none"]),
    rule=RULES,
    training=TRAININGS,
    clients=st.integers(1, 7),
    examples=st.sampled_from([6, 10, 20]),
    steps=st.integers(1, 6),
    memory=st.sampled_from([1, 1 << 14, 1 << 28]),
    weighting=st.sampled_from(["examples", "uniform"]),
    wide=st.sampled_from([None, 1, 1000, 1 << 20]),
)
def test_together_is_one_by_one(
    norm: str,
    rule: rules.Rule,
    training: Training,
    clients: int,
    examples: int,
    steps: int,
    memory: int,
    weighting: str,
    wide: int | None,
) -> None:
    """`wide`: a first layer counts as wide, and so many bytes of examples are brought together at once."""
    task = Double(norm=norm, examples=examples)
    options = {"training": training, "local_steps": steps, "weighting": weighting}
    alone = federate(task, rule, clients, "one by one", **options)
    for way in WAYS:
        with mock.patch.multiple(indata, _WIDE=1 if wide else 1000, _BLOCK=wide):
            together = federate(task, rule, clients, way, memory=memory, **options)
        for one, other in zip(alone, together, strict=True):
            assert apart(one.arrays, other.arrays) < 1e-10
            assert other.loss == pytest.approx(one.loss, rel=1e-9)
            for field in ("merged", "refused", "bytes_down", "bytes_up", "coverage", "clients"):
                assert getattr(one, field) == getattr(other, field)


@dataclass(frozen=True, kw_only=True)
class Images(Double):
    """The same numbers as an image of 6 × 8 pixels."""

    model: str

    def build(self, **sizes: int) -> nn.Module:
        make = IMAGES[self.model][0](self.norm)
        return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.Upsample(scale_factor=2), make(**sizes)).double()


IMAGES: dict[str, tuple[Callable[[str], Callable[..., nn.Module]], dict[str, int]]] = {
    "cnn": (lambda norm: cnn((1, 6, 8), 3, norm), {"conv1": 6, "conv2": 7, "hidden1": 10}),
    "cnn of means": (lambda norm: cnn((1, 6, 8), 3, norm, "global"), {"conv1": 6, "conv2": 5}),
    "resnet": (lambda norm: resnet(1, 3, (4, 5), norm), {"mid1": 6, "mid2": 5}),
    "resnet, preactivation": (lambda norm: resnet(1, 3, (4, 5), norm, "preactivation"), {"mid1": 6, "mid2": 5}),
}


@settings(max_examples=12, deadline=None)
@given(
    model=st.sampled_from(list(IMAGES)),
    norm=st.sampled_from(["batch", "layer", "none"]),
    rule=RULES,
    training=TRAININGS,
    clients=st.integers(1, 5),
    steps=st.integers(1, 3),
    memory=st.sampled_from([1, 1 << 28]),
)
def test_together_is_one_by_one_for_images(
    model: str, norm: str, rule: rules.Rule, training: Training, clients: int, steps: int, memory: int
) -> None:
    task = Images(model=model, norm=norm, examples=8)
    options = {"training": training, "local_steps": steps, "sizes": IMAGES[model][1], "rounds": 1}
    alone = federate(task, rule, clients, "one by one", **options)
    for way in (*WAYS, None):
        together = federate(task, rule, clients, way, memory=memory, **options)
        for one, other in zip(alone, together, strict=True):
            assert apart(one.arrays, other.arrays) < 1e-10
            assert other.loss == pytest.approx(one.loss, rel=1e-9)
            assert (other.merged, other.coverage) == (one.merged, one.coverage)


@dataclass(frozen=True, kw_only=True)
class Letters(Double):
    """Each token is the sum of the two before it; a transformer in float64."""

    tied: bool

    def build(self, **sizes: int) -> nn.Module:
        return transformer(7, width=6, head=4, norm=self.norm, tied=self.tied)(**sizes).double()

    def client_data(self, client: int, clients: int) -> TensorDataset:
        draw = torch.Generator().manual_seed(client)
        tokens = [*torch.randint(7, (2, self.examples - client % 3), generator=draw)]
        while len(tokens) < 7:
            tokens.append((tokens[-1] + tokens[-2]) % 7)
        text = torch.stack(tokens, dim=1)
        return TensorDataset(text[:, :-1], text[:, 1:])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@settings(max_examples=20, deadline=None)
@given(
    norm=st.sampled_from(["layer", "rms"]),
    tied=st.booleans(),
    rule=st.sampled_from([rules.Full(), rules.Disjoint(groups=2, min_units=1)]),
    training=TRAININGS,
    clients=st.integers(1, 5),
    steps=st.integers(1, 4),
)
def test_transformers_together_are_as_one_by_one(
    norm: str, tied: bool, rule: rules.Rule, training: Training, clients: int, steps: int
) -> None:
    """Both ways truly are taken: nothing falls back, and attention is not computed for one client after another."""
    task = Letters(norm=norm, tied=tied, examples=10)
    options = {"training": training, "local_steps": steps, "sizes": {"heads0": 4, "ffn0": 10, "heads1": 6, "ffn1": 8}}
    alone = federate(task, rule, clients, "one by one", **options)
    for way in WAYS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalGrid, "_fall_back", None)
            together = federate(task, rule, clients, way, **options)
        for one, other in zip(alone, together, strict=True):
            assert apart(one.arrays, other.arrays) < 1e-10
            assert other.loss == pytest.approx(one.loss, rel=1e-9)


def test_very_many_labels_run_one_by_one_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    task = Synthetic(features=30, classes=12, examples=10, nonzeros=4)
    options = {"sizes": {"hidden1": 6}, "training": Training(lr=0.1)}
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        auto = federate(task, rules.Full(), 3, "stacked", **options)
    assert tiny.same(auto[-1].arrays, federate(task, rules.Full(), 3, "one by one", **options)[-1].arrays)
    assert "one by one: " in caplog.text


def test_a_norm_that_rounding_makes_negative_is_none() -> None:
    rows, grads = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    layer = mock.Mock(last=[(rows, [grads])])
    layer.square_norms.return_value = torch.tensor([-1e-9, 4.0])
    together._clip([], [layer], 1.0)
    assert torch.equal(layer.last[0][1][0][0], grads[0])
    assert torch.allclose(layer.last[0][1][0][1], grads[1] / 2)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_rescaled_inputs_are_those_of_one_by_one(norm: str, clip_norm: float) -> None:
    """Layers that are factored take the place of those whose inputs are multiplied."""
    task, rule = Double(norm=norm, examples=10), rules.Disjoint(groups=2, min_units=1)
    training = Training(lr=0.01, batch_size=4, clip_norm=clip_norm, weight_decay=0.01, rescale="full")
    plain = federate(task, rule, 4, "one by one", training=dataclasses.replace(training, rescale="none"))
    alone = federate(task, rule, 4, "one by one", training=training)
    assert apart(plain[-1].arrays, alone[-1].arrays) > 1e-4
    for way in WAYS:
        together = federate(task, rule, 4, way, training=training)
        assert apart(alone[-1].arrays, together[-1].arrays) < 1e-10
        assert together[-1].loss == pytest.approx(alone[-1].loss, rel=1e-9)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("way", [*WAYS, None])
def test_in_float32_the_difference_stays_small(norm: str, way: Way | None) -> None:
    rule = rules.Disjoint(groups=3, min_units=1)
    task, training = tiny.Tiny(norm=norm), Training(lr=0.05, batch_size=8)
    alone, together = (federate(task, rule, 7, only, rounds=10, training=training) for only in ("one by one", way))
    assert apart(alone[-1].arrays, together[-1].arrays) < 1e-5


@pytest.mark.parametrize("rule", [rules.Full(), rules.Disjoint(groups=3, min_units=1)])
def test_given_subnets_one_by_one_is_bit_for_bit_as_by_messages(rule: rules.Rule) -> None:
    task = tiny.Tiny(dropout=0.2, poisoned=[2])
    direct, packed = federate(task, rule, 5, "one by one"), by_messages(task, rule, 5)
    for one, other in zip(direct, packed, strict=True):
        assert tiny.same(one.arrays, other.arrays)
        for field in dataclasses.fields(RoundReport):
            if field.name not in ("arrays", "seconds"):
                assert getattr(one, field.name) == getattr(other, field.name)
        assert one.seconds.keys() == other.seconds.keys()


@pytest.mark.parametrize("way", WAYS)
def test_chunks_do_not_change_what_is_trained(way: Way) -> None:
    """However few are trained at once: in float64 the mean of means is the mean."""
    task, rule = Double(), rules.Disjoint(groups=2, min_units=1)
    whole, parts = (federate(task, rule, 7, way, memory=memory) for memory in (1 << 28, 1))
    assert apart(whole[-1].arrays, parts[-1].arrays) < 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("examples", [10, 30])
def test_a_client_with_nan_is_refused_in_the_same_words_and_harms_no_other(way: Way, examples: int) -> None:
    task, rule = tiny.Tiny(poisoned=[1, 4], examples=examples), rules.Disjoint(groups=2, min_units=1)
    alone, together = (federate(task, rule, 6, only) for only in ("one by one", way))
    assert together[-1].refused
    assert set(together[-1].refused) == set(alone[-1].refused)
    assert apart(alone[-1].arrays, together[-1].arrays) < 1e-6
    assert all(bool(array.isfinite().all()) for array in together[-1].arrays.values())


@pytest.mark.parametrize("way", WAYS)
def test_a_learning_rate_that_is_too_high_is_refused_likewise(way: Way) -> None:
    training = Training(lr=1e30, momentum=0.0, batch_size=5)
    task, rule = tiny.Tiny(norm="none", examples=10), rules.Disjoint(groups=2, min_units=1)
    with pytest.raises(Exception, match="0 of 4 clients gave one") as alone:
        federate(task, rule, 4, "one by one", training=training)
    with pytest.raises(type(alone.value), match="0 of 4 clients gave one"):
        federate(task, rule, 4, way, training=training)


# --- What cannot be done together -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Odd(tiny.Tiny):
    """A network or a loss of some special kind."""

    kind: str

    def build(self, **sizes: int) -> nn.Module:
        return _Odd(self.kind, super().build(**sizes))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch[0])
        if self.kind == "many":
            return functional.cross_entropy(outputs, batch[1], reduction="none")
        if self.kind == "item" and float(outputs.detach().sum()) > 1e9:
            return outputs.sum()
        extra = batch[0].square().mean() * outputs.square().mean() if self.kind == "reads inputs" else 0.0
        return functional.cross_entropy(outputs, batch[1]) + extra


class _Odd(nn.Module):
    def __init__(self, kind: str, inner: nn.Module) -> None:
        super().__init__()
        self.kind, self.inner = kind, inner
        self.head = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.kind == "turned":
            inputs = inputs.flip(1)
        if self.kind == "shifted":
            inputs = inputs + 1
        outputs: Tensor = self.inner(inputs)
        head = torch.vmap(self.head) if self.kind == "nested" else self.head
        return head(head(outputs)) if self.kind == "twice" else head(outputs)


@pytest.mark.parametrize("examples", [10, 30])
@pytest.mark.parametrize("kind", ["plain", "reads inputs", "turned", "shifted", "twice", "nested", "item"])
def test_whatever_the_network_is_like(kind: str, examples: int, caplog: pytest.LogCaptureFixture) -> None:
    """An unused layer is left as it is, even with weight decay; what `vmap` cannot do runs one by one and is said."""
    task, rule = Odd(kind=kind, examples=examples), rules.Disjoint(groups=2, min_units=1)
    training = Training(weight_decay=0.01, batch_size=4)
    alone = federate(task, rule, 5, "one by one", training=training)
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        together = {way: federate(task, rule, 5, way, training=training) for way in WAYS}
    for reports in together.values():
        assert reports[-1].merged == 5
        assert apart(alone[-1].arrays, reports[-1].arrays) < 1e-5
    assert ("one by one: " in caplog.text) == (kind == "item")


@dataclass(frozen=True, kw_only=True)
class InPlace(Double):
    """Activations that overwrite what a layer made."""

    bias: bool

    def build(self, **sizes: int) -> nn.Module:
        one, two = sizes.values()
        first, second = nn.Linear(12, one, bias=self.bias), nn.Linear(one, two, bias=self.bias)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True), nn.Linear(two, 3)).double()


@pytest.mark.parametrize("examples", [10, 30])
@pytest.mark.parametrize("bias", [True, False])
def test_activations_in_place_train_together(bias: bool, examples: int, caplog: pytest.LogCaptureFixture) -> None:
    task, rule, training = InPlace(bias=bias, examples=examples), rules.Disjoint(groups=2, min_units=1), Training()
    alone = federate(task, rule, 5, "one by one", training=training)
    ways: tuple[Way | None, ...] = (*WAYS, None)
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        together = [federate(task, rule, 5, way, training=training) for way in ways]
    assert all(apart(alone[-1].arrays, reports[-1].arrays) < 1e-10 for reports in together)
    assert "one by one" not in caplog.text


class Weighted(nn.Module):
    """A loss with arrays of its own, which are not the network's: nobody trains them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 2.0, 3.0]))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch[0])
        return self.scale * functional.cross_entropy(outputs, batch[1], self.weight.to(outputs))


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_is_a_module_is_no_part_of_the_network(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    task, rule = tiny.Tiny(norm="layer"), rules.Disjoint(groups=2, min_units=1)
    object.__setattr__(task, "loss", Weighted())
    alone = federate(task, rule, 4, "one by one")
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        together = federate(task, rule, 4, way)
    assert apart(alone[-1].arrays, together[-1].arrays) < 1e-5
    assert "one by one" not in caplog.text


def test_dropout_is_drawn_by_each_client_for_itself(caplog: pytest.LogCaptureFixture) -> None:
    task = tiny.Tiny(dropout=0.5)
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        auto = federate(task, rules.Full(), 3)
    assert tiny.same(auto[-1].arrays, federate(task, rules.Full(), 3, "one by one")[-1].arrays)
    assert "one by one: it draws at random, as dropout does" in caplog.text


def test_a_loss_that_is_many_numbers_is_refused_as_one_by_one() -> None:
    for way in (*WAYS, "one by one"):
        with pytest.raises(Exception, match="0 of 3 clients gave one"):
            federate(Odd(kind="many"), rules.Full(), 3, way)


def test_an_error_of_the_tasks_own_names_its_client() -> None:
    class Broken(tiny.Tiny):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            if bool((batch[1] == 0).all()):
                raise RuntimeError("all are zero")
            return super().loss(model, batch)

        def client_data(self, client: int, clients: int) -> TensorDataset:
            inputs, targets = super().client_data(client, clients).tensors
            return TensorDataset(inputs, targets * 0 if client == 1 else targets)

    (report,) = federate(Broken(), rules.Full(), 3, rounds=1)
    assert report.merged == 2
    assert [refused.client for refused in report.refused] == [1]
    assert "RuntimeError: all are zero" in report.refused[0].reason


def test_a_client_without_examples_is_refused_and_the_others_train() -> None:
    class Uneven(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> TensorDataset:
            inputs, targets = super().client_data(client, clients).tensors
            return TensorDataset(inputs[: 10 * client], targets[: 10 * client])

    (report,) = federate(Uneven(), rules.Full(), 3, rounds=1)
    assert report.merged == 2
    assert "needs at least one example" in report.refused[0].reason


def test_a_client_whose_data_cannot_be_had_is_refused_and_the_others_train() -> None:
    class Lost(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> TensorDataset:
            if client == 1:
                raise OSError("the disk is gone")
            return super().client_data(client, clients)

    for way in (None, "one by one"):
        (report,) = federate(Lost(), rules.Full(), 3, way, rounds=1)
        assert report.merged == 2
        assert [refused.client for refused in report.refused] == [1]
        assert "OSError: the disk is gone" in report.refused[0].reason


def test_clients_whose_examples_have_another_shape_train_alone() -> None:
    class Shaped(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> TensorDataset:
            inputs, targets = super().client_data(client, clients).tensors
            return TensorDataset(inputs.view(-1, 3, 4) if client % 2 else inputs, targets)

    alone, together = (federate(Shaped(), rules.Full(), 5, way) for way in ("one by one", None))
    assert together[-1].merged == 5
    assert apart(alone[-1].arrays, together[-1].arrays) < 1e-5


def test_a_failure_of_the_backward_pass_is_the_clients_own() -> None:
    class Cut(tiny.Tiny):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return super().loss(model, batch).detach()

    with pytest.raises(Exception, match=r"0 of 2 clients gave one.*does not require grad"):
        federate(Cut(), rules.Full(), 2, "stacked")


@dataclass(frozen=True, kw_only=True)
class Frozen(Double):
    """The middle layer keeps its weights."""

    def build(self, **sizes: int) -> nn.Module:
        model = super().build(**sizes)
        model.get_submodule("4").requires_grad_(False)
        return model


@pytest.mark.parametrize("way", WAYS)
def test_what_is_frozen_stays_as_it_is(way: Way) -> None:
    task, options = Frozen(examples=8), {"training": Training(lr=0.1), "local_steps": 3}
    alone = federate(task, rules.Disjoint(groups=2, min_units=1), 3, "one by one", **options)
    together = federate(task, rules.Disjoint(groups=2, min_units=1), 3, way, **options)
    assert torch.equal(together[-1].arrays["4.weight"], alone[-1].arrays["4.weight"])
    assert apart(alone[-1].arrays, together[-1].arrays) < 1e-10

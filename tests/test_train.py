"""Local steps, recalibration and evaluation of one network."""

from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from math import cos, pi
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ist_fed.arrays import arrays_of
from ist_fed.batches import batches, fetch, length
from ist_fed.batchnorm import has_batch_norm, recalibrate
from ist_fed.errors import AxesError, TaskError, TrainingError
from ist_fed.evaluate import evaluate, network, ready
from ist_fed.tasks.task import Batch
from ist_fed.train import AMP, OPTIMIZERS, Amp, Training, learning_rate, train

CPU = torch.device("cpu")


def model_of(task: tiny.Tiny) -> nn.Module:
    return network(task, tiny.SIZES, tiny.initial(task), CPU)


def trained(task: tiny.Tiny, training: Training, steps: int = 6, seed: int = 0) -> tuple[nn.Module, float]:
    model = model_of(task)
    rng = np.random.default_rng(seed)
    return model, train(model, task, task.client_data(0, 1), training, lr=training.lr, steps=steps, rng=rng)


# --- Batches ----------------------------------------------------------------------------------------------------------


class TestBatches:
    @pytest.mark.parametrize(("examples", "size"), [(10, 3), (9, 3), (7, 7), (1, 1), (5, 1), (8, 5)])
    def test_shuffled_epochs_without_the_incomplete_last_batch(self, examples: int, size: int) -> None:
        whole = examples // size
        drawn = list(islice(batches(examples, size, np.random.default_rng(0)), 4 * whole))
        for epoch in range(4):
            seen = np.concatenate(drawn[epoch * whole : (epoch + 1) * whole])
            assert len(seen) == whole * size
            assert len(set(seen.tolist())) == len(seen)
            assert set(seen.tolist()) <= set(range(examples))

    def test_each_epoch_is_shuffled_anew_and_leaves_out_others(self) -> None:
        drawn = list(islice(batches(10, 3, np.random.default_rng(0)), 30))
        left_out = {9 * 10 // 2 - int(sum(map(np.sum, drawn[at : at + 3]))) for at in range(0, 30, 3)}
        assert len(left_out) > 1
        assert not np.array_equal(drawn[0], drawn[3])

    @pytest.mark.parametrize("examples", [1, 2, 7])
    def test_few_examples_are_all_used(self, examples: int) -> None:
        for batch in islice(batches(examples, 8, np.random.default_rng(0)), 5):
            assert sorted(batch.tolist()) == list(range(examples))

    def test_the_same_stream_gives_the_same_batches(self) -> None:
        one, other = (list(islice(batches(20, 6, np.random.default_rng(4)), 9)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    def test_no_example_is_an_error_that_says_so(self) -> None:
        with pytest.raises(TrainingError, match="at least one example to train on, but its share is empty"):
            next(batches(0, 8, np.random.default_rng(0)))


class Listed(Dataset[Any]):
    """A dataset of one's own, one example at a time."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        inputs, target = self.data[index]
        return inputs, int(target)


class Augmented(TensorDataset):
    """A TensorDataset that does something of its own with each example."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, target = super().__getitem__(index)
        return (inputs + 1 if int(target) == 0 else inputs), target


class TestFetch:
    def test_any_dataset_gives_the_batch_that_a_tensor_dataset_gives(self) -> None:
        data = tiny.Tiny().client_data(0, 1)
        index = np.array([4, 1, 7])
        for one, other in zip(fetch(data, index, CPU), fetch(Listed(data), index, CPU), strict=True):
            assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())

    def test_a_dataset_that_inherits_from_it_is_asked_for_each_example(self) -> None:
        data = Augmented(*tiny.Tiny().client_data(0, 1).tensors)
        inputs, targets = fetch(data, np.arange(10), CPU)
        plain = data.tensors[0][:10]
        assert (targets == 0).any()
        assert torch.equal(inputs, torch.where((targets == 0)[:, None], plain + 1, plain))

    @pytest.mark.parametrize(
        ("example", "said"),
        [
            ({"x": torch.ones(3), "y": 1}, "gives a dict; return (inputs, target)"),
            (torch.ones(3), "gives a Tensor; return"),
            ((torch.ones(3), "cat"), "gives a tuple of Tensor, str; return"),
            ((object(), 1), "gives a tuple of object, int; return"),
            (({"x": torch.ones(3)}, 1), "gives a tuple of dict, int; return"),
        ],
    )
    def test_an_example_that_is_no_pair_of_tensors_is_named(self, example: object, said: str) -> None:
        with pytest.raises(TaskError) as caught:
            fetch([example] * 3, np.arange(2), CPU)
        assert "must be a tuple of two tensors, inputs and target, but a task's dataset" in str(caught.value)
        assert said in str(caught.value)

    def test_numbers_are_made_tensors_of(self) -> None:
        inputs, targets = fetch([(np.ones(3, dtype=np.float32), 1)] * 3, np.arange(2), CPU)
        assert (inputs.shape, targets.tolist()) == ((2, 3), [1, 1])

    def test_a_dataset_without_length_is_named(self) -> None:
        with pytest.raises(TaskError, match="map-style datasets, with a length, but generator has none"):
            length(one for one in ())

    def test_a_pair_of_tensors_is_no_dataset_of_pairs(self) -> None:
        with pytest.raises(TaskError, match=r"gives a Tensor; return .* as a TensorDataset\(inputs, targets\) does"):
            fetch((torch.ones(2, 3), torch.ones(2)), np.arange(2), CPU)

    def test_what_gives_one_thing_after_another_is_named_whether_it_has_a_length_or_not(self) -> None:
        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                yield from ()

            def __len__(self) -> int:
                return 5

        with pytest.raises(TaskError, match="but Stream gives one thing after another; read it into a list"):
            length(Stream())
        with pytest.raises(TaskError, match="but DataLoader gives one thing after another; return its dataset"):
            length(DataLoader(tiny.Tiny().client_data(0, 1)))


# --- Training ---------------------------------------------------------------------------------------------------------


class TestTrain:
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    @pytest.mark.parametrize("norm", ["batch", "layer", "none"])
    def test_equals_the_plain_loop_bit_for_bit(self, norm: str, momentum: float) -> None:
        task = tiny.Tiny(norm=norm)
        training = Training(lr=0.05, momentum=momentum, batch_size=8)
        ours, loss = trained(task, training, steps=11)
        plain = model_of(task)
        losses = tiny.plain_sgd(plain, task.client_data(0, 1), training, 11, np.random.default_rng(0))
        assert tiny.same(arrays_of(ours), arrays_of(plain))
        assert loss == pytest.approx(np.mean(losses), rel=1e-12)

    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    def test_the_optimizer_is_torchs_own_of_that_name(self, name: str) -> None:
        training = Training(optimizer=name, lr=0.01, weight_decay=0.1, batch_size=30)  # type: ignore[arg-type]
        task = tiny.Tiny(norm="layer")
        ours, _ = trained(task, training, steps=3)
        plain = model_of(task)
        made: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "sgd": lambda: torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9, weight_decay=0.1),
            "adam": lambda: torch.optim.Adam(plain.parameters(), 0.01, weight_decay=0.1),
            "adamw": lambda: torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=0.1),
        }
        optimizer, rng = made[name](), np.random.default_rng(0)
        inputs, targets = task.client_data(0, 1).tensors
        for _ in range(3):
            order = rng.permutation(30)
            optimizer.zero_grad()
            functional.cross_entropy(plain(inputs[order]), targets[order]).backward()
            optimizer.step()
        assert tiny.same(arrays_of(ours), arrays_of(plain))

    def test_the_norm_of_the_gradient_is_clipped(self) -> None:
        task = tiny.Tiny(norm="none")
        start = torch.cat([array.flatten() for array in tiny.initial(task).values()])

        def moved(clip: float) -> float:
            training = Training(lr=1.0, momentum=0.0, clip_norm=clip, batch_size=30)
            model, _ = trained(task, training, steps=1)
            return float((torch.cat([a.flatten() for a in arrays_of(model).values()]) - start).norm())

        free = moved(0.0)
        assert moved(free / 10) == pytest.approx(free / 10, rel=1e-4)
        assert moved(free * 10) == pytest.approx(free, rel=1e-5)

    def test_dropout_leaves_the_processes_generator_alone_and_is_reproducible(self) -> None:
        task = tiny.Tiny(dropout=0.5)
        before = torch.random.get_rng_state()
        one, _ = trained(task, tiny.TRAINING)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(7)  # what the process draws meanwhile does not matter
        other, _ = trained(task, tiny.TRAINING)
        assert tiny.same(arrays_of(one), arrays_of(other))

    def test_dropout_differs_from_stream_to_stream(self) -> None:
        task = tiny.Tiny(dropout=0.5)
        training = Training(batch_size=30)  # all examples in every batch, so that their order changes rounding only
        one, other = (arrays_of(trained(task, training, seed=seed)[0]) for seed in (0, 1))
        assert float((one["1.weight"] - other["1.weight"]).abs().max()) > 1e-3

    def test_dropout_does_not_change_the_order_of_the_examples(self) -> None:
        class Watched(tiny.Tiny):
            def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
                seen.append(batch[0])
                return super().loss(model, batch)

        orders = []
        for dropout in (0.0, 0.5):
            seen: list[Tensor] = []
            trained(Watched(dropout=dropout), tiny.TRAINING)
            orders.append(torch.stack(seen))
        assert torch.equal(*orders)

    def test_a_loss_that_is_not_finite_names_the_step(self) -> None:
        task = tiny.Tiny(poisoned=[0])
        with pytest.raises(
            TrainingError, match=r"loss must stay finite, but is nan at local step 1 of 6; look for NaN"
        ):
            trained(task, tiny.TRAINING)
        with pytest.raises(TrainingError, match=r"is (nan|inf) at local step [2-6] of 6.*lower the learning rate"):
            trained(tiny.Tiny(norm="none"), Training(lr=1e30))

    def test_weights_that_are_not_finite_are_named(self) -> None:
        with pytest.raises(
            TrainingError, match=r"weights must stay finite, but '1\.weight' is not after 1 local steps"
        ):
            trained(tiny.Tiny(norm="none"), Training(lr=3e38, momentum=0.0, weight_decay=3e38), steps=1)

    def test_batch_norm_on_one_example_says_what_to_do(self) -> None:
        for task, size in ((tiny.Tiny(), 1), (tiny.Tiny(examples=1), 8)):
            with pytest.raises(
                TrainingError, match=r"at least two examples in a batch.*raise batch_size, or use LayerN"
            ):
                trained(task, Training(batch_size=size))
        trained(tiny.Tiny(norm="layer", examples=1), Training(lr=0.01))

    def test_what_the_tasks_own_loss_raises_is_not_renamed(self) -> None:
        class Broken(tiny.Tiny):
            def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
                raise ValueError("mine")

        with pytest.raises(ValueError, match=r"^mine$"):
            trained(Broken(), tiny.TRAINING)

    def test_gradients_are_let_go(self) -> None:
        model, _ = trained(tiny.Tiny(), Training())
        assert all(parameter.grad is None for parameter in model.parameters())


class Steep(tiny.Tiny):
    """A task whose gradients are `slope` times as large."""

    slope = 1000.0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.slope * super().loss(model, batch)


class TestMixedPrecision:
    def mixed(self, task: tiny.Tiny, amp: Amp, steps: int, **options: Any) -> tuple[nn.Module, float]:
        model, rng = model_of(task), np.random.default_rng(0)
        training = Training(lr=0.05, batch_size=8, **options)
        return model, train(model, task, task.client_data(0, 1), training, lr=0.05, steps=steps, rng=rng, amp=amp)

    def test_bf16_equals_the_plain_loop_under_autocast_bit_for_bit(self) -> None:
        task = tiny.Tiny(norm="layer")
        ours, loss = self.mixed(task, "bf16", 11)
        plain, order = model_of(task), batches(30, 8, np.random.default_rng(0))
        inputs, targets = task.client_data(0, 1).tensors
        optimizer, losses = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9), []
        for batch in islice(order, 11):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                step = functional.cross_entropy(plain(inputs[batch]), targets[batch])
            step.backward()
            optimizer.step()
            losses.append(step.detach())
        assert tiny.same(arrays_of(ours), arrays_of(plain))
        assert loss == pytest.approx(float(torch.stack(losses).double().mean()), rel=1e-12)

    @pytest.mark.parametrize("amp", ["bf16", "fp16"])
    def test_it_computes_coarsely_and_keeps_weights_as_they_are(self, amp: Amp) -> None:
        task, seen = tiny.Tiny(norm="none"), []
        model = model_of(task)
        model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))  # type: ignore[index]
        data, training = task.client_data(0, 1), Training(lr=0.05, clip_norm=1.0)
        train(model, task, data, training, lr=0.05, steps=3, rng=np.random.default_rng(0), amp=amp)
        assert set(seen) == {AMP[amp]}
        assert {array.dtype for array in arrays_of(model).values()} == {torch.float32}
        exact, _ = trained(task, training, steps=3)
        for name, array in arrays_of(model).items():
            torch.testing.assert_close(array, arrays_of(exact)[name], rtol=0.02, atol=2e-3)

    @pytest.mark.parametrize("clip_norm", [0.0, 1.0])
    def test_every_step_counts_in_fp16_also_where_the_gradient_overflows_at_first(self, clip_norm: float) -> None:
        """Torch's scaler alone would leave the weights as they were for ten steps."""
        task = Steep(norm="none")
        start, (ours, loss) = arrays_of(model_of(task)), self.mixed(task, "fp16", 1, clip_norm=clip_norm)
        assert loss > 0
        assert all(bool((array != start[name]).any()) for name, array in arrays_of(ours).items() if "weight" in name)

    def test_fp16_follows_the_exact_gradient(self) -> None:
        task = Steep(norm="none")
        (ours, _), (exact, _) = self.mixed(task, "fp16", 1), trained(task, Training(lr=0.05, batch_size=8), steps=1)
        for name, array in arrays_of(ours).items():
            torch.testing.assert_close(array, arrays_of(exact)[name], rtol=0.05, atol=0.5)

    def test_a_loss_that_is_not_finite_ends_and_names_the_step(self) -> None:
        with pytest.raises(TrainingError, match="the loss must stay finite, but is nan at local step 1 of 3"):
            self.mixed(tiny.Tiny(norm="none", poisoned=[0]), "fp16", 3)


class TestTraining:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("optimizer", "sdg"), ("optimizer", None), ("schedule", "linear"),
            ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("lr", "0.1"), ("lr", True),
            ("momentum", 1.0), ("momentum", -0.1), ("momentum", float("nan")),
            ("weight_decay", -1.0), ("weight_decay", float("nan")), ("clip_norm", -1.0), ("clip_norm", float("inf")),
            ("batch_size", 0), ("batch_size", 2.5), ("batch_size", True), ("warmup", -1), ("warmup", 0.5),
        ],
    )  # fmt: skip
    def test_a_value_out_of_range_is_named(self, field: str, value: Any) -> None:
        with pytest.raises(ValueError, match=rf"^{field} must be .*but is "):
            Training(**{field: value})

    def test_whole_numbers_will_do_for_fractions(self) -> None:
        assert Training(lr=1, momentum=0, weight_decay=0, clip_norm=2).lr == 1

    def test_constant(self) -> None:
        assert [learning_rate(Training(lr=0.3), round, 10) for round in (1, 5, 10)] == [0.3] * 3

    def test_warmup_rises_linearly_to_the_rate(self) -> None:
        training = Training(lr=0.4, warmup=3)
        rates = [learning_rate(training, round, 10) for round in range(1, 7)]
        assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])

    def test_cosine_falls_from_the_rate_and_is_zero_after_the_last_round(self) -> None:
        training = Training(lr=0.4, schedule="cosine")
        rates = [learning_rate(training, round, 8) for round in range(1, 10)]
        assert rates[0] == 0.4
        assert rates == pytest.approx([0.2 * (1 + cos(pi * done / 8)) for done in range(9)])
        assert all(later < earlier for earlier, later in pairwise(rates))
        assert rates[7] > 0
        assert rates[8] == pytest.approx(0, abs=1e-12)


# --- What is evaluated, saved and served ------------------------------------------------------------------------------


class TestRecalibrate:
    def test_equals_the_statistics_of_the_data(self) -> None:
        task = tiny.Tiny()
        model, _ = trained(task, tiny.TRAINING)
        inputs, _ = task.calibration_data().tensors
        recalibrate(model, task.calibration_data())
        with torch.no_grad():
            layer = inputs.double()
            for at in (1, 4):
                layer = layer @ model[at].weight.double().T
                norm = model[at + 1]
                assert torch.allclose(norm.running_mean.double(), layer.mean(0), atol=1e-6)
                assert torch.allclose(norm.running_var.double(), layer.var(0, unbiased=True), atol=1e-5)
                layer = (layer - layer.mean(0)) / (layer.var(0, unbiased=False) + norm.eps).sqrt()
                layer = (layer * norm.weight.double() + norm.bias.double()).relu()

    def test_what_was_there_before_does_not_matter(self) -> None:
        task = tiny.Tiny()
        one, other = model_of(task), model_of(task)
        other[2].running_mean.fill_(99)
        other[2].num_batches_tracked.fill_(7)
        for model in (one, other):
            recalibrate(model, task.calibration_data())
        assert tiny.same(arrays_of(one), arrays_of(other))

    def test_several_batches_count_alike(self) -> None:
        task = tiny.Tiny()
        one, other = model_of(task), model_of(task)
        recalibrate(one, task.calibration_data())
        recalibrate(other, task.calibration_data(), batch_size=13)
        assert int(other[2].num_batches_tracked) == 4
        assert torch.allclose(one[2].running_mean, other[2].running_mean, atol=1e-6)
        with torch.no_grad():
            parts = one[1](task.calibration_data().tensors[0]).view(4, 10, -1)
        assert torch.allclose(other[2].running_var, parts.var(1, unbiased=True).mean(0), atol=1e-6)

    def test_one_example_alone_is_served_as_in_a_batch(self) -> None:
        task = tiny.Tiny()
        model = ready(network(task, tiny.SIZES, tiny.initial(task), CPU), task)
        inputs, _ = task.test_data().tensors
        assert not model.training
        with torch.no_grad():
            together = model(inputs)
            alone = torch.cat([model(one[None]) for one in inputs])
        assert torch.allclose(together, alone, atol=1e-6)

    def test_dropout_draws_nothing_meanwhile(self) -> None:
        task = tiny.Tiny(dropout=0.5)
        one, other = model_of(task), model_of(task)
        before = torch.random.get_rng_state()
        recalibrate(one, task.calibration_data())
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(3)
        recalibrate(other, task.calibration_data())
        assert tiny.same(arrays_of(one), arrays_of(other))

    def test_weights_and_modes_are_left_as_they_were(self) -> None:
        task = tiny.Tiny()
        model = model_of(task).train()
        recalibrate(model, task.calibration_data())
        after, before = arrays_of(model), tiny.initial(task)
        kept = [name for name in before if "running" not in name and "tracked" not in name]
        assert tiny.same({n: after[n] for n in kept}, {n: before[n] for n in kept})
        assert model[2].momentum == 0.1
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize("norm", ["layer", "none"])
    def test_a_model_without_batch_norm_is_untouched(self, norm: str) -> None:
        task = tiny.Tiny(norm=norm)
        model = model_of(task)
        assert not has_batch_norm(model)
        recalibrate(model, task.calibration_data())
        assert tiny.same(arrays_of(model), tiny.initial(task))

    def test_a_batch_norm_without_statistics_needs_none(self) -> None:
        model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4, track_running_stats=False))
        assert not has_batch_norm(model)
        recalibrate(model, tiny.Tiny().calibration_data())

    def test_fewer_than_two_examples(self) -> None:
        inputs, targets = tiny.Tiny().calibration_data().tensors
        with pytest.raises(TrainingError, match="at least two examples, but there are 1"):
            recalibrate(model_of(tiny.Tiny()), TensorDataset(inputs[:1], targets[:1]))


class TestServed:
    def test_is_recalibrated_and_in_evaluation_mode(self) -> None:
        task = tiny.Tiny()
        model = ready(network(task, tiny.SIZES, tiny.initial(task), CPU), task)
        by_hand = model_of(task)
        recalibrate(by_hand, task.calibration_data())
        assert tiny.same(arrays_of(model), arrays_of(by_hand))

    def test_batch_norm_without_calibration_data_is_an_error(self) -> None:
        task = tiny.Tiny(calibrated=False)
        with pytest.raises(TrainingError, match=r"calibration_data\(\) gives none; return some, or use LayerNorm"):
            ready(network(task, tiny.SIZES, tiny.initial(task), CPU), task)

    def test_layer_norm_needs_none(self) -> None:
        task = tiny.Tiny(norm="layer", calibrated=False)
        model = ready(network(task, tiny.SIZES, tiny.initial(task), CPU), task)
        assert tiny.same(arrays_of(model), tiny.initial(task))
        assert not model.training

    def test_arrays_of_another_network_are_refused(self) -> None:
        with pytest.raises(AxesError):
            network(tiny.Tiny(), {"hidden1": 8, "hidden2": 20}, tiny.initial(tiny.Tiny()), CPU)

    def test_the_processes_generator_is_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        network(tiny.Tiny(), tiny.SIZES, tiny.initial(tiny.Tiny()), CPU)
        assert torch.equal(torch.random.get_rng_state(), before)


class TestEvaluate:
    @pytest.mark.parametrize("batch_size", [1, 7, 49, 50, 1000])
    def test_does_not_depend_on_the_batch_size(self, batch_size: int) -> None:
        task = tiny.Tiny(dropout=0.5)
        model = ready(network(task, tiny.SIZES, tiny.initial(task), CPU), task)
        inputs, targets = task.test_data().tensors
        with torch.no_grad():
            outputs = model.eval()(inputs)
        result = evaluate(model.train(), task, task.test_data(), batch_size)
        assert result.keys() == {"loss", "accuracy"}
        assert result["loss"] == pytest.approx(float(functional.cross_entropy(outputs, targets)), rel=1e-5)
        assert result["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets).float().mean()), rel=1e-6)

    def test_the_network_answers_once_a_batch_and_a_loss_may_write_to_the_answer(self) -> None:
        class Writes(tiny.Tiny):
            def loss(self, model: nn.Module, batch: Batch) -> Tensor:
                return functional.cross_entropy(model(batch[0]).mul_(-1), batch[1])

        task, plain, calls = Writes(), tiny.Tiny(), []
        model = model_of(task)
        next(model.children()).register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
        expected = evaluate(model_of(plain), plain, plain.test_data())
        result = evaluate(model, task, task.test_data(), 20)
        assert result["accuracy"] == pytest.approx(expected["accuracy"])
        assert result["loss"] > expected["loss"]
        assert calls == [17, 17, 16]
        assert "forward" not in vars(model)

    def test_changes_no_array_and_draws_nothing(self) -> None:
        task = tiny.Tiny(dropout=0.5)
        model, before = model_of(task), torch.random.get_rng_state()
        evaluate(model, task, task.test_data())
        assert tiny.same(arrays_of(model), tiny.initial(task))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_what_a_network_draws_even_then_is_the_same_each_time(self) -> None:
        class Noisy(tiny.Tiny):
            def loss(self, model: nn.Module, batch: Batch) -> Tensor:
                return functional.cross_entropy(model(batch[0] + torch.randn_like(batch[0])), batch[1])

        task = Noisy()
        before = torch.random.get_rng_state()
        first, second = (evaluate(model_of(task), task, task.test_data()) for _ in range(2))
        assert first == second
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_learning_shows(self) -> None:
        task = tiny.Tiny(examples=200)
        model, _ = trained(task, Training(lr=0.1, batch_size=20), steps=100)
        start = evaluate(model_of(task), task, task.test_data())["accuracy"]
        assert evaluate(model, task, task.test_data())["accuracy"] > max(0.75, start)

    def test_no_example_is_an_error(self) -> None:
        with pytest.raises(TrainingError, match="at least one example, but the data are empty; give it test data"):
            evaluate(model_of(tiny.Tiny()), tiny.Tiny(), TensorDataset(torch.zeros(0, 12), torch.zeros(0)))

"""What a client does with one message."""

import logging
import resource
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
import tiny
import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import TensorDataset

from ist_fed import wire
from ist_fed.arrays import arrays_of
from ist_fed.capacity import narrowed
from ist_fed.cost import cost
from ist_fed.device import format_bytes
from ist_fed.errors import TaskError, WireError
from ist_fed.train import Training
from ist_fed.wire import parcel
from ist_fed.worker import Worker

NARROW = {"hidden1": 6, "hidden2": 10}


def worker(task: tiny.Tiny | None = None, **options: Any) -> Worker:
    task = task or tiny.Tiny()
    return Worker(task, task.client_data(2, 4), **{"client": 2, **options})


def order(arrays: Mapping[str, Tensor] | None = None, **changed: Any) -> tuple[Message, wire.Label]:
    parcel = wire.pack(tiny.initial(tiny.Tiny(), NARROW) if arrays is None else arrays)
    fields = {
        "round": 3,
        "nonce": "n",
        "seed": 1,
        "local_steps": 4,
        "lr": 0.1,
        "sizes": NARROW,
        "training": asdict(tiny.TRAINING),
        **changed,
    }
    message = wire.order_message(5, parcel, fields, ConfigRecord(), 60.0)
    message.metadata.__dict__["_message_id"] = "m"
    return message, parcel.label()


def answer(made: Worker, **changed: Any) -> wire.Reply:
    message, label = order(**changed)
    return wire.open_reply(made.train(message), round=3, nonce="n", label=label)


def test_the_subnet_is_trained_as_by_the_plain_loop() -> None:
    task = tiny.Tiny()
    reply = answer(worker())
    model = task.build(**NARROW)
    model.load_state_dict(tiny.initial(task, NARROW))
    losses = tiny.plain_sgd(model, task.client_data(2, 4), tiny.TRAINING, 4, tiny.stream(1, 3, 2))
    assert tiny.same({name: reply.arrays[name] for name in arrays_of(model)}, arrays_of(model))
    assert reply.loss == pytest.approx(sum(losses) / 4, rel=1e-12)
    assert reply.seconds > 0


def test_a_large_subnet_is_trained_where_it_came_and_a_small_one_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, label = order()
    pieces = {name: bytes(record["bytes"]) for name, record in small.content.items() if "bytes" in record}  # type: ignore[arg-type,call-overload,index]
    as_ever = wire.open_reply(worker().train(small), round=3, nonce="n", label=label)
    assert pieces == {name: record["bytes"] for name, record in order()[0].content.items() if "bytes" in record}  # type: ignore[operator,call-overload,index]
    monkeypatch.setattr(parcel, "ENCLOSED", 100)
    monkeypatch.setattr("ist_fed.wire.laid.PIECE", 200)
    large, label = order()
    assert wire.open_order(order()[0]).arrays.fresh
    assert not wire.open_order(small).arrays.fresh
    assert tiny.same(wire.open_reply(worker().train(large), round=3, nonce="n", label=label).arrays, as_ever.arrays)


def test_the_rate_of_the_order_counts_and_not_that_of_the_first_round() -> None:
    reply = answer(worker(), lr=0.0)
    before = tiny.initial(tiny.Tiny(), NARROW)
    kept = [name for name in before if "running" not in name and "tracked" not in name]
    assert tiny.same({n: reply.arrays[n] for n in kept}, {n: before[n] for n in kept})


def test_what_a_worker_did_before_does_not_matter() -> None:
    made, other = worker(), {"hidden1": 4, "hidden2": 5}
    first = answer(made)
    answer(made, seed=9, local_steps=1)
    answer(made, sizes=other, arrays=tiny.initial(tiny.Tiny(), other))
    refusal(made, sizes=other)
    assert tiny.same(first.arrays, answer(made).arrays)


def test_the_processes_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    task = tiny.Tiny(dropout=0.5)
    answer(worker(task), arrays=tiny.initial(task, NARROW))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_client_draws_its_own_order_of_examples() -> None:
    task = tiny.Tiny()
    one, other = (Worker(task, task.client_data(0, 4), client=client) for client in (0, 1))
    assert not tiny.same(answer(one).arrays, answer(other).arrays)


def profile_of(made: Worker, training: Training = tiny.TRAINING, sizes: Mapping[str, int] = tiny.SIZES) -> wire.Profile:
    return wire.open_profile(made.query(wire.profile_question(5, 60.0, sizes, asdict(training))))


def test_it_says_who_it_is() -> None:
    profile = wire.open_profile(worker(capacity=2).query(wire.profile_question(5, 60.0)))
    assert profile == wire.Profile(client=2, examples=30, capacity=2.0)
    assert profile_of(worker(capacity=2)) == profile


def test_it_says_how_fast_it_was_and_how_fast_its_link_is() -> None:
    made = worker()
    assert (profile_of(made).step_seconds, profile_of(made).link) == (0.0, 0.0)
    reply = answer(made)
    made.link = 2.5e6
    parameters = sum(parameter.numel() for parameter in tiny.Tiny().build(**NARROW).parameters())
    profile = profile_of(made)
    assert profile.step_seconds == pytest.approx(reply.seconds / 4 / (parameters / 1e6))
    assert profile.link == 2.5e6


def test_mixed_precision_is_the_clients_own_choice() -> None:
    exact, mixed = answer(worker()), answer(worker(amp="bf16"))
    assert {array.dtype for array in mixed.arrays.values()} == {array.dtype for array in exact.arrays.values()}
    assert not tiny.same(exact.arrays, mixed.arrays)
    assert mixed.loss == pytest.approx(exact.loss, rel=0.05)


class TestMemory:
    """A subnet is trained where its estimate fits, and nowhere else."""

    @pytest.fixture
    def needed(self) -> int:
        return cost(tiny.Tiny(), NARROW, tiny.TRAINING).memory

    def test_what_fits_is_trained_and_what_does_not_is_refused_before_it_is_built(self, needed: int) -> None:
        class Watched(tiny.Tiny):
            def build(self, **sizes: int) -> nn.Module:
                model = super().build(**sizes)
                built.extend(parameter.is_meta or isinstance(parameter, FakeTensor) for parameter in model.parameters())
                return model

        built: list[bool] = []
        assert answer(worker(memory=needed)).loss > 0
        said = refusal(worker(Watched(), memory=needed - 1))
        text = format_bytes(needed)
        assert f"training this subnet takes {text} of memory at its peak, but this client may take only" in said
        assert "(--memory), lower batch_size" in said
        assert built
        assert all(built), "something was built in memory"

    def test_without_a_budget_what_is_free_counts_when_an_order_comes(
        self, needed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = worker(memory=None)
        monkeypatch.setattr("ist_fed.budget.free_memory", lambda device: needed)
        assert answer(made).loss > 0
        assert profile_of(made).memory == needed
        monkeypatch.setattr("ist_fed.budget.free_memory", lambda device: needed - 1)
        assert f"but this client has only {format_bytes(needed - 1)}" in refusal(made)

    def test_it_says_what_it_can_hold_and_trains_that(self) -> None:
        task, sizes = tiny.Tiny(), {"hidden1": 1024, "hidden2": 1024}
        budget = cost(task, {"hidden1": 300, "hidden2": 300}, tiny.TRAINING).memory
        made = worker(memory=budget)
        profile = profile_of(made, sizes=sizes)
        assert (profile.memory, profile.limit) == (budget, 300 / 1024)
        widest = narrowed(sizes, profile.limit)
        assert answer(made, sizes=widest, arrays=tiny.initial(task, widest)).loss > 0
        wider = {axis: units + 1 for axis, units in widest.items()}
        assert "training this subnet takes" in refusal(made, sizes=wider, arrays=tiny.initial(task, wider))

    def test_a_task_that_cannot_be_costed_is_trained_unless_there_is_a_budget(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Asking(tiny.Tiny):
            def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
                loss = super().loss(model, batch)
                return loss if loss.item() > 0 else 2 * loss

        made = worker(Asking(), memory=None)
        assert profile_of(made).limit == 1.0
        assert answer(made).loss > 0
        assert "client 2 trains without knowing how much memory that takes" in caplog.text
        assert "must work on arrays without numbers" in refusal(worker(Asking(), memory=1 << 40))

    def test_why_no_example_can_be_read_is_said_where_they_lie(self, caplog: pytest.LogCaptureFixture) -> None:
        class Torn(tiny.Tiny):
            def client_data(self, client: int, clients: int) -> list[str]:  # type: ignore[override]
                return ["neither inputs nor target"]

        assert "hold none; where they lie, the log says why" in refusal(worker(Torn(), memory=1 << 40))
        assert "none of 1 examples can be read; of the first: TaskError: an example must be a tuple" in caplog.text

    def test_an_empty_share_is_said_as_always(self) -> None:
        assert "a client needs at least one example" in refusal(worker(tiny.Tiny(examples=0), memory=1))

    def test_a_question_that_makes_no_sense_sets_no_limit(self) -> None:
        question = wire.profile_question(5, 60.0, tiny.SIZES, {"lion": 1})
        assert wire.open_profile(worker(memory=1).query(question)).limit == 1.0


@pytest.mark.parametrize("options", [{"amp": "fp8"}, {"memory": -1}])
def test_a_way_of_training_that_makes_no_sense_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="amp must be bf16, fp16 or None, and memory not negative, but they are"):
        worker(**options)


@pytest.mark.parametrize("options", [{"client": -1}, {"capacity": 0}, {"capacity": float("nan")}, {"capacity": -1.0}])
def test_a_client_that_no_server_would_take_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match="a number from 0 and a positive capacity, but this one has"):
        worker(**options)


def refusal(made: Worker, **changed: Any) -> str:
    with pytest.raises(WireError) as caught:
        answer(made, **changed)
    return str(caught.value)


class TestRefusals:
    def test_of_an_empty_share(self) -> None:
        assert "the client did not train: a client needs at least one example" in refusal(worker(tiny.Tiny(examples=0)))

    def test_of_data_that_are_not_finite(self) -> None:
        assert "the loss must stay finite, but is nan at local step 1 of 4" in refusal(worker(tiny.Tiny(poisoned=[2])))

    def test_of_training_that_it_does_not_know(self) -> None:
        for change in ({"optimizer": "lion"}, {"nesterov": True}, {"batch_size": 2.5}, {"optimizer": []}):
            said = refusal(worker(), training={**asdict(Training()), **change})
            assert "this client cannot train as ordered: " in said
            assert next(iter(change)) in said or "unhashable" in said

    def test_of_an_order_that_cannot_be_read(self) -> None:
        assert "an order's local_steps makes no sense: 0" in refusal(worker(), local_steps=0)

    def test_of_another_task_than_the_servers(self) -> None:
        said = refusal(worker(tiny.Tiny(norm="layer")))
        assert "first '2.num_batches_tracked': () int64 was sent and none is built" in said
        assert "give server and client the same task and [options]" in said

    def test_of_sizes_that_are_not_those_of_the_arrays(self) -> None:
        said = refusal(worker(), sizes={"hidden1": 7, "hidden2": 10})
        assert "first '1.weight': (6, 12) float32 was sent and (7, 12) float32 is built" in said

    def test_of_sizes_that_would_fill_the_memory(self) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert "and (1000000000, 12) float32 is built" in refusal(worker(), sizes={"hidden1": 10**9, "hidden2": 10})
        assert "raised RuntimeError" in refusal(worker(), sizes={"hidden1": 6, "hidden2": 1 << 62})
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB

    def test_of_sizes_that_the_factory_does_not_take(self) -> None:
        class Strict(tiny.Tiny):
            def build(self, *, hidden1: int, hidden2: int) -> nn.Module:
                return super().build(hidden1=hidden1, hidden2=hidden2)

        said = refusal(worker(Strict()), sizes={"hidden1": 6, "width": 10})
        assert "[sizes] names 'width', but build() takes hidden1, hidden2" in said

    @pytest.mark.parametrize("error", [ValueError("mine"), KeyError("mine"), RuntimeError("mine"), MemoryError("mine")])
    def test_of_a_task_that_raises(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(tiny.Tiny):
            def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
                raise error

        with caplog.at_level(logging.ERROR, "ist_fed"):
            said = refusal(worker(Broken()))
        assert "the client did not train: " in said
        assert type(error).__name__ in said
        assert "mine" in said
        assert "client 2 could not train" in caplog.text  # with its traceback, on the client's own side
        assert "in loss" in caplog.text

    def test_ctrl_c_is_no_refusal(self) -> None:
        class Stopped(tiny.Tiny):
            def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            worker(Stopped()).train(order()[0])

    def test_of_data_without_length(self) -> None:
        with pytest.raises(TaskError, match="map-style datasets, with a length, but generator has none"):
            Worker(tiny.Tiny(), (one for one in ()), client=0)  # type: ignore[arg-type]


def test_batch_norm_of_one_example_is_explained() -> None:
    task = tiny.Tiny()
    inputs, targets = task.client_data(0, 1).tensors
    made = Worker(task, TensorDataset(inputs[:1], targets[:1]), client=0)
    assert "BatchNorm needs at least two examples in a batch" in refusal(made)

"""State of the clients' optimisers that travels with the units: the laws hold for it as for the weights."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_strategy import Counting
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ist_fed import extract, rules, wire
from ist_fed.arrays import arrays_of
from ist_fed.cost import cost
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import simulate
from ist_fed.errors import AxesError, ScenarioError, TrainingError
from ist_fed.network import Network
from ist_fed.optimizer_state import no_state, trainable
from ist_fed.phases import Phase
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario
from ist_fed.seeds import generator
from ist_fed.server_optimizer import trained_where
from ist_fed.tasks import Batch
from ist_fed.train import OPTIMIZERS, Training, optimizer_options, train
from ist_fed.travelling import Travelling

SGD = Training(lr=0.1, batch_size=8, momentum=0.9, state="travels")
ADAM = dataclasses.replace(SGD, optimizer="adam", lr=0.01)
ADAMW = dataclasses.replace(ADAM, optimizer="adamw", weight_decay=0.1)
EACH = pytest.mark.parametrize("training", [SGD, ADAM, ADAMW], ids=lambda training: training.optimizer)
HALVES = rules.Disjoint(groups=2, min_units=2)
THIRDS = rules.Disjoint(groups=3, min_units=1)


def plain(
    model: nn.Module, data: TensorDataset, training: Training, rngs: list[Any], steps: int
) -> torch.optim.Optimizer:
    """Rounds of the plain loop, with one optimiser for all of them."""
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **optimizer_options(training, training.lr))
    for rng in rngs:
        tiny.plain_steps(model, data, optimizer, training.batch_size, steps, rng)
    return optimizer


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser keeps, by our names."""
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{slot}/{of[id(parameter)]}": value
        for parameter, own in optimizer.state.items()
        for slot, value in own.items()
    }


# --- One client, one group --------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_rounds_are_one_training_with_one_optimiser(training: Training, norm: str) -> None:
    """Law 7, whole: 4 rounds of 5 steps are 20 steps of torch, bit for bit, the optimiser's state included."""
    task = tiny.Tiny(norm=norm)
    run = tiny.federate(task, rules.Full(), 1, rounds=4, training=training)
    model = task.build(**tiny.SIZES)
    model.load_state_dict(run.before)
    streams = [tiny.stream(1, round, 0) for round in (1, 2, 3, 4)]
    optimizer = plain(model, task.client_data(0, 1), training, streams, 5)
    assert tiny.same(run.after, arrays_of(model))
    theirs = kept(model, optimizer)
    ours = run.strategy.travelling.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(array.to(theirs[key].dtype), theirs[key]) for key, array in ours.items())
    fresh = dataclasses.replace(training, state="fresh")
    assert not tiny.same(run.after, tiny.federate(task, rules.Full(), 1, rounds=4, training=fresh).after)


def test_without_momentum_nothing_travels() -> None:
    none = dataclasses.replace(SGD, momentum=0.0)
    run = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, training=none)
    fresh = tiny.federate(tiny.Tiny(), HALVES, 2, rounds=2, training=dataclasses.replace(none, state="fresh"))
    assert tiny.same(run.after, fresh.after)
    assert run.reports[0].bytes_down == fresh.reports[0].bytes_down
    assert run.strategy.travelling.state() == {}


# --- Several ----------------------------------------------------------------------------------------------------------


@EACH
def test_several_holders_give_their_weighted_mean(training: Training) -> None:
    """Against each client's own plain loop; clients have 30 and 29 examples."""

    class Uneven(tiny.Tiny):
        def client_data(self, client: int, clients: int) -> TensorDataset:
            data = super().client_data(client, clients)
            return TensorDataset(*(part[: 30 - client] for part in data.tensors))

    task = Uneven(norm="layer")
    run = tiny.federate(task, rules.Full(), 2, rounds=1, training=training)
    states, weights = [], []
    for client in (0, 1):
        model, data = task.build(**tiny.SIZES), task.client_data(client, 2)
        model.load_state_dict(run.before)
        states.append(kept(model, plain(model, data, training, [tiny.stream(1, 1, client)], 5)))
        weights.append(len(data) / (30 + 29))
    for key, array in run.strategy.travelling.state().items():
        mean = sum(weight * state[key].double() for weight, state in zip(weights, states, strict=True))
        assert torch.allclose(array.double(), mean, rtol=1e-6, atol=1e-12), key
        assert array.abs().sum() > 0


@settings(max_examples=6, deadline=None)
@given(training=st.sampled_from([SGD, ADAM]), refused=st.sets(st.integers(0, 2), max_size=2), direct=st.booleans())
def test_a_coordinate_that_nobody_trained_keeps_its_momentum(
    training: Training, refused: set[int], direct: bool
) -> None:
    """Law 4: also where the holder failed after it had trained a while, and where nothing is copied on the way."""
    task, states, plans = tiny.Tiny(poisoned=sorted(refused)), [], tiny.Spy(THIRDS)
    made = tiny.strategy(
        task,
        plans,
        training=training,
        local_steps=8,
        on_round=lambda report: states.append({key: a.clone() for key, a in made.travelling.state().items()}),
    )
    grid = runs.local_grid(task, 3) if direct else InProcessGrid(3, tiny.handlers(task, 3))
    made.start(grid, wire.to_record(tiny.initial(task)), 3)
    for before, after, plan in zip(states, states[1:], plans.plans[1:], strict=False):
        held = [plan[node] for node in range(3) if node not in refused]
        trained = trained_where(after, made.travelling.axes, held)
        for key, array in after.items():
            if not key.startswith("step/"):
                assert torch.equal(array[~trained[key]], before[key][~trained[key]])
                assert (array != before[key])[trained[key]].any()


def test_a_momentum_stands_where_its_parameter_does() -> None:
    """What a client gets of a wide state is cut as what it gets of the weights."""
    made = tiny.strategy(tiny.Tiny(), HALVES, training=ADAM)
    arrays = tiny.initial(tiny.Tiny())
    wide = made.travelling.beside(arrays, ADAM)
    for name in arrays:
        for slot in ("exp_avg", "exp_avg_sq"):
            if f"{slot}/{name}" in wide:
                wide[f"{slot}/{name}"] = arrays[name].clone()
    units = {"hidden1": torch.tensor([1, 4]), "hidden2": torch.tensor([0, 7, 9])}
    part = extract(wide, made.travelling.axes, units)
    for name in trainable(tiny.Tiny().build(**tiny.SIZES)):
        assert torch.equal(part[f"exp_avg/{name}"], part[name])
        assert torch.equal(part[f"exp_avg_sq/{name}"], part[name])
        assert part[f"step/{name}"].shape == ()


# --- What others see --------------------------------------------------------------------------------------------------


def test_flowers_own_loop_over_the_hooks_gives_the_same_bits_and_never_sees_the_state() -> None:
    task, seen = tiny.Tiny(), []

    def evaluated(round: int, arrays: ArrayRecord) -> None:
        seen.append(set(arrays))

    made = tiny.strategy(task, HALVES, training=ADAM)
    grid = InProcessGrid(3, tiny.handlers(task, 3))
    first = wire.to_record(tiny.initial(task))
    result = Strategy.start(made, grid, first, num_rounds=3, evaluate_fn=evaluated)
    own = tiny.federate(task, HALVES, 3, rounds=3, training=ADAM)
    assert tiny.same(wire.from_record(result.arrays, own.before), own.after)
    again = tiny.strategy(task, HALVES, training=ADAM).start(grid, first, 3, evaluate_fn=evaluated)
    assert {frozenset(keys) for keys in (*seen, again.arrays, own.after)} == {frozenset(own.before)}


# --- Bytes ------------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize(("n", "h"), [(1, [8, 12]), (2, [8]), (4, [16, 8, 12])])
def test_bytes(training: Training, n: int, h: list[int]) -> None:
    """Law 9: an array for each that the optimiser keeps of a parameter, and Adam's counters of int64."""
    Counting.down = Counting.up = Counting.largest = 0
    rule, sizes = rules.Disjoint(groups=n, min_units=2), {f"hidden{at}": units for at, units in enumerate(h, 1)}
    run = tiny.federate(tiny.Tiny(), rule, n, rounds=2, sizes=sizes, local_steps=1, grid=Counting, training=training)
    weights = (
        tiny.INPUTS * h[0] // n
        + sum(before * after // n**2 for before, after in pairwise(h))
        + h[-1] * tiny.CLASSES // n
        + tiny.CLASSES
        + sum(2 * units // n for units in h)
    )
    running = sum(2 * units // n for units in h)
    counters = len(h) + (0 if training.optimizer == "sgd" else 3 * len(h) + 2)  # a step for each parameter
    site = 4 * ((2 if training.optimizer == "sgd" else 3) * weights + running) + 8 * counters
    assert Counting.down == Counting.up == 2 * n * site
    assert [(report.bytes_down, report.bytes_up) for report in run.reports] == [(n * site, n * site)] * 2
    assert cost(tiny.Tiny(), {axis: units // n for axis, units in sizes.items()}, training).bytes == site


def test_a_client_needs_no_more_memory_for_it_than_for_what_it_sends() -> None:
    """In its steps the state is the optimiser's own, which counts already; before and after there are two of all."""
    sizes = {"hidden1": 300, "hidden2": 300}
    fresh = cost(tiny.Tiny(), sizes, dataclasses.replace(ADAM, state="fresh"))
    travels = cost(tiny.Tiny(), sizes, ADAM)
    assert travels.memory == max(fresh.memory, 2 * travels.bytes) > fresh.memory


# --- Resume and phases ------------------------------------------------------------------------------------------------


@EACH
def test_resume(tmp_path: Path, training: Training) -> None:
    scenario = dataclasses.replace(runs.DIGITS, training=training)
    whole, run = runs.whole(tmp_path / "whole", scenario), runs.resumed(tmp_path / "run", scenario)
    models = [runs.model_of(one) for one in (run, whole)]
    assert tiny.same(*models)
    assert not any("/" in name for name in models[0])
    states = [dict(sorted(one.restore().travelling.items())) for one in (run, whole)]
    assert tiny.same(*states)
    assert states[0]


def test_state_of_another_network_is_refused() -> None:
    made = tiny.strategy(tiny.Tiny(), HALVES)
    with pytest.raises(AxesError, match="must be of this network's parameters; 'v' is none"):
        made.travelling.load({"exp_avg/v": torch.zeros(1)})


@pytest.mark.parametrize(
    ("second", "same"),
    [
        (dataclasses.replace(SGD, lr=0.05, momentum=0.5), True),
        (dataclasses.replace(SGD, state="fresh"), False),
        (ADAM, False),
    ],
    ids=["other numbers", "fresh", "adam"],
)
def test_a_phase_goes_on_with_the_state_of_the_one_before_if_it_keeps_the_same(second: Training, same: bool) -> None:
    """The second phase alone, from the arrays after the first, is the same run unless state came along."""
    task, begun = tiny.Tiny(norm="layer"), []
    phases = [Phase(rounds=1), Phase(training=second)]
    run = tiny.federate(task, HALVES, 2, rounds=2, training=SGD, phases=phases)
    alone = tiny.strategy(task, HALVES, training=second, on_round=begun.append)
    grid = InProcessGrid(2, tiny.handlers(task, 2))
    alone.start(grid, wire.to_record(run.reports[0].arrays), 2, first_round=2)
    assert tiny.same(run.after, begun[0].arrays) != same


# --- Leases and privacy -----------------------------------------------------------------------------------------------


@EACH
def test_leases_of_one_client_are_one_training_with_one_optimiser(training: Training) -> None:
    """To the last bits but of what everyone holds, which moves by the change and not to the value."""
    task, rule = tiny.Tiny(norm="layer"), rules.Lease(groups=1, free=0.0, min_units=2)
    run = tiny.federate(task, rule, 1, rounds=4, training=training)
    fresh = tiny.federate(task, rule, 1, rounds=4, training=dataclasses.replace(training, state="fresh"))
    model = task.build(**tiny.SIZES)
    model.load_state_dict(run.before)
    plain(model, task.client_data(0, 1), training, [tiny.stream(1, round, 0) for round in (1, 2, 3, 4)], 5)
    assert all(torch.allclose(array, run.after[name], atol=1e-5) for name, array in arrays_of(model).items())
    assert not all(torch.allclose(array, fresh.after[name], atol=1e-3) for name, array in arrays_of(model).items())


@pytest.mark.parametrize("training", [SGD, ADAM], ids=["sgd", "adam"])
def test_leases_at_their_own_times(tmp_path: Path, training: Training) -> None:
    """Law 11, and law 10: optimisers of leases that began apart have taken other numbers of steps."""
    scenario = dataclasses.replace(
        runs.DIGITS,
        rule={"name": "lease", "groups": 4, "min_units": 2},
        clients=4,
        training=training,
        network=Network(step_seconds=0.1, spread=8),
    )
    whole, run = runs.whole(tmp_path / "whole", scenario), runs.resumed(tmp_path / "run", scenario)
    simulate(other := Run.create(tmp_path / "other", scenario))
    ends = [one.restore() for one in (run, whole, other)]
    assert tiny.same(ends[0].arrays, ends[1].arrays)
    assert all(torch.equal(ends[0].travelling[key], array) for key, array in ends[1].travelling.items())
    assert all(torch.allclose(ends[2].arrays[name], array, atol=1e-4) for name, array in ends[1].arrays.items())
    lines = [[line["bytes_up"] for line in one.metrics()] for one in (whole, other)]
    assert lines[0] == lines[1]


ASKED = ("round.weighting=uniform", "training.state=travels")


def test_a_private_run_lets_no_state_out() -> None:
    with pytest.raises(ScenarioError, match="state of optimisers has no noise, so none leaves a private run"):
        parse_scenario(runs.DIGITS.to_toml(), ["privacy.mode=central", "privacy.epsilon=4.0", *ASKED])


# --- Local steps ------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A frozen weight, one that the loss does not reach, a tied one, and a number that is trained."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(tiny.INPUTS, a), nn.Linear(a, tiny.CLASSES)
        self.again, self.unused = self.second, nn.Linear(a, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first.bias.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).relu()
        return self.scale * (self.second(hidden) + self.again(hidden))


class OddTask(tiny.Tiny):
    def build(self, **sizes: int) -> nn.Module:
        return Odd(**sizes)


@EACH
def test_frozen_unused_and_tied_parameters(training: Training) -> None:
    task = OddTask()
    run = tiny.federate(task, rules.Full(), 1, rounds=3, sizes={"a": 6}, training=training)
    model = task.build(a=6)
    model.load_state_dict(run.before, strict=False)  # what is tied travels once
    plain(model, task.client_data(0, 1), training, [tiny.stream(1, round, 0) for round in (1, 2, 3)], 5)
    assert tiny.same(run.after, arrays_of(model))
    names = {key.partition("/")[2] for key in run.strategy.travelling.state()}
    assert names == {"first.weight", "second.weight", "second.bias", "unused.weight", "unused.bias", "scale"}


def test_state_that_is_not_finite_is_named() -> None:
    """The square of a gradient overflows long before the weights do."""

    class Steep(tiny.Tiny):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return 1e25 * super().loss(model, batch)

    task = Steep(norm="none")
    model = task.build(**tiny.SIZES)
    state = no_state(trainable(model), ADAM.carried)
    with pytest.raises(TrainingError, match=r"must stay finite, but 'exp_avg_sq/1.weight' is not after 2 local steps"):
        train(model, task, task.client_data(0, 1), ADAM, lr=0.01, steps=2, rng=generator(0), state=state)


def test_an_order_without_the_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says that state travels, and sends none."""
    task = tiny.Tiny()
    monkeypatch.setattr(Travelling, "beside", lambda self, arrays, training: dict(arrays))
    made = tiny.strategy(task, HALVES, training=SGD)
    reports: list[Any] = []
    made._on_round = reports.append
    with pytest.raises(Exception, match=r"they differ in .* arrays, first 'momentum_buffer/1.weight': none was sent"):
        made.start(InProcessGrid(2, tiny.handlers(task, 2)), wire.to_record(tiny.initial(task)), 1)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="state must be fresh or travels, but is 'stays'"):
        Training(state="stays")  # type: ignore[arg-type]

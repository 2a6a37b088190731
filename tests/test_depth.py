"""Whole blocks that a client holds or not: a factory of a user's own, cut, trained, checked and merged."""

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import runs
import tiny
import torch
from flwr.app import Message
from torch import Tensor, nn

from ist_fed import extract, infer, rules, wire
from ist_fed.arrays import arrays_of, build_on_meta
from ist_fed.axes import describe, parse
from ist_fed.batched import Way
from ist_fed.cost import cost
from ist_fed.errors import AxesError
from ist_fed.models import Branch
from ist_fed.privacy import CentralMerge, Mechanism, Privacy
from ist_fed.privacy.central import Drawn
from ist_fed.rescale import Rescaling
from ist_fed.robust import Keeper, Robust
from ist_fed.seeds import generator
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.symmetry import check_symmetry
from ist_fed.train import Training
from ist_fed.worker import Worker

SIZES = {"block1": 1, "block2": 1, "wide": 10, "block3": 1, "block4": 1}
HALVES, QUARTERS = rules.Blocks(groups=2), rules.Blocks(groups=4)
THICK = rules.Blocks(groups=4, min_depth=2)  # every block in two of the groups


class Added(nn.Module):
    """A block of any width inside, with counts that are scalars."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, inside), nn.BatchNorm1d(8), nn.Linear(inside, 8)
        self.branch = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.down(self.up(self.norm(x)).relu()))


class Residual(nn.Module):
    """Blocks in a dictionary, so that each keeps its name whoever else is there; one is cut inside as well."""

    def __init__(self, wide: int, **blocks: int) -> None:
        super().__init__()
        inside = {"block1": 5, "block2": wide, "block3": 7, "block4": 7}
        self.stem, self.head = nn.Linear(tiny.INPUTS, 8), nn.Linear(8, tiny.CLASSES)
        self.blocks = nn.ModuleDict({name: Added(inside[name]) for name, held in blocks.items() if held})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        return self.head(x)


class Deep(tiny.Tiny):
    def build(self, **sizes: int) -> nn.Module:
        return Residual(**{"wide": 6, **sizes})


TASK = Deep()
AXES = infer(TASK.build, SIZES)


def federate(rule: rules.Rule, clients: int = 4, task: tiny.Tiny = TASK, **options: object) -> tiny.Run:
    return tiny.federate(task, rule, clients, sizes=SIZES, **options)


def owner_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("blocks.") else ""


def held_by(run: tiny.Run, round: int, node: int) -> set[str]:
    """The names of the arrays that a node was sent, from the plan alone."""
    units = run.plans[round - 1][node]
    return {name for name in run.before if not owner_of(name) or len(units[owner_of(name)])}


# --- The table --------------------------------------------------------------------------------------------------------


def test_what_vanishes_with_a_block_is_owned_by_it() -> None:
    axes = {name: describe(dims) for name, dims in AXES.items()}
    assert axes["stem.weight"] == axes["head.weight"] == ". ."
    assert axes["blocks.block1.up.weight"] == "block1: . ."
    assert axes["blocks.block1.norm.num_batches_tracked"] == "block1: ()"
    assert axes["blocks.block2.up.weight"] == "block2: wide ."
    assert axes["blocks.block2.down.weight"] == "block2: . wide"
    assert {owner_of(name) for name, dims in axes.items() if ":" in dims} == {"block1", "block2", "block3", "block4"}
    assert all(parse(dims) == AXES[name] for name, dims in axes.items())


def refused(build: Callable[..., nn.Module], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(AxesError, match=message):
        infer(build, sizes)


def test_blocks_that_do_not_keep_their_names_are_refused() -> None:
    def renumbered(**sizes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), *(Added(3) for held in sizes.values() if held))

    refused(renumbered, {"block1": 1, "block2": 1}, "a block's arrays are its own.*share no array")

    def of_many_widths(**sizes: int) -> nn.Module:
        return nn.Sequential(*(Added(width) for width, held in enumerate(sizes.values(), 3) if held))

    refused(
        of_many_widths,
        {"block1": 1, "block2": 1},
        "not only '1.down.bias' is missing: '0.up.weight' is another; let every",
    )


def test_a_block_that_changes_the_stream_is_refused() -> None:
    def widening(block: int) -> nn.Module:
        parts = {"first": nn.Linear(3, 4), "head": nn.Linear(8 if block else 4, 2)}
        return nn.ModuleDict({**parts, "block": nn.Linear(4, 8)} if block else parts)

    refused(widening, {"block": 1}, "not only 'block.bias' is missing: 'head.weight' is another; .* stream's")


def test_blocks_that_share_an_array_are_refused() -> None:
    def tied(one: int, other: int) -> nn.Module:
        shared = nn.Linear(3, 3)
        return nn.ModuleDict({"one": shared} if one else {"other": shared} if other else {"none": nn.Linear(3, 3)})

    refused(tied, {"one": 1, "other": 1}, "takes its arrays away and changes no other")

    def needed(one: int, other: int) -> nn.Module:
        return nn.ModuleDict({"own": nn.Linear(3, 3), **({"both": nn.Linear(3, 2)} if one or other else {})})

    refused(needed, {"one": 1, "other": 1}, "the factory ignores 'one'")


def test_an_axis_of_one_unit_that_is_no_block_is_an_axis() -> None:
    axes = infer(lambda hidden: nn.Sequential(nn.Linear(3, hidden), nn.Linear(hidden, 2)), {"hidden": 1})
    assert {name: describe(dims) for name, dims in axes.items()} == {
        "0.weight": "hidden .",
        "0.bias": "hidden",
        "1.weight": ". hidden",
        "1.bias": ".",
    }


def test_a_block_that_is_no_residual_one_is_caught_by_the_law() -> None:
    """Without it the stream is not what it is where the block's arrays are zero."""
    x = torch.rand(5, tiny.INPUTS, dtype=torch.float64)
    check_symmetry(TASK.build, SIZES, AXES, lambda model: model(x))

    class Instead(Added):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(self.norm(x)).relu())

    def build(block: int) -> nn.Module:
        return nn.Sequential(nn.Linear(tiny.INPUTS, 8), Instead(4) if block else nn.Identity(), nn.Linear(8, 2))

    with pytest.raises(AxesError, match=r"without 'block' its output differs.*Its arrays: 1.up.weight.*do not make it"):
        check_symmetry(build, {"block": 1}, infer(build, {"block": 1}), lambda model: model(x))


# --- Rounds -----------------------------------------------------------------------------------------------------------


def test_a_client_trains_its_blocks_as_a_shallower_network_bit_for_bit() -> None:
    """Against plain loops on networks built here; who holds a block alone is copied, what all hold is averaged."""
    run = federate(QUARTERS)
    trained, plan = {}, run.plans[0]
    for client, node in enumerate(sorted(plan)):
        units = plan[node]
        model = TASK.build(**{axis: len(held) for axis, held in units.items()})
        model.load_state_dict({name: run.before[name] for name in held_by(run, 1, node)})
        tiny.plain_sgd(model, TASK.client_data(client, 4), tiny.TRAINING, 5, tiny.stream(1, 1, client))
        trained[node] = arrays_of(model)
    assert sum(map(len, trained.values())) == 4 * 4 + sum(1 for name in run.before if owner_of(name))
    for name, array in run.after.items():
        given = [own[name] for own in trained.values() if name in own]
        if owner_of(name):
            assert tiny.same({name: array}, {name: given[0]}), name
            assert len(given) == 1
        else:
            mean = torch.stack(given).double().mean(0)
            assert torch.allclose(array.double(), mean, rtol=1e-6), name


@pytest.mark.parametrize("training", [tiny.TRAINING, Training(optimizer="adam", lr=0.01, state="travels")])
def test_one_group_is_everything(training: Training) -> None:
    """Law 7: bit for bit the rule that gives everything to everyone."""
    one, full = (federate(rule, 2, rounds=3, training=training) for rule in (rules.Blocks(groups=1), rules.Full()))
    assert tiny.same(one.after, full.after)
    assert tiny.same(one.strategy.travelling.state(), full.strategy.travelling.state())


def test_bytes_are_those_of_the_arrays_that_were_held() -> None:
    run = federate(THICK, rounds=2)
    for report in run.reports:
        expected = 0
        for node in run.plans[report.round - 1]:
            shapes = arrays_of(build_on_meta(TASK.build, SIZES))
            expected += sum(shapes[name].nbytes for name in held_by(run, report.round, node))
        assert report.bytes_down == report.bytes_up == expected
        assert report.merged == 4
    node = next(iter(run.plans[0]))
    narrow = {axis: len(units) for axis, units in run.plans[0][node].items()}
    whole = cost(TASK, SIZES, tiny.TRAINING)
    own = cost(TASK, narrow, tiny.TRAINING)
    assert own.bytes == sum(run.before[name].nbytes for name in held_by(run, 1, node)) < whole.bytes
    assert own.flops < whole.flops
    assert own.memory < whole.memory


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"server_optimizer": ServerOptimizer(optimizer="adam")},
        {"training": Training(optimizer="adam", lr=0.01, state="travels", batch_size=8)},
        {"robust": Keeper(Robust(norm_bound=3.0))},
    ],
    ids=["plain", "server", "travels", "robust"],
)
def test_a_block_whose_holder_failed_keeps_its_bits_and_so_does_its_state(options: dict[str, object]) -> None:
    task = Deep(poisoned=[2])
    run = federate(QUARTERS, task=task, rounds=2, **options)
    for report, before in zip(run.reports, [run.before, run.reports[0].arrays], strict=True):
        (failed,) = report.refused
        assert failed.client == 2
        plan = run.plans[report.round - 1]
        lost = {owner_of(name) for name in held_by(run, report.round, sorted(plan)[2])} - {""}
        assert lost
        for name, array in report.arrays.items():
            parameter = array.is_floating_point() and "running" not in name
            if owner_of(name) in lost:
                assert tiny.same({name: array}, {name: before[name]})
            elif parameter:
                assert not torch.equal(array, before[name]), name
    if "training" in options:
        seen = {owner_of(key.partition("/")[2]) for key, a in run.strategy.travelling.state().items() if a.any()}
        assert seen == {
            "",
            *(owner_of(name) for name in run.before if not torch.equal(run.after[name], run.before[name])),
        }


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_a_reply_with_other_blocks_than_were_sent_is_refused(change: str) -> None:
    def lie(worker: Worker, message: Message) -> Message:
        order = wire.open_order(message)
        arrays = dict(order.arrays)
        own = next(name for name in arrays if owner_of(name))
        if change == "fewer":
            arrays = {name: array for name, array in arrays.items() if owner_of(name) != owner_of(own)}
        else:
            other = next(name for name in SIZES if name != "wide" and f"blocks.{name}.up.bias" not in arrays)
            arrays[f"blocks.{other}.up.bias"] = torch.full((5,), 100.0)
        return wire.reply_message(order, arrays, loss=0.1, seconds=0.1, reply_to=message)

    run = federate(QUARTERS, instead={1: lie})
    assert [refused.client for refused in run.reports[0].refused] == [1]
    assert not any((array == 100).any() for array in run.after.values())


@pytest.mark.parametrize("only", ["one by one", "stacked"])
@pytest.mark.parametrize("training", [tiny.TRAINING, replace(tiny.TRAINING, state="travels", rescale="full")])
def test_engines_agree(only: Way, training: Training) -> None:
    """Law 10: two clients for each subnet, subnets of two depths."""
    reports = runs.train_on(runs.local_grid(TASK, 4, only), TASK, HALVES, sizes=SIZES, training=training)
    run = federate(HALVES, rounds=2, training=training)
    for report, other in zip(reports, run.reports, strict=True):
        assert report.coverage == other.coverage
        assert (report.bytes_up, report.bytes_down) == (other.bytes_up, other.bytes_down)
        for name, array in report.arrays.items():
            assert torch.allclose(array, other.arrays[name], rtol=2e-4, atol=2e-5), name
    assert only != "one by one" or tiny.same(reports[-1].arrays, run.after)


def test_in_place_the_bits_are_the_same() -> None:
    """Where every axis is a block, no unit has two holders."""
    only = {axis: size for axis, size in SIZES.items() if axis != "wide"}
    run, in_place = (tiny.federate(TASK, QUARTERS, 4, sizes=only, rounds=3, in_place=way) for way in (False, True))
    assert tiny.same(run.after, in_place.after)


def test_in_a_private_run_a_block_takes_the_mean_of_its_holders_and_no_more() -> None:
    """Without noise, over a public number; what is not trained, and what nobody was given, keeps its bits."""
    settings = Privacy(mode="central", epsilon=8.0, clip=1e3)
    made = Mechanism(settings=settings, clients=2, blocks=1, why="", noise_multiplier=0.0)
    arrays, trained = tiny.initial(TASK, SIZES), {name for name, _ in TASK.build(**SIZES).named_parameters()}
    plan = rules.Plan(subnets=({"block1": torch.arange(0), "block3": torch.arange(0)},), cohorts=((0, 1),))
    merge = CentralMerge(arrays, AXES, Drawn(plan, (2.0,)), trained, made, 1e3, lambda clip: None)
    part = extract(arrays, AXES, plan.subnets[0])
    assert merge.usual == 2 * sum(array.nbytes for array in part.values())
    merge.add(plan.subnets[0], {name: array + 3 for name, array in part.items()})
    for name, array in merge.result().items():
        if name in trained and owner_of(name) not in ("block1", "block3"):
            assert torch.allclose(array, arrays[name] + 1.5, atol=1e-5), name
        else:
            assert tiny.same({name: array}, {name: arrays[name]})


def test_a_client_says_how_many_blocks_fit_whichever_they_are_and_trains_that_many() -> None:
    """Not how wide a subnet it can hold; the largest blocks are what counts."""
    three = {**SIZES, "block1": 0}  # the smallest is not there
    worker = Worker(TASK, TASK.client_data(0, 1), client=0, memory=cost(TASK, three, tiny.TRAINING).memory)
    profile = worker.profile(wire.Question(sizes=SIZES, training=asdict(tiny.TRAINING)))
    assert profile.limit == 3 / 4
    node = rules.Node(7, 1.0, profile.limit)
    for seed in range(8):
        units = rules.Blocks(groups=2)(1, [node, rules.Node(8)], SIZES, generator(seed))[7]
        narrow = {axis: len(held) for axis, held in units.items()}
        assert cost(TASK, narrow, tiny.TRAINING).memory <= profile.memory


# --- Rescaling --------------------------------------------------------------------------------------------------------


def test_branches_are_scaled_by_how_many_blocks_are_missing() -> None:
    made = Rescaling(build_on_meta(TASK.build, SIZES), AXES)
    narrow = {**SIZES, "block1": 0, "block4": 0}
    assert made.scales("full", SIZES, narrow) == {"blocks.block2.branch": 2.0, "blocks.block3.branch": 2.0}
    assert made.scales("sqrt", SIZES, {**narrow, "block3": 0}) == {"blocks.block2.branch": 2.0}
    assert made.scales("none", SIZES, narrow) == made.scales("full", SIZES, SIZES) == {}
    thin = {**narrow, "wide": 2}
    assert made.scales("full", SIZES, thin) == {**made.scales("full", SIZES, narrow), "blocks.block2.down": 5.0}
    assert made.scales("full", SIZES, {**thin, "block2": 0}) == {"blocks.block3.branch": 4.0}

"""Central mode: what one client can do to a round is bounded, noise is what it says, and nothing else is told."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZES, TRAINING, Tiny, federate, initial, same
from torch import Tensor

from ist_fed import IndependentSubnetTraining
from ist_fed.axes import infer
from ist_fed.batches import length
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid
from ist_fed.errors import AxesError, PrivacyError, WireError
from ist_fed.phases import Phase
from ist_fed.privacy import BudgetSpent, Central, CentralMerge, Ledger, Mechanism, Privacy, mechanism
from ist_fed.privacy.central import Drawn
from ist_fed.rules import Disjoint, Full, Node, Plan, Private, Rule
from ist_fed.seeds import generator
from ist_fed.subnet import extract
from ist_fed.worker import Worker

TASK = Tiny()
AXES = infer(TASK.build, SIZES)
TRAINED = frozenset(name for name, _ in TASK.build(**SIZES).named_parameters())
NODES = [Node(id) for id in range(8)]
BLOCKS = Private(groups=2, min_units=2).blocks(NODES, SIZES, generator(0))
SHARED = {name for name in TRAINED if all(dim.axis is None for dim in AXES[name])}


def promised(noise: float = 0.0, *, blocks: int = 2, clip: float = 1.0, **settings: float) -> Mechanism:
    return Mechanism(
        settings=Privacy(mode="central", epsilon=8.0, clip=clip, **settings),
        clients=8,
        blocks=blocks,
        why="",
        noise_multiplier=noise,
    )


def merge_of(arrays: Mapping[str, Tensor], made: Mechanism, clips: list[float] | None = None) -> CentralMerge:
    drawn = Drawn(Plan(subnets=BLOCKS, cohorts=((), ())), (made.expected / 2,) * 2)
    spend = (clips if clips is not None else []).append
    return CentralMerge(arrays, AXES, drawn, TRAINED, made, made.settings.clip, spend)


def moved(arrays: Mapping[str, Tensor], block: int, by: float) -> dict[str, Tensor]:
    """A block after a client trained it: every number of its parameters `by` further on, statistics as well."""
    part = extract(arrays, AXES, BLOCKS[block])
    return {name: array + by if array.is_floating_point() else array + 7 for name, array in part.items()}


def norm(arrays: Mapping[str, Tensor], names: set[str]) -> float:
    return float(sum(arrays[name].double().square().sum() for name in names)) ** 0.5


# --- The sum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [1e-3, 10.0])
def test_without_noise_it_is_the_sum_of_clipped_updates_over_a_public_number(by: float) -> None:
    """Two clients in one block, none in the other: worked out here with nothing of the code that is tested."""
    arrays, made = initial(TASK), promised()
    merge = merge_of(arrays, made)
    for scale in (1.0, -0.5):
        merge.add(BLOCKS[0], moved(arrays, 0, scale * by))
    after = merge.result()
    own = TRAINED - SHARED
    part = extract(arrays, AXES, BLOCKS[0])
    expected = {}
    for names, limit, clients in ((own, 1.0, 4.0), (SHARED, 0.25, 8.0)):
        size = sum(part[name].numel() for name in names) ** 0.5 * by
        total = sum(scale * by * min(1.0, limit / (abs(scale) * size)) for scale in (1.0, -0.5))
        expected |= dict.fromkeys(names, total / clients)
    for name in TRAINED:
        block = extract(after, AXES, BLOCKS[0])[name].double() - part[name].double()
        assert torch.allclose(block, torch.full_like(block, expected[name]), rtol=1e-4, atol=1e-7), name
        other = extract(after, AXES, BLOCKS[1])[name]
        assert name in SHARED or torch.equal(other, extract(arrays, AXES, BLOCKS[1])[name])
    assert all(torch.equal(after[name], arrays[name]) for name in arrays if name not in TRAINED)


@pytest.mark.parametrize("by", [0.0, 1e-6, 1.0, 1e30])
def test_one_client_moves_the_sum_by_no_more_than_the_clip(by: float) -> None:
    arrays, made = initial(TASK), promised(clip=0.3)
    merge = merge_of(arrays, made)
    merge.add(BLOCKS[1], moved(arrays, 1, by))
    after = merge.result()
    change = {name: after[name].double() - arrays[name].double() for name in TRAINED}
    assert norm(change, set(TRAINED - SHARED)) * 4 <= 0.3 * (1 + 1e-4)  # 4 clients are expected in a block
    assert norm(change, SHARED) * 8 <= 0.3 / 4 * (1 + 1e-4)
    assert (norm(change, set(TRAINED)) == 0) == (by == 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_update_that_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    arrays = initial(TASK)
    merge, part = merge_of(arrays, promised()), moved(arrays, 0, 0.1)
    sorted_names = sorted(TRAINED)
    part[sorted_names[0]].view(-1)[0] = bad
    with pytest.raises(WireError, match="must be finite before it is clipped"):
        merge.add(BLOCKS[0], part)
    assert same(merge.result(), arrays)


def test_nobody_counts_more_than_another() -> None:
    arrays = initial(TASK)
    with pytest.raises(AxesError, match="no client counts more"):
        merge_of(arrays, promised()).add(BLOCKS[0], moved(arrays, 0, 0.1), 2.0)


# --- The noise --------------------------------------------------------------------------------------------------------


def test_the_noise_has_the_stated_variance_on_trained_and_on_untrained_blocks() -> None:
    """Over 60 rounds of 2 blocks; each ratio of variances stays within five standard deviations of one."""
    arrays, made = initial(TASK), promised(1.5, clip=0.5)
    squares: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for _ in range(60):
        merge = merge_of(arrays, made)
        merge.add(BLOCKS[0], extract(arrays, AXES, BLOCKS[0]))  # a zero update is an update like any other
        after = merge.result()
        for block, key in enumerate(("trained", "untrained")):
            one, other = (extract(state, AXES, BLOCKS[block]) for state in (after, arrays))
            for name in TRAINED - SHARED:
                noise = (one[name].double() - other[name].double()) * 4
                squares[key] += float(noise.square().sum())
                counts[key] += noise.numel()
        for name in SHARED:
            noise = (after[name].double() - arrays[name].double()) * 8
            squares["shared"] += float(noise.square().sum())
            counts["shared"] += noise.numel()
    stated = {"trained": 1.5 * 0.5, "untrained": 1.5 * 0.5, "shared": 2 * 1.5 * 0.5 / 4}
    for key, sigma in stated.items():
        ratio = squares[key] / counts[key] / sigma**2
        assert abs(ratio - 1) < 5 * (2 / counts[key]) ** 0.5, (key, ratio)


def test_a_coordinate_of_no_block_keeps_its_bits() -> None:
    """Weights between two blocks are nobody's to change, so they get no noise either."""
    arrays = initial(TASK)
    after = merge_of(arrays, promised(1.0)).result()
    name = next(name for name in TRAINED if [dim.axis for dim in AXES[name]] == ["hidden2", "hidden1"])
    between = BLOCKS[0]["hidden2"][:, None], BLOCKS[1]["hidden1"][None]
    within = BLOCKS[0]["hidden2"][:, None], BLOCKS[0]["hidden1"][None]
    assert torch.equal(after[name][between], arrays[name][between])
    assert (after[name][within] != arrays[name][within]).all()


def test_noise_cannot_be_seeded() -> None:
    arrays, made = initial(TASK), promised(1.0)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        results.append(merge_of(arrays, made).result())
    assert not same(*results)


# --- The clip that adapts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0.01, 100.0])
def test_the_clip_goes_to_the_quantile_from_either_side(first: float) -> None:
    """Norms of the updates are spread evenly from 1 to 3; the median is 2. (A sign the wrong way round diverges.)"""
    arrays = initial(TASK)
    part = extract(arrays, AXES, BLOCKS[0])
    unit = sum(part[name].numel() for name in TRAINED - SHARED) ** -0.5
    clip, made = first, promised(0.0, quantile=0.5, clip_lr=0.3, count_noise=0.05)
    for _ in range(40):
        clips: list[float] = []
        now = replace(made, settings=replace(made.settings, clip=clip))
        merge = merge_of(arrays, now, clips)
        for scale in np.linspace(1, 3, 8):
            merge.add(BLOCKS[0], moved(arrays, 0, float(scale * unit)))
        merge.result()
        (clip,) = clips
    assert 1.6 < clip < 2.4


# --- The draw ---------------------------------------------------------------------------------------------------------


def central(path: Path, rule: Rule, *, clients: int = 8, rounds: int = 4, **settings: float) -> Central:
    made = Privacy(**{"mode": "central", "epsilon": 50.0, **settings})  # type: ignore[arg-type]
    ledger = Ledger([path / "privacy.jsonl"], epsilon=made.epsilon, delta=made.delta)
    return Central(mechanism(made, rule, clients=clients, rounds=rounds), ledger)


def test_clients_draw_independently_and_blocks_are_the_seeds(tmp_path: Path) -> None:
    """A pair of clients meets in one of 4 blocks a quarter of the time, and each takes part half the time."""
    rule, rounds = Private(groups=4, min_units=2), 1500
    keeper = central(tmp_path, rule, sampling=0.5)
    there = met = both = 0
    for _ in range(rounds):
        drawn = keeper.draw(rule, 1, NODES, SIZES, seed=3)
        assert all(
            map(
                torch.equal,
                drawn.plan.subnets[0].values(),
                rule.blocks(NODES, SIZES, generator(3, 1, "assign"))[0].values(),
            )
        )
        assert len(drawn.plan.subnets) == 4
        assert drawn.expected == (1.0,) * 4
        there += 0 in drawn.plan
        if 0 in drawn.plan and 1 in drawn.plan:
            both += 1
            met += drawn.plan.subnet_of(0) == drawn.plan.subnet_of(1)
    assert abs(there / rounds - 0.5) < 5 * (0.25 / rounds) ** 0.5
    assert abs(met / both - 0.25) < 5 * (0.1875 / both) ** 0.5


@pytest.mark.parametrize(
    ("rule", "blocks", "reason"),
    [
        (Private(groups=4), 4, "independently of all others"),
        (Private(groups=1), 1, "one block"),
        (Full(), 1, "one block"),
        (Disjoint(groups=4), 1, "not amplified"),
    ],
)
def test_amplification_is_claimed_for_independent_draws_only(rule: Rule, blocks: int, reason: str) -> None:
    made = mechanism(Privacy(mode="central", epsilon=4.0), rule, clients=100, rounds=10)
    assert made.blocks == blocks
    assert reason in made.why


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": Disjoint(groups=2, min_units=2)}, "make the mechanism for that rule"),
        ({"rule": Private(groups=4, min_units=2)}, "make the mechanism for that rule"),
        ({"phases": [Phase(rounds=1, rule=Disjoint(groups=2, min_units=2))]}, "no phases"),
        ({"weighting": "examples"}, "no client counts more"),
        ({"adapt": True}, "how long clients take"),
    ],
)
def test_a_strategy_refuses_a_promise_that_was_made_for_another_run(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    own = Private(groups=2, min_units=2)
    asked = {"rule": own, "weighting": "uniform", "privacy": central(tmp_path, own), **options}
    with pytest.raises(PrivacyError, match=says):
        IndependentSubnetTraining(build=TASK.build, sizes=SIZES, **asked)


def test_a_promise_without_amplification_holds_under_any_rule(tmp_path: Path) -> None:
    promise = central(tmp_path, Disjoint(groups=2, min_units=2))
    IndependentSubnetTraining(
        build=TASK.build, sizes=SIZES, rule=Private(groups=2, min_units=2), weighting="uniform", privacy=promise
    )


# --- A run ------------------------------------------------------------------------------------------------------------


def private_run(tmp_path: Path, **options: object):  # type: ignore[no-untyped-def]
    rule = Private(groups=2, min_units=2)
    return federate(
        TASK, rule, 6, rounds=2, privacy=central(tmp_path, rule, clients=6, rounds=2), weighting="uniform", **options
    )


class Batched(LocalGrid):
    """Clients that are given assignments, as in the engine `auto`."""

    def __init__(self, clients: int, handler: object) -> None:
        def worker(client: int) -> Worker:
            return Worker(TASK, TASK.client_data(client, clients), client=client)

        super().__init__(clients, worker, TASK, torch.device("cpu"))


@pytest.mark.parametrize("grid", [InProcessGrid, Batched])
def test_a_run_tells_nothing_of_who_took_part(tmp_path: Path, grid: type[InProcessGrid]) -> None:
    run = private_run(tmp_path, grid=grid)
    for report in run.reports:
        assert report.clients == tuple(range(6))
        assert (report.merged, report.refused, report.seconds) == (0, (), {})
        assert report.loss != report.loss
        assert set(report.capacities) == {1.0}
    assert len({report.bytes_up for report in run.reports}) == 1
    assert len((tmp_path / "privacy.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("grid", [InProcessGrid, Batched])
def test_with_hardly_any_noise_every_engine_merges_the_clipped_mean(
    tmp_path: Path, grid: type[InProcessGrid], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block, everyone, a wide clip: federated averaging, to the size of the noise that is left."""
    rule = Full()
    keeper = central(tmp_path, rule, clients=6, rounds=1, noise_multiplier=0.05, clip=1e3, epsilon=1e9)
    monkeypatch.setattr("ist_fed.privacy.noise.normal", np.zeros)
    privately = federate(TASK, rule, 6, privacy=keeper, weighting="uniform", grid=grid).after
    plainly = federate(TASK, rule, 6, weighting="uniform").after
    for name in TRAINED:
        assert torch.allclose(privately[name], plainly[name], atol=1e-5), name
    assert length(TASK.client_data(0, 6)) == 30
    assert TRAINING.batch_size == 8


def test_a_round_in_which_nobody_takes_part_is_noise(tmp_path: Path) -> None:
    rule = Private(groups=2, min_units=2)
    keeper = central(tmp_path, rule, clients=6, rounds=1, sampling=1e-9, noise_multiplier=1.0)
    run = federate(TASK, rule, 6, privacy=keeper, weighting="uniform")
    assert not same(run.after, run.before)
    assert all(array.isfinite().all() for array in run.after.values() if array.is_floating_point())


def test_a_poisoned_client_is_refused_and_the_round_goes_on(tmp_path: Path) -> None:
    task, rule = Tiny(poisoned=(2,)), Private(groups=2, min_units=2)
    keeper = central(tmp_path, rule, clients=4, rounds=1)
    run = federate(task, rule, 4, privacy=keeper, weighting="uniform")
    assert all(run.after[name].isfinite().all() for name in TRAINED)


def test_the_run_stops_before_the_budget_is_overdrawn(tmp_path: Path) -> None:
    rule = Private(groups=2, min_units=2)
    keeper = central(tmp_path, rule, clients=6, rounds=2, epsilon=8.0)
    with pytest.raises(BudgetSpent, match="one more release would bring epsilon to"):
        federate(TASK, rule, 6, rounds=5, privacy=keeper, weighting="uniform")
    assert [json.loads(line)["round"] for line in (tmp_path / "privacy.jsonl").read_text().splitlines()] == [1, 2]
    assert keeper.ledger.epsilon() <= 8.0

"""A round's merge where clients may send anything: who is refused, who is scaled down, and what that changes."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import SIZES, Tiny, initial, same
from torch import Tensor

from ist_fed.axes import infer
from ist_fed.errors import ScenarioError
from ist_fed.robust import Keeper, Robust, RobustMerge, check_trust
from ist_fed.rules import Disjoint, Node, Plan
from ist_fed.scenario import load_scenario
from ist_fed.seeds import generator
from ist_fed.subnet import Merge, extract

TASK = Tiny()
AXES = infer(TASK.build, SIZES)
TRAINED = frozenset(name for name, _ in TASK.build(**SIZES).named_parameters())
BEFORE = initial(TASK)
PLAN = Disjoint(groups=2, min_units=2)(1, [Node(id) for id in range(10)], SIZES, generator(0))


def sent(block: int, by: float) -> dict[str, Tensor]:
    """A block whose parameters all moved by so much."""
    part = extract(BEFORE, AXES, PLAN.subnets[block])
    return {name: array + by if name in TRAINED else array.clone() for name, array in part.items()}


def merged(
    settings: Robust,
    replies: Sequence[tuple[int, int, float]],
    usual: float | None = None,
    loss: object = None,
    plan: Plan = PLAN,
) -> tuple[RobustMerge, dict[str, Tensor]]:
    """Replies are client, block and how far it moved."""
    cohorts = {id(units): len(cohort) for units, cohort in zip(plan.subnets, plan.cohorts, strict=True)}
    merge = RobustMerge(settings, BEFORE, AXES, TRAINED, cohorts, usual, loss)  # type: ignore[arg-type]
    for client, block, by in replies:
        merge.add(plan.subnets[block], sent(block, by), 1.0 + client, client)
    return merge, merge.result()


REPLIES = [(client, client % 2, 0.1 + 0.01 * client) for client in range(9)] + [(9, 1, -50.0)]


@pytest.mark.parametrize("settings", [Robust(merge="median"), Robust(merge="trimmed"), Robust(norm_bound=3.0)])
@pytest.mark.parametrize("usual", [None, 0.1])
def test_the_order_of_arrival_does_not_matter(settings: Robust, usual: float | None) -> None:
    merges = [merged(settings, order, usual) for order in (REPLIES, REPLIES[::-1], REPLIES[5:] + REPLIES[:5])]
    for one, other in itertools.pairwise(merges):
        assert same(one[1], other[1])
        assert (one[0].refused, one[0].clipped) == (other[0].refused, other[0].clipped)


def test_the_median_of_a_cohort_is_taken_block_by_block() -> None:
    _, after = merged(Robust(merge="median"), REPLIES)
    moves = {0: 0.14, 1: 0.13}  # of 0.10, 0.12 … 0.18; and of -50, 0.11, 0.13, 0.15 and 0.17
    for block, by in moves.items():
        part, expected = extract(after, AXES, PLAN.subnets[block]), sent(block, by)
        for name in TRAINED:
            if any(dim.axis for dim in AXES[name]):
                assert torch.allclose(part[name], expected[name], atol=1e-6), name
    for name in TRAINED:  # what all share is the mean of the two medians, by weight: 1+3+5+7+9 to 2+4+6+8+10
        if all(dim.axis is None for dim in AXES[name]):
            assert torch.allclose(after[name] - BEFORE[name], torch.tensor((25 * 0.14 + 30 * 0.13) / 55), atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "median", "trimmed"])
def test_where_honest_clients_agree_the_merge_is_the_plain_one(kind: str) -> None:
    plain = Merge(BEFORE, AXES)
    for client in range(10):
        plain.add(PLAN.subnets[client % 2], sent(client % 2, 0.1), 1.0)
    settings = Robust(merge=kind, norm_bound=2.0)  # type: ignore[arg-type]
    assert same(merged(settings, [(client, client % 2, 0.1) for client in range(10)])[1], plain.result())


def test_what_nobody_sent_keeps_its_bits() -> None:
    _, after = merged(Robust(merge="median"), [(client, 0, 0.1) for client in (0, 2, 4)])
    part = extract(after, AXES, PLAN.subnets[1])
    for name, array in sent(1, 0.0).items():
        if any(dim.axis for dim in AXES[name]):
            assert torch.equal(part[name], array), name


# --- Lengths ----------------------------------------------------------------------------------------------------------


def test_a_long_update_is_scaled_down_and_a_very_long_one_refused() -> None:
    replies = [(0, 0, 0.1), (2, 0, -0.8), (4, 0, 1.2)]
    merge, after = merged(Robust(norm_bound=3.0), replies, usual=0.1)
    assert merge.clipped == {2: pytest.approx(8.0, rel=1e-4)}
    assert set(merge.refused) == {4}
    assert "12 times as long as is usual" in merge.refused[4]
    assert merge.lengths == {0: pytest.approx(0.1, rel=1e-4), 2: pytest.approx(0.3, rel=1e-4)}
    part, mean = extract(after, AXES, PLAN.subnets[0]), (1 * 0.1 + 3 * -0.3) / 4  # by weight
    for name in TRAINED:
        assert torch.allclose(part[name], sent(0, mean)[name], atol=1e-5), name


def test_the_first_round_compares_with_itself() -> None:
    merge, _ = merged(Robust(norm_bound=3.0), REPLIES)
    assert set(merge.refused) == {9}
    merge, _ = merged(Robust(norm_bound=3.0), [(0, 0, 0.1), (9, 1, -50.0)])  # two say nothing about each other
    assert not merge.refused


def test_what_is_usual_follows_the_rounds_and_is_found_again_in_their_lines() -> None:
    keeper, lines = Keeper(Robust(norm_bound=3.0)), []
    for size in (1.0, 0.5, 0.25, 0.125, 0.1, 0.1):
        merge = keeper.merge(BEFORE, AXES, PLAN, TRAINED)
        for client in range(10):
            merge.add(PLAN.subnets[client % 2], sent(client % 2, size), 1.0, client)
        merge.result()
        assert not merge.refused
        lines.append(keeper.learn(merge))
    resumed = Keeper(Robust(norm_bound=3.0))
    for line in lines:
        resumed.resume(line)
    for each in (keeper, resumed):
        merge = each.merge(BEFORE, AXES, PLAN, TRAINED)
        for client, by in ((0, 1.0), (2, 1.3)):  # 8 and 10.4 times the median of 0.5, 0.25, 0.125, 0.1 and 0.1
            merge.add(PLAN.subnets[0], sent(0, by), 1.0, client)
        merge.result()
        assert (list(merge.clipped), list(merge.refused)) == ([0], [2])


def test_what_is_not_finite_is_refused_and_counts_for_nothing() -> None:
    plan = replace(PLAN)
    cohorts = {id(units): len(cohort) for units, cohort in zip(plan.subnets, plan.cohorts, strict=True)}
    for settings in (Robust(merge="median"), Robust(norm_bound=3.0)):
        merge = RobustMerge(settings, BEFORE, AXES, TRAINED, cohorts)
        for client in (0, 2, 4, 6):
            merge.add(plan.subnets[0], sent(0, 0.1 if client else float("nan")), 1.0, client)
        after = merge.result()
        assert set(merge.refused) == {0}
        assert same(after, merged(settings, [(client, 0, 0.1) for client in (2, 4, 6)])[1])


# --- Without a block --------------------------------------------------------------------------------------------------


def held_out(arrays: dict[str, Tensor]) -> float:
    """A loss that falls as the first block moves up, and rises as the second does."""
    return 10.0 - sum(
        sign * float((extract(arrays, AXES, units)[name] - sent(block, 0.0)[name]).mean())
        for name in ("2.weight", "4.weight", "0.weight")
        if name in TRAINED
        for block, (sign, units) in enumerate(zip((1.0, -1.0), PLAN.subnets, strict=True))
    )


def test_a_block_that_makes_the_network_worse_is_left_out() -> None:
    replies = [(client, client % 2, 1.0) for client in range(10)]
    merge, after = merged(Robust(loss_margin=0.01), replies, loss=held_out)
    assert set(merge.refused) == {1, 3, 5, 7, 9}
    assert same(after, merged(Robust(norm_bound=9.0), replies[::2], usual=1.0)[1])
    assert [id(units) for units in merge.held] == [id(PLAN.subnets[0])]
    merge, after = merged(Robust(loss_margin=10.0), replies, loss=held_out)
    assert not merge.refused


def test_losses_that_are_no_numbers_are_worse_than_any() -> None:
    def broken(arrays: dict[str, Tensor]) -> float:
        return float("nan") if held_out(arrays) > held_out(BEFORE) else 1.0

    replies = [(0, 0, 1.0), (1, 1, 3.0)]
    assert set(merged(Robust(loss_margin=0.01), replies, loss=broken)[0].refused) == {1}


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["central", "secure"])
def test_privacy_and_robust_merging_do_not_go_together(mode: str) -> None:
    with pytest.raises(ValueError, match="nobody's shows, so none can be outvoted"):
        check_trust(Robust(merge="median"), mode)
    check_trust(Robust(), mode)


def test_a_scenario_refuses_what_makes_no_sense() -> None:
    for setting, said in (
        ("robust.merge=medium", "one of 'mean', 'median', 'trimmed'"),
        ("robust.trim=0.5", "cut at either end"),
        ("robust.norm_bound=0.5", "from 1 to 10 times"),
        ("robust.loss_margin=-1.0", "not negative"),
        ("robust.merg=median", "did you mean 'merge'"),
    ):
        with pytest.raises(ScenarioError, match=said):
            load_scenario("scenarios/digits.toml", [setting])
    overrides = ["robust.merge=median", "privacy.mode=central", "privacy.epsilon=4.0", "round.weighting=uniform"]
    with pytest.raises(ScenarioError, match="drop \\[robust\\]"):
        load_scenario("scenarios/digits.toml", overrides)


def test_a_margin_of_the_loss_needs_examples_on_the_server() -> None:
    with pytest.raises(ScenarioError, match="calibration_data"):
        Keeper(Robust(loss_margin=0.1))

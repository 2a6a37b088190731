"""Secure rounds in this process train all members as one computation; each then hides what it would have trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from ist_fed import rules, wire
from ist_fed.arrays import Arrays
from ist_fed.axes import infer
from ist_fed.cohort import Assignment
from ist_fed.engines.local import LocalGrid
from ist_fed.pki.signing import signers_of_one_run
from ist_fed.privacy.secure import Grid, Member, Secure
from ist_fed.privacy.secure import messages as say
from ist_fed.subnet import extract
from ist_fed.train import Training
from ist_fed.updates import moved
from ist_fed.worker import Worker

CLIENTS, ROUNDS = 12, 2
COHORTS = rules.Disjoint(groups=2, min_units=2)
CPU = torch.device("cpu")


class Seen(Member):
    """Remembers what it hid, and on what terms."""

    def receive(self, boxes: say.Boxes, *, model: bytes, order: bytes) -> say.Terms:
        self.terms = super().receive(boxes, model=model, order=order)
        return self.terms

    def mask(self, values: np.ndarray) -> say.Masked:
        self.values = values.copy()
        return super().mask(values)


class Counted(Worker):
    """Counts how often it trains by itself."""

    alone = 0

    def local_steps(self, model: nn.Module, training: Training, **how: Any) -> tuple[float, float]:
        self.alone += 1
        return super().local_steps(model, training, **how)


class Members(LocalGrid):
    """The clients, all of them members, and a look at each."""

    def __init__(self, task: tiny.Tiny, **options: Any) -> None:
        self.task, signer = task, signers_of_one_run()
        self.members = [Seen(signer(f"client{client}")) for client in range(CLIENTS)]
        self.workers = [
            Counted(task, task.client_data(client, CLIENTS), client=client, member=self.members[client])
            for client in range(CLIENTS)
        ]
        super().__init__(CLIENTS, self.workers.__getitem__, task, CPU, **options)

    @property
    def alone(self) -> int:
        return sum(worker.alone for worker in self.workers)


def run(grid: Members, rounds: int = ROUNDS) -> tiny.Run:
    spy, reports = tiny.Spy(COHORTS), []
    secure = Secure(clip=5.0)
    strategy = tiny.strategy(grid.task, spy, weighting="uniform", on_round=reports.append, secure=secure)
    before = tiny.initial(grid.task)
    strategy.start(grid, wire.to_record(before), rounds, 60)
    return tiny.Run(strategy, spy.plans, reports, before)


def furthest(one: Arrays, other: Arrays) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("way", ["stacked", "factored", None])
def test_together_is_one_by_one(way: str | None, caplog: pytest.LogCaptureFixture) -> None:
    one, apart = Members(tiny.Tiny(), only="one by one"), Members(tiny.Tiny(), only=way)
    plain = run(one)
    with caplog.at_level(logging.INFO, "ist_fed.engine"):
        secret = run(apart)
    assert furthest(plain.after, plain.before) > 0
    assert furthest(secret.after, plain.after) < 2e-6
    assert [report.merged for report in secret.reports] == [CLIENTS] * ROUNDS
    assert (one.alone, apart.alone) == (CLIENTS * ROUNDS, 0)
    assert f"train {way or 'stacked'}, up to" in caplog.text


def test_chunks_do_not_change_what_is_hidden() -> None:
    whole, few = Members(tiny.Tiny(), only="stacked"), Members(tiny.Tiny(), only="stacked", memory=1)
    assert furthest(run(whole).after, run(few).after) < 2e-6
    assert few.alone == 0


def test_the_sum_is_exactly_that_of_what_was_hidden() -> None:
    grid = Members(tiny.Tiny())
    made = run(grid, rounds=1)
    axes = infer(tiny.Tiny().build, tiny.SIZES)
    names = [name for name, _ in tiny.Tiny().build(**tiny.SIZES).named_parameters()]
    for units, cohort in zip(made.plans[0].subnets, made.plans[0].cohorts, strict=True):
        terms = grid.members[cohort[0]].terms
        points = Grid(step=terms.grid, clip=terms.clip, length=terms.length, variance=terms.variance, bound=terms.bound)
        total = np.sum([grid.members[node].values for node in cohort], axis=0)
        expected = moved(extract(made.before, axes, units), names, points.mean(total, len(cohort)))
        after = extract(made.after, axes, units)
        own = [name for name in names if any(dim.axis for dim in axes[name])]
        assert len(own) == len(names) - 1  # what no axis splits both cohorts have trained
        assert all(torch.equal(after[name], expected[name]) for name in own)


@pytest.mark.parametrize("way", ["one by one", "stacked", "factored"])
def test_a_client_that_cannot_train_adds_zero_and_the_others_are_not_touched(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    members = Members(tiny.Tiny(poisoned=(3,)), only=way)
    made = run(members, rounds=1)
    assert (made.reports[0].merged, made.reports[0].refused) == (CLIENTS, ())
    assert [node for node, member in enumerate(members.members) if not member.values.any()] == [3]
    assert "the loss must stay finite" in caplog.text
    clean = run(Members(tiny.Tiny(poisoned=(3,)), only="one by one"), rounds=1)
    assert furthest(made.after, clean.after) < 2e-6


def test_what_cannot_be_trained_together_is_trained_alone() -> None:
    grid = Members(tiny.Tiny(dropout=0.3))
    assert run(grid, rounds=1).reports[0].merged == CLIENTS
    assert grid.alone == CLIENTS


# --- What a member is handed ------------------------------------------------------------------------------------------


class Meddling(Members):
    """Trains ahead something else than what the messages will say."""

    changed: Mapping[str, Any] = {}

    def train_ahead(self, assignments: Sequence[Assignment]) -> None:
        super().train_ahead([replace(asked, **self.other(asked)) for asked in assignments])

    def other(self, asked: Assignment) -> dict[str, Any]:
        return dict(self.changed) or {"arrays": _nudged(asked.arrays)}


def _nudged(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One number is another."""
    nudged = {name: array.clone() for name, array in arrays.items()}
    nudged["1.weight"].view(-1)[0] += 1e-3
    return nudged


@pytest.mark.parametrize("changed", [{}, {"lr": 0.3}, {"local_steps": 4}, {"seed": 9}, {"round": 7}])
def test_a_member_takes_only_what_was_trained_as_announced(changed: dict[str, Any]) -> None:
    """From other weights, or by another order: it trains by itself then, and hides that."""
    grid = Meddling(tiny.Tiny())
    grid.changed = changed
    made = run(grid)
    assert grid.alone == CLIENTS * ROUNDS
    assert tiny.same(made.after, run(Members(tiny.Tiny(), only="one by one")).after)


def test_nothing_is_kept_for_another_round() -> None:
    grid = Members(tiny.Tiny())
    run(grid, rounds=1)
    assert all(worker.ahead is None for worker in grid.workers)

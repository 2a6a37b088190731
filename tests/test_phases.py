"""Phases: which one a round belongs to, what it changes, and that a resumed run goes on in the right one."""

from collections.abc import Mapping
from dataclasses import replace
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from ist_fed import rules, wire
from ist_fed.cli.inspect import describe_scenario
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import one_by_one
from ist_fed.errors import RoundError, ScenarioError
from ist_fed.phases import Course, Phase, Stretch, Terms
from ist_fed.report import write_report
from ist_fed.round import RoundReport
from ist_fed.run import Run
from ist_fed.scenario import parse_scenario
from ist_fed.train import Training
from ist_fed.worker import Worker

PLAIN = Terms(rule=rules.Full(), local_steps=5, training=Training())
HALVES = rules.Disjoint(groups=2, min_units=1)
SMALL = Training(lr=0.02, batch_size=4)


def numbers(course: Course, rounds: int) -> list[int]:
    return [course.number(round, rounds) for round in range(1, rounds + 1)]


# --- Which phase a round belongs to -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], [1, 1, 1, 1, 1, 1]),
        ([0], [1, 1, 1, 1, 1, 1]),
        ([2, 0, 1], [1, 1, 2, 2, 2, 3]),
        ([0, 2], [1, 1, 1, 1, 2, 2]),
        ([2, 0], [1, 1, 2, 2, 2, 2]),
        ([1, 2], [1, 2, 2, 2, 2, 2]),
        ([3, 0, 3], [1, 1, 1, 3, 3, 3]),
    ],
)
def test_one_phase_takes_what_the_others_leave(lengths: list[int], expected: list[int]) -> None:
    assert numbers(Course([Phase(rounds=length) for length in lengths], PLAIN), 6) == expected


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    ends=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_a_phase_ends_at_its_last_round_or_when_its_metric_is_reached(lengths: list[int], ends: list[bool]) -> None:
    """Against a walk through the rounds that remembers where it is; told again after a restart, it is the same."""
    course = Course([Phase(rounds=length, until={"accuracy": 0.9}) for length in lengths], PLAIN)
    walked, phase, left = [], 1, lengths[0]
    for round, end in enumerate(ends, 1):
        walked.append(phase)
        assert course.number(round, 12) == phase
        course.after(round, 12, {"accuracy": 0.95 if end else 0.5})
        left -= 1
        if (end or not left) and phase < len(lengths):
            phase, left = phase + 1, lengths[phase]
    assert numbers(course, 12) == walked
    again = Course(course.phases, PLAIN)
    for round, end in enumerate(ends, 1):
        again.after(round, 12, {"accuracy": 0.95 if end else 0.5})
    assert numbers(again, 12) == walked
    again.rewind(1)
    assert numbers(again, 12) == numbers(Course(course.phases, PLAIN), 12)


def test_a_loss_is_reached_from_above_and_all_metrics_must_be() -> None:
    course = Course([Phase(rounds=9, until={"loss": 0.5, "coverage": 0.9}), Phase()], PLAIN)
    course.after(1, 20, {"loss": 0.6, "coverage": 0.95})
    course.after(2, 20, {"loss": 0.4, "coverage": 0.5})
    course.after(3, 20, {"loss": None, "coverage": 0.95})
    assert course.number(4, 20) == 1
    course.after(4, 20, {"coverage": 0.95})
    course.after(4, 20, {"loss": 0.5})  # the rest, once it is evaluated
    assert [course.number(round, 20) for round in (4, 5)] == [1, 2]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="one phase at most may leave its rounds out"):
        Course([Phase(), Phase()], PLAIN)
    with pytest.raises(ValueError, match="must not be negative, but is -1; 0 is what the others leave"):
        Phase(rounds=-1)
    with pytest.raises(ValueError, match="local_steps of a phase must be at least 1, but is 0"):
        Phase(local_steps=0)
    with pytest.raises(ValueError, match=r"until.accuracy must be a finite number, but is nan"):
        Phase(until={"accuracy": float("nan")})


# --- What it changes --------------------------------------------------------------------------------------------------


def test_one_phase_is_as_none() -> None:
    plain = tiny.federate(tiny.Tiny(), HALVES, 3, rounds=2)
    assert tiny.same(plain.after, tiny.federate(tiny.Tiny(), HALVES, 3, rounds=2, phases=[Phase()]).after)


def test_phases_are_runs_one_after_another() -> None:
    """Each with rule, steps and training of its own; so also an oracle for the numbers of rounds that draws follow."""
    task, before = tiny.Tiny(), tiny.initial(tiny.Tiny())
    phases = [Phase(rounds=1), Phase(rule=HALVES, local_steps=3, training=SMALL), Phase(rounds=2, local_steps=2)]
    whole = tiny.federate(task, rules.Full(), 3, rounds=5, phases=phases)
    arrays: dict[str, torch.Tensor] = before
    for first, last, rule, steps, training in [
        (1, 1, rules.Full(), 5, tiny.TRAINING),
        (2, 3, HALVES, 3, SMALL),
        (4, 5, rules.Full(), 2, tiny.TRAINING),
    ]:
        reports: list[RoundReport] = []
        made = tiny.strategy(task, rule, local_steps=steps, training=training, on_round=reports.append)
        grid = InProcessGrid(3, tiny.handlers(task, 3))
        made.start(grid, wire.to_record(arrays), last, first_round=first)
        arrays = reports[-1].arrays
    assert tiny.same(whole.after, arrays)


def test_engines_agree_to_the_bit() -> None:
    task, phases = tiny.Tiny(), [Phase(rounds=1), Phase(rule=HALVES, training=SMALL), Phase(rounds=1, local_steps=2)]
    reports = runs.train_on(runs.local_grid(task, 3), task, rules.Full(), 4, phases=phases)
    packed = tiny.federate(task, rules.Full(), 3, rounds=4, phases=phases)
    assert all(tiny.same(one.arrays, other.arrays) for one, other in zip(reports, packed.reports, strict=True))


def test_a_schedule_counts_the_rounds_of_the_whole_run() -> None:
    rates = []

    def watching(worker: Worker, message: Message) -> Message:
        rates.append(wire.open_order(message).lr)
        return worker.train(message)

    halved = Phase(rounds=2, training=replace(tiny.TRAINING, lr=0.05, schedule="cosine"))
    cosine = replace(tiny.TRAINING, schedule="cosine")
    tiny.federate(
        tiny.Tiny(), rules.Full(), 1, rounds=4, training=cosine, phases=[Phase(), halved], instead={0: watching}
    )
    full, half = 0.1, 0.05
    assert rates == pytest.approx([lr * (1 + cos(pi * n / 4)) / 2 for n, lr in enumerate([full, full, half, half])])


@pytest.mark.parametrize("through", ["evaluate_fn", "on_round"])
def test_until_reads_what_the_strategy_is_told(through: str) -> None:
    task, steps = tiny.Tiny(), []

    def watching(worker: Worker, message: Message) -> Message:
        steps.append(wire.open_order(message).local_steps)
        return worker.train(message)

    def after_round(report: RoundReport) -> Mapping[str, float] | None:
        return {"accuracy": report.round / 10} if through == "on_round" else None

    def evaluated(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return MetricRecord({"accuracy": round / 10}) if through == "evaluate_fn" else None

    phases = [Phase(rounds=4, until={"accuracy": 0.2, "coverage": 1.0}, local_steps=1), Phase(local_steps=2)]
    made = tiny.strategy(task, rules.Full(), phases=phases, on_round=after_round)
    grid = InProcessGrid(1, tiny.handlers(task, 1, {0: watching}))
    made.start(grid, wire.to_record(tiny.initial(task)), 4, evaluate_fn=evaluated)
    assert steps == [1, 1, 2, 2]


def test_flowers_hooks_know_no_number_of_rounds() -> None:
    task = tiny.Tiny()
    grid = InProcessGrid(2, tiny.handlers(task, 2))
    record = wire.to_record(tiny.initial(task))
    made = tiny.strategy(task, HALVES, phases=[Phase(), Phase(rounds=1)])
    with pytest.raises(RoundError, match="phase 1 takes the rounds that the others leave, so the number of rounds"):
        made.configure_train(1, record, ConfigRecord(), grid)
    made = tiny.strategy(task, HALVES, phases=[Phase(rounds=1), Phase(rule=rules.Full())])
    sizes = [
        wire.open_order(made.configure_train(round, record, ConfigRecord(), grid)[0]).sizes["hidden1"]
        for round in (1, 2)
    ]
    assert sizes == [6, 12]


# --- A scenario -------------------------------------------------------------------------------------------------------

SCENARIO = replace(
    runs.DIGITS,
    rounds=6,
    local_steps=3,
    phases=(
        Stretch(rounds=4, until={"accuracy": 0.25}, rule={"name": "full"}, training={"lr": 0.05}),
        Stretch(rounds=1, rule={"min_units": 1}),
        Stretch(rule={"name": "full"}, local_steps=1),
    ),
)
TOML = """
name = "x"
task = "digits"
rounds = 6
sizes = { hidden1 = 32 }
rule = { name = "disjoint", groups = 2 }

[[phases]]
rounds = 2
until = { accuracy = 1 }
rule = { name = "full" }

[[phases]]
training = { lr = 0.01, schedule = "cosine" }
local_steps = 7
rule = { groups = 4 }
"""


def test_the_tables_of_a_scenario() -> None:
    scenario = parse_scenario(TOML)
    assert parse_scenario(scenario.to_toml()) == scenario
    assert parse_scenario(SCENARIO.to_toml()) == SCENARIO
    assert scenario.make_phases() == (
        Phase(rounds=2, until={"accuracy": 1.0}, rule=rules.Full(), local_steps=40, training=Training()),
        Phase(rule=rules.Disjoint(groups=4), local_steps=7, training=Training(lr=0.01, schedule="cosine")),
    )
    assert parse_scenario(TOML, ["phases=[]"]).make_phases() == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr = 0.01", "lrr = 0.01", r"there is no key 'phases\[2\].training.lrr'; did you mean 'lr'"),
        ("lr = 0.01", "lr = 0.0", r"\[phases\[2\].training\] lr must be positive, but is 0"),
        ("groups = 4", "group = 4", "there is no key 'rule.group' of rule 'disjoint'; did you mean 'groups'"),
        ("until", "untl", r"there is no key 'phases\[1\].untl'; did you mean 'until'"),
        ("rounds = 2", "", "one of .*phases.* at most may leave its rounds out"),
        ("rounds = 2", "rounds = 7", "must fit into rounds, 6, but are 7"),
        ("rounds = 2", "rounds = -2", r"\[phases\[1\]\] rounds of a phase must not be negative"),
        ("local_steps = 7", "local_steps = -7", r"\[phases\[2\]\] local_steps of a phase must be at least 1"),
        ("accuracy = 1", 'accuracy = "1"', r"'phases\[1\].until.accuracy' must be a number"),
        ("[[phases]]\nrounds = 2", "[phases]\nrounds = 2", "Cannot|must be a list of tables, each written .*phases"),
    ],
)
def test_a_table_that_is_wrong(old: str, new: str, said: str) -> None:
    assert old in TOML
    with pytest.raises(ScenarioError, match=said):
        parse_scenario(TOML.replace(old, new, 1))


def test_until_something_that_nobody_measures(tmp_path: Path) -> None:
    odd = replace(SCENARIO, phases=(Stretch(rounds=1, until={"acuracy": 0.5}),))
    with pytest.raises(ScenarioError, match="'acuracy' is none; did you mean 'accuracy'"):
        one_by_one(Run.create(tmp_path / "odd", odd))


# --- Law 11: resume ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runs.whole(tmp_path_factory.mktemp("runs") / "whole", SCENARIO)


def test_the_lines_say_the_phase(whole: Run) -> None:
    phases = [line["phase"] for line in whole.metrics()]
    ended = next(line["round"] for line in whole.metrics() if line["accuracy"] >= 0.25)
    assert ended < 4  # else this tests nothing
    assert phases == [1] * ended + [2] + [3] * (5 - ended)
    assert [line["lr"] for line in whole.metrics()] == [0.05] * ended + [0.1] * (6 - ended)
    assert (whole.metrics()[0]["bytes_down"] > 1.5 * whole.metrics()[ended]["bytes_down"]) is True


@pytest.mark.parametrize("stop", range(1, 6))
def test_resume(tmp_path: Path, whole: Run, stop: int) -> None:
    run = runs.resumed(tmp_path / "run", SCENARIO, stop)
    assert tiny.same(runs.model_of(run), runs.model_of(whole))
    kept = [{key: line[key] for key in ("round", "phase", "accuracy", "lr", "coverage")} for line in run.metrics()]
    assert kept == [{key: line[key] for key in kept[0]} for line in whole.metrics()]


# --- What is shown of it ----------------------------------------------------------------------------------------------


def test_the_report_draws_the_plans_of_each_phase_and_names_them(whole: Run) -> None:
    text = write_report(whole).read_text()
    assert "went through phases" in text
    assert "disjoint (groups 2, min_units 1)" in text


def test_inspect_says_what_each_phase_would_cost() -> None:
    facts: dict[str, Any] = describe_scenario(SCENARIO)
    assert [phase["rounds"] for phase in facts["phases"]] == [[1, 4], [5, 5], [6, 6]]
    bytes_of = [phase["subnets"][0]["bytes"] for phase in facts["phases"]]
    assert bytes_of[0] == bytes_of[2] == facts["full"]["bytes"] > bytes_of[1]
    assert describe_scenario(replace(SCENARIO, phases=()))["phases"] == []

"""Rounds in place: the bits of any other round, one subnet in memory at a time, and what a failure leaves."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from flwr.app import Message
from safetensors.torch import load_file
from test_federation import SCENARIO, rounds
from torch import Tensor

from ist_fed import rules, wire
from ist_fed.cohort import Assignment, Outcome
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.engines.local import LocalGrid
from ist_fed.engines.local import one_by_one as simulate
from ist_fed.errors import Interrupted, RoundError, RunError, ScenarioError
from ist_fed.federation.recorder import Recorder
from ist_fed.run import Run
from ist_fed.scenario import Rounds, parse_scenario
from ist_fed.server_optimizer import ServerOptimizer
from ist_fed.worker import Worker

QUARTERS = rules.Disjoint(groups=4, min_units=2)
IN_PLACE = replace(SCENARIO, round=Rounds(in_place=True))


class Local(LocalGrid):
    """Clients that are given their subnets one by one; notes how many at once, and which subnets still are there."""

    asked: list[int]
    alive: list[int]

    def carry_out(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        self.seen = [*vars(self).get("seen", []), *map(weakref.ref, assignments)]
        type(self).asked.append(len(assignments))
        type(self).alive.append(sum(seen() is not None for seen in self.seen))
        yield from super().carry_out(assignments)


def direct(task: tiny.Tiny, make: Callable[[int], Any]) -> Local:
    Local.asked, Local.alive = [], []
    return Local(4, make, task, torch.device("cpu"), only="one by one")


class Pushed(InProcessGrid):
    """Notes how many messages are pushed at once."""

    orders: list[int]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        if messages[0].metadata.message_type == "train":
            type(self).orders.append(len(messages))
        return super().push_messages(messages)


def by_message(task: tiny.Tiny, make: Callable[[int], Any]) -> Pushed:
    Pushed.orders = []
    return Pushed(4, make)


def workers(task: tiny.Tiny, failing: Sequence[int] = ()) -> Callable[[int], Worker]:
    def make(client: int) -> Worker:
        worker = Worker(task, task.client_data(client, 4), client=client)
        if client in failing:
            worker.local_steps = raises(ZeroDivisionError("broken"))
        return worker

    return make


def raises(error: BaseException) -> Callable[..., Any]:
    def always(*_: object, **__: object) -> Any:
        raise error.with_traceback(None)  # which would grow with every client else

    return always


def trained(grid: Callable[..., Any], task: tiny.Tiny, failing: Sequence[int] = (), **options: Any) -> list[Any]:
    reports: list[Any] = []

    def note(report: Any) -> None:
        reports.append(replace(report, arrays={name: array.clone() for name, array in report.arrays.items()}))

    made = tiny.strategy(task, options.pop("rule", QUARTERS), on_round=note, **options)
    made.start(grid(task, workers(task, failing)), wire.to_record(tiny.initial(task)), 3)
    return reports


@pytest.mark.parametrize("grid", [direct, by_message])
@pytest.mark.parametrize("failing", [(), (2,)])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_every_round_has_the_same_bits(grid: Callable[..., Any], norm: str, failing: Sequence[int]) -> None:
    task = tiny.Tiny(norm=norm)
    plain, in_place = (trained(grid, task, failing, in_place=in_place) for in_place in (False, True))
    for one, other in zip(plain, in_place, strict=True):
        assert tiny.same(one.arrays, other.arrays)
        assert replace(one, arrays={}, seconds={}) == replace(other, arrays={}, seconds={})
        assert len(one.refused) == len(failing)


def test_the_traceback_of_many_clients_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = trained(direct, tiny.Tiny(), failing=(1, 2))
    assert [len(report.refused) for report in reports] == [2, 2, 2]
    assert sum("could not train" in record.getMessage() for record in caplog.records) == 1


def test_a_subnet_is_cut_when_its_client_s_turn_comes_and_not_kept() -> None:
    trained(direct, tiny.Tiny(), in_place=True)
    assert Local.asked == [1] * 12
    assert Local.alive == [1] * 12
    trained(direct, tiny.Tiny())
    assert Local.asked == [4] * 3


def test_messages_are_pushed_one_by_one() -> None:
    for in_place, expected in ((True, [1] * 12), (False, [4] * 3)):
        trained(by_message, tiny.Tiny(), in_place=in_place)
        assert Pushed.orders == expected


def test_the_network_is_written_over_and_the_state_before_is_gone() -> None:
    pointers: list[dict[str, int]] = []
    kept: list[dict[str, Tensor]] = []

    def note(report: Any) -> None:
        assert not any(kept)
        kept.append(report.arrays)
        pointers.append({name: array.data_ptr() for name, array in report.arrays.items() if array.ndim == 2})

    made = tiny.strategy(tiny.Tiny(), QUARTERS, on_round=note, in_place=True)
    made.start(direct(tiny.Tiny(), workers(tiny.Tiny())), wire.to_record(tiny.initial(tiny.Tiny())), 3)
    assert pointers[0] == pointers[1] == pointers[2]


@pytest.mark.parametrize(
    "rule", [rules.Disjoint(groups=2, min_units=2), rules.Full(), rules.Independent(min_units=2)], ids=str
)
def test_where_clients_share_units_a_round_is_as_ever(rule: rules.Rule) -> None:
    plain, in_place = (trained(direct, tiny.Tiny(), rule=rule, in_place=in_place) for in_place in (False, True))
    assert tiny.same(plain[-1].arrays, in_place[-1].arrays)
    assert Local.asked[-1] > 1 or isinstance(rule, rules.Full)


def test_a_server_optimiser_needs_the_network_as_it_was() -> None:
    with pytest.raises(ValueError, match="in_place keeps no network as it was"):
        tiny.strategy(tiny.Tiny(), QUARTERS, in_place=True, server_optimizer=ServerOptimizer(optimizer="adam"))
    text = SCENARIO.to_toml().replace("in_place = false", "in_place = true")
    assert parse_scenario(text).round.in_place
    with pytest.raises(ScenarioError, match=r"round.in_place keeps no network as it was"):
        parse_scenario(text, ['server.optimizer="momentum"'])


# --- Law 11: resume, when a round fails in the middle -----------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.create(tmp_path_factory.mktemp("runs") / "whole", SCENARIO)
    simulate(run)
    return run


def created(tmp_path: Path, every: int) -> Run:
    record = replace(SCENARIO.record, checkpoint_every=every)
    return Run.create(tmp_path / "run", replace(IN_PLACE, record=record))


def same_model(one: Run, other: Run) -> bool:
    return tiny.same(*(load_file(run.folder / "model.safetensors") for run in (one, other)))


def fail_in(monkeypatch: pytest.MonkeyPatch, round: int, error: BaseException) -> None:
    """When the second client is to train, and the first one's subnet is merged."""
    local_steps = Worker.local_steps

    def steps(self: Worker, *arguments: Any, **options: Any) -> Any:
        if options["round"] == round and self._profile.client == 1:
            raise error
        return local_steps(self, *arguments, **options)

    monkeypatch.setattr(Worker, "local_steps", steps)


def test_a_run_in_place_ends_as_any_other(tmp_path: Path, whole: Run) -> None:
    run = created(tmp_path, every=1)
    simulate(run)
    assert same_model(run, whole)
    assert tiny.same(run.restore().arrays, whole.restore().arrays)


@pytest.mark.parametrize(("every", "saved"), [(1, 3), (2, 2), (3, 3)])
def test_a_run_that_ends_within_a_round_goes_on_from_its_last_checkpoint(
    tmp_path: Path, whole: Run, every: int, saved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = created(tmp_path, every)
    fail_in(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(Interrupted, match=f"stopped after round {saved} of 4; its state is saved"):
        simulate(run)
    monkeypatch.undo()
    assert rounds(run) == [1, 2, 3]
    simulate(run, resume=True)
    assert rounds(run) == [1, 2, 3, 4]
    assert same_model(run, whole)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = created(tmp_path, every=10)
    fail_in(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(Interrupted, match="nothing to resume"):
        simulate(run)
    assert not run.has_checkpoint()


def test_too_few_replies_save_nothing_of_their_round(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = created(tmp_path, every=2)
    run.scenario = replace(run.scenario, round=Rounds(in_place=True, min_replies=2))
    fail_in(monkeypatch, 4, ZeroDivisionError("broken"))
    with pytest.raises(RoundError, match="usable replies, at least 2, but 1 of 2"):
        simulate(run)
    monkeypatch.undo()
    assert run.restore().round == 2
    simulate(run, resume=True)
    assert same_model(run, whole)


def test_what_fails_between_a_round_and_its_line_saves_nothing_of_it(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, line = created(tmp_path, every=2), Recorder._line

    def broken(self: Any, report: Any, *more: Any) -> Any:
        if report.round == 4:
            raise RunError("the disk is full")
        return line(self, report, *more)

    monkeypatch.setattr(Recorder, "_line", broken)
    with pytest.raises(RunError, match="the disk is full"):
        simulate(run)
    monkeypatch.undo()
    assert run.restore().round == 2
    simulate(run, resume=True)
    assert same_model(run, whole)


def test_a_run_that_is_asked_to_stop_saves_its_last_round(tmp_path: Path, whole: Run) -> None:
    run = created(tmp_path, every=10)
    with pytest.raises(Interrupted, match="stopped after round 3 of 4"):
        simulate(run, on_line=lambda line: run.ask_to_stop(line["round"] == 3))
    assert run.restore().round == 3
    simulate(run, resume=True)
    assert same_model(run, whole)


def test_what_is_evaluated_are_the_arrays_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, seen = Recorder._served, []

    def look(self: Any, arrays: dict[str, Tensor]) -> Any:
        model = served(self, arrays)
        seen.append({name: parameter.data_ptr() for name, parameter in model.named_parameters()})
        assert all(arrays[name].data_ptr() == at for name, at in seen[-1].items())
        return model

    monkeypatch.setattr(Recorder, "_served", look)
    simulate(created(tmp_path, every=1))
    assert len(seen) == 5

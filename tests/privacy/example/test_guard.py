"""What a client spends on its examples is counted before it is spent, over rounds, runs and restarts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from tiny import INPUTS, SIZES, TRAINING, Tiny, federate, initial, same
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from client.data import guard_of
from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.engines import local
from ist_fed.engines.inprocess import InProcessGrid
from ist_fed.errors import IstFedError, PrivacyError, RunError, ScenarioError
from ist_fed.privacy.example import ExamplePrivacy, Guard, Spent
from ist_fed.privacy.example.spent import Steps
from ist_fed.privacy.tally import Tally
from ist_fed.rules import Disjoint
from ist_fed.run import Run
from ist_fed.scenario import Scenario, load_scenario
from ist_fed.tasks import Batch
from ist_fed.train import Training
from ist_fed.worker import Worker

TASK = Tiny(norm="layer")
DATA = TASK.client_data(0, 1)
RATE = 8 / 30  # of 30 examples in batches of 8
SETTINGS = ExamplePrivacy(max_grad_norm=1.0, noise_multiplier=1.1)


def network(task: Tiny = TASK) -> nn.Module:
    model = task.build(**SIZES)
    load_arrays(model, initial(task))
    return model


def guard(path: Path, settings: ExamplePrivacy = SETTINGS, tell: bool = False) -> Guard:
    return Guard(settings, path / "spent.jsonl", client=3, planned=20, batch_size=8, tell=tell)


def trained(asked: Guard, round: int, steps: int = 5, task: Tiny = TASK) -> nn.Module:
    model = network(task)
    asked.train(model, task, DATA, TRAINING, lr=0.1, steps=steps, round=round)
    return model


def opacus(steps: int, noise: float = 1.1) -> float:
    """As its accountant counts one step after another."""
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=RATE)
    return accountant.get_epsilon(delta=1e-5)


def test_epsilon_is_opacus_own_and_grows_with_each_round(tmp_path: Path) -> None:
    asked = guard(tmp_path, tell=True)
    for round in (1, 2):
        trained(asked, round)
        assert asked.told == pytest.approx(opacus(5 * round), rel=1e-9)
    assert Spent(tmp_path / "spent.jsonl", 1e-5).epsilon() == pytest.approx(opacus(10), rel=1e-9)


def test_a_restart_goes_on_counting(tmp_path: Path) -> None:
    trained(guard(tmp_path), 1)
    asked = guard(tmp_path, tell=True)
    trained(asked, 1)  # the same round, asked for again
    assert asked.told == pytest.approx(opacus(10), rel=1e-9)


def test_two_processes_do_not_both_get_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other counts its round at the worst moment: when this one has been asked, and before it has written."""
    left = replace(SETTINGS, epsilon=1.001 * opacus(5))
    one, other, add = guard(tmp_path, left), guard(tmp_path, left), Tally.add

    def late(tally: Tally, *args: Any) -> None:
        with monkeypatch.context() as undone:
            undone.setattr(Tally, "add", add)
            trained(other, 2)
        add(tally, *args)

    monkeypatch.setattr(Tally, "add", late)
    with pytest.raises(PrivacyError, match="does not last for another round"):
        trained(one, 1)
    assert Spent(tmp_path / "spent.jsonl", 1e-5).epsilon() == pytest.approx(opacus(5), rel=1e-9)


def test_steps_are_counted_before_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: object, **options: object) -> None:
        assert Spent(tmp_path / "spent.jsonl", 1e-5).steps() == [Steps(1.1, RATE, 5)]
        raise KeyboardInterrupt

    monkeypatch.setattr("ist_fed.privacy.example.gradients.Gradients.__call__", crash)
    with pytest.raises(KeyboardInterrupt):
        trained(guard(tmp_path), 1)
    assert Spent(tmp_path / "spent.jsonl", 1e-5).epsilon() == pytest.approx(opacus(5), rel=1e-9)


def test_a_line_that_a_crash_cut_short_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "spent.jsonl"
    trained(guard(tmp_path), 1)
    path.write_bytes(path.read_bytes() + b'{"round": 2, "noi')
    trained(guard(tmp_path), 2)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", ["x", "{}", '{"noise_multiplier": 1.0, "sample_rate": 0.0, "steps": 3}'])
def test_what_cannot_be_read_stops_everything(tmp_path: Path, line: str) -> None:
    (tmp_path / "spent.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match="no more is spent"):
        trained(guard(tmp_path), 1)


def test_a_count_that_cannot_be_written_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError):
        trained(guard(tmp_path / "file"), 1)


# --- A budget ---------------------------------------------------------------------------------------------------------


def test_noise_is_worked_out_for_the_whole_run_and_no_step_is_taken_beyond(tmp_path: Path) -> None:
    asked = guard(tmp_path, ExamplePrivacy(max_grad_norm=1.0, epsilon=3.0), tell=True)
    for round in (1, 2, 3, 4):
        trained(asked, round)
    assert 2.9 < asked.told <= 3.0  # type: ignore[operator]
    before = (tmp_path / "spent.jsonl").read_bytes()
    with pytest.raises(PrivacyError, match="does not last for another round"):
        trained(asked, 5)
    assert (tmp_path / "spent.jsonl").read_bytes() == before


def test_a_budget_without_end_still_takes_noise(tmp_path: Path) -> None:
    asked = guard(tmp_path, ExamplePrivacy(max_grad_norm=1.0, epsilon=1e12))
    assert asked._noise_for(30) == 0.05


def test_delta_must_be_below_one_over_the_examples(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="delta must be below"):
        trained(guard(tmp_path, ExamplePrivacy(max_grad_norm=1.0, noise_multiplier=1.0, delta=0.04)), 1)


# --- What a reply says ------------------------------------------------------------------------------------------------


def guarded(tmp_path: Path, tell: bool) -> type[InProcessGrid]:
    """A grid of clients with private examples."""

    class Grid(InProcessGrid):
        def __init__(self, clients: int, handler: object) -> None:
            super().__init__(clients, self._worker)

        def _worker(self, client: int) -> Worker:
            own = Guard(SETTINGS, tmp_path / f"{client}.jsonl", client=client, planned=9, batch_size=8, tell=tell)
            return Worker(TASK, TASK.client_data(client, 2), client=client, guard=own)

    return Grid


@pytest.mark.parametrize("tell", [False, True])
def test_a_server_learns_no_loss_and_epsilon_only_if_the_client_says_so(tmp_path: Path, tell: bool) -> None:
    run = federate(TASK, Disjoint(groups=2, min_units=2), 2, rounds=2, grid=guarded(tmp_path, tell))
    assert [report.loss != report.loss for report in run.reports] == [True, True]
    assert [report.merged for report in run.reports] == [2, 2]
    told = [dict(report.told) for report in run.reports]
    each = [{client: pytest.approx(opacus(5 * round)) for client in (0, 1)} for round in (1, 2)]
    assert told == ([{"example_epsilon": said} for said in each] if tell else [{}, {}])
    assert not same(run.after, run.before)


class Broken(Tiny):
    """Raises on examples as all are, or as only the clients' are: those that are made up lie between 0 and 1."""

    only_real = True

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if not self.only_real or float(batch[0].min()) < 0:
            raise ValueError("label 7 of Ms Smith")
        return super().loss(model, batch)


def test_why_steps_failed_stays_at_home(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = trained(guard(tmp_path), 1, task=Broken(norm="layer"))
    assert not same(arrays_of(model), initial(TASK))  # by noise
    assert "Smith" in caplog.text


def test_a_failure_of_the_machine_leaves_the_weights_and_stays_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("on the examples of Ms Smith")

    monkeypatch.setattr("ist_fed.privacy.example.optimizer.SecretOptimizer.scale_grad", fail)
    assert same(arrays_of(trained(guard(tmp_path), 1)), initial(TASK))
    assert "Smith" in caplog.text


def test_what_is_refused_costs_nothing_and_says_nothing_of_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Broken, "only_real", False)
    with pytest.raises(PrivacyError, match="first tried on made-up ones") as caught:
        trained(guard(tmp_path), 1, task=Broken(norm="layer"))
    assert "Smith" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not list(tmp_path.iterdir())


class Torn(TensorDataset):
    """Its first example cannot be read."""

    def __getitem__(self, at: int) -> tuple[Tensor, ...]:
        if at == 0:
            raise OSError("on the images of Ms Smith")
        return super().__getitem__(at)


@pytest.mark.parametrize("memory", [None, 1 << 30])
def test_a_first_example_that_cannot_be_read_counts_as_nothing_where_memory_has_a_bound(
    tmp_path: Path, memory: int | None
) -> None:
    """As on every client that is deployed: what training takes is worked out from an example's shape."""

    class Grid(InProcessGrid):
        def __init__(self, clients: int, handler: object) -> None:
            super().__init__(clients, self._worker)

        def _worker(self, client: int) -> Worker:
            own = Guard(SETTINGS, tmp_path / f"{client}.jsonl", client=client, planned=9, batch_size=8)
            data = Torn(*TASK.client_data(client, 2).tensors)
            return Worker(TASK, data, client=client, guard=own, memory=memory)

    run = federate(TASK, Disjoint(groups=2, min_units=2), 2, rounds=1, grid=Grid)
    (report,) = run.reports
    assert (report.merged, report.refused) == (2, ())


def test_no_examples_can_make_a_client_refuse(tmp_path: Path) -> None:
    """As many of each class, where all weights are zero: their mean gradient is rounding and nothing else."""
    task = Tiny(norm="none")
    data = TensorDataset(torch.rand(30, INPUTS), torch.arange(30) % 3)
    model = task.build(**SIZES)
    load_arrays(model, {name: torch.zeros_like(array) for name, array in arrays_of(model).items()})
    guard(tmp_path).train(model, task, data, Training(batch_size=30), lr=0.1, steps=1, round=1)


# --- Scenarios --------------------------------------------------------------------------------------------------------

ON = ["example_privacy.max_grad_norm=1.0", "example_privacy.noise_multiplier=1.1", "options.norm=layer"]
BUDGET = ["example_privacy.epsilon=4.0", "local_steps=30"]
SMALL = ["clients=4", "rounds=2", "local_steps=3", "sizes.hidden1=64", "sizes.hidden2=64", "rule.groups=2"]


def scenario(*changes: str) -> Scenario:
    return load_scenario("scenarios/digits.toml", [*SMALL, "record.tensorboard=false", "device=cpu", *changes])


def test_a_simulation_counts_in_its_own_folder_and_goes_on_when_resumed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", scenario(*ON))
    local.simulate(run)
    counts = [len(path.read_text().splitlines()) for path in (run.folder / "example-privacy").iterdir()]
    assert counts == [2] * 4
    assert all(line["train_loss"] is None for line in run.metrics())
    local.simulate(Run.open(run.folder, scenario(*ON, "rounds=3")), resume=True)
    counts = [len(path.read_text().splitlines()) for path in (run.folder / "example-privacy").iterdir()]
    assert counts == [3] * 4


def test_batchnorm_is_refused_before_anyone_trains(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match='norm = "layer"'):
        local.simulate(Run.create(tmp_path / "run", scenario(*ON, "options.norm=batch")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("example_privacy.noise_multiplier=0.0", "without noise nothing is private"),
        ("example_privacy.max_grad_norm=0.0", "max_grad_norm must be given"),
        ("example_privacy.noise_multiplier=1e-160", "at least 0.05"),
        ("example_privacy.delta=1.0", "between 0 and 1"),
        ("example_privacy.epsilon=-1.0", "not negative"),
        ("example_privacy.clip=1.0", "did you mean"),
        ("training.state=travels", "carry no state"),
    ],
)
def test_a_scenario_refuses_what_makes_no_sense(change: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        scenario(*ON, change)


def test_a_node_has_the_last_word(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="no folder"):
        guard_of(scenario(*ON), {}, 0)
    with pytest.raises(PrivacyError, match="trains only where its single examples are private"):
        guard_of(scenario(), {"folder": str(tmp_path), "example-epsilon": 1.0}, 0)
    assert guard_of(scenario(), {"folder": str(tmp_path)}, 0) is None
    own = guard_of(scenario(*ON), {"folder": str(tmp_path), "example-epsilon": 0.01}, 2)
    assert own is not None
    with pytest.raises(PrivacyError, match="does not last"):
        trained(own, 1)
    assert not any(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(("own", "held"), [({}, 1e-5), ({"example-delta": 1e-7}, 1e-7), ({"example-delta": 0.1}, 1e-3)])
def test_what_an_operator_allows_is_counted_at_no_larger_a_delta_than_its_own(
    tmp_path: Path, own: dict[str, float], held: float
) -> None:
    node = {"folder": str(tmp_path), "example-epsilon": 3.0, **own}
    asked = guard_of(
        scenario(*ON, "example_privacy.noise_multiplier=0.0", "example_privacy.delta=1e-3", *BUDGET), node, 2
    )
    assert asked is not None
    trained(asked, 1)
    assert 0 < Spent(tmp_path / "example-privacy-2.jsonl", held).epsilon() <= 3.0
    assert asked._epsilon == Spent(tmp_path / "example-privacy-2.jsonl", held).epsilon()


def test_a_client_with_mixed_precision_does_not_take_part(tmp_path: Path) -> None:
    with pytest.raises(IstFedError, match="float32"):
        Worker(TASK, DATA, client=0, amp="bf16", guard=guard(tmp_path))


def test_a_budget_lasts_for_the_dearest_phase() -> None:
    phased = scenario(*ON, "phases=[{rounds = 1, local_steps = 7, training.batch_size = 64}, {}]")
    made = phased.guard(0, Path("unused"))
    assert made is not None
    assert (made._planned, made._batch_size) == (14, 64)
    assert arrays_of(network()).keys() == initial(TASK).keys()

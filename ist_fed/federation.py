"""A scenario, a Grid and a run's folder: train. Every engine calls this; they differ only in the Grid."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor, nn

from ist_fed.arrays import arrays_of, build_on_meta, load_arrays
from ist_fed.batches import fetch, length
from ist_fed.board import open_board
from ist_fed.checkpoints import Checkpoint
from ist_fed.cost import cost
from ist_fed.device import pick_device
from ist_fed.errors import Interrupted, ScenarioError, nearest
from ist_fed.evaluate import evaluate, hollow, network, ready
from ist_fed.network import Network, Virtual
from ist_fed.privacy import LEDGER, Central, Ledger, mechanism
from ist_fed.privacy.example import check_network
from ist_fed.robust import Keeper
from ist_fed.round import RoundReport
from ist_fed.rules import Plan, plan_round
from ist_fed.run import Run
from ist_fed.scenario import Scenario
from ist_fed.sealed import check_cohorts
from ist_fed.seeds import seeded, torch_generator
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import Task, load_task
from ist_fed.train import Training, learning_rate

_CHECKED_UNITS = 16  # of an axis; the law holds at any sizes or at none

Line = dict[str, Any]
"""One round as a line of `metrics.jsonl`."""


def federate(
    grid: Grid,
    run: Run,
    *,
    resume: bool = False,
    on_line: Callable[[Line], None] = lambda line: None,
    ledgers: Sequence[Path] = (),
) -> None:
    """Run a scenario on the clients of a grid, and leave everything in the run's folder.

    Args:
        grid: where the clients are.
        run: its scenario is run; its folder gets metrics, checkpoints and the final model.
        resume: go on from the newest checkpoint.
        on_line: called with each round's line of metrics.
        ledgers: files in which the privacy of these clients is counted beside the run's own, whatever the run.

    Raises:
        Interrupted: Ctrl-C; a checkpoint of the last whole round was written first.
        IstFedError: what went wrong; the last whole round is saved here too.
    """
    scenario = run.scenario
    run.ask_to_stop(False)  # by whoever stopped it the last time
    task = load_task(scenario.task, scenario.options)
    if scenario.example_privacy.on:
        check_network(build_on_meta(task.build, scenario.sizes))  # before anyone trains
    recorder = _Recorder(run, task, on_line)
    private, robust = _private(run, ledgers), _robust(scenario, task)
    strategy = IndependentSubnetTraining(
        build=task.build,
        sizes=scenario.sizes,
        rule=scenario.make_rule(),
        local_steps=scenario.local_steps,
        training=scenario.training,
        seed=scenario.seed,
        declared=task.declared,
        weighting=scenario.round.weighting,
        min_nodes=scenario.round.min_clients or scenario.clients,
        min_replies=scenario.round.min_replies,
        adapt=scenario.round.adapt,
        min_limit=scenario.round.min_limit,
        privacy=private,
        network=simulated_network(scenario, task),
        secure=scenario.secure if scenario.is_secure else None,
        robust=robust,
        on_round=recorder,
        server_optimizer=scenario.server,
        phases=scenario.make_phases(),
        in_place=scenario.round.in_place,
    )
    recorder.build()
    if resume:
        state = run.restore()
        strategy.coverage.load(state.coverage)
        strategy.server.load(state.moments)
        strategy.travelling.load(state.travelling)
        for line in run.metrics():
            strategy.course.after(line["round"], scenario.rounds, line)
            if robust is not None:
                robust.resume(line)
        strategy.loans = state.loans
    else:
        run.start_over()
        check_model(scenario, task, strategy)
        state = Checkpoint(0, initial_arrays(scenario, task), strategy.coverage.state())
    recorder.begin(state, strategy, private)
    rounds = strategy.rounds(grid, state.arrays, scenario.rounds, scenario.round.deadline, first_round=state.round + 1)
    del state  # nobody holds the first arrays when there are others
    try:
        for _ in rounds:
            pass
    except KeyboardInterrupt:
        recorder.save()
        if recorder.saved == 0:
            raise Interrupted("stopped before the first round was over or saved; there is nothing to resume") from None
        raise Interrupted(
            f"stopped after round {recorder.saved} of {scenario.rounds}; its state is saved. "
            f"Resume with: ist-fed simulate --resume {run.folder}"
        ) from None
    except BaseException:
        recorder.save()
        raise
    recorder.finish()


def _private(run: Run, ledgers: Sequence[Path]) -> Central | None:
    """What keeps the scenario's promise, if it makes one."""
    scenario, settings = run.scenario, run.scenario.privacy
    if settings.mode != "central":
        return None
    promised = mechanism(settings, scenario.make_rule(), clients=scenario.clients, rounds=scenario.rounds)
    ledger = Ledger([run.folder / LEDGER, *ledgers], epsilon=settings.epsilon, delta=settings.delta)
    return Central(promised, ledger)


def _robust(scenario: Scenario, task: Task) -> Keeper | None:
    """What guards the merge, if the scenario asks for it."""
    data = task.calibration_data() if scenario.robust.loss_margin else None
    if data is None or not length(data):
        return Keeper(scenario.robust) if scenario.robust.on else None
    device, names = pick_device(scenario.device), arrays_of(build_on_meta(task.build, scenario.sizes))

    def loss(arrays: Mapping[str, Tensor]) -> float:
        own = {name: arrays[name] for name in names}  # a state that travels may stand beside
        model = ready(network(task, scenario.sizes, own, device), task)
        return evaluate(model, task, data)["loss"]

    return Keeper(scenario.robust, loss)


def initial_arrays(scenario: Scenario, task: Task) -> dict[str, Tensor]:
    """The wide network's first state, drawn from the scenario's seed."""
    with seeded(torch_generator(scenario.seed, "initial").initial_seed()):
        return arrays_of(task.build(**scenario.sizes))


def simulated_network(scenario: Scenario, task: Task) -> Virtual | None:
    """The network that `[network]` describes; None if it describes none."""
    if scenario.network == Network():
        return None

    def flops(sizes: Mapping[str, int], training: Training) -> float:
        return cost(task, sizes, training).flops

    return Virtual(scenario.network, scenario.seed, scenario.clients, flops)


def check_model(scenario: Scenario, task: Task, strategy: IndependentSubnetTraining) -> None:
    """Check the symmetry law on a few test examples, at the sizes of a small subnet, with all blocks.

    Raises:
        AxesError: an axis breaks it.
        RuleError: a rule cannot deal these sizes out to these clients.
        ScenarioError: a phase is to last until something that nobody measures, or cohorts are too small for secure
            rounds.
    """
    known = [task.metric, "loss", "train_loss", "coverage"]
    for phase in scenario.make_phases():
        for metric in phase.until.keys() - known:
            raise ScenarioError(
                f"a phase lasts until a metric is reached, but '{metric}' is none{nearest(metric, known)}"
            )
    plan, *_ = first_plans(scenario)
    sizes = {axis: min(_CHECKED_UNITS, max(1, len(units))) for axis, units in plan.subnets[0].items()}
    data = task.test_data()
    few = torch.arange(min(8, length(data))).numpy()
    batch = fetch(data, few, torch.device("cpu"))
    inputs, targets = (part.double() if part.is_floating_point() else part for part in batch)

    def function(model: nn.Module) -> Tensor:
        return task.loss(model, (inputs, targets))

    check_symmetry(task.build, sizes, strategy.axes, function)


def first_plans(scenario: Scenario) -> list[Plan]:
    """The plan of a first round with everyone, if there can be one: by the scenario's rule, and by its phases'.

    Raises:
        RuleError: a rule cannot deal these sizes out to these clients.
        ScenarioError: cohorts are too small for secure rounds.
    """
    rules = [scenario.make_rule(), *(phase.rule for phase in scenario.make_phases() if phase.rule)]
    plans = [plan_round(rule, 1, scenario.nodes(), scenario.sizes, scenario.seed) for rule in rules]
    if scenario.is_secure:
        for plan in plans:
            check_cohorts(plan, scenario.secure)
    return plans


class _Recorder:
    """Evaluates, writes a line and, when due, a checkpoint after each round."""

    def __init__(self, run: Run, task: Task, on_line: Callable[[Line], None]) -> None:
        self._run, self._task, self._on_line = run, task, on_line
        self._device = pick_device(run.scenario.device)
        self.saved = 0  # the round of the newest checkpoint
        self._private: Central | None = None
        self._clock = 0.0
        self.state = Checkpoint(0, {}, {})
        self._board: Callable[[Line], None] = lambda line: None

    def build(self) -> None:
        """Build the network that will be evaluated; once the weights are there, it shares them."""
        self._model = hollow(self._task, self._run.scenario.sizes, self._device)

    def begin(self, state: Checkpoint, strategy: IndependentSubnetTraining, private: Central | None = None) -> None:
        self.state, self.saved, self._strategy, self._private = state, state.round, strategy, private
        told = self._run.metrics()
        self._clock = told[-1].get("virtual", {}).get("total", 0.0) if told else 0.0
        if self._run.scenario.record.tensorboard:
            self._board = open_board(self._run.folder / "tensorboard", state.round)

    def __call__(self, report: RoundReport) -> dict[str, float]:
        scenario, record = self._run.scenario, self._run.scenario.record
        started = time.perf_counter()
        last = report.round == scenario.rounds
        due = last or report.round % record.evaluate_every == 0
        result = evaluate(self._served(report.arrays), self._task, self._task.test_data()) if due else {}
        evaluated = time.perf_counter()
        coverage = {name: marks.clone() for name, marks in self._strategy.coverage.state().items()}
        server, travelling = self._strategy.server.state(), self._strategy.travelling.state()
        state = Checkpoint(report.round, report.arrays, coverage, server, report.loans, travelling)
        save = last or report.round - self.saved >= record.checkpoint_every
        count = self._run.stage(state) if save else None
        seconds = {**report.seconds, "evaluate": evaluated - started, "record": time.perf_counter() - evaluated}
        line = self._line(report, result, seconds)
        self._run.record(line)
        self.state = state
        if count is not None:
            count()
            self.saved = state.round
        self._board(line)
        self._on_line(line)
        if self._run.is_asked_to_stop():
            raise KeyboardInterrupt
        return result

    def _virtual(self, report: RoundReport) -> Line:
        """Virtual seconds, of the round and of the run so far; nothing where no network is simulated."""
        if report.virtual is None:
            return {}
        self._clock += report.virtual
        return {"virtual": {"round": report.virtual, "total": self._clock}}

    def save(self) -> None:
        """Write a checkpoint of the last whole round, unless there is one, or its arrays were written over."""
        if self.state.round > self.saved and self.state.arrays:
            self._run.checkpoint(self.state)
            self.saved = self.state.round

    def finish(self) -> None:
        """Write the final network, recalibrated, and how to rebuild it."""
        scenario = self._run.scenario
        model = self._served(self.state.arrays)
        result = evaluate(model, self._task, self._task.test_data())
        arrays = arrays_of(model)
        about = {
            "task": scenario.task,
            "options": scenario.options,
            "sizes": scenario.sizes,
            "round": self.state.round,
            "metric": self._task.metric,
            **result,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": sum(array.nbytes for array in arrays.values()),
        }
        self._run.save_model(arrays, about)

    def _served(self, arrays: Mapping[str, Tensor]) -> nn.Module:
        """The assembled network, ready to be evaluated."""
        load_arrays(self._model, arrays, share=True)
        return ready(self._model, self._task)

    def _line(self, report: RoundReport, result: dict[str, float], seconds: dict[str, float]) -> Line:
        scenario, course = self._run.scenario, self._strategy.course
        line = {
            "round": report.round,
            **({"phase": course.number(report.round, scenario.rounds)} if scenario.phases else {}),
            "metric": self._task.metric,
            **result,
            "train_loss": report.loss,
            "lr": learning_rate(course.terms(report.round, scenario.rounds).training, report.round, scenario.rounds),
            "bytes_down": report.bytes_down,
            "bytes_up": report.bytes_up,
            "clients": report.clients,
            "capacities": report.capacities,
            "limits": report.limits,
            "merged": report.merged,
            "refused": [{"client": refused.client, "reason": refused.reason} for refused in report.refused],
            "coverage": report.coverage,
            "seconds": {phase: round(value, 6) for phase, value in seconds.items()},
            **self._virtual(report),
            **report.told,
        }
        if self._private is not None:
            line |= {"merged": None, "epsilon": self._private.ledger.epsilon(), "delta": scenario.privacy.delta}
        return line

"""What a run leaves on disk: a line and, when due, a checkpoint after each round; the network at the end."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ist_fed.arrays import arrays_of, load_arrays
from ist_fed.board import open_board
from ist_fed.checkpoints import Checkpoint
from ist_fed.device import pick_device
from ist_fed.errors import asking
from ist_fed.evaluate import evaluate, hollow, ready
from ist_fed.privacy import Central
from ist_fed.round import RoundReport
from ist_fed.run import Run
from ist_fed.strategy import IndependentSubnetTraining
from ist_fed.tasks import Task
from ist_fed.train import learning_rate

Line = dict[str, Any]
"""One round as a line of `metrics.jsonl`; all its fields but the task's metric are in `ist_fed.tasks.RESERVED`."""


class Recorder:
    """Evaluates, writes a line and, when due, a checkpoint after each round.

    Args:
        run: where it writes.
        task: by which it evaluates.
        on_line: called with each round's line.
    """

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

    def begin(self, state: Checkpoint, strategy: IndependentSubnetTraining, private: Central | None) -> None:
        """Go on from a state; what the strategy keeps beside the network is recorded with it."""
        self.state, self.saved, self._strategy, self._private = state, state.round, strategy, private
        told = self._run.metrics()
        self._clock = told[-1].get("virtual", {}).get("total", 0.0) if told else 0.0
        if self._run.scenario.record.tensorboard:
            self._board = open_board(self._run.folder / "tensorboard", state.round)

    def __call__(self, report: RoundReport) -> dict[str, float]:
        """Record a round; gives what was evaluated, nothing where that was not due."""
        scenario, record = self._run.scenario, self._run.scenario.record
        started = time.perf_counter()
        last = report.round == scenario.rounds
        due = last or report.round % record.evaluate_every == 0
        result = self._evaluated(self._served(report.arrays)) if due else {}
        evaluated = time.perf_counter()
        coverage = self._strategy.coverage.state()
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
            with _undisturbed():
                self._run.checkpoint(self.state)
            self.saved = self.state.round

    def finish(self) -> None:
        """Write the final network, recalibrated, and how to rebuild it."""
        scenario = self._run.scenario
        model = self._served(self.state.arrays)
        result = self._evaluated(model)
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

    def _evaluated(self, model: nn.Module) -> dict[str, float]:
        with asking("test_data()"):
            data = self._task.test_data()
        return evaluate(model, self._task, data)

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


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a state be saved although whoever asked for the end asks once more."""
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

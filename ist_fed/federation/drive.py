"""A scenario, a Grid and a run's folder: train, from the first round or the newest checkpoint to the last round."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote

from flwr.serverapp import Grid

from ist_fed.arrays import build_on_meta
from ist_fed.checkpoints import Checkpoint
from ist_fed.errors import Interrupted
from ist_fed.federation.assemble import initial_arrays, make_private, make_robust, make_strategy
from ist_fed.federation.checks import check_model
from ist_fed.federation.recorder import Line, Recorder
from ist_fed.privacy.example import check_network
from ist_fed.run import Run
from ist_fed.tasks import load_task


def federate(
    grid: Grid,
    run: Run,
    *,
    resume: bool = False,
    on_line: Callable[[Line], None] = lambda line: None,
    ledgers: Sequence[Path] = (),
    command: str = "ist-fed simulate",
) -> None:
    """Run a scenario on the clients of a grid, and leave everything in the run's folder.

    Args:
        grid: where the clients are.
        run: its scenario is run; its folder gets metrics, checkpoints and the final model.
        resume: go on from the newest checkpoint.
        on_line: called with each round's line of metrics.
        ledgers: files in which the privacy of these clients is counted beside the run's own, whatever the run.
        command: by which it goes on in the same way when it was stopped, for the message.

    Raises:
        Interrupted: Ctrl-C; a checkpoint of the last whole round was written first.
        IstFedError: what went wrong; the last whole round is saved here too.
    """
    with run.held():
        _train(grid, run, resume, on_line, ledgers, command)


def _train(
    grid: Grid, run: Run, resume: bool, on_line: Callable[[Line], None], ledgers: Sequence[Path], command: str
) -> None:
    scenario = run.scenario
    run.ask_to_stop(False)  # by whoever stopped it the last time
    task = load_task(scenario.task, scenario.options)
    if scenario.example_privacy.on:
        check_network(build_on_meta(task.build, scenario.sizes))  # before anyone trains
    recorder = Recorder(run, task, on_line)
    private, robust = make_private(run, ledgers), make_robust(scenario, task)
    strategy = make_strategy(scenario, task, private, robust, recorder)
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
            f"Resume with: {command} --resume {quote(str(run.folder))}"
        ) from None
    except BaseException:
        recorder.save()
        raise
    recorder.finish()
